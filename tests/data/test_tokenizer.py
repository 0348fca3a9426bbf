import numpy as np
import pytest

from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, IdTokenizer, from_json
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
