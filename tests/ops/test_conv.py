"""Convolutions against lax: the same function, the same derivatives, on any layout of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.errors import UserError
from aigc_jax.ops import conv
from aigc_jax.ops.conv import conv2d, conv_transpose2d

STRIDED_CONV = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
PAIRS = {"conv": (conv2d, STRIDED_CONV), "transpose": (conv_transpose2d, lax.conv_transpose)}


def draw(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def case(seed):
    """Random sizes, with every stride, kernel size and kind of padding among the seeds."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 10, 2)
    kernel = tuple(int(k) for k in rng.integers(1, 6, 2))
    strides = tuple(int(s) for s in rng.integers(1, 4, 2))
    explicit = tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2)))
    padding = ("SAME", "VALID", explicit)[seed % 3]
    x = draw(seed, 3, height, width, (2, 9)[seed % 2])
    k = draw(seed + 1, *kernel, x.shape[-1], (9, 3)[seed % 2])
    return x, k, strides, padding


def scalar(f, strides, padding):
    """A function of x and kernel whose derivatives see every output differently."""

    def loss(x, k):
        y = f(x, k, strides, padding)
        return jnp.sum(jnp.sin(y) * draw(7, *y.shape))

    return loss


def penalty(f, strides, padding):
    """A squared gradient, as gradient penalties differentiate it."""

    def loss(x, k):
        dx, dk = jax.grad(scalar(f, strides, padding), (0, 1))(x, k)
        return jnp.sum(jnp.square(dx)) + jnp.sum(jnp.square(dk))

    return loss


def assert_trees_close(got, want, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max()))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("seed", range(9))
def test_values_and_gradients_are_those_of_lax(kind, seed):
    x, k, strides, padding = case(seed)
    ours, theirs = PAIRS[kind]

    def all_of(f):
        value_and_grad = jax.value_and_grad(scalar(f, strides, padding), (0, 1))
        return jax.jit(lambda x, k: (f(x, k, strides, padding), value_and_grad(x, k)))(x, k)

    assert_trees_close(all_of(ours), all_of(theirs))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("piece", [1, 1_100, conv.PIECE])
@pytest.mark.parametrize("batch", [2, 12, 37])
@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 3), (-1, 2)), ((4, -1), (3, 3))])
def test_gradients_without_a_stride_are_those_of_lax_by_pieces_of_any_size(
    kind, piece, batch, pads, monkeypatch
):
    """A row of an image, or several, or whole images, one or more; the last piece is full or not,
    and so are the last rows."""
    monkeypatch.setattr(conv, "PIECE", piece)
    x, k = draw(0, batch, 7, 5, 9), draw(1, 3, 2, 9, 9)
    ours, theirs = (jax.jit(jax.grad(scalar(f, (1, 1), pads), (0, 1))) for f in PAIRS[kind])
    assert_trees_close(ours(x, k), theirs(x, k))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, -1), (0, 0)), ((2, 0), (1, 1))])
def test_gradients_of_a_kernel_of_one_pixel_are_those_of_lax(kind, pads):
    x, k = draw(0, 2, 5, 4, 9), draw(1, 1, 1, 9, 3)
    ours, theirs = (jax.jit(jax.grad(scalar(f, (1, 1), pads), (0, 1))) for f in PAIRS[kind])
    assert_trees_close(ours(x, k), theirs(x, k))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_second_derivatives_are_those_of_lax(kind, seed):
    x, k, strides, padding = case(seed)
    ours, theirs = PAIRS[kind]
    got = jax.jit(jax.grad(penalty(ours, strides, padding), (0, 1)))(x, k)
    want = jax.jit(jax.grad(penalty(theirs, strides, padding), (0, 1)))(x, k)
    assert_trees_close(got, want, rtol=1e-3)


def test_kernel_larger_than_stride_and_image():
    x, k = draw(0, 2, 3, 2, 2), draw(1, 5, 5, 2, 3)
    for ours, theirs in PAIRS.values():
        got = jax.jit(jax.grad(scalar(ours, (2, 3), "SAME"), (0, 1)))(x, k)
        want = jax.jit(jax.grad(scalar(theirs, (2, 3), "SAME"), (0, 1)))(x, k)
        assert_trees_close(got, want)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_stays_bfloat16(kind, stride):
    x, k = (
        draw(i, *shape, dtype=jnp.bfloat16) for i, shape in enumerate([(2, 6, 6, 8), (3, 3, 8, 8)])
    )
    ours, theirs = PAIRS[kind]
    y, vjp = jax.vjp(lambda x, k: ours(x, k, (stride, stride)), x, k)
    want, want_vjp = jax.vjp(lambda x, k: theirs(x, k, (stride, stride), "SAME"), x, k)
    as_float = partial(jax.tree.map, lambda a: a.astype(jnp.float32))
    assert {a.dtype for a in jax.tree.leaves((y, vjp(y)))} == {jnp.dtype(jnp.bfloat16)}
    assert_trees_close(as_float((y, vjp(want))), as_float((want, want_vjp(want))), rtol=2e-2)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("stride", [1, 2])
def test_vmapped_and_scanned_gradients_are_the_gradients_one_by_one(kind, stride):
    xs, k = draw(0, 3, 2, 6, 5, 8), draw(1, 3, 3, 8, 8)
    grad = jax.jit(jax.grad(scalar(PAIRS[kind][0], (stride, stride), "SAME"), (0, 1)))
    want = [grad(x, k) for x in xs]
    want = jax.tree.map(lambda *g: jnp.stack(g), *want)
    assert_trees_close(jax.vmap(grad, (0, None))(xs, k), want)
    assert_trees_close(lax.scan(lambda c, x: (c, grad(x, k)), None, xs)[1], want)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("devices", "channels", "stride"), [(2, 8, 2), (8, 8, 2), (8, 3, 2), (8, 8, 1), (8, 64, 1)]
)
def test_a_split_batch_is_never_gathered(kind, devices, channels, stride):
    x, k = draw(0, 16, 6, 6, channels), draw(1, 3, 3, channels, channels)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    grad = jax.value_and_grad(scalar(PAIRS[kind][0], (stride, stride), "SAME"), (0, 1))
    sharded = jax.jit(grad, in_shardings=(split, whole), out_shardings=(whole, (split, whole)))
    compiled = sharded.lower(x, k).compile()
    text = compiled.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    assert "all-reduce" in text
    got = compiled(jax.device_put(x, split), jax.device_put(k, whole))
    assert_trees_close(got, jax.jit(grad)(x, k))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("stride", [1, 2])
def test_under_shard_map_the_devices_gradients_add_up(kind, stride):
    x, k = draw(0, 8, 6, 6, 8), draw(1, 3, 3, 8, 8)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    ours = PAIRS[kind][0]

    def loss(x, k):
        return jnp.sum(jnp.square(ours(x, k, (stride, stride), "SAME")))

    @partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P()))
    def grad(x, k):
        return jax.grad(lambda x, k: lax.psum(loss(x, k), "data"), (0, 1))(x, k)

    assert_trees_close(jax.jit(grad)(x, k), jax.jit(jax.grad(loss, (0, 1)))(x, k))


def lowered(kind, platform, channels=9, stride=2):
    x, k = draw(0, 2, 4, 4, channels), draw(1, 5, 5, channels, channels)
    grad = jax.grad(scalar(PAIRS[kind][0], (stride, stride), "SAME"), (0, 1))
    return jax.jit(grad).trace(x, k).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("kind", PAIRS)
def test_on_a_tpu_a_gradient_is_three_native_convolutions(kind):
    """Forward, by x, and by the kernel: the last dilates a window, never an input."""
    text = lowered(kind, "tpu")
    assert text.count("stablehlo.convolution") == 3
    assert text.count("lhs_dilate = [2, 2]") == 1
    assert text.count("rhs_dilate = [2, 2]") == 1
    assert "dot_general" not in text


@pytest.mark.parametrize("kind", PAIRS)
def test_on_a_cpu_pixels_of_eight_channels_are_multiplied_as_matrices(kind):
    """Five kernel rows, forward and in two gradients."""
    text = lowered(kind, "cpu")
    assert text.count("stablehlo.dot_general") == 15
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("kind", PAIRS)
def test_on_a_cpu_pixels_of_few_channels_are_a_product_but_forward(kind):
    """The dilated input, and the gradient of the kernel."""
    text = lowered(kind, "cpu", channels=1)
    assert text.count("stablehlo.dot_general") == 2
    assert text.count("stablehlo.convolution") == 1
    assert "lhs_dilate = [2, 2]" not in text


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 9, 64])
def test_on_a_cpu_no_convolution_runs_over_examples_as_channels(kind, stride, channels):
    """In a loop XLA's CPU backend has no fast program for it; TPUs do."""
    examples_last = "dim_numbers = [f, 0, 1, b]"
    assert examples_last not in lowered(kind, "cpu", channels, stride)
    assert examples_last in lowered(kind, "tpu", channels, stride)


def test_unknown_padding_is_refused_by_name():
    with pytest.raises(UserError, match='"CIRCULAR" is not SAME'):
        conv2d(draw(0, 1, 4, 4, 1), draw(1, 3, 3, 1, 1), (1, 1), "CIRCULAR")
