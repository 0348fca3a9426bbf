"""A class for a text: one dense layer on what a transformer makes of its tokens."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError, lookup
from aigc_jax.models.layers import Dense, Dropout
from aigc_jax.models.transformer.decoder import GPT
from aigc_jax.models.transformer.encoder import BERT
from aigc_jax.models.transformer.projections import TENSOR_RULES

POOLS = ("mean", "first", "last", "pooler")


class TextClassifier(nn.Module):
    """A BERT or a GPT with a dense layer to classes (Devlin et al. 2019, section 3.2; Radford et
    al. 2018, section 3.2). Its parameters lie beside those of the transformer, under the names
    that they have there: so `config.train.init_from` finds them in a run that was pre-trained.

    Attributes:
        encoder: without a head of its own.
        num_classes: how many there are.
        pool: what stands for the text: "mean" of its tokens; "first" or "last" of them; "pooler",
            a BERT's, of the first.
    """

    encoder: BERT | GPT
    num_classes: int
    pool: str = "mean"

    tensor_rules: ClassVar[tuple[tuple[str, int], ...]] = TENSOR_RULES

    def __call__(
        self, tokens: Int[Array, "batch length"], ids: Int[Array, "batch"] | None = None
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch embed"]]:
        """The logits of the classes, and what they are made of.

        Args:
            tokens: filled up with -1 at their ends: no logit depends on how far. One at least.
            ids: the examples' places in the global batch, for dropout; None switches it off.
        """
        real = tokens >= 0
        segments = real.astype(jnp.int32)
        tokens = jnp.maximum(tokens, 0)
        if self.pool == "pooler" and isinstance(self.encoder, BERT):
            features = self.encoder.pooled(tokens, ids, segments)
        else:
            x = self.encoder.encode(tokens, ids, segments)
            features = pooled(x.astype(jnp.float32), real, self.pool)
        features = self.classifier_dropout(features.astype(jnp.float32), ids)
        return self.classifier(features), features

    def setup(self):
        lookup(dict.fromkeys(POOLS), self.pool, "config.task.pool")
        if self.pool == "pooler" and not isinstance(self.encoder, BERT):
            raise UserError('config.task.pool="pooler" is for BERT; use mean or last')
        nn.share_scope(self, self.encoder)
        self.classifier_dropout = Dropout(self.encoder.dropout)
        self.classifier = Dense(self.num_classes, kernel_init=nn.initializers.normal(0.02))


def pooled(
    x: Float[Array, "batch length embed"], real: Array, pool: str
) -> Float[Array, "batch embed"]:
    """One vector of each text.

    Args:
        x: a vector of each token.
        real: `[batch, length]`, whether it is one and no padding.
        pool: "mean", "first" or "last".
    """
    if pool == "first":
        return x[:, 0]
    count = jnp.maximum(real.sum(axis=1), 1)
    if pool == "last":
        return jnp.take_along_axis(x, (count - 1)[:, None, None], axis=1)[:, 0]
    return (x * real[..., None]).sum(axis=1) / count[:, None]
