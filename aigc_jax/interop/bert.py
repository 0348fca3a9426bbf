"""BERT as Hugging Face stores it, and as a `models.transformer.BERT`.

Their `Linear` keeps a kernel `[outputs, inputs]`: kernels are transposed. Queries, keys and values
are three layers there and one stacked kernel `[3, embed, embed]` here. The word embedding is the
decoder of masked tokens, too, and mostly stored once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.errors import UserError, printable
from aigc_jax.interop.mapping import (
    Place,
    activation,
    norm,
    number,
    same,
    to_parameters,
    to_tensors,
    transposed,
    whole_number,
)
from aigc_jax.models.transformer import BERT
from aigc_jax.ranges import POSITIVE, Range

TASK, MODEL = "masked_lm", BERT
ARCHITECTURES = ("BertForMaskedLM", "BertForPreTraining", "BertModel")
HEADLESS = "BertModel"
"""The one whose names have no prefix; sentence encoders are stored so."""
DECODER, TABLE = "cls.predictions.decoder", "embeddings.word_embeddings.weight"
MLPS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""Their activation -> ours."""
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

PREFIX = "bert."
"""Of the names in a model with a head, but for the head's."""
_HEAD = "cls."
_POOLER, _NEXT = "pooler.", "cls.seq_relationship."
_FIXED = {"is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}
_OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def read(
    stored: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `BERT` and its parameters, block by block.

    A pooler and a head for next sentences are read where they are there. A directory without any
    head is a sentence encoder: the parameters lack the head for masked tokens.

    Args:
        stored: the `config.json`.
        tensors: by the names in the files.

    Raises:
        UserError: a model that is not computed here, or tensors that are missing, are too many, or
            have other shapes.
    """
    tensors = bare(tensors)
    fields = model_fields(stored, tensors)
    named = set(stored.get("architectures") or ()) - {HEADLESS}
    head = bool(named) or any(name.startswith(_HEAD) for name in tensors)
    return fields, to_parameters(places(BERT(**fields), head), tensors)


def write(
    model: BERT, parameters: Any, came: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `config.json` and the tensors of a model, see `stored_config`. Parameters without the
    head for masked tokens are those of a `BertModel`."""
    head = "mlm_bias" in parameters
    tensors = to_tensors(places(model, head), parameters)
    named = {full_name(name, head): x for name, x in tensors.items()}
    return stored_config(model, came, head), named


def full_name(name: str, head: bool) -> str:
    """A name of `places` as it is in a model with a head for masked tokens, or without one."""
    return PREFIX + name if head and not name.startswith(_HEAD) else name


def architecture(model: BERT, head: bool) -> str:
    """The class of a model with a head for masked tokens, or without one."""
    masked, both, alone = ARCHITECTURES
    return (both if model.next_sentence else masked) if head else alone


def without_head(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the head for masked tokens."""
    return {name: x for name, x in parameters.items() if not name.startswith("mlm_")}


def bare(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by the names of `places`: those of older files in today's words, without the
    prefix, the numbers of the positions, and a second copy of the decoder.

    Raises:
        UserError: the second copy is another.
    """
    found: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        name = name.removeprefix(PREFIX)
        for old, new in _OLD:
            name = name.replace(old, new)
        if name != "embeddings.position_ids":
            found[name] = x
    bias, twin = "cls.predictions.bias", f"{DECODER}.bias"
    if twin in found and bias not in found:
        found[bias] = found.pop(twin)
    for copy, first in ((f"{DECODER}.weight", TABLE), (twin, bias)):
        second = found.pop(copy, None)
        if second is not None and first in found and not np.array_equal(second, found[first]):
            raise UserError(f"{copy} is not {first}: a decoder of its own cannot be read")
    return found


def model_fields(stored: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The fields of `BERT` from a `config.json`; what that lacks is as in the published base model.

    Their two dropout rates are one here, `hidden_dropout_prob`.

    Args:
        stored: the `config.json`.
        tensors: by bare names; they tell what heads there are, as the config does not.

    Raises:
        UserError: a value that the model here cannot compute with.
    """
    for key, value in _FIXED.items():
        if stored.get(key, value) is not value:
            raise UserError(f"config.json: {key}={stored[key]!r}; only {value} can be read")
    positions = stored.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f'config.json: position_embedding_type="{printable(positions)}"; only "absolute" can '
            "be read"
        )
    embed_dim = whole_number(stored, "hidden_size", 768)
    num_heads = whole_number(stored, "num_attention_heads", 12)
    if embed_dim % num_heads:
        raise UserError(
            f"config.json: num_attention_heads={num_heads} does not divide hidden_size={embed_dim}"
        )
    mlp_dim = whole_number(stored, "intermediate_size", 3072)
    both = "BertForPreTraining" in (stored.get("architectures") or ())
    next_sentence = both or any(name.startswith(_NEXT) for name in tensors)
    return {
        "vocab_size": whole_number(stored, "vocab_size", 30522),
        "block_size": whole_number(stored, "max_position_embeddings", 512),
        "num_layers": whole_number(stored, "num_hidden_layers", 12),
        "num_heads": num_heads,
        "embed_dim": embed_dim,
        "mlp_dim": 0 if mlp_dim == 4 * embed_dim else mlp_dim,
        "mlp": activation(stored, "hidden_act", "gelu", MLPS),
        "norm_eps": number(stored, "layer_norm_eps", 1e-12, POSITIVE),
        "dropout": number(stored, "hidden_dropout_prob", 0.1, Range(0, 1)),
        "num_token_types": whole_number(stored, "type_vocab_size", 2),
        "pooler": next_sentence or any(name.startswith(_POOLER) for name in tensors),
        "next_sentence": next_sentence,
    }


def stored_config(model: BERT, came: Mapping[str, Any], head: bool = True) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
        model: any BERT.
        came: what the model was imported with. Of two values that mean the same here (names of an
            activation; the other dropout rate) it keeps its own.
        head: whether with the head for masked tokens.

    Raises:
        UserError: BERT has no such model; the line names the key.
    """
    activations = {ours: theirs for theirs, ours in reversed(MLPS.items())}
    if model.mlp not in activations:
        raise UserError(
            f'config.model.mlp="{model.mlp}" cannot be stored as BERT; it has: '
            f"{', '.join(activations)}"
        )
    if came.get("hidden_dropout_prob") == model.dropout:
        rates: dict[str, Any] = {key: came.get(key, model.dropout) for key in DROPOUTS}
    else:
        rates = dict.fromkeys(DROPOUTS, model.dropout)
    name = came.get("hidden_act", "")
    return {
        "model_type": "bert",
        "architectures": [architecture(model, head)],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.block_size,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim or 4 * model.embed_dim,
        "hidden_act": name if MLPS.get(name) == model.mlp else activations[model.mlp],
        "layer_norm_eps": model.norm_eps,
        **rates,
        "type_vocab_size": model.num_token_types,
        "pad_token_id": came.get("pad_token_id"),
        "dtype": "float32",
    }


def places(model: BERT, head: bool = True) -> dict[str, Place]:
    """Every tensor of a model, by its name in a file (without the prefix)."""
    embed, hidden = model.embed_dim, model.mlp_dim or 4 * model.embed_dim
    found: dict[str, Place] = {
        TABLE: same("token_embedding", model.vocab_size, embed),
        "embeddings.position_embeddings.weight": same(
            "position_embedding", model.block_size, embed
        ),
        "embeddings.token_type_embeddings.weight": same(
            "token_type_embedding", model.num_token_types, embed
        ),
        **norm("embeddings.LayerNorm", "embedding_norm", embed),
    }
    for i in range(model.num_layers):
        theirs, ours = f"encoder.layer.{i}", f"blocks_{i}"
        for part, name in enumerate(("query", "key", "value")):
            found |= {
                f"{theirs}.attention.self.{name}.weight": transposed(
                    f"{ours}/qkv/kernel", embed, embed
                )._replace(part=part),
                f"{theirs}.attention.self.{name}.bias": same(f"{ours}/qkv/bias", embed)._replace(
                    part=part
                ),
            }
        found |= {
            **_dense(f"{theirs}.attention.output.dense", f"{ours}/attention_out", embed, embed),
            **norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm", embed),
            **_dense(f"{theirs}.intermediate.dense", f"{ours}/mlp_in", embed, hidden),
            **_dense(f"{theirs}.output.dense", f"{ours}/mlp_out", hidden, embed),
            **norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm", embed),
        }
    if model.pooler:
        found |= _dense("pooler.dense", "pooler_dense", embed, embed)
    if head:
        transform = "cls.predictions.transform"
        found |= {
            "cls.predictions.bias": same("mlm_bias", model.vocab_size),
            **_dense(f"{transform}.dense", "mlm_dense", embed, embed),
            **norm(f"{transform}.LayerNorm", "mlm_norm", embed),
        }
    if model.next_sentence:
        found |= _dense("cls.seq_relationship", "next_sentence_dense", embed, 2)
    return found


def _dense(theirs: str, ours: str, inputs: int, outputs: int) -> dict[str, Place]:
    return {
        f"{theirs}.weight": transposed(f"{ours}/kernel", outputs, inputs),
        f"{theirs}.bias": same(f"{ours}/bias", outputs),
    }
