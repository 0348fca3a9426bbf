"""Arrays from the pickle files of PyTorch and NumPy, read without running them.

A pickle is a program: `pickle.load` calls every function that the file names. Here its instructions
are read one by one, and a call is only written down (`Call`). Of what is written down, the forms in
which PyTorch and NumPy store arrays become arrays; anything else is refused.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from aigc_jax.errors import UserError, first_line, printable

LEGACY = 0x1950A86A20F9469CFC6C  # what PyTorch before 1.6 begins a file with
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
"""PyTorch's storages, as the files have them."""


class Name(NamedTuple):
    """A function or class that a pickle names: `module name`."""

    path: str


class Persistent(NamedTuple):
    """What lies outside the pickle: of PyTorch a storage."""

    of: Any


@dataclass
class Call:
    """A call that was not made, and the state that the object would have been given."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def torch_arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary that `torch.save` wrote, old format or new.

    Raises:
        UserError: the file is damaged, or holds anything but tensors by name.
    """
    return _refusing(_torch, path)


def numpy_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a pickled dictionary, which may hold dictionaries.

    Raises:
        UserError: the file is damaged, or holds anything but NumPy's arrays by name.
    """
    return _refusing(_numpy, path)


def _refusing(read: Callable[[BufferedIOBase], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return read(file)
    except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError) as error:
        why = first_line(error)
    except (struct.error, zipfile.BadZipFile, OverflowError, MemoryError) as error:
        why = first_line(error)
    raise UserError(
        f"cannot read {printable(path)}: {why}; it is damaged, or holds more than named arrays"
    )


def parse(stream: BufferedIOBase) -> Any:
    """The object that the next pickle of a stream describes: its dictionaries, lists, tuples,
    numbers and words; calls as `Call`. The stream is then behind it.

    Raises:
        ValueError: an instruction that arrays have no need of.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def taken(count: int) -> tuple[Any, ...]:
        items = tuple(stack[len(stack) - count :])
        if len(items) != count:
            raise ValueError("its stack is empty")
        del stack[len(stack) - count :]
        return items

    for op, value, _ in pickletools.genops(cast("IO[bytes]", stream)):
        match op.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(op.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(value)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(value)
            case "GLOBAL":
                stack.append(Name(str(value)))
            case "STACK_GLOBAL":
                stack.append(Name(" ".join(taken(2))))
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(taken(int(op.name[-1])))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                (item,) = taken(1)
                _of_type(stack[-1], list).append(item)
            case "APPENDS":
                items = marked()
                _of_type(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                key, item = taken(2)
                _of_type(stack[-1], dict)[key] = item
            case "SETITEMS":
                items = marked()
                _of_type(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "REDUCE":
                function, args = taken(2)
                stack.append(_call(function, args))
            case "BUILD":
                (state,) = taken(1)
                if isinstance(stack[-1], Call):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict):  # attributes of a dictionary are not read
                    raise ValueError("it gives a state to what is no object")
            case "BINPERSID":
                stack.append(Persistent(stack.pop()))
            case "BINPUT" | "LONG_BINPUT":
                memo[_of_type(value, int)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_of_type(value, int)])
            case other:
                raise ValueError(f"it has the instruction {other}, which no arrays need")
    raise EOFError("it ends too early")


def _call(function: Any, args: Any) -> Any:
    name = _of_type(function, Name).path
    if name == "collections OrderedDict" and args == ():
        return {}
    return Call(name, _of_type(args, tuple))


def _of_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


# --- PyTorch ---


class Storage(NamedTuple):
    """The numbers that tensors are views of: how many of which kind, under which key."""

    key: str
    dtype: np.dtype
    size: int


def _torch(file: BufferedIOBase) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = pickled.removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise ValueError("its byte order is not little")
            state = parse(BytesIO(archive.read(pickled)))
            return _tensors(state, lambda key: archive.read(f"{folder}data/{key}"))
    file.seek(0)
    if parse(file) != LEGACY:
        raise ValueError("torch.save did not write it")
    parse(file)  # version of the protocol
    if parse(file).get("little_endian") is not True:
        raise ValueError("its byte order is not little")
    state, keys = parse(file), parse(file)
    sizes = {storage.key: storage.dtype.itemsize for storage in map(_storage, _views(state))}
    held = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        held[key] = file.read(count * sizes[key])
    return _tensors(state, held.__getitem__)


def _views(state: Any) -> list[Call]:
    """The tensors of a state dictionary, as the pickle describes them."""
    for name, value in _of_type(state, dict).items():
        if not isinstance(value, Call) or value.name != "torch._utils _rebuild_tensor_v2":
            raise ValueError(f"{name} is no tensor")
    return list(state.values())


def _storage(view: Call) -> Storage:
    kind, name, key, _, size, *rest = view.args[0].of
    module, _, storage = _of_type(name, Name).path.partition(" ")
    if kind != "storage" or module != "torch" or storage not in DTYPES or any(rest):
        raise ValueError(f"{storage} is not read")
    return Storage(str(key), np.dtype(DTYPES[storage]), size)


def _tensors(state: Any, held: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    found = {}
    for name, view in zip(state, _views(state)):
        _, offset, shape, strides, *_ = view.args
        storage = _storage(view)
        flat = np.frombuffer(held(storage.key), storage.dtype)
        places = [offset, *shape, *strides]
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min(places) < 0 or len(flat) != storage.size or (0 not in shape and last >= len(flat)):
            raise ValueError(f"the numbers of {name} are not all there")
        steps = [step * flat.itemsize for step in strides]
        found[str(name)] = np.lib.stride_tricks.as_strided(
            flat[offset:], shape, steps, writeable=False
        ).copy()
    return found


# --- NumPy ---


def _numpy(file: BufferedIOBase) -> dict[str, Any]:
    return _arrays(_of_type(parse(file), dict))


def _arrays(of: dict[Any, Any]) -> dict[str, Any]:
    return {
        str(name): _arrays(value) if isinstance(value, dict) else _array(name, value)
        for name, value in of.items()
    }


def _array(name: Any, value: Any) -> np.ndarray:
    made = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
    if not isinstance(value, Call) or value.name not in made or value.args[0] != _ARRAY:
        raise ValueError(f"{name} is no array")
    _, shape, of, fortran, held = value.state
    if not isinstance(of, Call) or of.name != "numpy dtype" or not isinstance(held, bytes):
        raise ValueError(f"{name} is no array of numbers")
    dtype = np.dtype(str(of.args[0])).newbyteorder(of.state[1])
    if dtype.kind not in "fiub":
        raise ValueError(f"{name} is an array of {dtype}")
    order = "F" if fortran else "C"
    return np.frombuffer(held, dtype).reshape(shape, order=order)


_ARRAY = Name("numpy ndarray")
