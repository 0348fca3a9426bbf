"""How a discriminator judges images: what it sees of them, alone or in packs, and its penalty."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.errors import UserError
from aigc_jax.models.gan.neutral import NeutralDiscriminator
from aigc_jax.ops.diff_augment import augment
from aigc_jax.tasks.gan_penalties import penalty
from aigc_jax.tasks.task import Batch

Images = Float[Array, "batch ..."]
Logits = Float[Array, "packs *outputs"]
Labels = Int[Array, "batch"] | None


@dataclass(frozen=True)
class Judge:
    """A discriminator and the settings of what it sees; the fields are those of `GAN`."""

    discriminator: nn.Module
    packing: int
    instance_noise: float
    instance_noise_steps: int
    diff_augment: tuple[str, ...]
    penalty: str
    penalty_weight: float
    penalty_every: int

    def sees(
        self, images: Images, key: Key[Array, ""], ids: Int[Array, "batch"], step: Int[Array, ""]
    ) -> Images:
        """Images as the discriminator gets them in training: under noise, augmented."""
        key_noise, key_augment = jax.random.split(key)
        if self.instance_noise:
            shape = images.shape[1:]
            noise = rng.per_example(key_noise, ids, lambda k: jax.random.normal(k, shape))
            gone = step / self.instance_noise_steps if self.instance_noise_steps else 0.0
            images = images + self.instance_noise * jnp.maximum(0.0, 1.0 - gone) * noise
        if self.diff_augment:
            images = augment(images, self.diff_augment, key_augment, ids)
        return images

    def __call__(
        self,
        variables: dict[str, Any],
        images: Images,
        ids: Int[Array, "batch"],
        key: Key[Array, ""],
        axis: str | None,
        label: Labels,
    ) -> tuple[Logits, dict[str, Any]]:
        """Logits and the statistics after them, in training mode."""
        packs = packed(images, self.packing)
        return _applied(
            self.discriminator, variables, packs, ids[:: self.packing], key, axis, label
        )

    def both(
        self,
        variables: dict[str, Any],
        real: Images,
        fake: Images,
        ids: Int[Array, "batch"],
        key_real: Key[Array, ""],
        key_fake: Key[Array, ""],
        axis: str | None,
        label: Labels,
    ) -> tuple[Logits, Logits, dict[str, Any]]:
        """Logits of real images and of as many generated ones, and the statistics after both.

        Judged as one batch, a real image and a generated one in turn, the parameters are read once,
        and one product makes the gradient of a kernel rather than a sum of two, which Adam would
        add anew wherever it reads it. So it is with a penalty, under which each image is judged by
        itself, and for the neutral discriminator, whose dense layer is wide and whose batch norm
        has statistics of either: on a CPU core the step of `wgan_gp.py:mnist` is 0.9 of what it
        was, that of `neutral.py:wgan` 0.93. Others stay apart: the DCGAN's step, all of
        convolutions, would be 1.04, and a power iteration (spectral norm) takes a step with each.
        """
        wide = isinstance(self.discriminator, NeutralDiscriminator)
        stated = set(variables) - {"params"}
        if stated - {"batch_stats"} or not (wide or (self.penalty != "none" and not stated)):
            seen_real, stats = self(variables, real, ids, key_real, axis, label)
            variables = {**variables, **stats}
            seen_fake, stats = self(variables, fake, ids, key_fake, axis, label)
            return seen_real, seen_fake, stats
        ids = ids[:: self.packing]
        seen, stats = _applied(
            self.discriminator,
            variables,
            _in_turn(packed(real, self.packing), packed(fake, self.packing)),
            _in_turn(2 * ids, 2 * ids + 1),  # so that each has dropout of its own
            key_real,
            axis,
            None if label is None else _in_turn(label, label),
            **({"parts": 2} if wide else {}),
        )
        seen = seen.reshape(-1, 2, *seen.shape[1:])
        return seen[:, 0], seen[:, 1], stats

    def fixed(self, variables: dict[str, Any], images: Images, label: Labels) -> Logits:
        """Logits in evaluation mode, one for each image: that of its pack."""
        packs = packed(images, self.packing)
        seen: Any = self.discriminator.apply(variables, packs, None, label=label)
        return jnp.repeat(seen, self.packing, axis=0) if self.packing > 1 else seen

    def penalised(
        self,
        variables: dict[str, Any],
        real: Images,
        fake: Images,
        spread: Float[Array, ""],
        key: Key[Array, ""],
        number: Int[Array, ""],
        ids: Int[Array, "batch"],
        key_judge: Key[Array, ""],
        axis: str | None,
        label: Labels,
    ) -> Float[Array, "packs"]:
        """What the penalty adds to each value of the discriminator's loss; zeros in the updates
        that it leaves out. All arrays are float32, in the discriminator's layers too; products
        have the precision that `gan_penalties` names.

        Args:
            variables: of the discriminator.
            real, fake: as it sees them.
            spread, key: see `gan_penalties.penalty`.
            number: of the update.
            ids, key_judge, axis, label: as for `__call__`.
        """
        exact = self.discriminator.clone(dtype=jnp.float32)
        size = self.packing

        def critic(packs):
            return logit(_applied(exact, variables, packs, ids[::size], key_judge, axis, label)[0])

        def due(real, fake):
            found = penalty(self.penalty, critic, real, fake, spread, key, ids[::size])
            return self.penalty_weight * self.penalty_every * found

        def left_out(real, fake):
            return jnp.zeros_like(real, shape=real.shape[:1])

        real, fake = packed(real, size), packed(fake, size)
        if self.penalty_every == 1:
            return due(real, fake)
        return jax.lax.cond(number % self.penalty_every == 0, due, left_out, real, fake)


def logit(seen: Logits) -> Float[Array, "packs"]:
    """Of real or generated, without those of the classes that an auxiliary classifier adds."""
    return seen if seen.ndim == 1 else seen[:, 0]


def packed(images: Images, size: int) -> Float[Array, "packs ..."]:
    """Every `size` images in a row as one with `size` times the channels (Lin et al. 2018)."""
    if size == 1:
        return images
    _check_rows(images.shape[0], size)
    packs = jnp.moveaxis(images.reshape(-1, size, *images.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def in_packs(batch: Batch, size: int) -> Batch:
    """Rows as `[packs, size, ...]`, so that no microbatch splits a pack."""
    if size == 1:
        return batch
    _check_rows(batch["id"].shape[0], size)
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), dict(batch))


def in_rows(batch: Batch, size: int) -> Batch:
    """The inverse of `in_packs`."""
    return batch if size == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), dict(batch))


def _in_turn(a: Array, b: Array) -> Array:
    """A row of either in turn, which leaves each on its device."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _check_rows(rows: int, size: int) -> None:
    if rows % size:
        raise UserError(
            f"config.task.packing={size} does not divide the {rows} examples of a batch on its "
            "devices; take another config.data.batch_size or config.data.eval_batch_size"
        )


def _applied(module, variables, packs, ids, key, axis, label, **parts) -> Any:
    stats = [name for name in variables if name != "params"]
    rngs = {"dropout": key}
    return module.apply(
        variables, packs, ids, axis=axis, label=label, rngs=rngs, mutable=stats, **parts
    )
