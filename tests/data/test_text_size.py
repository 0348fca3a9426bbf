"""Bits per byte count the raw text that the evaluated tokens stand for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from aigc_jax import config as config_lib
from aigc_jax.data import source, subwords
from aigc_jax.data.text_size import loses, text_size
from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, IdTokenizer
from aigc_jax.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(TEXTS, st.sampled_from(["char", "byte"]))
def test_the_size_is_that_of_the_raw_text(text, kind):
    tokenizer = CharTokenizer.of(text) if kind == "char" else ByteTokenizer()
    ids = tokenizer.encode(text)
    size = text_size(tokenizer, ids)
    assert size
    assert size == (len(ids), len(text.encode()), len(text))
    # Every tokenizer says the same of a model that gives the whole text a probability of e^-100.
    bits = size.bits(100.0 / len(ids))
    assert bits["bits_per_byte"] == pytest.approx(100 / math.log(2) / len(text.encode()))
    assert bits["bits_per_character"] == pytest.approx(100 / math.log(2) / len(text))


def test_a_uniform_guess_among_bytes_takes_eight_bits():
    ids = ByteTokenizer().encode("naïve, déjà vu")
    size = text_size(ByteTokenizer(), ids)
    assert size
    assert size.bits(math.log(256))["bits_per_byte"] == pytest.approx(8)


def test_tokens_that_are_no_text_have_none():
    assert text_size(IdTokenizer(5), np.arange(5)) is None


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_each_token_that_an_evaluation_predicts_counts_once(tmp_path, tokenizer):
    text = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    config = config_lib.text(
        str(tmp_path / "text.txt"), tokenizer=tokenizer, block_size=16, stride=7
    )
    data = source.load(config, "validation")
    predicted = data.fetch(np.arange(data.size))["tokens"][:, 1:].reshape(-1)
    raw = bytes(predicted.astype(np.uint8)) if tokenizer == "byte" else b""
    raw = raw or data.tokenizer.decode(predicted).encode()
    assert data.text_size
    assert data.text_size[:2] == (len(predicted), len(raw))
    assert source.load(config, "train", train=True).text_size is None  # windows overlap


PIECES = subwords.train(["the quick brown fox, 中文的詩, über naïve " * 5], 300)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from([ByteTokenizer(), PIECES]))
def test_what_is_left_out_is_the_first_token_of_each_document(texts, tokenizer):
    """The rest of a text that is cut inside a character counts by the bytes that are there."""
    parts = [tokenizer.encode(text) for text in texts]
    begins = np.concatenate([np.arange(len(ids)) == 0 for ids in parts])
    size = text_size(tokenizer, np.concatenate(parts), begins)
    whole = [text_size(tokenizer, ids) for ids in parts]
    first = [bytes_of(tokenizer, ids[0]) for ids in parts]
    num_bytes = sum(w.bytes for w in whole) - sum(map(len, first))
    characters = sum(w.characters for w in whole)
    characters -= sum(byte & 0xC0 != 0x80 for piece in first for byte in piece)
    assert (size is None) == (num_bytes == 0 or characters == 0)
    assert size is None or size == (sum(map(len, parts)) - len(parts), num_bytes, characters)


ANY = "".join(map(chr, [*range(0x100), *range(0x100, 0x800, 0x40), *range(0x800, 0xD800, 0x1000)]))
ANY += "".join(map(chr, [0xD000, 0xE000, 0xF000, 0x10000, 0x40000, 0x80000, 0xC0000, 0x100000]))
LETTERS = "".join(word for word, _ in ByteLevel(False, use_regex=False).pre_tokenize_str(ANY))
BYTE_OF = dict(zip(LETTERS, ANY.encode(), strict=True))


def bytes_of(tokenizer, token):
    """The raw bytes of a token, by the letters that the library writes for each byte."""
    if isinstance(tokenizer, ByteTokenizer):
        return bytes([token])
    letters = Tokenizer.from_str(tokenizer.definition).id_to_token(int(token)) or ""
    return bytes(BYTE_OF[letter] for letter in letters)


def test_of_packed_documents_the_predicted_tokens_count(tmp_path):
    """Two lines are two documents of 3 and 5 bytes and their ends; each first byte is left out."""
    (tmp_path / "text.txt").write_text("abc\n\nüöd\n\n" * 300, encoding="utf-8")
    config = config_lib.text(
        str(tmp_path / "text.txt"), tokenizer="bpe:257", block_size=16, documents="\n\n"
    )
    data = source.load(config, "validation")
    rows = data.fetch(np.arange(data.size))
    tokens, segments = (rows[name] for name in ("tokens", "segments"))
    predicted = tokens[:, 1:][segments[:, 1:] == segments[:, :-1]]
    end = data.tokenizer.end_token
    assert data.text_size.tokens == len(predicted)
    assert data.text_size.bytes == (predicted != end).sum()  # a byte a token
    (tmp_path / "text.txt").write_text("a\n\nb\n\n" * 300)
    config.tokenizer = "char"  # which has no token for the end of a document
    with pytest.raises(UserError, match=r"every document of .* is one token"):
        source.load(config, "validation")


def of_words(**parts):
    """A tokenizer of a few words, with other parts."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "A": 5}
    library = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
    for name, part in parts.items():
        setattr(library, name, part)
    return subwords.SubwordTokenizer(library.to_str())


SPACES = {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()}


def test_what_does_not_give_the_text_back_has_no_size():
    """Else a tokenizer that drops capitals or spaces would look like a better model."""
    whole = of_words(**SPACES)
    text = "a b  A a"
    ids = whole.encode(text)
    assert text_size(whole, ids) == (len(ids), len(text), len(text))
    assert text_size(whole, whole.encode("a unknown")) is None
    for parts in (
        {**SPACES, "normalizer": normalizers.Lowercase()},
        {**SPACES, "pre_tokenizer": pre_tokenizers.WhitespaceSplit()},
        {**SPACES, "pre_tokenizer": pre_tokenizers.Split(" ", "removed")},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
    ):
        lossy = of_words(**parts)
        assert loses(lossy)
        assert text_size(lossy, lossy.encode("a b")) is None
    assert not any(map(loses, (whole, PIECES, ByteTokenizer(), CharTokenizer.of("ab"))))
