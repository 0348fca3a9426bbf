"""GPT-2 as Hugging Face stores it, and as a `models.transformer.GPT`.

Their `Conv1D` keeps a kernel as linen does, `[inputs, outputs]`: nothing is transposed. What is
another: queries, keys and values lie side by side in one kernel `[embed, 3 embed]`, in ours behind
each other, `[3, embed, embed]`.
"""

import re
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
    whole_number,
)
from aigc_jax.models.transformer import GPT
from aigc_jax.ranges import POSITIVE, Range

TASK, MODEL = "causal_lm", GPT
ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")
PREFIX = "transformer."
"""Of every name but the head's; a `GPT2Model` is stored without it."""
HEAD = "lm_head.weight"
DROPPED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""Masks, which older files hold beside the weights."""

MLPS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
"""Their activation -> ours."""
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_FIXED |= {"add_cross_attention": False}


def read(
    stored: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `GPT` and its parameters, block by block.

    Args:
        stored: the `config.json`.
        tensors: by the names in the files.

    Raises:
        UserError: a model that is not computed here, or tensors that are missing, are too many, or
            have other shapes.
    """
    fields = model_fields(stored)
    tensors = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
    tensors = {name: x for name, x in tensors.items() if not DROPPED.fullmatch(name)}
    if HEAD in tensors and "wte.weight" in tensors and fields["tied_head"]:
        head = tensors.pop(HEAD)
        if not np.array_equal(head, tensors["wte.weight"]):
            raise UserError(
                f"{HEAD} is not wte.weight, and config.json has tie_word_embeddings=true; "
                "write false there to keep both"
            )
    return fields, to_parameters(places(GPT(**fields)), tensors)


def write(
    model: GPT, parameters: Any, came: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `config.json` and the tensors of a model, see `stored_config`."""
    tensors = to_tensors(places(model), parameters)
    named = {name if name == HEAD else PREFIX + name: x for name, x in tensors.items()}
    return stored_config(model, came), named


def model_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `GPT` from a `config.json`; what that lacks is as in the published GPT-2.

    Their three dropout rates are one here, `resid_pdrop`.

    Raises:
        UserError: a value that the model here cannot compute with.
    """
    for key, value in _FIXED.items():
        if stored.get(key, value) is not value:
            raise UserError(f"config.json: {key}={stored[key]!r}; only {value} can be read")
    embed_dim, num_heads = whole_number(stored, "n_embd", 768), whole_number(stored, "n_head", 12)
    if embed_dim % num_heads:
        raise UserError(f"config.json: n_head={num_heads} does not divide n_embd={embed_dim}")
    tied = stored.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(
            f"config.json: tie_word_embeddings={printable(tied)}; true or false is expected"
        )
    inner = stored.get("n_inner")
    mlp_dim = 4 * embed_dim if inner is None else whole_number(stored, "n_inner", 0)
    return {
        "vocab_size": whole_number(stored, "vocab_size", 50257),
        "block_size": whole_number(stored, "n_positions", 1024),
        "num_layers": whole_number(stored, "n_layer", 12),
        "num_heads": num_heads,
        "embed_dim": embed_dim,
        "mlp_dim": 0 if mlp_dim == 4 * embed_dim else mlp_dim,
        "mlp": activation(stored, "activation_function", "gelu_new", MLPS),
        "norm_eps": number(stored, "layer_norm_epsilon", 1e-5, POSITIVE),
        "dropout": number(stored, "resid_pdrop", 0.1, Range(0, 1)),
        "tied_head": tied,
    }


def stored_config(model: GPT, came: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
        model: any GPT.
        came: what the model was imported with. Of two values that mean the same here (names of an
            activation; the other dropout rates) it keeps its own.

    Raises:
        UserError: GPT-2 has no such model; the line names the key.
    """
    wanted = {
        "positions": "learned",
        "norm": "layer",
        "qk_norm": False,
        "window": 0,
        "logit_softcap": 0.0,
    }
    for key, value in wanted.items():
        if getattr(model, key) != value:
            raise UserError(
                f"config.model.{key}={getattr(model, key)!r} cannot be stored as GPT-2, which has "
                f"{value!r} there"
            )
    if model.num_kv_heads not in (0, model.num_heads):
        raise UserError(
            f"config.model.num_kv_heads={model.num_kv_heads} cannot be stored as GPT-2, which has "
            f"as many as num_heads={model.num_heads}"
        )
    if came.get("resid_pdrop") == model.dropout:
        rates: dict[str, Any] = {key: came.get(key, model.dropout) for key in DROPOUTS}
    else:
        rates = dict.fromkeys(DROPOUTS, model.dropout)
    activations = {ours: theirs for theirs, ours in reversed(MLPS.items())}
    if model.mlp not in activations:
        raise UserError(
            f'config.model.mlp="{model.mlp}" cannot be stored as GPT-2; it has: '
            f"{', '.join(activations)}"
        )
    name = came.get("activation_function", "")
    return {
        "model_type": "gpt2",
        "architectures": [ARCHITECTURES[0]],
        "vocab_size": model.vocab_size,
        "n_positions": model.block_size,
        "n_embd": model.embed_dim,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": None if _mlp_dim(model) == 4 * model.embed_dim else _mlp_dim(model),
        "activation_function": name if MLPS.get(name) == model.mlp else activations[model.mlp],
        "layer_norm_epsilon": model.norm_eps,
        **rates,
        "tie_word_embeddings": model.tied_head,
        "dtype": "float32",
    }


def places(model: GPT) -> dict[str, Place]:
    """Every tensor of a model, by its name in a file (without `PREFIX`)."""
    embed, hidden = model.embed_dim, _mlp_dim(model)
    found: dict[str, Place] = {
        "wte.weight": same("token_embedding", model.vocab_size, embed),
        "wpe.weight": same("position_embedding", model.block_size, embed),
    }
    found |= norm("ln_f", "final_norm", embed)
    for i in range(model.num_layers):
        theirs, ours = f"h.{i}", f"blocks_{i}"
        found |= {
            **norm(f"{theirs}.ln_1", f"{ours}/attention_norm", embed),
            f"{theirs}.attn.c_attn.weight": Place(
                f"{ours}/qkv/kernel",
                (embed, 3 * embed),
                lambda x: x.reshape(embed, 3, embed).swapaxes(0, 1),
                lambda x: x.swapaxes(0, 1).reshape(embed, 3 * embed),
            ),
            f"{theirs}.attn.c_attn.bias": Place(
                f"{ours}/qkv/bias",
                (3 * embed,),
                lambda x: x.reshape(3, embed),
                lambda x: x.reshape(3 * embed),
            ),
            **_dense(f"{theirs}.attn.c_proj", f"{ours}/attention_out", embed, embed),
            **norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", embed),
            **_dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp_in", embed, hidden),
            **_dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp_out", hidden, embed),
        }
    if not model.tied_head:
        found[HEAD] = same("head", model.vocab_size, embed)
    return found


def _dense(theirs: str, ours: str, inputs: int, outputs: int) -> dict[str, Place]:
    return {
        f"{theirs}.weight": same(f"{ours}/kernel", inputs, outputs),
        f"{theirs}.bias": same(f"{ours}/bias", outputs),
    }


def _mlp_dim(model: GPT) -> int:
    return model.mlp_dim or model.mlp_ratio * model.embed_dim
