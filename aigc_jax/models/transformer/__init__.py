"""Transformers.

decoder.py      GPT: embeddings, blocks, head; the loss, and one step of decoding
encoder.py      BERT: sees a text from both sides
encoder_decoder.py  a text made of another
text_classifier.py  a class for a text, from what one of the first two makes of its tokens
block.py        attention and MLP of one block
stack.py        blocks one after the other: remat, scan
projections.py  their dense layers, and what tensor parallelism splits of them
norms.py        norms of the residual stream
cache.py        keys and values of the tokens decoded so far
stacking.py     the two layouts of the parameters: block by block, and stacked for a scan
"""

from aigc_jax.models.transformer.cache import Cache, KVCache
from aigc_jax.models.transformer.decoder import GPT
from aigc_jax.models.transformer.encoder import BERT
from aigc_jax.models.transformer.encoder_decoder import EncoderDecoder
from aigc_jax.models.transformer.projections import TENSOR_RULES
from aigc_jax.models.transformer.stack import REMAT
from aigc_jax.models.transformer.stacking import stack_layers, unstack_layers
from aigc_jax.models.transformer.text_classifier import POOLS, TextClassifier

__all__ = [
    "BERT",
    "GPT",
    "POOLS",
    "REMAT",
    "TENSOR_RULES",
    "Cache",
    "EncoderDecoder",
    "KVCache",
    "TextClassifier",
    "stack_layers",
    "unstack_layers",
]
