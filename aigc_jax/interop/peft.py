"""LoRA adapters as PEFT (https://github.com/huggingface/peft) writes and reads them.

adapter_config.json         what is adapted, and how
adapter_model.safetensors   of each layer `lora_A.weight` [rank, inputs], `lora_B.weight`
                            [outputs, rank], by the layer's name in the model of Hugging Face

The models are those of `huggingface.ARCHITECTURES`. Queries, keys and values are one layer in
GPT-2, there and here; in BERT they are three there and one kernel here, whose adapters share A: so
A is written three times. Where a file has several of them, they are put side by side, which is an
adapter of so many times the rank that computes the same.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.errors import UserError, printable
from aigc_jax.interop import bert, gpt2
from aigc_jax.interop.huggingface import read_object
from aigc_jax.interop.mapping import Place, check_numbers
from aigc_jax.interop.safetensors import read as read_tensors
from aigc_jax.models.lora import NAME, LoRA, adapted_paths
from aigc_jax.models.transformer import BERT, GPT
from aigc_jax.run.files import write_bytes, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_SOME = "/blocks_("  # begins a pattern of some blocks
# What changes the function, with the values that leave it plain LoRA.
_PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    **dict.fromkeys(("use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "velora_config"), (None,)),
    "alora_invocation_tokens": (None,),
}
# These initialisations change the base, too: what is stored fits no published model.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


class Adapters(NamedTuple):
    """
    Attributes:
        lora: rank, scale and so on, with patterns that match the adapted layers alone.
        parameters: a tree that holds the adapters and nothing else, block by block.
    """

    lora: LoRA
    parameters: Any


def read_config(directory: Path) -> dict[str, Any]:
    """The `adapter_config.json` of a directory, or a `UserError`: there is none, or what it
    describes is another method than LoRA."""
    stored = read_object(directory / CONFIG)
    for key, plain in _PLAIN.items():
        if key in stored and stored[key] not in plain:
            raise UserError(
                f"{directory / CONFIG}: {key}={printable(stored[key])} cannot be read; only "
                f"{plain[0]!r} can"
            )
    begun = stored.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.startswith(_CHANGES_BASE):
        raise UserError(
            f'{directory / CONFIG}: init_lora_weights="{printable(begun)}" changes the base, which '
            "is not stored here; convert the adapters with PEFT's "
            "`path_initial_model_for_weight_conversion`, or merge them there"
        )
    return stored


def read(directory: Path, model: GPT | BERT, parameters: Any) -> Adapters:
    """The adapters of a directory.

    Args:
        directory: with both files.
        model: what they are for.
        parameters: of that model, block by block.

    Raises:
        UserError: a file is missing or damaged, or does not fit the model; the line says where.
    """
    stored = read_config(directory)
    if not isinstance(rslora := stored.get("use_rslora", False), bool):
        raise UserError(
            f"{directory / CONFIG}: use_rslora={printable(rslora)} is neither true nor false"
        )
    lora = LoRA(
        (),
        _number(directory, stored, "r", 8, whole=True),
        float(_number(directory, stored, "lora_alpha", 8)),
        float(_number(directory, stored, "lora_dropout", 0.0, least=0.0)),
        rslora,
    )
    ours = _layers(model)
    kernels: dict[str, Any] = dict(flatten_dict(parameters, sep="/"))
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    tensors = read_tensors(directory / WEIGHTS).tensors
    check_numbers(tensors)
    for name, x in tensors.items():
        match = _NAME.fullmatch(name)
        layer = match["layer"].removeprefix(_known(model).PREFIX) if match else ""
        if match is None or layer not in ours:
            raise UserError(
                f"{directory / WEIGHTS}: {printable(name)} is no adapter of a layer of this model; "
                f"its layers are {', '.join(list(ours)[:8])}" + (", ..." if len(ours) > 8 else "")
            )
        found[layer][match["side"]] = np.asarray(x, np.float32)
    layers: dict[str, dict[int | None, _Sides]] = defaultdict(dict)
    for layer, sides in found.items():
        path, part = _path(ours[layer]), ours[layer].part
        *parts, inputs, outputs = kernels[f"{path}/kernel"].shape
        total = outputs * (int(np.prod(parts)) if part is None else 1)
        wanted = {"A": (lora.rank, inputs), "B": (total, lora.rank)}
        for side, shape in wanted.items():
            if side not in sides or sides[side].shape != shape:
                is_ = f"is {list(sides[side].shape)}" if side in sides else "is missing"
                raise UserError(
                    f"{directory / WEIGHTS}: lora_{side} of {printable(layer)} {is_} and should be "
                    f"{list(shape)}"
                )
        layers[path][part] = _Sides(sides["A"].T, sides["B"])
    if not layers:
        raise UserError(f"{directory / WEIGHTS} holds no adapters")
    flat: dict[str, np.ndarray] = {}
    times = max(len(_distinct(parts)) for parts in layers.values())
    for path, parts in layers.items():
        a, b = _side_by_side(parts, kernels[f"{path}/kernel"].shape, times)
        flat |= {f"{path}/{NAME}/a": a, f"{path}/{NAME}/b": b}
    lora = lora._replace(
        patterns=_patterns(list(layers), {_path(place) for place in ours.values()}),
        rank=lora.rank * times,  # and the same scale
        alpha=lora.alpha * (times**0.5 if lora.rslora else times),
    )
    return Adapters(lora, unflatten_dict(flat, sep="/"))


def write(directory: Path, model: GPT | BERT, parameters: Any, lora: LoRA, base: str) -> None:
    """Writes both files.

    Args:
        directory: is there.
        model: as for `read`.
        parameters: of the model with its adapters, block by block.
        lora: what it was trained with.
        base: the model without them, a path or a name.

    Raises:
        UserError: a layer has no place in a file.
        OSError: a file cannot be written, e.g. on a full disk; each is whole or not there.
    """
    from safetensors.numpy import save

    masked = isinstance(model, BERT)
    head = not masked or model.masked_head
    theirs: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    every = set()
    for name, place in _layers(model).items():
        full = bert.full_name(name, head) if masked else gpt2.PREFIX + name
        theirs[_path(place)].append((full, place.part))
        every.add(full)
    flat: dict[str, Any] = dict(flatten_dict(parameters, sep="/"))
    layers, tensors = [], {}
    for path in adapted_paths(parameters):
        if path not in theirs:
            raise UserError(f"{path} has no name of its own in {_known(model).ARCHITECTURES[0]}")
        a, both = (np.asarray(flat[f"{path}/{NAME}/{side}"], np.float32) for side in "ab")
        for name, part in theirs[path]:
            b = both if part is None else both[part]
            b = b.swapaxes(-1, -2).reshape(-1, lora.rank)
            layers.append(name)
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b)
    stored = {
        "peft_type": "LORA",
        "task_type": None if masked else "CAUSAL_LM",
        BASE: base or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": _targets(layers, every),
        "fan_in_fan_out": not masked,  # GPT-2's kernels are [inputs, outputs]
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
    if masked:  # PEFT has no task of this kind: it asks for the class
        stored["auto_mapping"] = {
            "base_model_class": bert.architecture(model, head),
            "parent_library": "transformers.models.bert.modeling_bert",
        }
    write_bytes(directory / WEIGHTS, save(tensors, {"format": "pt"}))
    write_json(directory / CONFIG, dict(sorted(stored.items())))


def of_some_blocks(lora: LoRA) -> bool:
    """Whether adapters that were read are for some blocks and not for others."""
    return any(pattern.startswith(_SOME) for pattern in lora.patterns)


class _Sides(NamedTuple):
    a: np.ndarray  # [inputs, rank]
    b: np.ndarray  # [outputs, rank]


def _known(model: GPT | BERT) -> Any:
    return bert if isinstance(model, BERT) else gpt2


def _layers(model: GPT | BERT) -> dict[str, Place]:
    """The dense layers: their name, without the prefix, and where they lie here."""
    return {
        name.removesuffix(".weight"): place
        for name, place in _known(model).places(model).items()
        if place.path.endswith("/kernel")
    }


def _path(place: Place) -> str:
    return place.path.removesuffix("/kernel")


def _distinct(parts: Mapping[int | None, _Sides]) -> list[np.ndarray]:
    """The different A of the parts of a kernel."""
    found: list[np.ndarray] = []
    for sides in parts.values():
        if not any(np.array_equal(sides.a, a) for a in found):
            found.append(sides.a)
    return found


def _side_by_side(
    parts: Mapping[int | None, _Sides], shape: tuple[int, ...], times: int
) -> tuple[np.ndarray, np.ndarray]:
    """`a` `[inputs, times * rank]` and `b` `[*parts, times * rank, outputs]` of a kernel: a part
    reads its own columns of `a`, and the rest of its `b` is zero, as is what fills up `a`."""
    *stack, inputs, outputs = shape
    rank = next(iter(parts.values())).a.shape[1]
    a = np.zeros((inputs, times * rank), np.float32)
    b = np.zeros((*stack, times * rank, outputs), np.float32)
    for i, one in enumerate(_distinct(parts)):
        columns = slice(i * rank, (i + 1) * rank)
        a[:, columns] = one
        for part, sides in parts.items():
            if part is None:
                b[..., columns, :] = sides.b.reshape(*stack, outputs, rank).swapaxes(-1, -2)
            elif np.array_equal(sides.a, one):
                b[part, columns] = sides.b.T
    return a, b


def _kinds(layers: Iterable[str], number: str) -> dict[str, set[str]]:
    """Layers that are alike but for the block's number."""
    found: dict[str, set[str]] = defaultdict(set)
    for layer in layers:
        found[re.sub(number, "", layer, count=1)].add(layer)
    return found


def _patterns(paths: list[str], every: set[str]) -> tuple[str, ...]:
    """Patterns that match these of our layers and no others; one for what all blocks have."""
    kinds, all_kinds = _kinds(paths, r"^blocks_\d+"), _kinds(every, r"^blocks_\d+")
    patterns = []
    for kind, found in kinds.items():
        if found == all_kinds[kind]:
            patterns.append(f"{kind}$")
        else:
            numbers = sorted(int(re.findall(r"\d+", path)[0]) for path in found)
            patterns.append(f"{_SOME}{'|'.join(map(str, numbers))}){kind}$")
    return tuple(patterns)


def _targets(layers: list[str], every: set[str]) -> list[str]:
    """`target_modules`: the end of a name where all layers that end so are adapted, else names."""
    number = r"^.*?\.\d+\."
    targets: list[str] = []
    for kind, found in _kinds(layers, number).items():
        # What PEFT takes it for: "output.dense" is the end of "attention.output.dense", too.
        meant = {name for name in every if f".{name}".endswith(f".{kind}")}
        targets += [kind] if meant <= set(layers) else sorted(found)
    return targets


def _number(
    directory: Path,
    stored: Mapping[str, Any],
    key: str,
    default: int | float,
    whole: bool = False,
    least: float = 1e-12,
) -> Any:
    value = stored.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        value = -1
    if not least <= value < 1e9:
        raise UserError(
            f"{directory / CONFIG}: {key}={printable(stored[key])}; a number above 0 is expected"
        )
    return value
