"""From Python, the same values are refused as from the command line."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import make_config

import aigc_jax
from aigc_jax import keys
from aigc_jax.__main__ import VERBS
from aigc_jax.api import Run
from aigc_jax.errors import UserError
from aigc_jax.train import train

generate = inspect.unwrap(Run.generate)  # without the types that tests check


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gpt") / "run"
    train(make_config("gpt", train__duration="1 steps", train__sample_every="never"), workdir)
    return aigc_jax.load(workdir)


WHOLE = ("num", "seed", "max_new_tokens", "top_k")
NO_NUMBERS = [None, "1", b"1", True, False, 1j, (), [1], math.nan, math.inf, -math.inf, -1, -0.5]


@pytest.mark.parametrize("name", [*WHOLE, "temperature", "top_p"])
def test_what_is_out_of_range_is_refused_before_anything_is_made(name, run):
    bad = [*NO_NUMBERS, 10**400, np.float32(math.nan), np.bool_(True), np.array([1, 2])]
    bad += [1.0, 0.5, np.float64(2.0)] if name in WHOLE else []
    bad += [0, 0.0, 1.5] if name == "top_p" else []
    for value in bad:
        with pytest.raises(UserError, match=f"^{name}="):
            generate(run, **{name: value})


@given(st.sampled_from(sorted(keys.GENERATE)), st.from_type(object) | st.floats() | st.integers())
def test_any_value_is_taken_or_refused_in_a_line(name, value):
    try:
        keys.check_asked(**{name: value})
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert value in keys.GENERATE[name].allowed


def test_the_command_line_has_the_same_ranges():
    flags = {flag.name: flag for flag in VERBS["generate"].flags}
    for name, key in keys.GENERATE.items():
        default = None if name in keys.OF_TEXTS else key.default
        assert (flags[name].default, flags[name].allowed) == (default, key.allowed)


def test_numbers_of_numpy_are_numbers(run):
    ours = generate(run, num=2, seed=3, max_new_tokens=4, top_k=5, temperature=1.0)
    theirs = generate(
        run,
        num=np.int64(2),
        seed=np.uint32(3),
        max_new_tokens=np.int32(4),
        top_k=np.int16(5),
        temperature=np.float32(1),
    )
    np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])


def test_other_words_are_refused_in_a_line(run):
    for asked, message in (
        ({"prompt": 3}, "prompt=3 is not a text"),
        ({"prompt": ["a", ""]}, r"prompt\[1\] is empty"),
        ({"prompt": "☃"}, "☃"),
        ({"kind": "pictures"}, "it makes: samples"),
        ({"kind": 3}, "kind=3 is not a text"),
    ):
        with pytest.raises(UserError, match=message):
            generate(run, **asked)
