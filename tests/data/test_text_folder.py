import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax import config
from aigc_jax.data import encoding, source, text_folder
from aigc_jax.data.identity import changes
from aigc_jax.data.text import of_text
from aigc_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def _text_config(path, tokenizer="char"):
    return config.text(str(path), block_size=2, tokenizer=tokenizer)


def _load(path, split="train", tokenizer="char"):
    return source.load(_text_config(path, tokenizer), split)


def _text(dataset):
    return dataset.tokenizer.decode(dataset.arrays["tokens"])


def _write(path, texts):
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8", newline="")


def test_a_text_is_cut_in_three_and_every_split_knows_every_character(tmp_path):
    text = "".join(chr(0x100 + i) for i in range(100))
    _write(tmp_path, {"book.txt": text})
    parts = [_load(tmp_path / "book.txt", split) for split in SPLITS]
    assert "".join(_text(part) for part in parts) == text
    assert [len(_text(part)) for part in parts] == [90, 5, 5]
    assert parts[0].tokenizer.vocab_size == 100
    assert _text(_load(tmp_path / "book.txt", "train[50%:]")) == text[45:90]
    assert "100 characters; 100 different tokens (char); train 90" in parts[0].about


@settings(deadline=None)
@given(
    text=st.text("aé中🙂\n", min_size=60, max_size=200),
    percent=st.integers(10, 90),
    tokenizer=st.sampled_from(["char", "byte"]),
)
def test_no_split_and_no_slice_cuts_a_character_or_loses_one(text, percent, tokenizer):
    """Splits and slices, put together again, are the text, token by token."""
    made = of_text({"": text}, tokenizer, {}, "")
    tokens = [made.whole(split)["tokens"] for split in SPLITS]
    whole = made.tokenizer.encode(text)
    np.testing.assert_array_equal(np.concatenate(tokens), whole)
    assert "".join(made.tokenizer.decode(part) for part in tokens) == text
    place = made.tokenizer.boundary(whole, len(whole) * percent // 100)
    halves = [made.tokenizer.decode(half) for half in (whole[:place], whole[place:])]
    assert "".join(halves) == text
    assert len(whole) * percent // 100 - place < 4


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_percentages_of_a_text_are_of_its_tokens(tmp_path, tokenizer):
    _write(tmp_path, {"train.txt": "é" * 50 + "a" * 50, "test.txt": "aé" * 9})
    low, high = (_load(tmp_path, s, tokenizer) for s in ("train[:50%]", "train[50%:]"))
    assert _text(low) + _text(high) == "é" * 50 + "a" * 50
    assert len(low.arrays["tokens"]) == {"char": 50, "byte": 74}[tokenizer]  # of 100 and 150


def test_parts_that_are_joined_get_nothing_in_between(tmp_path):
    _write(tmp_path, {"train.txt": "abcd" * 25, "val.txt": "dcba" * 5, "test.txt": "bbbb"})
    for split, expected in {
        "validation+test": "dcba" * 5 + "bbbb",
        "train[-4:]+train[:4]": "abcdabcd",
        "all": "abcd" * 25 + "dcba" * 5 + "bbbb",
    }.items():
        joined = _load(tmp_path, split)
        assert sorted(_text(joined)) == sorted(expected)
        assert joined.tokenizer.characters == "abcd"


def test_a_folder_of_texts_is_joined_in_order(tmp_path):
    _write(tmp_path, {"b.md": "2" * 60, "a.txt": "1" * 50, "c.log": "no", ".git/d.txt": "no"})
    parts = [_load(tmp_path, split) for split in SPLITS]
    assert "".join(_text(part) for part in parts) == "1" * 50 + "\n" + "2" * 60
    assert "2 texts" in parts[0].about
    assert "skipped: 1 .log, 1 hidden or made by the system; 3 different" in parts[0].about


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("Train.txt", "VAL.md", "Testing.TXT"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("train/a.txt", "dev/b.txt", "test/c.txt"),
    ],
)
def test_files_named_after_splits_are_the_splits(tmp_path, names):
    _write(tmp_path, dict(zip(names, ("one", "two", "three"))))
    assert [_text(_load(tmp_path, split)) for split in SPLITS] == ["one", "two", "three"]


def test_a_readme_or_a_licence_beside_the_splits_is_left_out_and_named(tmp_path):
    stray = {"README.md": "no", "LICENSE.txt": "no", "Readme_de.txt": "no", "CHANGELOG.md": "no"}
    _write(tmp_path, {"train.txt": "to be " * 9, "val.txt": "or not", **stray})
    train = _load(tmp_path)
    assert _text(train) == "to be " * 9
    assert "about the set, not of it (README.md)" in train.about
    assert changes(train.identity, _load(tmp_path).identity) == ""
    _write(tmp_path, {"val.txt": "or nut"})
    assert changes(train.identity, _load(tmp_path).identity) == "1 file edited (val.txt)"


@pytest.mark.parametrize(
    "names",
    [("train.txt", "more.txt"), ("train/a.txt", "b.txt"), ("test.txt", "one.txt", "two.txt")],
)
def test_texts_beside_the_splits_are_refused_with_both_readings(tmp_path, names):
    _write(tmp_path, dict.fromkeys(names, "abc"))
    with pytest.raises(UserError, match="two ways"):
        _load(tmp_path)


@pytest.mark.parametrize("large", [False, True])
def test_a_separator_that_never_occurs_is_refused(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(text_folder, "LARGE", 1)
        pieces = encoding.pieces
        monkeypatch.setattr(encoding, "pieces", lambda path: pieces(path, size=1))
    _write(tmp_path, {"a.txt": "one" * 20, "b.txt": "two<\n|>three" * 20})
    section = _text_config(tmp_path)
    section.documents = "<\n|>"  # in one file, and over two pieces of it
    assert "documents" in source.open_source(section).about
    for wrong, more in (("blank-lines", 'did you mean "blank_lines"'), ("</s>", "known: blank_l")):
        section.documents = wrong
        with pytest.raises(UserError, match=f'"{wrong}": no text holds this separator; {more}'):
            source.open_source(section)


def test_windows_line_breaks_are_line_breaks_and_pipes_are_left_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\r\ncd\rab\n" * 9)
    os.mkfifo(tmp_path / "b.txt")
    train = _load(tmp_path)
    assert train.tokenizer.characters == "\nabcd"
    assert "1 neither a file nor a folder" in train.about


def test_a_folder_without_texts_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match=r"holds no texts .*; it is empty"):
        _load(tmp_path)
    (tmp_path / "a.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds no texts .*; it holds 1 \.tex"):
        _load(tmp_path)


def test_training_examples_are_those_that_are_asked_for(tmp_path):
    _write(tmp_path, {"book.txt": "abcdefgh" * 20})
    data_config = _text_config(tmp_path / "book.txt")
    data_config.stride = 1
    held_out, train = (source.load(data_config, "train", train=t) for t in (False, True))
    assert train.window.stride == 1
    assert held_out.window.stride == 2
    assert source.load(data_config, "train").size == train.size
