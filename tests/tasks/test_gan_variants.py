"""Every loss, penalty and conditioning as a step: one answer in all modes, and what it does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aigc_jax.models import gan as models
from aigc_jax.models.gan.layers import CONDITIONINGS, SPECTRAL
from aigc_jax.models.gan.neutral import NeutralDiscriminator
from aigc_jax.tasks.gan_judge import Judge, in_packs, in_rows, packed
from aigc_jax.tasks.gan_losses import LOSSES
from aigc_jax.tasks.gan_penalties import PENALTIES
from aigc_jax.tasks.gan_task import GAN
from aigc_jax.tasks.step import create_network, update_network
from aigc_jax.tasks.task import Settings, first_state, inference_state

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def batch():
    point = jax.random.normal(jax.random.key(1), (16, 2))
    return {"point": point, "label": jnp.arange(16) % 4, "id": jnp.arange(16)}


def make(rate=0.5, spectral_norm=False, dtype=jnp.float32, **fields) -> GAN:
    conditioning = fields.get("conditioning", "none")
    classes = 0 if conditioning == "none" else 4
    shared = {"features": (6,), "num_classes": classes, "dtype": dtype}
    return GAN(
        generator=models.PointGenerator((2,), **shared),
        discriminator=models.PointDiscriminator(
            conditioning=conditioning, spectral_norm=spectral_norm, **shared
        ),
        latent_dim=3,
        num_classes=classes,
        tx={name: optax.sgd(rate) for name in ("generator", "discriminator")},
        **fields,
    )


def after(task, batch, step=0, run=None):
    """Parameters before and after a step, and its metrics."""
    state = task.init(jax.random.key(0), batch).replace(step=jnp.int32(step))
    new, metrics = (run or jax.jit(task.train_step))(state, batch, KEY)
    params = lambda state: {n: net.params for n, net in state.networks.items()}  # noqa: E731
    return jax.device_get((params(state), params(new), metrics.compute()))


def under_pmap(task):
    def run(state, batch, key):
        return task.train_step(state, batch, key, axis="batch")

    mapped = jax.pmap(run, axis_name="batch", in_axes=(None, 0, None), out_axes=None)

    def call(state, batch, key):
        batch = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
        return mapped(state, batch, key)

    return call


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


VARIANTS = [
    *({"loss": name, "spectral_norm": name == "hinge"} for name in LOSSES),
    *({"penalty": name} for name in PENALTIES),
    {"penalty": "r1", "penalty_every": 2, "discriminator_steps": 2},
    {"packing": 2, "penalty": "dragan"},
    {"conditioning": "projection", "instance_noise": 0.3, "instance_noise_steps": 10},
    {"conditioning": "auxiliary_classifier", "label_smoothing": 0.1},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_modes_and_microbatches_agree(variant, batch):
    task = make(**variant)
    before, expected, metrics = after(task, batch)
    assert all(np.isfinite(value) for value in metrics.values())
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, expected)
    assert all(max(jax.tree.leaves(moved[name])) > 0 for name in moved)
    # Four devices in two microbatches each; what compares with a mean has no microbatches.
    parts = {} if LOSSES[task.loss].relative else {"accumulate": 2}
    mapped = make(**parts, **variant)
    close(after(mapped, batch, run=under_pmap(mapped))[1:], (expected, metrics))


def test_a_mean_over_the_batch_is_over_all_devices(batch):
    task = make(loss="relativistic_average")
    _, expected, metrics = after(task, batch)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    _, found, found_metrics = after(task, split)
    close((found, found_metrics), (expected, metrics))


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_float32_under_bfloat16(name, batch):
    """The same as that of a discriminator in float32, bit for bit."""
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        task = make(penalty=name, dtype=dtype)
        variables = task.init(KEY, batch).networks["discriminator"].variables()
        x, ids, one = batch["point"], batch["id"], jnp.ones(())
        found.append(
            task.judge.penalised(variables, x, -x, one, KEY, jnp.int32(0), ids, KEY, None, None)
        )
    np.testing.assert_array_equal(*found)
    assert found[0].dtype == jnp.float32
    assert np.all(found[0] > 0)


@pytest.mark.parametrize(
    "fields", [{}, {"packing": 2}, {"conditioning": "projection"}, {"spectral_norm": True}], ids=str
)
def test_under_a_penalty_both_kinds_of_images_are_judged_as_they_are_apart(fields, batch):
    """Also what the parameters learn from it, and statistics, which are those of one after the
    other."""
    apart, together = make(**fields).judge, make(penalty="r1", **fields).judge
    task = make(**fields)
    variables = task.init(KEY, batch).networks["discriminator"].variables()
    label = batch["label"] if task.num_classes else None

    def judged(judge):
        def total(params):
            given = {**variables, "params": params}
            x, ids = batch["point"], batch["id"]
            real, fake, stats = judge.both(given, x, x**2, ids, KEY, KEY, None, label)
            return (jnp.sin(real) * jnp.cos(fake)).sum(), (real, fake, stats)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])

    close(judged(together), judged(apart))


@pytest.mark.parametrize("fields", [{}, {"conditioning": "projection", "num_classes": 3}], ids=str)
def test_the_neutral_discriminator_judges_both_at_once_as_one_after_the_other(fields):
    """With batch norm: each kind has statistics of its own, the averages take real images first."""
    module = NeutralDiscriminator(features=(2, 3, 5), **fields)
    real, fake = jax.random.normal(KEY, (2, 4, 12, 12, 1))
    fake = 3.0 * fake + 1.0
    ids, label = jnp.arange(4), jnp.array([0, 2, 1, 1]) if fields else None
    variables = module.init(KEY, real, None, label=label)
    judge = Judge(module, 1, 0.0, 0, (), "none", 0.0, 1)

    def apart(given):
        seen, stats = judge(given, real, ids, KEY, None, label)
        return seen, *judge({**given, **stats}, fake, ids, KEY, None, label)

    def both(given):
        return judge.both(given, real, fake, ids, KEY, KEY, None, label)

    def judged(way):
        def total(params):
            seen_real, seen_fake, stats = way({**variables, "params": params})
            loss = (jnp.sin(seen_real) * jnp.cos(seen_fake)).sum()
            return loss, (seen_real, seen_fake, stats)

        return jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])

    close(judged(both), judged(apart))


def test_a_lazy_penalty_is_that_of_every_step_in_expectation(batch):
    def moved(every, steps):
        task = make(penalty="r1", penalty_every=every)
        run = jax.jit(task.train_step)
        for step in range(steps):
            before, new, metrics = after(task, batch, step, run)
            change = jax.tree.map(np.subtract, new["discriminator"], before["discriminator"])
            yield change, metrics["penalty"]

    (often,), lazy = moved(1, 1), list(moved(3, 3))
    close(jax.tree.map(lambda *x: sum(x) / 3, *lazy), often)
    assert [bool(value > 0) for _, value in lazy] == [True, False, False]


def test_clipped_weights_stay_in_their_bounds(batch):
    _, new, _ = after(make(loss="wasserstein", weight_clip=0.02), batch)
    most = [np.abs(x).max() for x in jax.tree.leaves(new["discriminator"])]
    assert max(most) == pytest.approx(0.02, rel=1e-5)
    assert max(np.abs(x).max() for x in jax.tree.leaves(new["generator"])) > 0.02


@pytest.mark.parametrize("conditioning", CONDITIONINGS[1:])
def test_a_grid_has_a_class_a_row(conditioning, batch):
    task = make(conditioning=conditioning)
    state = inference_state(task.init(jax.random.key(0), batch))
    generate = lambda ids, **given: task.generate(state, KEY, ids, given, Settings())  # noqa: E731
    made = generate(jnp.arange(45))
    np.testing.assert_array_equal(made["label"], np.arange(45) // 10 % 4)
    chosen = generate(jnp.arange(10), label=jnp.full(10, 3))
    assert not np.allclose(chosen["point"], made["point"][:10])
    seen = task.predict(state, batch, KEY)
    assert ("class_accuracy" in seen) == (conditioning == "auxiliary_classifier")


def test_instance_noise_falls_to_zero(batch):
    judge = make(instance_noise=0.5, instance_noise_steps=10).judge
    x = jnp.zeros((4096, 2))
    spread = [
        judge.sees(x, KEY, jnp.arange(4096), jnp.int32(step)).std() for step in (0, 5, 10, 99)
    ]
    np.testing.assert_allclose(spread, [0.5, 0.25, 0.0, 0.0], rtol=0.05)


def test_packs_hold_neighbours_and_a_padded_one_does_not_count(batch):
    x = jnp.arange(24.0).reshape(4, 3, 2)
    np.testing.assert_array_equal(packed(x, 2)[1], np.concatenate([x[2], x[3]], axis=-1))
    again = in_rows(in_packs(batch, 2), 2)
    jax.tree.map(np.testing.assert_array_equal, again, batch)

    task = make(packing=2)
    state = inference_state(task.init(jax.random.key(0), batch))
    mask = jnp.ones(16).at[13:].set(0.0)
    padded = task.eval_step(state, {**batch, "mask": mask}, KEY).compute()
    whole = {name: x[:12] for name, x in batch.items()}
    alone = task.eval_step(state, {**whole, "mask": jnp.ones(12)}, KEY).compute()
    close(padded, alone)


def test_an_averaged_generator_runs_under_the_singular_values_of_its_kernels():
    generator = models.PointGenerator((2,), features=(32, 32), spectral_norm=True)
    z, tx = jax.random.normal(KEY, (4, 3)), optax.sgd(1.0)
    network = create_network("generator", generator.init(KEY, z, train=True), tx, ema_decay=0.99)

    def used(network):  # the statistics after a call hold the values that it divided by
        return generator.apply(network.variables(), z, train=True, mutable=[SPECTRAL])[1]

    def step(network, number):
        key = jax.random.fold_in(KEY, number)
        grads = jax.tree.map(lambda p: 1e-3 * jax.random.normal(key, p.shape), network.params)
        return update_network(network, grads, used(network), tx, ema_decay=0.99), None

    network, _ = jax.jit(lambda n: jax.lax.scan(step, n, jnp.arange(100)))(network)
    state = inference_state(first_state(generator=network))
    averaged = state.networks["generator"]
    norms = used(averaged)[SPECTRAL]
    for number in range(3):
        sigma = norms[f"SpectralNorm_{number}"][f"Dense_{number}/kernel/sigma"]
        kernel = averaged.params[f"Dense_{number}"]["kernel"]
        np.testing.assert_allclose(sigma, np.linalg.norm(kernel, ord=2), rtol=0.02)


def test_uniform_noise_is_uniform():
    task = make(latent="uniform")
    z = np.asarray(task._noise(KEY, jnp.arange(5000))).ravel()
    counts = np.histogram(z, bins=10, range=(-1, 1))[0]
    assert counts.sum() == z.size
    assert np.abs(counts / z.size - 0.1).max() < 0.01


def test_statistics_of_one_batch_are_those_of_its_draws():
    generator = models.NeutralGenerator((4, 4, 1), features=(4, 2, 2), spectral_norm=True)
    found = {}
    for batch_norm in ("moving", "batch"):
        task = GAN(
            generator,
            models.NeutralDiscriminator(features=(2, 2, 4)),
            3,
            dict.fromkeys(("generator", "discriminator"), optax.sgd(0.1)),
            batch_norm=batch_norm,
        )
        state = inference_state(jax.jit(task.init)(KEY, {"image": jnp.zeros((1, 4, 4, 1))}))
        found[batch_norm] = jax.jit(task.inference_stats)(state, KEY)
        says = {"batch": "of one batch of 128 draws of z", "moving": "moving averages"}
        assert task.card()["batch_norm"] == says[batch_norm]
    assert found["moving"] == {}
    stats = found["batch"]["generator"]
    assert stats.keys() == {"batch_stats", "spectral"}  # one renewed, the other left alone
    z = task._noise(KEY, jnp.arange(128))
    empty = jax.tree.map(jnp.zeros_like, stats["batch_stats"])
    variables = state.networks["generator"].variables()
    _, seen = generator.apply(
        {**variables, "batch_stats": empty}, z, train=True, mutable=["batch_stats", "spectral"]
    )
    expected = jax.tree.map(lambda x: x / (1.0 - 0.9), seen["batch_stats"])
    close(stats["batch_stats"], expected)
