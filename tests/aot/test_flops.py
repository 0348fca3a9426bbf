"""Counts against closed forms, against products enumerated one by one, and against each other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from aigc_jax.aot import flops
from aigc_jax.aot.chips import peak_flops
from aigc_jax.models import gan as gan_models
from aigc_jax.models import vae as vae_models
from aigc_jax.models.transformer import GPT
from aigc_jax.ops.attention import dot_product_attention
from aigc_jax.tasks.causal_lm import CausalLM
from aigc_jax.tasks.gan import GAN
from aigc_jax.tasks.vae import VAE


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_matmul_counts_two_per_product():
    assert flops.count(jnp.dot, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("equation", "lhs", "rhs", "products"),
    [
        ("bij,bjk->bik", (2, 3, 5), (2, 5, 7), 2 * 3 * 5 * 7),
        ("bhlqd,bhmd->lbqhm", (2, 3, 4, 5, 6), (2, 3, 7, 6), 2 * 3 * 4 * 5 * 6 * 7),
        ("ijk,kij->", (2, 3, 5), (5, 2, 3), 2 * 3 * 5),
        ("i,j->ij", (3,), (4,), 3 * 4),
    ],
)
def test_einsum_counts_the_product_of_all_its_indices(equation, lhs, rhs, products):
    assert flops.count(lambda a, b: jnp.einsum(equation, a, b), shape(*lhs), shape(*rhs)) == (
        2 * products
    )


def test_elementwise_work_is_not_counted():
    assert flops.count(lambda x: jax.nn.softmax(jnp.exp(x) + x).sum(), shape(8, 8)) == 0


def conv(stride=1, padding="SAME", dilation=1, groups=1):
    def apply(x, kernel):
        dims = x.ndim - 2
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * dims,
            [padding] * dims if isinstance(padding, tuple) else padding,
            rhs_dilation=(dilation,) * dims,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC") if dims == 2 else ("NWC", "WIO", "NWC"),
        )

    return apply


CONVOLUTIONS = [
    dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    for stride, padding, dilation, groups in itertools.product(
        (1, 2, 3), ("SAME", "VALID", (1, 0)), (1, 2), (1, 2)
    )
]
X, KERNEL = shape(2, 9, 8, 4), (3, 2)  # odd and even sizes, wider and narrower kernels


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_counts_every_tap_of_every_output(options):
    kernel = shape(*KERNEL, 4 // options["groups"], 6)
    out = jax.eval_shape(conv(**options), X, kernel)
    taps = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    assert flops.count(conv(**options), X, kernel) == 2 * taps * out.size


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_gradients_of_a_convolution_each_cost_what_the_convolution_costs(options):
    """The transposed convolution is one of them: dilation zeros are not counted."""
    kernel = shape(*KERNEL, 4 // options["groups"], 6)
    forward = flops.count(conv(**options), X, kernel)
    out = jax.eval_shape(conv(**options), X, kernel)

    def adjoint(argument):
        return lambda x, kernel, g: jax.vjp(conv(**options), x, kernel)[1](g)[argument]

    assert flops.count(adjoint(0), X, kernel, out) == forward
    assert flops.count(adjoint(1), X, kernel, out) == forward
    gradients_of_adjoint = jax.grad(
        lambda x, kernel, g: jnp.sum(adjoint(0)(x, kernel, g) ** 2), argnums=(1, 2)
    )
    assert flops.count(gradients_of_adjoint, X, kernel, out) == 3 * forward


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2, 3])
def test_unpadded_convolution_counts_the_products_that_there_are(stride, taps):
    """Enumerated: how many (input, tap) pairs meet in some output."""
    length = 8
    x, kernel = np.eye(length)[:, :, None], np.eye(taps).reshape(taps, 1, taps)
    meetings = conv(stride, "VALID")(jnp.array(x), jnp.array(kernel))
    products = int(jnp.sum(meetings))
    counted = flops.count(conv(stride, "VALID"), shape(1, length, 1), shape(taps, 1, 1))
    assert counted == 2 * products


def test_transposed_convolution_of_linen_counts_its_true_taps():
    """5 x 5 taps for each of 7 x 7 inputs, not for each of 14 x 14 outputs."""
    layer = nn.ConvTranspose(64, (5, 5), (2, 2))
    x = shape(3, 7, 7, 128)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert flops.count(layer.apply, params, x) == 2 * 3 * 7 * 7 * 5 * 5 * 128 * 64


def mlp(params, x):
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return jnp.sum(x**2)


WIDTHS = (5, 8, 6, 3)
LAYERS = [shape(n, m) for n, m in itertools.pairwise(WIDTHS)]
FORWARD = [2 * 4 * kernel.size for kernel in LAYERS]


def test_gradient_of_an_mlp_is_three_passes_less_the_first_input_gradient():
    counted = flops.count(jax.grad(mlp), LAYERS, shape(4, 5))
    assert counted == 3 * sum(FORWARD) - FORWARD[0]


def test_what_no_output_needs_is_not_counted():
    def fn(x, y):
        return x @ x, jax.vjp(jnp.dot, x, y)[1](x)[0]  # the other cotangent is dropped

    assert flops.count(lambda x, y: fn(x, y)[0], shape(4, 4), shape(4, 4)) == 2 * 4**3
    assert flops.count(fn, shape(4, 4), shape(4, 4)) == 2 * 2 * 4**3


def test_the_same_product_is_counted_once_in_calls_too():
    def fn(x, y):
        return x @ y + jax.jit(jnp.dot)(x, y) + jax.nn.relu(x) @ y + jax.nn.relu(x) @ y + y @ x

    assert flops.count(fn, shape(4, 4), shape(4, 4)) == 3 * 2 * 4**3


def test_scan_counts_what_the_unrolled_loop_counts():
    def scanned(x, kernels):
        return lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0].sum()

    def unrolled(x, kernels):
        for kernel in kernels:
            x = jnp.tanh(x @ kernel)
        return x.sum()

    args = shape(4, 5), shape(3, 5, 5)
    assert flops.count(scanned, *args) == flops.count(unrolled, *args) == 3 * 2 * 4 * 5 * 5
    both = [flops.count(jax.grad(fn, argnums=(0, 1)), *args) for fn in (scanned, unrolled)]
    assert both == [3 * 3 * 2 * 4 * 5 * 5] * 2


def test_remat_counts_the_second_forward_pass():
    def loss(params, x):
        return mlp(
            params[1:], jax.checkpoint(lambda p, x: jnp.tanh(jnp.tanh(x @ p) @ p.T))(params[0], x)
        )

    def plain(params, x):
        return mlp(params[1:], jnp.tanh(jnp.tanh(x @ params[0]) @ params[0].T))

    params = [shape(5, 7), shape(5, 3)]
    again = 2 * 2 * 4 * 5 * 7  # both products, as their outputs pass through tanh
    for wrap in (lambda f: f, jax.jit):
        counted = flops.count(wrap(jax.grad(loss)), params, shape(4, 5))
        assert counted - flops.count(wrap(jax.grad(plain)), params, shape(4, 5)) == again


@pytest.mark.parametrize(
    ("settings", "seen"),
    [({}, 36), ({"window": 3}, 1 + 2 + 6 * 3), ({"causal": False}, 64)],
    ids=["causal", "window", "encoder"],
)
def test_cudnns_attention_counts_the_scores_that_are_seen(settings, seen, monkeypatch):
    """Forward and backward 2 + 5 products, 2 + 4 of them needed; by vmap as many for each."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{cudnn}.check_compute_capability", lambda _: True)
    monkeypatch.setattr(f"{cudnn}.is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr("aigc_jax.ops.attention.cudnn_applies", lambda *_, **__: True)
    heads = [jax.ShapeDtypeStruct((5, 2, 8, n, 16), jnp.bfloat16) for n in (4, 2, 2)]

    def loss(*operands):
        out = dot_product_attention(*operands, **settings).astype(jnp.float32)
        return jnp.square(out).sum()

    step = jax.vmap(jax.grad(loss, argnums=(0, 1, 2)))
    product = 5 * 2 * 2 * 4 * 16 * seen
    assert flops.count(step, *heads) == 7 * product
    assert flops.count(step, *heads, needed=True) == 6 * product


def test_cond_counts_its_dearest_branch():
    def fn(i, x):
        return lax.switch(i, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    assert flops.count(fn, jax.ShapeDtypeStruct((), jnp.int32), shape(4, 4)) == 2 * 2 * 4**3


def test_platform_dependent_counts_the_default_in_loops_and_gradients_too():
    def product(x, y):
        return lax.platform_dependent(
            x, y, cpu=lambda x, y: x @ y @ jnp.eye(4), default=lambda x, y: jnp.tanh(x @ y)
        )

    def loss(x, y):
        return lax.scan(lambda x, _: (product(x, y), None), x, length=3)[0].sum()

    args = shape(4, 4), shape(4, 4)
    assert flops.count(product, *args) == 2 * 4**3
    assert flops.count(loss, *args) == 3 * 2 * 4**3
    assert flops.count(jax.grad(loss, argnums=(0, 1)), *args) == 3 * 3 * 2 * 4**3


def test_while_is_refused_only_where_it_multiplies_matrices():
    def fn(body):
        return lambda n, x: lax.fori_loop(0, n, lambda _, x: body(x), x)

    n = jax.ShapeDtypeStruct((), jnp.int32)
    assert flops.count(fn(jnp.tanh), n, shape(4, 4)) == 0
    with pytest.raises(ValueError, match="fori_loop"):
        flops.count(fn(lambda x: x @ x), n, shape(4, 4))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_shard_map_and_pmap_count_all_devices():
    n = jax.device_count()
    args = shape(4 * n, 5), shape(5, 7)
    mesh = jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    mapped = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
    assert flops.count(mapped, *args) == flops.count(jnp.dot, *args)
    pmapped = jax.pmap(jnp.dot, in_axes=(0, None))
    assert flops.count(pmapped, shape(n, 4, 5), args[1]) == flops.count(jnp.dot, *args)


def test_measured_peak_is_a_rate_that_does_not_grow_with_the_work():
    small, large = flops.measured_peak("float32", 512), flops.measured_peak("float32", 1024)
    assert 1e8 < small < 1e15
    assert 0.1 < large / small < 10


def test_peaks_are_known_by_the_names_that_jax_gives():
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert peak_flops("NVIDIA H200", "bfloat16") == peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    assert peak_flops(jax.local_devices(backend="cpu")[0].device_kind, "float32") is None
    assert peak_flops("TPU v4", "int8") is None


# Forward FLOPs of the layers of the seed systems, per example.


def dense(inputs, outputs):
    return 2 * inputs * outputs


def conv2d(positions, taps, inputs, outputs):
    """`positions` and `taps` along each side: of the output, or of a transposed one's input."""
    return 2 * positions**2 * taps**2 * inputs * outputs


KEY = jax.random.key(0)
NETWORKS = ("generator", "discriminator")
BATCH = 4
IMAGE = (28, 28, 1)
CONV_G = [dense(100, 6272), conv2d(7, 5, 128, 64), conv2d(14, 5, 64, 1)]
CONV_D = [conv2d(14, 3, 1, 32), conv2d(7, 3, 32, 64), dense(3136, 1)]
DENSE_G = [dense(100, 256), dense(256, 512), dense(512, 1024), dense(1024, 784)]
DENSE_D = [dense(784, 1024), dense(1024, 512), dense(512, 256), dense(256, 1)]


@pytest.mark.parametrize(
    ("generator", "discriminator", "layers_g", "layers_d"),
    [
        (gan_models.ConvGenerator(IMAGE), gan_models.ConvDiscriminator(), CONV_G, CONV_D),
        (gan_models.DenseGenerator(IMAGE), gan_models.DenseDiscriminator(), DENSE_G, DENSE_D),
    ],
    ids=["conv", "dense"],
)
def test_gan_step_agrees_with_its_formula(generator, discriminator, layers_g, layers_d):
    """G: forward once, for both losses, and backward. D: forward and backward on real and on fake;
    then forward on fake and back to the images, for G's sake. No other first layer needs the
    gradient of its input."""
    task = GAN(generator, discriminator, 100, dict.fromkeys(NETWORKS, optax.adam(1e-4)))
    g, d = sum(layers_g), sum(layers_d)
    formula = (3 * g - layers_g[0]) + 2 * (3 * d - layers_d[0]) + 2 * d
    assert count_step(task, {"image": shape(BATCH, *IMAGE)}) == BATCH * formula


VAE_CONV_ENCODER = [conv2d(14, 3, 1, 32), conv2d(7, 3, 32, 64), 2 * dense(3136, 20)]
VAE_CONV_DECODER = [dense(20, 3136), conv2d(7, 3, 64, 32), conv2d(14, 3, 32, 1)]


@pytest.mark.parametrize(
    ("encoder", "decoder", "layers"),
    [
        (
            vae_models.DenseEncoder(20),
            vae_models.DenseDecoder(IMAGE),
            [dense(784, 500), 2 * dense(500, 20), dense(20, 500), dense(500, 784)],
        ),
        (
            vae_models.ConvEncoder(20),
            vae_models.ConvDecoder(IMAGE),
            VAE_CONV_ENCODER + VAE_CONV_DECODER,
        ),
    ],
    ids=["dense", "conv"],
)
def test_vae_step_agrees_with_its_formula(encoder, decoder, layers):
    """Three passes, less the gradient with respect to the images."""
    task = VAE(encoder, decoder, 20, {"model": optax.adam(1e-3)})
    counted = count_step(task, {"image": shape(BATCH, *IMAGE)})
    assert counted == BATCH * (3 * sum(layers) - layers[0])


def gpt(**options):
    model = GPT(65, block_size=16, num_layers=3, num_heads=4, embed_dim=32, **options)
    task = CausalLM(model, {"model": optax.adam(1e-3)})
    return task, {"tokens": jax.ShapeDtypeStruct((BATCH, 17), jnp.int32)}


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": False, "dropout": 0.1, "dtype": jnp.bfloat16}], ids=str
)
def test_gpt_step_agrees_with_palm(options):
    task, batch = gpt(**options)
    params = jax.eval_shape(task.init, KEY, batch).networks["model"].params
    matmul_params = flops.matmul_params(params)
    assert matmul_params == 3 * 12 * 32**2 + 65 * 32
    per_token = flops.transformer_training(matmul_params, 3, 4, 8, length=16)
    assert count_step(task, batch) == BATCH * 16 * per_token


def test_palm_with_half_the_attention_leaves_the_parameters_whole():
    def per_token(params, half):
        return flops.transformer_training(params, 3, 4, 8, length=16, causal_half=half)

    assert 2 * per_token(0, half=True) == per_token(0, half=False)
    assert per_token(7, half=True) - per_token(0, half=True) == 6 * 7


def test_microbatches_cost_what_the_whole_batch_costs():
    task, batch = gpt()
    assert count_step(dataclasses.replace(task, accumulate=2), batch) == count_step(task, batch)


def count_step(task, batch):
    state = jax.eval_shape(task.init, KEY, batch)
    return flops.count(task.train_step, state, dict(batch, id=jnp.arange(BATCH)), KEY)
