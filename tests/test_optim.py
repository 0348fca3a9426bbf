"""Optimizers by name: schedules, decay masks and clipping do what their names say."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import optim
from aigc_jax.config import optimizer, steps
from aigc_jax.errors import UserError
from aigc_jax.ranges import Range


def make(*args, num_steps=100, **kwargs):
    return optim.make(optimizer(*args, **kwargs), "config.optimizer.model", num_steps, 8, 80)


def rates(num_steps=100, **kwargs):
    """The learning rates of a whole run, and one step more."""
    _, schedule = make("sgd", 2.0, num_steps=num_steps, **kwargs)
    return np.asarray(jax.vmap(schedule)(jnp.arange(num_steps + 1)))


def wsd(t, length):
    return np.interp(t, [length - 20, length], [1.0, 0.25])


# Fraction of the peak, t steps after the warm-up, in a run that goes on for `length` steps then.
FORMULAS = {
    "constant": ({}, lambda t, length: np.ones_like(t)),
    "cosine": ({}, lambda t, length: 0.25 + 0.75 * (1 + np.cos(np.pi * t / length)) / 2),
    "linear": ({}, lambda t, length: 1 - 0.75 * t / length),
    "exponential": (
        {"decay_duration": "2 epochs", "decay_factor": 0.5},
        lambda t, length: np.maximum(0.5 ** (t / 20), 0.25),
    ),
    "inverse_sqrt": (
        {"decay_duration": "30 steps"},
        lambda t, length: np.sqrt(30 / (30 + t)),
    ),
    "wsd": ({"decay_duration": "160 examples"}, wsd),
}


@pytest.mark.parametrize("warmup", [0, 15])
@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_follow_their_formulas(name, warmup):
    kwargs, formula = FORMULAS[name]
    found = rates(schedule=name, warmup=f"{warmup} steps", final_fraction=0.25, **kwargs)
    t, length = np.arange(101.0) - warmup, 100 - warmup
    rising = 2.0 * np.arange(101) / max(warmup, 1)
    expected = np.where(t < 0, rising, 2.0 * formula(np.maximum(t, 0), length))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("warmup", [0, 15])
def test_a_step_falls_at_its_boundaries_counted_from_the_start(warmup):
    found = rates(
        schedule="step", boundaries="3 epochs, 60", decay_factor=0.1, warmup=f"{warmup} steps"
    )
    np.testing.assert_allclose(found[warmup:30], 2.0)
    np.testing.assert_allclose(found[30:60], 0.2, rtol=1e-6)
    np.testing.assert_allclose(found[60:], 0.02, rtol=1e-6)
    found = rates(schedule="step", boundaries="30, 60", final_fraction=0.05)
    np.testing.assert_allclose(found[60:], 0.1)


def test_without_a_duration_the_inverse_square_root_is_that_of_the_transformer():
    step = np.arange(1, 101)
    found = rates(schedule="inverse_sqrt", warmup="20 steps")[1:]
    expected = 2.0 * np.sqrt(20) * np.minimum(step**-0.5, step * 20**-1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [*FORMULAS, "step"])
def test_the_schedule_is_the_one_that_the_transformation_uses(name):
    kwargs = {"boundaries": "20, 40"} if name == "step" else FORMULAS[name][0]
    tx, schedule = make("sgd", 0.3, schedule=name, warmup="7 steps", **kwargs)

    def step(state, count):
        updates, state = tx.update(jnp.ones(()), state)
        return state, (updates, schedule(count))

    _, (updates, logged) = jax.lax.scan(step, tx.init(jnp.zeros(())), jnp.arange(100))
    np.testing.assert_array_equal(-updates, logged)
    assert len(set(np.asarray(logged))) > 5


HIDDEN = jax.random.normal(jax.random.key(3), (4, 6))
PARAMS = {
    "dense": {"kernel": HIDDEN, "bias": jnp.linspace(0.5, 1.0, 6)},
    "conv": {"kernel": jnp.linspace(0.1, 1.0, 36).reshape(3, 3, 2, 2)},
    "token_embedding": jnp.linspace(1.0, 2.0, 20).reshape(5, 4),
    "head": {"kernel": HIDDEN + 1},
    "blocks": {  # of a scanned transformer: the first axis counts the layers
        "qkv": {"kernel": jnp.stack([jnp.stack([HIDDEN] * 3)] * 2), "bias": jnp.ones((2, 3, 6))},
        "mlp": {"kernel": jnp.stack([HIDDEN, 2 - HIDDEN]), "bias": jnp.ones((2, 6))},
        "norm": {"scale": jnp.ones((2, 4))},
    },
}


def is_spared(path) -> bool:
    return path[-1].key in ("bias", "scale")


@functools.cache
def after_zero_gradients(name: str, weight_decay: float, steps: int = 3):
    tx, _ = make(name, 0.1, weight_decay=weight_decay)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0])
    return run(PARAMS)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_zero_gradients_and_zero_decay_leave_every_parameter(name):
    jax.tree.map(np.testing.assert_array_equal, after_zero_gradients(name, 0.0), PARAMS)


DECAYING = [name for name, row in optim.OPTIMIZERS.items() if row.decay]


@pytest.mark.parametrize("name", DECAYING)
def test_weight_decay_shrinks_matrices_and_spares_biases_and_scales(name):
    after = after_zero_gradients(name, 0.5)

    def check(path, new, old):
        if is_spared(path):
            np.testing.assert_array_equal(new, old)
        else:
            np.testing.assert_array_less(np.abs(new), np.abs(old))

    jax.tree_util.tree_map_with_path(check, after, PARAMS)


@pytest.mark.parametrize("name", sorted({*DECAYING} - {"lamb", "lars"}))
def test_weight_decay_is_scaled_by_the_learning_rate(name):
    after = after_zero_gradients(name, 0.5, steps=1)  # LAMB and LARS scale it by layer, too
    np.testing.assert_allclose(after["dense"]["kernel"], HIDDEN * (1 - 0.1 * 0.5), rtol=1e-6)


def first_update(name, **kwargs):
    tx, _ = make(name, 0.1, **kwargs)
    grads = jax.tree.map(lambda x: jnp.cos(5 * x), PARAMS)
    return jax.jit(lambda: tx.update(grads, tx.init(PARAMS), PARAMS)[0])()


def by_path(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_muon_makes_matrices_orthogonal_and_the_rest_is_adamws():
    # Without decay: it would be part of what is measured. That of both halves is tested above.
    updates, adamw = (by_path(first_update(name)) for name in ("muon", "adamw"))
    for path in ("['dense']", "['blocks']['qkv']", "['blocks']['mlp']"):
        sizes = np.linalg.svd(updates.pop(f"{path}['kernel']"), compute_uv=False)
        # Five steps of Newton and Schulz bring each singular value between about 0.7 and 1.2.
        assert 0.6 < sizes.min() / (0.1 * 0.2 * np.sqrt(6)) < 1
        assert 0.7 < sizes.max() / (0.1 * 0.2 * np.sqrt(6)) < 1.3
    assert set(updates) < set(adamw)
    for path, update in updates.items():
        np.testing.assert_array_equal(update, adamw[path])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_defaults_are_what_happens_without_arguments(name):
    defaults = optim.defaults(name)
    assert json.loads(json.dumps(defaults)) == defaults
    for arg, value in defaults.items():
        assert isinstance(value, bool) or isinstance(
            optim.ARGUMENTS.get(f"{name}.{arg}", optim.ARGUMENTS.get(arg)), (tuple, Range)
        )
    plain, complete = (make(name, **args)[0].init(PARAMS) for args in ({}, defaults))
    assert jax.tree.structure(plain) == jax.tree.structure(complete)


def test_written_out_defaults_change_no_bit():
    for name in ("sgd", "adafactor"):  # those where optax's None is written as a value
        jax.tree.map(
            np.testing.assert_array_equal,
            first_update(name),
            first_update(name, **optim.defaults(name)),
        )


def test_momentum_given_by_key_is_used():
    tx, _ = make("sgd", 1.0, momentum=0.5)
    state = tx.init(jnp.zeros(()))
    seen = []
    for _ in range(3):
        update, state = tx.update(jnp.ones(()), state)
        seen.append(float(update))
    assert seen == [-1.0, -1.5, -1.75]


def test_clipping_is_by_the_norm_of_the_whole_gradient():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    tx, _ = make("sgd", 1.0, clip_norm=1.0)
    updates, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)


def moments(state):
    """What Adam keeps, of whatever the transformation is made of: (mu, nu)."""
    adam = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
    return adam[0].mu, adam[0].nu


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_bfloat16_state_holds_half_the_bytes():
    params = {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}
    wide, narrow = (make(state_dtype=d)[0].init(params) for d in ("float32", "bfloat16"))
    for one, other in zip(moments(wide), moments(narrow)):
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert (x.nbytes, x.shape) == (2 * y.nbytes, y.shape)


def test_rounding_at_random_is_exact_on_average():
    values = jnp.array([1.0, 1.001, -3.14159, 1e-20, 0.0, 6.5e4])
    keys = jax.random.split(jax.random.key(1), 4000)
    rounded = jax.vmap(lambda k: optim.round_at_random(k, values))(keys).astype(jnp.float32)
    assert set(np.unique(rounded[:, 1])) == {1.0, 1.0078125}  # the two neighbours of 1.001
    np.testing.assert_array_equal(rounded[:, 0], 1.0)  # a bfloat16 number stays
    gap = np.abs(values) / 128
    np.testing.assert_array_less(np.abs(rounded.mean(0) - values), 4 * gap / np.sqrt(4000) + 1e-30)
    special = optim.round_at_random(keys[0], jnp.array([np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(special.astype(jnp.float32), [np.inf, -np.inf, np.nan])


def test_second_moment_in_bfloat16_follows_a_falling_gradient():
    # Squared gradients fall from 1 to 1/100: rounded to nearest, bfloat16 would stay at 1.
    params, rates = jnp.zeros(512), {"b1": 0.9, "b2": 0.999}

    def second_moment(**kwargs):
        tx, _ = make("adam", 1e-3, **kwargs, **rates)

        def step(state, i):
            grads = jnp.where(i < 2000, 1.0, 0.1) * jnp.ones(512)
            return tx.update(grads, state, params)[1], None

        state, _ = jax.lax.scan(step, tx.init(params), jnp.arange(6000))
        return np.asarray(moments(state)[1], np.float32)

    exact, rounded = second_moment(), second_moment(state_dtype="bfloat16")
    np.testing.assert_allclose(rounded.mean(), exact.mean(), rtol=0.01)
    assert 0.05 < rounded.std() / exact.mean() < 0.12  # what optim.py promises


def test_training_with_bfloat16_state_is_close_to_float32():
    x = jax.random.normal(jax.random.key(0), (64, 16))
    y = jnp.sin(x @ jax.random.normal(jax.random.key(1), (16, 4)))
    shapes = {"in": (16, 64), "out": (64, 4)}
    keys = jax.random.split(jax.random.key(2))
    params = {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items())}

    def losses(**kwargs):
        tx, _ = make("adam", 3e-3, **kwargs)

        def loss(params):
            return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[1]

    wide, narrow = losses(), losses(state_dtype="bfloat16")
    assert wide[-1] < 0.2 * wide[0]  # it learns
    np.testing.assert_allclose(narrow[50:], wide[50:], rtol=0.05)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adma"}, 'unknown config.optimizer.model.name "adma"; did you mean "adam'),
        ({"beta1": 0.5}, "takes no config.optimizer.model.args.beta1"),
        ({"name": "scale_by_learning_rate"}, "unknown config.optimizer.model.name"),
        ({"weight_decay": 0.1}, "adam has no weight decay; set .*weight_decay=0 or .*name=adamw"),
        ({"schedule": "cosin"}, 'did you mean "cosine"'),
        ({"schedule": "wsd"}, r"schedule=wsd needs config.optimizer.model.decay_duration, e.g."),
        ({"schedule": "exponential"}, "needs config.optimizer.model.decay_duration"),
        ({"schedule": "inverse_sqrt"}, "needs .*warmup or .*decay_duration"),
        ({"schedule": "step"}, 'boundaries="" is not a growing list of durations'),
        ({"schedule": "step", "boundaries": "9, 9"}, "is not a growing list"),
        ({"schedule": "step", "boundaries": "9, soon"}, '"soon" is not a duration'),
        ({"schedule": "step", "boundaries": "5", "warmup": "5"}, "after the warm-up"),
        ({"schedule": "wsd", "decay_duration": "90", "warmup": "11"}, "11 [+] 90 steps, more than"),
        ({"decay_duration": "9 steps"}, "not read by .*schedule=constant, but by exponential"),
        ({"schedule": "wsd", "decay_duration": "9", "boundaries": "9"}, "but by step; set it to"),
        ({"warmup": "soon"}, '"soon" is not a duration'),
        ({"state_dtype": "float16"}, 'state_dtype="float16" is not one of float32 or bfloat16'),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("learning_rate", [-1e-3, np.nan, np.inf], r"a number in \[0, inf\)"),
        ("clip_norm", [-1.0, np.nan, np.inf], r"a number in \[0, inf\)"),
        ("weight_decay", [-0.1, np.nan, np.inf], r"a number in \[0, inf\)"),
        ("final_fraction", [-0.1, 1.5, np.nan], r"a number in \[0, 1\]"),
        ("decay_factor", [0.0, -0.1, 1.5, np.nan], r"a number in \(0, 1\]"),
        ("args.b1", [-0.1, 1.0, np.nan, np.inf, "half", True], r"a number in \[0, 1\)"),
        ("args.b2", [-0.1, 1.0, np.nan], r"a number in \[0, 1\)"),
        ("args.eps", [-1e-8, np.nan, np.inf, None], r"a number in \[0, inf\)"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(key, values, expected):
    for value in values:
        config = optimizer("adamw")
        *path, last = key.split(".")
        functools.reduce(lambda node, part: node[part], path, config)[last] = value
        with pytest.raises(UserError, match=f"{key}=.* is out of range; give {expected}$"):
            optim.make(config, "config.optimizer.model", 100, 8, 80)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adafactor", "min_dim_size_to_factor": 1.5}, r"a whole number from 1 to"),
        (
            {"name": "muon", "beta": 1.0},
            r"args.beta=1.0 is out of range; give a number in \[0, 1\)",
        ),
        ({"name": "muon", "preconditioning": "aolo"}, 'did you mean "aol"'),
        ({"name": "adam", "mu_dtype": "float8"}, 'args.mu_dtype "float8"; did you mean "float'),
        ({"name": "adam", "nesterov": 1}, "args.nesterov=1 is neither True nor False"),
        ({"name": "adamw", "mask": "all"}, "adamw takes no config.optimizer.model.args.mask"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [("3 steps", 3), ("3", 3), (3, 3), ("1 epoch", 12), ("2.5 epochs", 29), ("17 examples", 3)]
    + [("never", 0), ("", 0)],
)
def test_durations(duration, expected):
    assert steps(duration, "key", batch_size=8, num_examples=92) == expected


def test_a_schedule_counts_steps_where_a_step_has_several_updates():
    section = optimizer("sgd", 1.0, schedule="linear")
    tx, schedule = optim.make(section, "key", 10, 1, 1, updates_per_step=3)
    params = {"kernel": jnp.zeros((2, 2))}
    state, grads, rates = tx.init(params), {"kernel": jnp.ones((2, 2))}, []
    for _ in range(9):
        updates, state = tx.update(grads, state, params)
        rates.append(float(-updates["kernel"][0, 0]))
    np.testing.assert_allclose(rates, [float(schedule(i // 3)) for i in range(9)], rtol=1e-6)
