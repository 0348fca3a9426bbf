"""What is done to logits equals what transformers does to the same ones
(`tests/interop/make_goldens.py`)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.generate.options import Options
from aigc_jax.generate.processors import make_rules, process
from aigc_jax.generate.sampling import keep_top_k, keep_top_p, scaled_and_cut

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "gpt2" / "processors.npz"))
SEEN = GOLDEN["seen"]
WORDS = ((9,), (int(SEEN[0, -1]), 11), (*map(int, SEEN[1, -2:]), 12), (1, 2, 3, 4))
ALL = dict(
    repetition_penalty=1.3,
    no_repeat_ngram_size=2,
    bad_words_ids=WORDS,
    min_new_tokens=9,
    eos_token_id=(3, 8),
    temperature=0.7,
    top_k=12,
    top_p=0.8,
    min_p=0.05,
)
CASES = {
    "temperature": dict(temperature=0.7),
    "top_k": dict(top_k=5),
    "top_p": dict(top_p=0.8),
    "min_p": dict(min_p=0.2),
    "repetition_penalty": dict(repetition_penalty=1.3),
    "no_repeat_ngram_1": dict(no_repeat_ngram_size=1),
    "no_repeat_ngram_2": dict(no_repeat_ngram_size=2),
    "no_repeat_ngram_3": dict(no_repeat_ngram_size=3),
    "bad_words": dict(bad_words_ids=WORDS),
    "min_new_tokens": dict(min_new_tokens=9, eos_token_id=(3, 8)),
    "all": ALL,
}


@pytest.mark.parametrize("name", CASES)
def test_logits_become_what_theirs_do(name):
    options = Options(**{"temperature": 1.0, **CASES[name]})
    # The text stands between other tokens, which do not count.
    around = np.full((4, 3), 4)
    tokens = jnp.asarray(np.concatenate([around, SEEN, around], axis=1), jnp.int32)
    place = 3 + SEEN.shape[1]
    begin, new = jnp.full(4, 3), SEEN.shape[1] - int(GOLDEN["prompt"])
    logits = jnp.asarray(GOLDEN["logits"])
    found = process(make_rules(options), logits, tokens, begin, place, new)
    settings = (options.temperature, options.top_k, options.top_p, options.min_p)
    found = scaled_and_cut(found, *(jnp.full(4, value) for value in settings))
    expected = GOLDEN[f"to/{name}"]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    # Ours have their largest at 0: the same softmax.
    found, expected = (x - np.max(x, axis=-1, keepdims=True) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_no_option_changes_no_logit():
    logits = jnp.asarray(GOLDEN["logits"])
    rules = make_rules(Options())
    found = process(rules, logits, jnp.asarray(SEEN, jnp.int32), jnp.asarray(0), 14, 8)
    np.testing.assert_array_equal(found, logits)
    np.testing.assert_array_equal(keep_top_k(logits, jnp.zeros(4, int)), logits)
    np.testing.assert_array_equal(keep_top_p(logits, jnp.ones(4)), logits)


def test_a_word_that_is_an_end_token_alone_is_left_out():
    """As theirs leaves it out: the text could not end."""
    options = Options(bad_words_ids=((3,), (3, 8), (5,)), eos_token_id=(3, 8))
    np.testing.assert_array_equal(make_rules(options).bad_words, [[3, 8], [-1, 5]])
    assert make_rules(Options(bad_words_ids=((3,),), eos_token_id=(3,))).bad_words is None
