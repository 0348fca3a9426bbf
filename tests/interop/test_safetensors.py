"""Networks as files for other programs: the same bits, or one line that says what is wrong."""

import contextlib
import json
import os
import resource
import signal
import struct

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from aigc_jax.errors import UserError
from aigc_jax.interop.safetensors import parameters, read, write

VARIABLES = {
    "model": {
        "params": {"Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
        "stats": {"count": np.array(3, np.int32), "none": np.zeros((0, 2), np.float32)},
    },
    "other": {"params": {"w": np.arange(6.0).reshape(2, 3).T}},
}
METADATA = {"format": "flax", "aigc_jax": "0", "step": "7"}


def test_what_is_written_is_read_by_us_and_by_the_librarys_own_reader(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, VARIABLES, METADATA)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    stored, flat = read(path), flatten_dict(VARIABLES, sep="/")
    assert stored.metadata == METADATA
    for found in (stored.tensors, load_file(path)):
        assert found.keys() == flat.keys()
        for name, x in flat.items():
            assert found[name].dtype == x.dtype
            np.testing.assert_array_equal(found[name], x)
    with safe_open(path, framework="np") as opened:
        assert opened.metadata() == METADATA
    params = parameters(read(path), path)
    jax.tree.map(
        np.testing.assert_array_equal,
        params,
        {name: variables["params"] for name, variables in VARIABLES.items()},
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_bits(dtype, tmp_path):
    x = np.asarray([1.5, -2.0, 0.1], jax.numpy.dtype(dtype))
    write(tmp_path / "a.safetensors", {"model": {"params": {"w": x}}}, METADATA)
    found = read(tmp_path / "a.safetensors").tensors["model/params/w"]
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)


def test_names_of_other_programs_are_divided_at_dots(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"h.0.weight": np.ones(2), "wte.weight": np.zeros(3)}, path)
    found = flatten_dict(parameters(read(path), path), sep="/")
    assert found.keys() == {"h/0/weight", "wte/weight"}


def with_head(head: dict, content: bytes = b"") -> bytes:
    line = json.dumps(head).encode()
    return struct.pack("<Q", len(line)) + line + content


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "empty": b"",
    "text": b"this is no such file, but a text of some length",
    "head longer than the file": struct.pack("<Q", 2**60) + b"{}",
    "torn": with_head({"a": entry()}, b"\0" * 7),
    "more than it says": with_head({"a": entry()}, b"\0" * 9),
    "another shape": with_head({"a": entry(shape=(3,))}, b"\0" * 8),
    "overlapping": with_head({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
    "a list": with_head([], b""),
    "an entry that is none": with_head({"a": 3}, b""),
    "metadata that is none": with_head({"__metadata__": 3, "a": entry()}, b"\0" * 8),
    "no dtype": with_head({"a": {"shape": [2]}}, b"\0" * 8),
    "an unknown dtype": with_head({"a": entry("F8_\x1b[2J")}, b"\0" * 8),
    "eight bits": with_head({"a": entry("F8_E4M3", (8,))}, b"\0" * 8),
    "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(BAD[name])
    with pytest.raises(UserError, match=r"a\.safetensors") as error:
        read(path)
    assert str(error.value).isprintable()


@given(st.binary(max_size=60), st.integers(0, 200))
def test_any_damage_is_an_error_or_leaves_the_numbers(noise, place):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        write(path, VARIABLES, METADATA)
        content = bytearray(path.read_bytes())
        content[place : place + len(noise)] = noise
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            parameters(read(path), path)


@pytest.mark.parametrize("name", ["missing.safetensors", ".", "file/below.safetensors"])
def test_what_is_no_file_is_refused(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path / name)


def test_a_name_below_another_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a.b": np.ones(2), "a.b.c": np.zeros(3)}, path)
    with pytest.raises(UserError, match="a/b/c lies below another"):
        parameters(read(path), path)


def test_a_disk_that_fills_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            write(path, {"model": {"params": {"w": np.zeros(10_000)}}}, METADATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert path.read_bytes() == b"before"
