"""What a new run takes from another one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.errors import UserError
from aigc_jax.tasks.step import create_network
from aigc_jax.tasks.task import first_state
from aigc_jax.tasks.transfer import transfer


@pytest.fixture
def state():
    params = {"a": {"kernel": jnp.zeros((2, 3))}, "b": {"kernel": jnp.zeros(4)}}
    network = create_network("model", {"params": params}, optax.adam(0.1), 0.9, ("/b/",))
    return first_state(model=network)


GIVEN = {"old": {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.full(4, 2.0)}}}
NAMED = {"model": GIVEN["old"]}


def test_same_path_and_shape_are_taken_frozen_ones_too(state):
    found = transfer(state, NAMED)
    network = found.state.networks["model"]
    assert found.taken == ["model/a/kernel", "model/b/kernel"]
    assert (network.params["a"]["kernel"] == 1).all()
    assert (network.ema["a"]["kernel"] == 1).all()
    assert (network.frozen["b"]["kernel"] == 2).all()
    assert (network.opt_state[0].mu["a"]["kernel"] == 0).all()
    assert not found.left
    assert not found.unused


def test_renamed_skipped_and_misfitting_ones_are_told(state):
    given = {"old": {**GIVEN["old"], "c": {"kernel": np.ones(1)}}}
    found = transfer(state, given, [("^old/", "model/")], ["b/kernel"])
    assert found.taken == ["model/a/kernel"]
    assert found.left == {"model/b/kernel": "skipped"}
    assert found.unused == ["model/b/kernel", "model/c/kernel"]
    given = {"model": {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.ones(5)}}}
    assert transfer(state, given).left == {"model/b/kernel": "(5,) there, (4,) here"}


def test_statistics_begin_anew_and_it_is_told():
    params = jax.tree.map(jnp.zeros_like, NAMED["model"])
    variables = {"params": params, "codebook": {"sums": jnp.zeros((3, 2))}}
    state = first_state(model=create_network("model", variables, optax.sgd(0.1)))
    assert transfer(state, NAMED).left == {"model/codebook": "statistics begin anew"}


def test_a_state_keeps_its_types(state):
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    after = jax.tree.map(lambda x: (x.shape, x.dtype), transfer(state, NAMED).state)
    assert before == after


@pytest.mark.parametrize(
    ("given", "rename", "message"),
    [
        (GIVEN, [], "no parameter fits; there old/a/kernel"),
        (GIVEN, [("old/.", "model/a")], "makes two parameters model/a/kernel"),
        (GIVEN, [("(", "")], r'cannot read "\("'),
        ({"model": {"b": {"kernel": np.full(4, np.inf)}}}, [], "model/b/kernel holds NaN or inf"),
    ],
)
def test_what_makes_no_sense_is_refused(state, given, rename, message):
    with pytest.raises(UserError, match=message):
        transfer(state, given, rename)
