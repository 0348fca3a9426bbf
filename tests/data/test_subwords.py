"""Tokenizers of the library, and texts made streams of tokens."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax import config
from aigc_jax.data import catalog, encoding, source, subwords, text, text_folder
from aigc_jax.data.subwords import END_OF_TEXT
from aigc_jax.data.text import of_text
from aigc_jax.data.tokenizer import from_json, tokenizer_of
from aigc_jax.errors import UserError

WORDS = "the cat sat on the mat, and the dog sat on the cat.\n\n你好，世界。 it's 1234 times\n" * 20
BPE = subwords.train([WORDS], 300)
WORDPIECE = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "[SEP]": 3, "cat": 4, "##s": 5, "the": 9},
    },
}


@given(st.text(), st.integers(0, 2000))
def test_any_text_comes_back_and_its_parts_are_encoded_as_the_whole(some, place):
    whole = WORDS[place : place + 60] + some + WORDS[:60]
    ids = BPE.encode(whole)
    assert BPE.decode(ids) == whole
    assert ids.max(initial=0) < BPE.vocab_size
    assert ids.tolist() == BPE._library.encode(whole, add_special_tokens=False).ids
    cut = BPE.last_cut(whole)
    parts = [BPE.encode(whole[:cut]), BPE.encode(whole[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), ids)
    start = BPE.boundary(ids, len(ids) // 2)
    assert BPE.decode(ids[:start]) + BPE.decode(ids[start:]) == whole


def test_long_texts_are_encoded_in_parts_as_the_whole(monkeypatch):
    expected = BPE._library.encode(WORDS, add_special_tokens=False).ids
    monkeypatch.setattr(subwords, "_PIECE", 7)
    assert len(subwords._cut(WORDS)) > 100
    assert BPE.encode(WORDS).tolist() == expected


def test_training_is_deterministic_learns_and_survives_storage():
    assert subwords.train([WORDS], 300) == BPE
    assert from_json(BPE.to_json()) == BPE
    assert BPE.vocab_size == 300
    assert len(BPE.encode(WORDS)) < len(WORDS.encode()) / 3
    assert BPE.decode([BPE.end_token]) == END_OF_TEXT


def test_a_vocabulary_with_holes_counts_to_its_largest_id(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDPIECE))
    found = tokenizer_of(str(tmp_path), [])
    assert (found.vocab_size, found.mask_token, found.end_token) == (10, 2, 3)
    assert found.encode("the cats zzz").tolist() == [9, 4, 5, 1]
    del WORDPIECE["model"]["unk_token"]
    (tmp_path / "other.json").write_text(
        json.dumps({**WORDPIECE, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})
    )
    with pytest.raises(UserError, match=r'1 characters outside .*: "b"'):
        tokenizer_of(str(tmp_path / "other.json"), []).encode("aab")


def test_gpt2s_files_are_read(tmp_path):
    model = json.loads(BPE.definition)["model"]
    (tmp_path / "encoder.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "vocab.bpe").write_text(f"#version: 0.2\n{merges}\n")
    found = tokenizer_of(str(tmp_path), [])
    np.testing.assert_array_equal(found.encode(WORDS), BPE.encode(WORDS))
    assert found.end_token == BPE.end_token


def test_the_lines_of_a_vocabulary_end_at_line_feeds_and_marks_are_no_tokens(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "\x0c", "b"]
    for mark, end in (("", "\n"), ("\ufeff", "\r\n"), ("", "")):
        content = mark + (end or "\n").join(words) + end
        (tmp_path / "vocab.txt").write_bytes(content.encode())
        found = tokenizer_of(str(tmp_path), [])
        assert found.vocab_size == len(words)
        assert found.encode("b").tolist() == [7]
    (tmp_path / "tokenizer_config.json").write_text("\ufeff" + json.dumps({"do_lower_case": False}))
    assert tokenizer_of(str(tmp_path), []).encode("B").tolist() == [1]
    (tmp_path / "tokenizer.json").write_text("\ufeff" + BPE.definition)
    assert tokenizer_of(str(tmp_path), []) == BPE


def test_a_space_before_the_first_word_is_put_where_the_settings_of_gpt2s_files_say_so(tmp_path):
    parts = json.loads(BPE.definition)["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n")
    plain = tokenizer_of(str(tmp_path), [])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    spaced = tokenizer_of(str(tmp_path), [])
    assert spaced.encode(WORDS).tolist() == plain.encode(" " + WORDS).tolist()
    assert spaced.encode(WORDS).tolist() != plain.encode(WORDS).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"do_lower_case": "no"}', "do_lower_case=no is neither true nor false"),
        ('{"strip_accents": 1}', "strip_accents=1 is neither true nor false"),
        ("{broken", "cannot read .*tokenizer_config.json"),
        ("[1]", "is no JSON object"),
    ],
)
def test_settings_that_mean_nothing_are_refused(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\n")
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizer_of(str(tmp_path), [])


def test_a_mask_is_no_id_that_the_vocabulary_has_already(tmp_path):
    words = {"[UNK]": 0, "a": 1, "b": 2, "c": 4}  # 3 is a hole: the library would give 4 again
    definition = {"model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    found = tokenizer_of(str(tmp_path), [])
    assert found.with_mask(found.vocab_size + 1).mask_token in (None, found.vocab_size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bpe", "write the number of tokens"),
        ("bpe:100", "give 257 to"),
        ("nowhere/x.json", "there is no tokenizer"),
        ("chars", 'did you mean "char"'),
        (".", "holds no tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        tokenizer_of(name, ["text"])


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json: this is no tokenizer\.json"):
        tokenizer_of(str(tmp_path / "bad.json"), [])


def test_bpe_learns_from_nothing_that_is_held_out():
    parts = {"train": "aaaa bbbb\n" * 9, "test": "zyzyzy zyzyzy\n" * 9}
    found = of_text(parts, "bpe:300", {}, "")
    assert found.tokenizer == subwords.train([parts["train"]], 300)
    whole = "".join(parts.values())
    held_out = of_text({"": whole * 3}, "bpe:300", {}, "").tokenizer
    assert held_out == subwords.train([(whole * 3)[: round(len(whole) * 2.7)]], 300)


DOCUMENTS = ["one 一", "two\nlines", "three"]


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe:260"])
def test_documents_are_told_apart(tokenizer, tmp_path):
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.txt").write_text(document)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "all.txt").write_text("\n\n".join(DOCUMENTS) + "\n\n")
    section = config.text(str(tmp_path / "all"), tokenizer=tokenizer, documents="blank_lines")
    found = source.open_source(section)
    whole = {
        name: np.concatenate([found.whole(s)[name] for s in found.sizes])
        for name in ("tokens", "begins")
    }
    made = found.tokenizer
    end = [made.end_token] if tokenizer.startswith("bpe") else []
    parts = [[*end, *made.encode(document), *end] for document in DOCUMENTS]
    assert whole["tokens"].tolist() == [i for part in parts for i in part]
    assert np.flatnonzero(whole["begins"]).tolist() == np.cumsum([0, *map(len, parts)])[:3].tolist()
    section = config.text(str(tmp_path), tokenizer=tokenizer, documents="files", block_size=4)
    data = source.load(section, "train")
    batch = data.fetch(np.arange(data.size))
    assert batch["segments"].shape == batch["tokens"].shape == (data.size, 5)
    begins = data.arrays["begins"]
    assert (np.diff(batch["segments"][0]) == begins[1:5]).all()


@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_a_text_larger_than_memory_gives_the_same_tokens_from_a_file(
    tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text(WORDS)
    (tmp_path / "b.txt").write_text(WORDS[50:].replace("\n", "\r\n"), newline="")
    section = config.text(str(tmp_path), tokenizer=tokenizer)
    small = source.open_source(section)
    monkeypatch.setattr(text_folder, "LARGE", 100)
    pieces = encoding.pieces
    monkeypatch.setattr(encoding, "pieces", lambda path: pieces(path, size=10))
    large = source.open_source(section)
    assert large.tokenizer == small.tokenizer
    for split in small.sizes:
        np.testing.assert_array_equal(large.whole(split)["tokens"], small.whole(split)["tokens"])
    again = source.open_source(section).whole("train")["tokens"]
    assert not again.flags.writeable  # it is a file
    (tmp_path / "a.txt").write_text("the cat " + WORDS)
    assert source.open_source(section).sizes != large.sizes


def test_tokens_that_take_long_to_make_are_made_once(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text(WORDS)
    first = catalog.tokenise(str(tmp_path / "book.txt"), "bpe:280")
    assert first["vocab_size"] == 280
    monkeypatch.setattr(text, "_build", None)
    again = source.open_source(config.text(str(tmp_path / "book.txt"), tokenizer="bpe:280"))
    assert again.sizes == first["tokens"]


@settings(deadline=None)
@given(st.lists(st.text("ab \n", max_size=8), max_size=6), st.sampled_from(["|", "blank_lines"]))
def test_no_document_is_lost(documents, separator):
    documents = [d.replace("\n\n", "") for d in documents]
    whole = ("|" if separator == "|" else "\n\n").join(documents)
    found = "".join(document for _, document in text.split_documents(whole, separator)())
    assert "".join(found.split()) == "".join(whole.replace("|", "").split())
