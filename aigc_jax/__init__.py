"""GANs, VAEs and small transformers in pure-functional JAX, from a laptop to a TPU pod."""

__version__ = "0.1.0"
