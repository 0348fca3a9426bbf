"""Encoders and decoders of variational autoencoders, a file a kind.

An encoder maps images to the mean and the log standard deviation of q(z|x). A decoder maps latent
vectors to `[batch, height, width, outputs]`, from which a likelihood (`aigc_jax.ops.likelihoods`)
makes p(x|z); how many outputs it wants for a pixel is in the decoder's `shape`.

All take `condition`, a vector for each example that the model is told besides (a label as one-hot),
and `train` and `axis` for those with batch norm: `train` takes the batch's statistics rather than
the running ones, `axis` is pmap's mapped axis, over which they are shared.
"""

from aigc_jax.models.vae.conv import ConvDecoder, ConvEncoder
from aigc_jax.models.vae.dense import DenseDecoder, DenseEncoder, DenseGaussian
from aigc_jax.models.vae.neutral import NeutralDecoder, NeutralEncoder
from aigc_jax.models.vae.quantised import CodeDecoder, CodeEncoder

__all__ = [
    "CodeDecoder",
    "CodeEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DenseDecoder",
    "DenseEncoder",
    "DenseGaussian",
    "NeutralDecoder",
    "NeutralEncoder",
]
