import os
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refusal

from aigc_jax.data.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    IdTokenizer,
    from_json,
    tokenizer_of,
)
from aigc_jax.errors import UserError

TEXT = "To be, or not to be:\nº – 🙂 é"


@pytest.mark.parametrize("tokenizer", [CharTokenizer.of(TEXT), ByteTokenizer()])
def test_text_survives_the_round_trip(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("tokenizer", [CharTokenizer.of(TEXT), ByteTokenizer(), IdTokenizer(9)])
def test_a_tokenizer_survives_storage(tokenizer):
    assert from_json(tokenizer.to_json()) == tokenizer


def test_one_token_per_character_in_code_point_order():
    tokenizer = CharTokenizer.of("bca", "d")
    assert tokenizer.encode("abcd").tolist() == [0, 1, 2, 3]


def test_a_vocabulary_is_found_without_holding_all_texts():
    class Piece(str):
        pass

    held = []

    def pieces():
        for i in range(20):
            piece = Piece(chr(97 + i))
            held.append(weakref.ref(piece))
            yield piece
            del piece
            assert sum(reference() is not None for reference in held) < 3

    assert tokenizer_of("char", pieces()) == CharTokenizer("abcdefghijklmnopqrst")


@pytest.mark.parametrize("character", ["z", "A", "é", "🙂"])
def test_a_character_outside_the_vocabulary_is_named(character):
    with pytest.raises(UserError, match=character):
        CharTokenizer.of("bca").encode("ab" + character)


def test_a_model_may_emit_bytes_that_are_not_text():
    assert ByteTokenizer().decode([0xFF, ord("a")]) == "\ufffda"


def test_ids_are_written_as_numbers():
    tokenizer = IdTokenizer(64)
    assert tokenizer.encode("3 1 63").tolist() == [3, 1, 63]
    assert tokenizer.decode(np.array([3, 1, 63])) == "3 1 63"
    with pytest.raises(UserError, match="0 to 63"):
        tokenizer.encode("3 64")


@given(st.text(), st.text())
def test_any_text_comes_back(text, other):
    for tokenizer in (CharTokenizer.of(text, other), ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        np.testing.assert_array_equal(
            np.concatenate([ids, tokenizer.encode(other)]), tokenizer.encode(text + other)
        )
        for place in range(len(ids) + 1):
            start = tokenizer.boundary(ids, place)
            assert 0 <= place - start < 4
            assert tokenizer.decode(ids[:start]) + tokenizer.decode(ids[start:]) == text


@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_any_prompt_is_encoded_or_refused_in_one_line(prompt):
    """Halves of surrogate pairs included: a terminal's bytes that are not UTF-8 become such."""
    for tokenizer in (CharTokenizer("abc"), ByteTokenizer(), IdTokenizer(9)):
        message = refusal(tokenizer.encode, prompt)
        assert message.isprintable()
        assert len(message) < 400


def test_bytes_that_were_typed_are_the_bytes_that_are_encoded():
    assert bytes(ByteTokenizer().encode(os.fsdecode(b"caf\xe9")).astype(np.uint8)) == b"caf\xe9"


def test_a_large_vocabulary_is_listed_shortly():
    tokenizer = CharTokenizer.of("".join(map(chr, range(0x4E00, 0x5E00))))
    with pytest.raises(UserError, match=r'2 characters outside .*: "xy"; .* 4096: .* 4076 more'):
        tokenizer.encode("一xyxy")


def test_ids_of_any_length_are_read_or_refused():
    assert IdTokenizer(64).encode("0007 " + "0" * 5000).tolist() == [7, 0]
    for word in ("9" * 5000, "-1", "1.5", "\u0663"):
        with pytest.raises(UserError, match="no token id from 0 to 63"):
            IdTokenizer(64).encode(word)
