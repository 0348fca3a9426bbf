"""The convolution layers stand in for linen's: the same parameters, the same outputs but for the
order of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax.models.conv import Conv, ConvTranspose

PAIRS = {"conv": (Conv, nn.Conv), "transpose": (ConvTranspose, nn.ConvTranspose)}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("padding", "dtype", "use_bias"),
    [("SAME", None, True), ("VALID", jnp.bfloat16, True), (((1, 0), (2, 1)), None, False)],
)
def test_drop_in(kind, padding, dtype, use_bias):
    args = {"padding": padding, "dtype": dtype, "use_bias": use_bias}
    if use_bias:
        args["bias_init"] = nn.initializers.normal(1.0)
    ours, theirs = (layer(4, (5, 3), (2, 1), **args) for layer in PAIRS[kind])
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    y, variables = ours.init_with_output(jax.random.key(1), x)
    want, want_variables = theirs.init_with_output(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, want_variables)
    assert y.dtype == want.dtype
    y, want = y.astype(jnp.float32), want.astype(jnp.float32)
    tolerance = 4 * float(jnp.finfo(dtype or jnp.float32).eps)
    np.testing.assert_allclose(y, want, rtol=tolerance, atol=tolerance * float(jnp.abs(want).max()))
