"""Dense layers of a block, which know how tensor parallelism splits them."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.errors import UserError
from aigc_jax.ops.layout import TENSOR_AXIS, free_axes, unshard

# What tensor parallelism splits (`parallel.sharding.state_shardings`): columns of what comes first
# in attention and MLP, rows of what comes last, so heads and hidden units; and the vocabulary.
TENSOR_RULES = (
    ("/(token|source)_embedding", -2),
    ("/head$", -2),
    ("/(mlm|head)_bias$", -1),
    (r"/(qkv|query|key_value|cross_query|cross_key_value|mlp_gate|mlp_in)/(?!lora/a)", -1),
    (r"/(attention_out|cross_out|mlp_out)/(kernel|lora/a)", -2),
)


class TensorParallelDense(nn.Module):
    """A dense layer whose kernel's axis `tensor_axis` is split over the mesh axis `tensor`."""

    features: int
    tensor_axis: int
    std: float
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows features"]:
        kernel_init = nn.initializers.normal(self.std)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features))
        out = x.astype(self.dtype) @ unshard(kernel.astype(self.dtype), self.tensor_axis)
        if self.use_bias:
            out += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return out


class StackedDense(nn.Module):
    """Several dense layers side by side: queries, keys and values, or keys and values alone.

    The kernel is `[parts, inputs, features]`, a head's columns beside each other: its last two axes
    are large, so that a TPU does not pad them, and the last splits by heads.
    """

    parts: int
    features: int
    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows inputs"], together: bool = False
    ) -> list[Float[Array, "rows features"]]:
        """What each part makes of x.

        Args:
            x: the rows.
            together: as one batch of products, not one after the other. Of the few rows of a
                decoding step, XLA's CPU backend takes longer to cut a part out of the kernel than
                to multiply by it; of many rows its gradient takes longer than those of the parts.
        """
        parts, width, features = self.parts, x.shape[-1], self.features

        def init(key, shape):
            kernel = nn.initializers.normal(0.02)(key, (width, parts * features))
            return kernel.reshape(width, parts, features).swapaxes(0, 1)

        kernel = self.param("kernel", init, (parts, width, features)).astype(self.dtype)
        kernel = unshard(kernel, -1)
        x = x.astype(self.dtype)
        # Of one product of all parts, XLA's CPU backend would transpose the kernel at every step.
        if together:
            out = list(jnp.broadcast_to(x, (parts, *x.shape)) @ kernel)
        else:
            out = [x @ kernel[i] for i in range(parts)]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (parts, features)).astype(self.dtype)
            out = [part + bias[i] for i, part in enumerate(out)]
        return out


def check_heads(num_heads: int, key: str = "num_heads") -> None:
    """Every device of the mesh axis `tensor` gets the same number of heads, or a `UserError`.

    Args:
        num_heads: of queries, or of keys and values.
        key: its name in `config.model`.
    """
    tensor = free_axes().get(TENSOR_AXIS, 1)
    if num_heads % tensor:
        fitting = [str(n) for n in range(1, num_heads + 1) if num_heads % n == 0]
        *others, largest = fitting
        use = f"{', '.join(others)} or {largest}" if others else largest
        raise UserError(
            f"config.parallel.tensor={tensor} does not divide config.model.{key}={num_heads}; "
            f"use {use}"
        )
