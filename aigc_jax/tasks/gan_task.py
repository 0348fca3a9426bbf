"""The task of a generative adversarial network: a generator and a discriminator, updated in turn.

The losses stand in `gan_losses.py`, what the discriminator sees and its penalties in `gan_judge.py`
and `gan_penalties.py`; `gan.py` makes the task from a config.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from aigc_jax import rng
from aigc_jax.generate.latent import walks
from aigc_jax.generate.pictures import COLUMNS
from aigc_jax.tasks.gan_judge import Judge, in_packs, in_rows, logit
from aigc_jax.tasks.gan_losses import LOSSES, class_cross_entropy, relative_to
from aigc_jax.tasks.gan_metrics import accuracies, gathered
from aigc_jax.tasks.gan_penalties import standard_deviation
from aigc_jax.tasks.step import (
    average,
    clipped,
    create_network,
    interleaved,
    sum_over,
    update_network,
    weighted_gradient,
)
from aigc_jax.tasks.task import Batch, Metrics, Network, Samples, Settings, TrainState, first_state

STANDING, STANDING_BATCH = 2048, 128  # draws of z for the generator's standing statistics


@dataclass(frozen=True, eq=False)  # optimizers have no equality
class GAN:
    """A `Task` with two networks, `generator` and `discriminator`.

    Attributes:
        generator: `(z, train, axis, label) -> images in [-1, 1]`, or points.
        discriminator: `(images, ids, axis, label) -> logits`.
        latent_dim: size of z.
        tx: the optimizer of each network.
        latent: how z is drawn: "normal", standard; or "uniform" on [-1, 1].
        loss: what both networks minimise, a name in `gan_losses.LOSSES`.
        label_smoothing: of the target of real images alone, which is 1 less this.
        discriminator_steps: updates of the discriminator before each of the generator, each with a
            batch of real images of its own (Goodfellow et al. 2014, algorithm 1: k).
        penalty: on the discriminator's gradient by its images, a name in
            `gan_penalties.PENALTIES`; or "none".
        penalty_weight: its factor in the loss; R1's half is in the penalty.
        penalty_every: updates of the discriminator from one with a penalty to the next; the penalty
            then counts as often (lazy regularisation: Karras et al. 2020, appendix B).
        weight_clip: bound of the discriminator's parameters, 0 is off; Arjovsky et al. (2017).
        conditioning: how the discriminator knows the class, a name in `layers.CONDITIONINGS`; with
            any but "none" the generator is given it.
        num_classes: of the labels; 0 takes the data's.
        auxiliary_weight: factor of the auxiliary classifier's loss.
        packing: images that the discriminator judges together; PacGAN, Lin et al. (2018).
        instance_noise: standard deviation, at the start, of the noise on all that the discriminator
            sees; Soenderby et al. (2017).
        instance_noise_steps: steps in which the noise falls to zero; 0: it stays.
        diff_augment: what is done to all that the discriminator sees, names in
            `diff_augment.AUGMENTATIONS` with commas between; empty for nothing.
        batch_norm: the generator's statistics in evaluation and generation. "standing": computed
            anew from its parameters over `STANDING` draws of z (Brock et al. 2018, appendix D);
            "batch": over one batch of `STANDING_BATCH` draws, as in training; "moving": the
            averages that training kept. Those are of the generators of past steps: a moving average
            of parameters has other activations, with less variance.
        ema_decay: of the moving average of the generator's parameters; 0 keeps none. The
            discriminator is that of the last step always: an average of it has judged no generator.
        accumulate: microbatches per update.
        freeze: parameters that are not trained, by regular expressions (`create_network`).
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int
    tx: dict[str, optax.GradientTransformation]
    latent: str = "normal"
    loss: str = "non_saturating"
    label_smoothing: float = 0.0
    discriminator_steps: int = 1
    penalty: str = "none"
    penalty_weight: float = 10.0
    penalty_every: int = 1
    weight_clip: float = 0.0
    conditioning: str = "none"
    num_classes: int = 0
    auxiliary_weight: float = 1.0
    packing: int = 1
    instance_noise: float = 0.0
    instance_noise_steps: int = 0
    diff_augment: str = ""
    batch_norm: str = "standing"
    ema_decay: float = 0.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()

    kinds: ClassVar[tuple[str, ...]] = ("samples", "interpolation")

    @property
    def feature(self) -> str:
        """What of the data is made: images or points."""
        return "point" if len(self.generator.shape) == 1 else "image"

    @property
    def judge(self) -> Judge:
        """The discriminator with what it sees."""
        fields = {field.name for field in dataclasses.fields(Judge)} - {"diff_augment"}
        policy = tuple(name.strip() for name in self.diff_augment.split(",") if name.strip())
        return Judge(diff_augment=policy, **{name: getattr(self, name) for name in fields})

    def init(self, key: Key[Array, ""], batch: Batch) -> TrainState:
        """Both networks before the first step; what the batch holds gives the shape."""
        key_g, key_d = jax.random.split(key)
        z, label = jnp.zeros((1, self.latent_dim)), self._label(batch)
        label = None if label is None else jnp.zeros(1, jnp.int32)
        x = jnp.concatenate([batch[self.feature][:1]] * self.packing, axis=-1)
        of_generator = self.generator.init(key_g, z, train=False, label=label)
        of_discriminator = self.discriminator.init(key_d, x, None, label=label)
        return first_state(
            **{
                name: create_network(name, value, self.tx[name], decay, self.freeze)
                for name, value, decay in (
                    ("generator", of_generator, self.ema_decay),
                    ("discriminator", of_discriminator, 0.0),
                )
            }
        )

    def train_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """The discriminator's updates, then the generator's through the updated discriminator.

        Both judge the same images, which are made once where one update of each takes the whole
        batch. (Written down twice, XLA makes those of a batch norm twice.)
        """
        generator, discriminator = state.networks["generator"], state.networks["discriminator"]
        key_z, *keys = jax.random.split(key, 4)
        views = jax.random.split(jax.random.fold_in(key, 4), 5)  # 0 to 3 are split off
        batch = dict(batch, z=self._noise(key_z, batch["id"]))
        updates, made = self.discriminator_steps, None
        if updates == self.accumulate == 1:
            generate = partial(self._generate, generator, batch=batch, axis=axis)
            made = jax.vjp(generate, generator.params, has_aux=True)
            batch = {**batch, "made": made[0]}

        def update(discriminator, given):
            batch, number = given
            return self._update_discriminator(
                discriminator, generator, batch, number, state.step, (*keys, *views), axis
            )

        if updates == 1:
            discriminator, metrics_d = update(discriminator, (batch, state.step))
        else:
            batches = jax.tree.map(lambda x: interleaved(x, updates), batch)
            numbers = state.step * updates + jnp.arange(updates)
            discriminator, metrics_d = jax.lax.scan(update, discriminator, (batches, numbers))
            metrics_d = jax.tree.map(lambda x: x.sum(axis=0), metrics_d)
            batch = jax.tree.map(lambda x: x[-1], batches)
        generator, metrics_g = self._update_generator(
            generator, discriminator, batch, made, state.step, (*keys, *views), axis
        )
        networks = {"generator": generator, "discriminator": discriminator}
        return state.after_step(networks), gathered(**metrics_d, **metrics_g)

    def _update_discriminator(
        self,
        discriminator: Network,
        generator: Network,
        batch: Batch,
        number: Int[Array, ""],
        step: Int[Array, ""],
        keys: Any,
        axis: str | None,
    ) -> tuple[Network, dict[str, Any]]:
        """Update `number`, from a batch of real images and as many generated ones."""
        key_real, key_fake, _, see_real, see_fake, *_, key_penalty = keys
        losses, judge, spread = LOSSES[self.loss], self.judge, jnp.ones(())
        smoothing = (self.label_smoothing,) if losses.smooths else ()
        if self.penalty == "dragan":
            spread = standard_deviation(batch[self.feature], axis)

        def loss_fn(params, batch):
            batch = in_rows(batch, self.packing)
            ids, label = batch["id"], self._label(batch)
            made = batch.get("made")
            if made is None:
                made, _ = self._generate(generator, generator.params, batch, axis)
            real_image = judge.sees(batch[self.feature], see_real, ids, step)
            fake_image = judge.sees(made, see_fake, ids, step)
            variables = discriminator.variables(params)
            seen_real, seen_fake, stats = judge.both(
                variables, real_image, fake_image, ids, key_real, key_fake, axis, label
            )
            real, fake = logit(seen_real), logit(seen_fake)
            if losses.relative:
                real, fake = relative_to(real, fake, axis), relative_to(fake, real, axis)
            loss = total = losses.discriminator(real, fake, *smoothing)
            metrics = {"discriminator_loss": average(loss), **accuracies(real, fake, losses)}
            if self.conditioning == "auxiliary_classifier":
                on_both = [class_cross_entropy(x[:, 1:], label) for x in (seen_real, seen_fake)]
                total = total + self.auxiliary_weight * sum(on_both)
                right = seen_real[:, 1:].argmax(axis=-1) == label
                metrics["class_accuracy"] = average(right)
            if self.penalty != "none":
                variables = discriminator.variables(params, stats)
                given = (real_image, fake_image, spread, key_penalty, number)
                added = judge.penalised(variables, *given, ids, key_real, axis, label)
                total, metrics["penalty"] = total + added, average(added)
            return total.sum(), (jnp.float32(loss.size), metrics, stats)

        grads, metrics, stats = weighted_gradient(
            loss_fn, discriminator.params, in_packs(batch, self.packing), self.accumulate, axis
        )
        tx = self.tx["discriminator"]
        tx = clipped(tx, self.weight_clip) if self.weight_clip else tx
        return update_network(discriminator, grads, stats, tx, ema_decay=0.0), metrics

    def _update_generator(
        self,
        generator: Network,
        discriminator: Network,
        batch: Batch,
        made: tuple[Array, Any, Any] | None,
        step: Int[Array, ""],
        keys: Any,
        axis: str | None,
    ) -> tuple[Network, dict[str, Any]]:
        """One update through the discriminator, which stays as it is. What is `made` already: the
        images, their pullback to the generator's parameters, the statistics after them."""
        given, pull, after = made or (generator.params, None, None)
        key_real, _, key_judged, see_real, _, see_judged, *_ = keys
        losses, judge = LOSSES[self.loss], self.judge

        def loss_fn(given, batch):
            batch = in_rows(batch, self.packing)
            ids, label, variables = batch["id"], self._label(batch), discriminator.variables()
            image, stats = (given, after) if made else self._generate(generator, given, batch, axis)
            image = judge.sees(image, see_judged, ids, step)
            seen, _ = judge(variables, image, ids, key_judged, axis, label)
            fake = logit(seen)
            if losses.relative:
                image = judge.sees(batch[self.feature], see_real, ids, step)
                real = logit(judge(variables, image, ids, key_real, axis, label)[0])
                loss = losses.generator(
                    relative_to(fake, real, axis), relative_to(real, fake, axis)
                )
            else:
                loss = losses.generator(fake)
            total = loss
            if self.conditioning == "auxiliary_classifier":
                total = total + self.auxiliary_weight * class_cross_entropy(seen[:, 1:], label)
            metrics = {"generator_loss": average(loss)}
            return total.sum(), (jnp.float32(loss.size), metrics, stats)

        grads, metrics, stats = weighted_gradient(
            loss_fn, given, in_packs(batch, self.packing), self.accumulate, axis, pull
        )
        tx = self.tx["generator"]
        return update_network(generator, grads, stats, tx, self.ema_decay), metrics

    def inference_stats(self, state: TrainState, key: Key[Array, ""]) -> dict[str, Any]:
        """The generator's batch statistics from its parameters: means over draws of z, in batches
        of `STANDING_BATCH`, of all classes alike."""
        generator = state.networks["generator"]
        if self.batch_norm == "moving" or "batch_stats" not in generator.stats:
            return {}
        empty = jax.tree.map(jnp.zeros_like, generator.stats["batch_stats"])
        batches = 1 if self.batch_norm == "batch" else STANDING // STANDING_BATCH

        def add(total, number):
            ids = number * STANDING_BATCH + jnp.arange(STANDING_BATCH)
            given = {"z": self._noise(key, ids), "label": ids % max(self.num_classes, 1)}
            variables = generator.replace(stats={**generator.stats, "batch_stats": empty})
            _, stats = self._generate(variables, generator.params, given, None)
            return jax.tree.map(jnp.add, total, stats["batch_stats"]), None

        total, _ = jax.lax.scan(add, empty, jnp.arange(batches))
        # In training linen returns momentum * old + (1 - momentum) * batch, and `old` is zero here.
        scale = 1.0 / (batches * (1.0 - self.generator.momentum))
        new = jax.tree.map(lambda x: x * scale, total)
        return {"generator": {**generator.stats, "batch_stats": new}}

    def eval_step(
        self, state: TrainState, batch: Batch, key: Key[Array, ""], axis: str | None = None
    ) -> Metrics:
        """Both losses on held-out images and as many generated ones."""
        seen, mask = self.predict(state, batch, key), batch["mask"]
        if self.packing > 1:  # a pack with padding in it does not count
            whole = mask.reshape(-1, self.packing).min(axis=1)
            mask = jnp.repeat(whole, self.packing)
        values = {name: x for name, x in seen.items() if not name.endswith("_logit")}
        metrics = {name: average(x, mask) for name, x in values.items()}
        sides = accuracies(seen["real_logit"], seen["fake_logit"], LOSSES[self.loss], mask)
        return sum_over(axis, gathered(**metrics, **sides))

    def predict(self, state: TrainState, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Of each held-out image and a generated one beside it, of the same class: both losses and
        both logits; of a relativistic loss, whose mean would depend on the batch, relative to each
        other. Of packed images those of the pack."""
        batch, losses = dict(batch, z=self._noise(key, batch["id"])), LOSSES[self.loss]
        variables, label = state.networks["discriminator"].variables(), self._label(batch)
        seen = self.judge.fixed(variables, batch[self.feature], label)
        made = self._images(state, batch["z"], label)
        real, fake = logit(seen), logit(self.judge.fixed(variables, made, label))
        if losses.relative:
            real, fake = real - fake, fake - real
        found = {
            "discriminator_loss": losses.discriminator(real, fake),
            "generator_loss": losses.generator(fake, *((real,) if losses.relative else ())),
            "real_logit": real,
            "fake_logit": fake,
        }
        if self.conditioning == "auxiliary_classifier":
            found["class_accuracy"] = jnp.float32(seen[:, 1:].argmax(axis=-1) == label)
        return found

    def generate(
        self,
        state: TrainState,
        key: Key[Array, ""],
        ids: Int[Array, "num"],
        inputs: Batch,
        settings: Settings,
    ) -> Samples:
        """Images or points from `inputs["z"]` `[num, latent]`, or else from new noise, or from arcs
        between two draws, ten each. With classes they are of `inputs["label"]` `[num]`, or else
        of one class for every ten, in turn: a row of a grid."""
        if "z" in inputs:
            z = inputs["z"]
        elif settings.kind == "interpolation":
            z = self._bounded(walks(key, ids, self.latent_dim))
        else:
            z = self._noise(key, ids)
        if not self.num_classes:
            return {self.feature: self._shown(self._images(state, z, None))}
        label = inputs.get("label", (ids // COLUMNS) % self.num_classes)
        return {self.feature: self._shown(self._images(state, z, label)), "label": label}

    def card(self) -> dict[str, Any]:
        """Which statistics the generator's batch norm takes, and how classes are chosen."""
        draws = f"draws of z in batches of {STANDING_BATCH}"
        statistics = {
            "standing": f"standing, over {STANDING:,} {draws}",
            "batch": f"of one batch of {STANDING_BATCH} draws of z",
            "moving": "moving averages",
        }
        normed = hasattr(self.generator, "momentum")
        found: dict[str, Any] = {
            "batch_norm": statistics[self.batch_norm] if normed else "none",
        }
        if self.ema_decay:
            found["discriminator"] = "last parameters"
        if getattr(self.discriminator, "norm", False):
            averaged = "moving averages of real and made batches; in training each its own"
            found["discriminator_batch_norm"] = averaged
        if self.num_classes:
            found["classes"] = "beside held-out images theirs, otherwise all alike often"
        return found

    def _noise(self, key: Key[Array, ""], ids: Int[Array, "batch"]) -> Float[Array, "batch latent"]:
        draw = lambda k: jax.random.normal(k, (self.latent_dim,))  # noqa: E731
        return self._bounded(rng.per_example(key, ids, draw))

    def _bounded(self, z: Float[Array, "batch latent"]) -> Float[Array, "batch latent"]:
        """Normal draws as they are, or as uniform ones on [-1, 1]: twice their quantile less 1."""
        return jax.scipy.special.erf(z * 2**-0.5) if self.latent == "uniform" else z

    def _label(self, batch: Batch) -> Any:
        return batch["label"] if self.num_classes else None

    def _generate(self, generator: Network, params, batch: Batch, axis) -> Any:
        """Images and the statistics after them, in training mode."""
        return self.generator.apply(
            generator.variables(params),
            batch["z"],
            train=True,
            axis=axis,
            label=self._label(batch),
            mutable=list(generator.stats),
        )

    def _images(self, state: TrainState, z: Float[Array, "batch latent"], label: Any) -> Any:
        """Images in [-1, 1], or points, in evaluation mode."""
        variables = state.networks["generator"].variables()
        return self.generator.apply(variables, z, train=False, label=label)

    def _shown(self, x: Array) -> Array:
        return (x + 1.0) / 2.0 if self.feature == "image" else x
