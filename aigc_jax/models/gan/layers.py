"""What generators and discriminators are built from: labels, batch norm, spectral norm, the head.

The functions make layers in the module that calls them, so its parameters have flat names.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aigc_jax.ops.layout import unshard

SLOPE = 0.2  # of the leaky ReLUs
SPECTRAL = "spectral"  # the collection of the vectors of the power iterations
Labels = Int[Array, "batch"] | None

CONDITIONINGS = ("none", "concatenation", "projection", "auxiliary_classifier")
"""How a discriminator knows the class: not at all; as planes beside the image (Mirza and Osindero
2014); as an inner product with its features (Miyato and Koyama 2018); it does not, and says it
(Odena et al. 2017)."""


def with_label(x: Float[Array, "batch ..."], label: Labels, num_classes: int) -> Array:
    """The class as `num_classes` more channels, one of which is 1; x itself without classes."""
    if not num_classes:
        return x
    one_hot = jax.nn.one_hot(label, num_classes, dtype=x.dtype)
    planes = one_hot.reshape(-1, *[1] * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(planes, (*x.shape[:-1], num_classes))], axis=-1)


class ClassBatchNorm(nn.Module):
    """Batch norm with a scale and a shift for each class (Dumoulin et al. 2017; de Vries et al.
    2017). The statistics are those of the whole batch, over all classes.

    Attributes:
        num_classes: how many.
        momentum, epsilon: of the statistics.
        dtype: of the computation; parameters are float32.
    """

    num_classes: int
    momentum: float
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch ... channels"],
        label: Labels,
        train: bool,
        axis: str | None = None,
    ) -> Float[Array, "batch ... channels"]:
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=axis,
            dtype=self.dtype,
            use_scale=False,
            use_bias=False,
        )(x)
        shape = (self.num_classes, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        # A row for each example by a product: the gradient of a look-up is slow on a CPU.
        one_hot = jax.nn.one_hot(label, self.num_classes)
        own = (-1, *[1] * (x.ndim - 2), x.shape[-1])
        scale, bias = (
            jnp.matmul(one_hot, unshard(p), precision="highest").reshape(own).astype(self.dtype)
            for p in (scale, bias)
        )
        return x * scale + bias


def batch_norm(
    label: Labels,
    num_classes: int,
    *,
    train: bool,
    axis: str | None,
    momentum: float,
    epsilon: float,
    dtype: DTypeLike,
    parts: int = 1,
) -> Callable[[Array], Array]:
    """What makes a layer of batch norm and applies it; one with classes if there are some.

    Without classes several batches may lie in turn in one, a row of each, `parts` of them: each has
    statistics of its own, and the moving averages take one after the other.
    """
    shared = {"momentum": momentum, "epsilon": epsilon, "dtype": dtype}
    if num_classes:
        return lambda x: ClassBatchNorm(num_classes, **shared)(x, label, train, axis)

    def normed(x: Array) -> Array:
        layer = nn.BatchNorm(use_running_average=not train, axis_name=axis, **shared)
        if parts == 1:
            return layer(x)
        apart = x.reshape(-1, parts, *x.shape[1:])
        return jnp.stack([layer(apart[:, i]) for i in range(parts)], axis=1).reshape(x.shape)

    return normed


def spectral(layer: nn.Module, on: bool, update: bool) -> Callable[[Array], Array]:
    """A layer whose kernel is divided by its largest singular value (Miyato et al. 2018), as one
    step of the power iteration a call finds it; the layer itself if it is not `on`.

    Args:
        layer: dense or a convolution, whose kernel is taken as a matrix `[window * in, out]`.
        on: whether to.
        update: whether to keep the vector of the iteration for the next call: in training.
    """
    if not on:
        return layer  # pyright: ignore[reportReturnType]
    return partial(nn.SpectralNorm(layer, collection_name=SPECTRAL), update_stats=update)


def head(
    h: Float[Array, "batch features"],
    label: Labels,
    num_classes: int,
    conditioning: str,
    dense: Callable[..., nn.Module],
    spectral_norm: bool = False,
    update: bool = False,
) -> Float[Array, "batch *outputs"]:
    """One logit for each image; of an auxiliary classifier `[batch, 1 + classes]`, those of the
    classes after it.

    Args:
        h: features, float32.
        label, num_classes: the classes, where `conditioning` is "projection".
        conditioning: a name in `CONDITIONINGS`.
        dense: `(outputs, **fields) -> layer`.
        spectral_norm, update: see `spectral`.
    """
    logit = spectral(dense(1), spectral_norm, update)(h)[:, 0]
    if conditioning == "projection":
        one_hot = jax.nn.one_hot(label, num_classes)
        embedding = dense(h.shape[-1], use_bias=False)
        return logit + (spectral(embedding, spectral_norm, update)(one_hot) * h).sum(axis=-1)
    if conditioning == "auxiliary_classifier":
        classes = spectral(dense(num_classes), spectral_norm, update)(h)
        return jnp.concatenate([logit[:, None], classes], axis=-1)
    return logit


def kernel_init(std: float) -> Initializer:
    """A normal of this standard deviation; Glorot's uniform for 0."""
    return nn.initializers.normal(std) if std else nn.initializers.glorot_uniform()
