"""Model directories as Hugging Face's libraries write and read them.

config.json                 the architecture
model.safetensors           the weights; of large models *.index.json names the parts
generation_config.json      how text is drawn, by default; of models that write
tokenizer.json, ...         see `TOKENIZER_FILES`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.errors import UserError, first_line, nearest, printable
from aigc_jax.interop import bert, gpt2
from aigc_jax.interop.safetensors import read as read_file
from aigc_jax.paths import expand
from aigc_jax.run.files import write_bytes, write_json

ARCHITECTURES: dict[str, Any] = {"gpt2": gpt2, "bert": bert}
"""`model_type` of a `config.json` -> the file that knows its fields and tensors: the
`TASK` that it is here, its `MODEL`, the known `ARCHITECTURES`, `read` and `write`."""

CONFIG, WEIGHTS, GENERATION = "config.json", "model.safetensors", "generation_config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
TOKENIZER_FILES += ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES += ("added_tokens.json",)


class Imported(NamedTuple):
    """
    Attributes:
        task: the family's name, `config.task.name`.
        fields: of the linen module, `vocab_size` and `block_size` among them.
        parameters: a tree of float32 arrays, block by block. A BERT without a head for masked
            tokens lacks that of the module.
    """

    task: str
    fields: dict[str, Any]
    parameters: Any


def locate(name: str) -> Path:
    """The directory of a model: a path, or a name on the hub, which is then downloaded.

    Raises:
        UserError: there is none.
    """
    path = expand("from", name)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{printable(name)} is no directory of a model")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"there is no directory {printable(name)}; to load it by name from the hub: "
            "pip install huggingface_hub"
        ) from None
    wanted = ["*config.json", "*.safetensors", INDEX, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of the network, the hub, or the name
        raise UserError(
            f"there is no directory {printable(name)}, and the hub gives no model of that name: "
            f"{printable(first_line(error) or type(error).__name__)}"
        ) from None


def read(directory: Path) -> Imported:
    """The model of a directory.

    Raises:
        UserError: there is none, it is damaged, or of an architecture that is not known here.
    """
    stored = read_object(directory / CONFIG)
    kind = stored.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        given = printable(kind)
        raise UserError(
            f'{directory / CONFIG}: model_type "{given}" cannot be read'
            f"{nearest(given, ARCHITECTURES)}"
        )
    known = ARCHITECTURES[kind]
    names = stored.get("architectures") or []
    if not isinstance(names, list):
        raise UserError(
            f"{directory / CONFIG}: architectures={printable(names)}; a list of names is expected"
        )
    for name in names:
        if name not in known.ARCHITECTURES:
            raise UserError(
                f'{directory / CONFIG}: architecture "{printable(name)}" cannot be read; known: '
                f"{', '.join(known.ARCHITECTURES)}"
            )
    return Imported(known.TASK, *known.read(stored, read_tensors(directory)))


def write(
    directory: Path,
    kind: str,
    model: Any,
    parameters: Any,
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json`, `model.safetensors` and, if there is one, `generation_config.json`.

    Args:
        directory: is there.
        kind: one of `ARCHITECTURES`.
        model: whose parameters they are.
        parameters: a tree, block by block.
        config: more values of `config.json`, which the model's own overrule.
        generation: `generation_config.json`; None writes none.

    Raises:
        UserError: the architecture has no such model.
        OSError: a file cannot be written, e.g. on a full disk; each is whole or not there.
    """
    from safetensors.numpy import save

    own, tensors = ARCHITECTURES[kind].write(model, parameters, config)
    # As bytes: the library's own `save_file` says "disk full" in words of its own alone.
    write_bytes(directory / WEIGHTS, save(tensors, {"format": "pt"}))
    for name, value in ((CONFIG, {**config, **own}), (GENERATION, generation)):
        if value is not None:
            write_json(directory / name, dict(sorted(value.items())))


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of a directory by name; those of half precision become float32.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    files = [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        parts = read_object(directory / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(x, str) for x in parts.values()):
            raise UserError(
                f"{directory / INDEX}: weight_map={printable(parts)}; a file's name for each "
                "tensor is expected"
            )
        files = [directory / name for name in sorted(set(parts.values()))]
    found: dict[str, np.ndarray] = {}
    for file in files:
        found |= _read_file(file)
    return found


def check_generation(directory: Path) -> None:
    """What `generation_config.json` says of the end of a text, if there is one, can be followed;
    else a `UserError`."""
    if not (directory / GENERATION).is_file():
        return
    ends = read_object(directory / GENERATION).get("eos_token_id")
    tokens = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise UserError(
            f"{directory / GENERATION}: eos_token_id={printable(ends)}; a token's number, or a "
            "list of some, is expected"
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or a `UserError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object")
    return value


def _read_file(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        old = sorted(p.name for p in file.parent.glob("*.bin"))
        hint = (
            f"; it holds {', '.join(old)}: load it with transformers and `save_pretrained` it anew"
            if old
            else ""
        )
        raise UserError(f"{file.parent} holds no {file.name}{hint}")
    return read_file(file).tensors
