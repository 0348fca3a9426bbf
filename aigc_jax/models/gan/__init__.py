"""Generators and discriminators.

Every generator maps noise `[batch, latent]`, and a class if it has classes, to images in [-1, 1] or
to points; every discriminator maps images to one logit each. In evaluation (`train` False, `ids`
None) batch statistics are the running ones, dropout is off and the vectors of spectral norm stay.
`axis` is pmap's mapped axis, over which batch statistics are shared (under jit arrays are global
and they are shared anyway).
"""

from aigc_jax.models.gan.conv import ConvDiscriminator, ConvGenerator
from aigc_jax.models.gan.dense import DenseDiscriminator, DenseGenerator
from aigc_jax.models.gan.neutral import NeutralDiscriminator, NeutralGenerator
from aigc_jax.models.gan.points import PointDiscriminator, PointGenerator
from aigc_jax.models.gan.resnet import ResNetDiscriminator, ResNetGenerator

__all__ = [
    "ConvDiscriminator",
    "ConvGenerator",
    "DenseDiscriminator",
    "DenseGenerator",
    "NeutralDiscriminator",
    "NeutralGenerator",
    "PointDiscriminator",
    "PointGenerator",
    "ResNetDiscriminator",
    "ResNetGenerator",
]
