"""A number of an optimizer that is traced does what the number does: `members.py` rests on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optim import FORMULAS, PARAMS, make

from aigc_jax import optim
from aigc_jax.config import optimizer


@pytest.mark.parametrize("name", FORMULAS)
def test_a_schedule_of_a_traced_rate_is_that_of_the_rate(name):
    def at(given):
        section = optimizer("sgd", schedule=name, warmup="15 steps", **FORMULAS[name][0])
        with section.ignore_type():
            section.update(given)
        _, schedule = optim.make(section, "config.optimizer.model", 100, 8, 80)
        return jnp.stack([jnp.asarray(schedule(step)) for step in (7, 20, 95)])

    given = {"learning_rate": 2.0, "final_fraction": 0.25}
    np.testing.assert_allclose(jax.jit(at)(given), at(given), rtol=1e-5)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_a_traced_number_does_what_the_number_does(name):
    """As runs of one program get them that differ in numbers of the config; some have to be known:
    then tracing fails."""
    row = optim.OPTIMIZERS[name]
    args = {key: x for key, x in optim.defaults(name).items() if type(x) is float}
    numbers = {"learning_rate": 0.03, **{key: 0.9 * x or 1e-3 for key, x in args.items()}}
    numbers |= {"weight_decay": 0.3} if row.decay else {}
    params = PARAMS["dense"]

    def after_two_steps(given):
        section = optimizer(name, **numbers)
        with section.ignore_type():
            for key, x in given.items():
                (section.args if key in args else section)[key] = x
        tx, _ = optim.make(section, "config.optimizer.model", 100, 8, 80)
        now, state = params, tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.cos, now), state, now)
            now = optax.apply_updates(now, updates)
        return now

    given = {}
    for key, x in numbers.items():
        try:
            jax.eval_shape(after_two_steps, {key: x})
        except (TypeError, ValueError):
            continue
        given[key] = x
    assert "learning_rate" in given
    found, expected = jax.jit(after_two_steps)(given), jax.jit(lambda: after_two_steps({}))()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("name", [n for n in optim.OPTIMIZERS if "b1" in optim.defaults(n)])
def test_a_b1_of_a_half_is_hidden_from_the_compiler_alone(name):
    """XLA would make `g / 2 + m / 2` one multiplication and do it twice, once from a copy."""
    row = optim.OPTIMIZERS[name]
    decay = {row.decay: 0.0} if row.decay else {}
    rate = optax.constant_schedule(0.1)
    written = row.factory(rate, b1=0.5, **decay, **dict.fromkeys(row.masks, optim.matrices))
    ours, _ = make(name, 0.1, b1=0.5)

    def after(tx):
        now, state = PARAMS["dense"], tx.init(PARAMS["dense"])
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.cos, now), state, now)
            now = optax.apply_updates(now, updates)
        return now, state

    found, expected = jax.jit(lambda: (after(ours), after(written)))()
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), found, expected
    )


def test_adam_with_a_b1_of_a_half_copies_no_moment():
    params = jax.ShapeDtypeStruct((64, 128), jnp.float32)

    def copies(b1):
        tx, _ = make("adam", 0.1, b1=b1)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        run = jax.jit(step, donate_argnums=(0, 1)).lower(
            params, jax.eval_shape(tx.init, params), params
        )
        return run.compile().as_text().count("f32[64,128]{1,0} copy(")

    assert copies(0.5) == copies(0.9) == 0
