"""Dense layers of a block, which know how tensor parallelism splits them."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aigc_jax.errors import UserError
from aigc_jax.ops.layout import TENSOR_AXIS, free_axes, unshard

# What tensor parallelism splits (`parallel.sharding.state_shardings`): columns of what comes first
# in attention and MLP, rows of what comes last, so heads and hidden units; and the vocabulary.
TENSOR_RULES = (
    ("/token_embedding", -2),
    ("/qkv/", -1),
    ("/attention_out/kernel", -2),
    ("/mlp_in/", -1),
    ("/mlp_out/kernel", -2),
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


class QKV(nn.Module):
    """Queries, keys and values of all heads.

    The kernel is `[3, embed, embed]`, a head's columns beside each other: its last two axes are
    large, so that a TPU does not pad them, and the last splits by heads.
    """

    use_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "rows embed"]) -> list[Float[Array, "rows embed"]]:
        """The three, in the order of the name."""
        width = x.shape[-1]

        def init(key, shape):
            kernel = nn.initializers.normal(0.02)(key, (width, 3 * width))
            return kernel.reshape(width, 3, width).swapaxes(0, 1)

        kernel = unshard(self.param("kernel", init, (3, width, width)).astype(self.dtype), -1)
        # Three products: of one, XLA's CPU backend would transpose the kernel at every step.
        parts = [x.astype(self.dtype) @ kernel[i] for i in range(3)]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (3, width)).astype(self.dtype)
            parts = [part + bias[i] for i, part in enumerate(parts)]
        return parts


def check_heads(num_heads: int) -> None:
    """Every device of the mesh axis `tensor` gets the same number of heads, or a `UserError`."""
    tensor = free_axes().get(TENSOR_AXIS, 1)
    if num_heads % tensor:
        fitting = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise UserError(
            f"config.parallel.tensor={tensor} does not divide config.model.num_heads={num_heads}; "
            f"use {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}"
        )
