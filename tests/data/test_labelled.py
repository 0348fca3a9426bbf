"""Labelled texts: tables and folders, splits that share no text, bad rows by their names."""

from collections import Counter

import numpy as np
import pytest

from aigc_jax.config import text
from aigc_jax.data import source
from aigc_jax.data.tokenizer import ByteTokenizer
from aigc_jax.errors import UserError


def opened(path, labels="text,label", tokenizer="byte", block_size=16, **values):
    section = text(str(path), labels=labels, tokenizer=tokenizer, block_size=block_size, **values)
    return source.open_source(section)


def read(of, split):
    """The texts of a split, and the names of their classes."""
    found, names = of.whole(split), of.features["label"].names
    texts = [of.tokenizer.decode(row[row >= 0]) for row in found["tokens"]]
    return [(text, names[label]) for text, label in zip(texts, found["label"])]


def rows(count, start=0):
    return [(f"text {i}", "ham" if i % 4 else "spam") for i in range(start, start + count)]


def write(path, of, header="text,label"):
    lines = [header] if header else []
    path.write_text("\n".join(lines + [f"{t},{c}" for t, c in of]) + "\n", encoding="utf-8")


def test_one_file_is_shared_out_by_class_and_every_text_is_in_one_split(tmp_path):
    write(tmp_path / "a.csv", rows(200))
    found = opened(tmp_path / "a.csv")
    assert found.sizes == {"train": 180, "validation": 10, "test": 10}
    assert found.features["label"].names == ("ham", "spam")
    everything = [row for split in found.sizes for row in read(found, split)]
    assert sorted(everything) == sorted(rows(200))
    for split, size in found.sizes.items():
        assert Counter(c for _, c in read(found, split))["spam"] == pytest.approx(size / 4, abs=1)
    again = opened(tmp_path / "a.csv").whole("test")
    np.testing.assert_array_equal(again["tokens"], found.whole("test")["tokens"])


def test_copies_and_texts_of_two_classes_are_left_out_and_counted(tmp_path):
    more = [("text  0", "spam"), ("text 1", "spam")]
    write(tmp_path / "a.csv", rows(60) + more)
    found = opened(tmp_path / "a.csv")
    assert sum(found.sizes.values()) == 59
    assert "2 copies of texts left out; 1 texts of two classes left out" in found.about


def test_named_splits_stay_and_no_text_is_trained_on_that_is_held_out(tmp_path):
    write(tmp_path / "train.csv", rows(30))
    write(tmp_path / "dev.csv", rows(6, start=28))
    write(tmp_path / "test.csv", rows(4, start=32))
    found = opened(tmp_path)
    assert found.sizes == {"validation": 4, "test": 4, "train": 28}
    texts = [{text for text, _ in read(found, split)} for split in found.sizes]
    assert sum(map(len, texts)) == len(set.union(*texts))
    assert "2 texts of validation left out" in found.about
    assert "2 texts of train left out" in found.about


def test_quotes_tabs_columns_by_number_and_folders_give_the_same(tmp_path):
    wanted = sorted([('say "no", twice', "a"), ("plain", "b"), ("x\ty", "a"), ("中文", "b")])
    (tmp_path / "q.csv").write_text(
        'label,id,text\na,1,"say ""no"", twice"\nb,2,plain\na,3,"x\ty"\n\nb,4,中文\n'
    )
    (tmp_path / "q.tsv").write_text('a\tsay "no", twice\nb\tplain\nb\t中文\n')
    for name, text_ in (("a/1", wanted[1][0]), ("b/2", "plain"), ("a/3", "x\ty"), ("b/4", "中文")):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / f"{name}.txt").write_text(text_ + "\n")
    for path, labels, expected in (
        ("q.csv", "text,label", wanted),
        ("q.tsv", "2,1", [row for row in wanted if "\t" not in row[0]]),
        ("c", "folders", wanted),
    ):
        found = opened(tmp_path / path, labels)
        assert sorted(row for split in found.sizes for row in read(found, split)) == expected
        assert isinstance(found.tokenizer, ByteTokenizer)


def test_texts_are_filled_and_cut_to_one_length(tmp_path):
    write(tmp_path / "a.csv", [("a" * 40, "x"), ("bb", "y"), ("c" * 16, "x"), ("dd", "y")])
    found = opened(tmp_path / "a.csv")
    lengths = [row for split in found.sizes for row in found.whole(split)["tokens"]]
    assert {row.shape for row in lengths} == {(16,)}
    assert sorted((row >= 0).sum() for row in lengths) == [2, 2, 16, 16]
    assert "1 texts (25.0%) cut to 16 tokens" in found.about


def test_bert_puts_its_tokens_around_a_text_and_a_cut_one_keeps_them(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    write(tmp_path / "a.csv", [("Good film", "1"), ("bad film bad film", "0"), ("bad", "0")])
    found = opened(tmp_path / "a.csv", tokenizer=str(tmp_path), block_size=5)
    all_rows = [row.tolist() for split in found.sizes for row in found.whole(split)["tokens"]]
    assert sorted(all_rows) == [[2, 5, 7, 3, -1], [2, 6, 3, -1, -1], [2, 6, 7, 6, 3]]
    with pytest.raises(UserError, match="leaves no room for a text between the 2 tokens"):
        opened(tmp_path / "a.csv", tokenizer=str(tmp_path), block_size=2)


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    write(tmp_path / "a.csv", [(f"text {i}", str(i % 11)) for i in range(60)])
    names = opened(tmp_path / "a.csv").features["label"].names
    assert names == tuple(map(str, range(11)))


def test_bad_rows_are_each_named_or_left_out_and_counted(tmp_path):
    lines = ["text,label", "a,x", "b", ",x", "c,", 'd,"x" y', "e,x,z", "f,y", "g,y"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as error:
        opened(tmp_path / "a.csv")
    line = str(error.value)
    assert "\n" not in line
    for words in (
        "line 3: 1 columns, and 2 are expected",
        "line 4: the text is empty",
        "line 5: the class is empty",
        "line 6: ",
        "line 7: 3 columns",
    ):
        assert words in line
    assert "data.on_bad=skip" in line
    found = opened(tmp_path / "a.csv", on_bad="skip")
    assert sum(found.sizes.values()) == 3
    assert "5 bad rows left out, such as" in found.about


def quoted(start, stop, between=90, header="text,label"):
    """A table in which a quote opens in the third line, `start`, and maybe ends in `stop`."""
    later = [f"later {i},{'pos' if i % 2 else 'neg'}" for i in range(between)]
    return "\n".join([header, "good,pos", start, *later, *stop, "last,neg"]) + "\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (quoted('"Hello he said,pos', []), "lines 3 to 94: unexpected end of data"),
        (quoted('"Hello he said,pos', ['"She" left,pos']), "lines 3 to 94: "),
        (
            quoted('"Hello he said,pos', ['he left",neg']),
            "lines 3 to 94: 92 of its lines are whole",
        ),
        (quoted('"Hello he said,pos', ['he left",a,neg']), "lines 3 to 94: 3 columns"),
        (quoted("good,pos", [], header='"text,label'), "lines 1 to 94: unexpected end"),
    ],
)
def test_a_quote_that_swallows_rows_is_refused_and_named_in_any_case(content, says, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    for on_bad in ("stop", "skip"):
        with pytest.raises(UserError, match=says) as error:
            opened(tmp_path / "a.csv", on_bad=on_bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("stop", [['he left",neg'], ['"She" left,pos']])
def test_a_quote_that_swallows_a_few_rows_is_bad_and_its_lines_are_counted(stop, tmp_path):
    (tmp_path / "a.csv").write_text(quoted('"Hello he said,pos', stop, between=4) + "more,pos\n")
    with pytest.raises(UserError, match=r"lines 3 to 8: .*data\.on_bad=skip"):
        opened(tmp_path / "a.csv")
    found = opened(tmp_path / "a.csv", on_bad="skip")
    assert "1 bad rows of 6 lines left out, such as" in found.about
    assert sum(found.sizes.values()) == 3


@pytest.mark.parametrize("labels", ["text,label", "label,text"])
def test_long_texts_of_many_lines_are_texts(labels, tmp_path):
    text_ = "\n".join(f"verse {i}, and more\npos" for i in range(80))
    header, row = labels, '"{}",{}' if labels.startswith("text") else '{1},"{0}"'
    rows_ = [
        row.format(words, name) for words, name in ((text_, "pos"), ("b", "neg"), ("c", "pos"))
    ]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows_]) + "\n")
    found = opened(tmp_path / "a.csv", block_size=4096)
    assert (text_, "pos") in [row for split in found.sizes for row in read(found, split)]
    assert "one text has 160 lines (" in found.about
    assert "a.csv, lines 2 to 161)" in found.about


@pytest.mark.parametrize("names", [("train.csv", "train.tsv"), ("train.csv", "train/a.csv")])
def test_a_table_that_is_there_twice_is_refused(names, tmp_path):
    for name in (*names, "test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tab = name.endswith("tsv")
        of = [(words, label) for words, label in rows(20)]
        write(tmp_path / name, of)
        if tab:
            content = (tmp_path / name).read_text()
            (tmp_path / name).write_text(content.replace(",", "\t"))
    with pytest.raises(UserError, match=r"holds both `train.*`, `train.*`, for one split"):
        opened(tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path):
    write(tmp_path / "a.csv", rows(20))
    for name in ("b.jsonl", "c.xlsx", "ham/1.md", "ham/2.txt", "spam/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text {name}")
    assert "; skipped: 2 .txt, 1 .jsonl, 1 .md, 1 .xlsx; " in opened(tmp_path).about
    (tmp_path / "texts").mkdir()
    for name in ("ham", "spam"):
        (tmp_path / name).rename(tmp_path / "texts" / name)
    assert "; skipped: 1 .md; " in opened(tmp_path / "texts", "folders").about


@pytest.mark.parametrize(
    ("content", "labels", "says"),
    [
        (b"text,class\na,x\nb,y\n", "text,label", 'no column "label"; did you mean|known: '),
        (b"text,label\na,x\nb,x\n", "text,label", 'every text is of the class "x"'),
        (
            b"text,label\n\xe9t\xe9 \xe0 la,x\nb,y\n",
            "text,label",
            "is not UTF-8.*looks like CP1252",
        ),
        (b"text,label\n", "text,label", "holds no texts with a class"),
        (b"text,label\na,x\n", "text", "write the columns of text and class"),
        (b"text,label\na,x\n", "text,2", "give two names, or two numbers"),
        (b"text,label\na,x\n", "folders", "is no folder"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(content, labels, says, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        opened(tmp_path / "a.csv", labels)
    assert "\n" not in str(error.value)


def test_swapped_columns_are_noticed(tmp_path):
    write(tmp_path / "a.csv", rows(60))
    with pytest.raises(UserError, match="60 different classes of 60 texts"):
        opened(tmp_path / "a.csv", "label,text")


def test_texts_beside_the_folders_of_classes_are_refused(tmp_path):
    for name in ("train/a/1", "train/b/2", "train/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("some text")
    with pytest.raises(UserError, match=r"lies in no folder of a class; write SPLIT/CLASS/3\.txt"):
        opened(tmp_path, "folders")


def test_keys_that_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.labels is for files and folders"):
        opened("pydoc_text")
    with pytest.raises(UserError, match=r"data\.on_bad of texts is for those with data\.labels"):
        opened("pydoc_text", "", on_bad="skip")
    write(tmp_path / "a.csv", rows(8))
    with pytest.raises(UserError, match="exclude each other"):
        opened(tmp_path / "a.csv", documents="files")
