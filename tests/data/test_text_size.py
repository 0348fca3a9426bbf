"""Bits per byte count the raw text that the evaluated tokens stand for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_jax import config as config_lib
from aigc_jax.data import source
from aigc_jax.data.text_size import text_size
from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, IdTokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)


@given(TEXTS, st.sampled_from(["char", "byte"]))
def test_the_size_is_that_of_the_raw_text(text, kind):
    tokenizer = CharTokenizer.of(text) if kind == "char" else ByteTokenizer()
    ids = tokenizer.encode(text)
    size = text_size(tokenizer, ids)
    assert size == (len(ids), len(text.encode()), len(text))
    # Every tokenizer says the same of a model that gives the whole text a probability of e^-100.
    bits = size.bits(100.0 / len(ids))
    assert bits["bits_per_byte"] == pytest.approx(100 / math.log(2) / len(text.encode()))
    assert bits["bits_per_character"] == pytest.approx(100 / math.log(2) / len(text))


def test_a_uniform_guess_among_bytes_takes_eight_bits():
    ids = ByteTokenizer().encode("naïve, déjà vu")
    assert text_size(ByteTokenizer(), ids).bits(math.log(256))["bits_per_byte"] == pytest.approx(8)


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
    assert data.text_size[:2] == (len(predicted), len(raw))
    assert source.load(config, "train", train=True).text_size is None  # windows overlap
