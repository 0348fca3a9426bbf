"""What encoders and decoders are made of."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from aigc_jax.errors import lookup
from aigc_jax.models.layers import Dense

Moments = tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]

ACTIVATIONS = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "tanh": nn.tanh,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "softplus": nn.softplus,
}


def activate(x: Float[Array, "..."], name: str, owner: str) -> Float[Array, "..."]:
    """A nonlinearity by name; an unknown one is a `UserError` that names `config.model.OWNER`."""
    return lookup(ACTIVATIONS, name, f"config.model.{owner}.activation")(x)


def gaussian(x: Float[Array, "batch features"], latent_dim: int) -> Moments:
    """Mean and log standard deviation in float32, each a linear map of the last hidden layer."""
    x = x.astype(jnp.float32)
    return Dense(latent_dim, name="mean")(x), Dense(latent_dim, name="log_std")(x)


def told(
    x: Float[Array, "batch features"], condition: Float[Array, "batch told"] | None
) -> Float[Array, "batch features_and_told"]:
    """Vectors with what the model is told behind them."""
    return x if condition is None else jnp.concatenate([x, condition.astype(x.dtype)], axis=-1)


def told_planes(
    x: Float[Array, "batch height width channels"],
    condition: Float[Array, "batch told"] | None,
) -> Float[Array, "batch height width channels_and_told"]:
    """Images with a constant channel for each number that the model is told."""
    if condition is None:
        return x
    planes = jnp.broadcast_to(condition[:, None, None], (*x.shape[:3], condition.shape[-1]))
    return jnp.concatenate([x, planes.astype(x.dtype)], axis=-1)
