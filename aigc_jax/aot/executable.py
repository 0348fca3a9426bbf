"""A compiled train step in a file, so that a run need not compile it: not when it goes on after a
stop, nor at its first start if `aigc compile --save` made the file on another machine.

The first line of the file is JSON: what it was made for (`identity`) and a checksum of the rest,
which is what JAX's `serialize_executable` makes of the step, and nothing of ours. **Loading it runs
what is in the file.** No form that JAX has is safer (looked for in 0.10.2): `serialize_executable`
is a pickle itself, with the machine code inside, and its documentation calls it unsafe with input
that is not trusted; the client's `deserialize_executable` takes the machine code alone, which would
be run all the same, and no public function makes a step of it; `jax.export` holds no compiled
program, so the step would be compiled again. The checksum finds damage and no intent. So a file is
loaded only where nobody but this user and root could have written it (`trusted.py`).
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from aigc_jax.aot.programs import Program
from aigc_jax.aot.trusted import check_trusted, read_trusted
from aigc_jax.errors import UserError, first_line, printable
from aigc_jax.parallel.processes import is_lead
from aigc_jax.run.files import check_writable, write_with, writing
from aigc_jax.run.observe import echo


def identity(lowered: jax.stages.Lowered, devices: list) -> dict[str, str]:
    """What must be the same for a saved executable to be the step: versions, devices and their
    order, and the program before XLA compiles it, the last two by checksum.

    The program is traced from the config and from the code as they are now, which takes seconds, so
    no change of either goes unnoticed. File names and line numbers are not part of it.
    """
    kinds = Counter(device.device_kind for device in devices)
    order = str([device.id for device in devices])
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "devices": ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        "device order": _checksum(order.encode()),
        "program": _checksum(lowered.as_text().encode()),
    }


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def save(
    path: Path, compiled: jax.stages.Compiled, lowered: jax.stages.Lowered, devices: list
) -> None:
    """Writes what `lowered` was compiled to for `devices`, whole or not at all."""
    payload, *_ = serialize_executable.serialize(compiled)
    head = {**identity(lowered, devices), "sha256": _checksum(payload)}
    content = json.dumps(head).encode() + b"\n" + payload

    def write(partial: Path) -> None:
        partial.write_bytes(content)
        mode = partial.stat().st_mode
        partial.chmod(mode & ~0o022)  # whatever the umask says: `load` wants it so

    write_with(path, write)


def load(path: Path, lowered: jax.stages.Lowered, devices: list) -> jax.stages.Compiled:
    """What `save` wrote, ready to run on this process's share of `devices`.

    Raises:
        UserError: the file is damaged, is no executable, was made for something else, or could have
            been written by somebody else.
    """
    remedy = "delete it, and `train` compiles the step and saves it there"
    line, _, payload = read_trusted("executable", path).partition(b"\n")
    try:
        head = json.loads(line)
        whole = head.pop("sha256") == _checksum(payload)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--executable={path} is not one that was saved here; {remedy}") from None
    if not whole:
        raise UserError(f"--executable={path} is damaged: its checksum differs; {remedy}")
    here = identity(lowered, devices)
    if differing := [name for name in here if head.get(name) != here[name]]:
        said = {"program": "another config, or the code has changed", "device order": "another"}
        what = ", ".join(
            f"{name} ({said.get(name) or f'{head.get(name)} there, {here[name]} here'})"
            for name in differing
        )
        raise UserError(f"--executable={path} is not of this step: {what}; {remedy}")
    try:
        return serialize_executable.deserialize_and_load(
            payload, lowered.in_tree, lowered.out_tree, devices[0].client, devices
        )
    except Exception as error:
        raise UserError(
            f"--executable={path} cannot be loaded: {first_line(error)}; {remedy}"
        ) from error


@contextlib.contextmanager
def uncached():
    """Keeps JAX's compilation cache out: on a CPU an executable that came from it can be saved, but
    what was saved cannot be loaded (jax 0.10.2: "Function ... not found" when it is called)."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def from_file(path: Path, program: Program, devices: list) -> Callable[..., Any]:
    """`program.run` without its compilation: loaded from `path`, or, if there is no such file,
    compiled now and saved there.

    Feeds of another length than the program's (the last ones of a run may be shorter) go to
    `program.run`, which compiles for them.
    """
    begin = time.perf_counter()
    lowered = program.run.lower(*program.args)
    if path.exists():
        compiled = load(path, lowered, devices)
        echo(f"executable: {printable(path)} loaded in {time.perf_counter() - begin:.1f} s")
    else:
        check_writable("executable", str(path), path)
        check_trusted("executable", path)
        with uncached():
            compiled = lowered.compile()
        if is_lead():
            with writing(path.parent):
                save(path, compiled, lowered, devices)
        seconds = time.perf_counter() - begin
        echo(f"executable: compiled in {seconds:.1f} s, saved as {printable(path)}")

    def run(state, feeds, resident):
        same = jax.tree.leaves(feeds)[0].shape[0] == program.steps
        return (compiled if same else program.run)(state, feeds, resident)

    return run
