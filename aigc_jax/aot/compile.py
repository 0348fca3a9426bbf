"""Compiling a config's programs for a TPU pod, without the pod: do they fit, and what do they do.

libtpu holds XLA's TPU compiler, and it runs on a CPU. What is compiled is what `train`, `evaluate`
and `generate` run, with its shardings and donation.
"""

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from aigc_jax.aot import flops, hlo, topology
from aigc_jax.aot.chips import HALF_CHIPS
from aigc_jax.aot.executable import save as save_executable
from aigc_jax.aot.executable import uncached
from aigc_jax.aot.explain import explain
from aigc_jax.aot.programs import PROGRAMS
from aigc_jax.aot.roofline import roofline
from aigc_jax.aot.topology import Topology
from aigc_jax.config import Config
from aigc_jax.errors import UserError, first_line, lookup, printable
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import path_name
from aigc_jax.progress import waiting
from aigc_jax.run.files import check_writable, write_json
from aigc_jax.run.observe import echo


def compile(
    config: Config,
    name: str,
    *,
    what: str = "train",
    slices: int = 1,
    check: bool = False,
    find_batch: bool = False,
    out: str = "",
    save: str = "",
    explained: bool = False,
) -> dict[str, Any]:
    """Compiles one program for a topology and tells what each chip holds and does.

    Args:
        config: of the experiment.
        name: kind and shape of a slice, e.g. `v5e:4x4`.
        what: `train`, `eval` or `generate`.
        slices: how many of that slice.
        check: a program that does not fit is an error.
        find_batch: look for the largest batch size that fits, and report on that.
        out: a file to write the report to, without its ending.
        save: a file to write the compiled step to, for `train`.
        explained: say what each figure means.

    Raises:
        UserError: the topology is unknown, libtpu is missing, `out` or `save` cannot be written, or
            with `check` or `save` the program does not fit.
    """
    path = out_path(out, ".json") if out else None
    executable = check_writable("save", save, Path(save)) if save else None
    target = topology.describe(name, slices)
    config = config.copy_and_resolve_references()
    if find_batch:
        report = find_largest_batch(config, target, what)
    else:
        report = compile_for(config, target, what, executable)
    echo(table(report))
    for line in explain(report) if explained else ():
        echo(f"  {line}")
    if path:
        write_json(path, report)
    if (check or save) and not report["fits"]:
        raise UserError(
            f"{target.name}: {what} {fitting(report)}; use a smaller batch, more chips, or "
            "config.parallel.fsdp"
        )
    return report


def compile_for(
    config: Config, target: Topology, what: str = "train", executable: Path | None = None
) -> dict[str, Any]:
    """The report on one program: bytes, FLOPs and seconds are per chip and step (or batch, or
    call of `generate`). One that the compiler refuses for want of memory is reported without them.

    What was compiled is written to the file `executable` if it fits.
    """
    experiment = Experiment(config, devices=target.devices)
    program = lookup(PROGRAMS, what, "--what")(experiment)
    report = {
        "what": what,
        "topology": target.name,
        "slices": target.slices,
        "chips": len(target.devices),
        "mesh": dict(experiment.mesh.shape),
        "batch_size": program.batch_size,
        "precision": config.train.precision,
        "parameters": parameter_count(experiment.abstract_run),
        "state": describe_state(experiment.abstract_state),
        "jax": jax.__version__,
    }
    begin = time.perf_counter()
    try:
        lowered = program.run.lower(*program.args)
        caching = uncached() if executable else contextlib.nullcontext()
        with caching, waiting("compiling"):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**report, "fits": False, **refusal(error)}
    seconds = time.perf_counter() - begin

    chips, steps = len(target.devices), program.steps
    written_flops = count_flops(experiment, what) / chips
    model_flops = count_flops(experiment, what, needed=True) / chips
    work = hlo.analyse(program_text(compiled), experiment.mesh)
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    peak = sum(sizes.values()) - 2 * sizes["donated"]
    if executable and peak <= target.chip.hbm_bytes:
        save_executable(executable, compiled, lowered, target.devices)
        echo(f"saved as {printable(executable)}")
    return {
        **report,
        "fits": peak <= target.chip.hbm_bytes,
        "bytes_per_chip": {**sizes, "peak": peak, "memory": target.chip.hbm_bytes},
        "flops_per_chip": work.flops / steps,
        "written_flops_per_chip": written_flops,
        "model_flops_per_chip": model_flops,
        "memory_traffic_per_chip": work.memory_traffic / steps,
        "compiler_bytes_accessed": compiled.cost_analysis().get("bytes accessed", 0.0) / steps,
        "collectives": [
            {
                "kind": c.kind,
                "axes": c.axes,
                "network": c.network,
                "count": c.count / steps,
                "bytes": c.bytes / steps,
            }
            for c in work.collectives
        ],
        "roofline": roofline(work, model_flops, target.chip, steps),
        "compile_seconds": seconds,
    }


def program_text(compiled: jax.stages.Compiled) -> str:
    """The optimised program, or a `UserError` where jaxlib is too old to read what libtpu made."""
    try:
        with _without_stderr():
            text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"it compiles, but jaxlib {jaxlib.__version__} cannot read this libtpu's program: "
            f"{first_line(error)}; use a newer jax or an older libtpu"
        ) from None
    assert text is not None  # TPU programs have one
    return text


@contextlib.contextmanager
def _without_stderr():
    """XLA prints a stack of its own, past Python, beside the error that it raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def count_flops(experiment: Experiment, what: str, needed: bool = False) -> int:
    """FLOPs of one step over all devices: as it is written, or what is `needed` of it, without
    rematerialisation by the model or in kernels."""
    program = PROGRAMS[what](without_remat(experiment) if needed else experiment)
    with jax.sharding.use_abstract_mesh(experiment.mesh.abstract_mesh):
        return flops.count(program.one, *program.one_args, needed=needed)


def without_remat(experiment: Experiment) -> Experiment:
    """The same experiment, but that its backward pass computes nothing again."""
    config = experiment.config.copy_and_resolve_references()
    if config.model.get("remat", "none") == "none":
        return experiment
    config.model.remat = "none"
    return Experiment(config, data=experiment.data, devices=list(experiment.mesh.devices.flat))


# --- does it fit ---


def refusal(error: Exception) -> dict[str, Any]:
    """What the compiler said when it ran out of a chip's memory, in bytes where it told them.

    It writes `... required for HLO temporaries (19.77G) exceeds available HBM (15.75G)`, or
    `Used 21.2G of 15.75G hbm`.
    """
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = r"\(?([\d.]+)([KMGT]?)B?\)?"
    text = str(error)
    found: dict[str, Any] = {"refused": first_line(error).removeprefix("RESOURCE_EXHAUSTED: ")}
    for pattern in (rf"{number} exceeds available \w+ {number}", rf"Used {number} of {number}"):
        if match := re.search(pattern, text):
            needed, unit, available, of = match.groups()
            found["bytes_needed"] = round(float(needed) * units[unit])
            found["bytes_available"] = round(float(available) * units[of])
            break
    return found


def fitting(report: dict[str, Any]) -> str:
    """Whether a program fits, and by how much, for a person."""
    if "bytes_per_chip" in report:
        needed, has = report["bytes_per_chip"]["peak"], report["bytes_per_chip"]["memory"]
    elif "bytes_needed" in report:
        needed, has = report["bytes_needed"], report["bytes_available"]
    else:
        return f"does not fit: {report['refused']}"
    verdict = "fits" if report["fits"] else "does not fit"
    part = " for temporaries alone" if "temporaries" in report.get("refused", "") else ""
    return f"{verdict}: {needed / 2**30:.2f} GiB a chip{part} of {has / 2**30:.2f}"


def find_largest_batch(config: Config, target: Topology, what: str = "train") -> dict[str, Any]:
    """The report on the largest batch size that fits, a multiple of what the mesh divides.

    Raises:
        UserError: not even the smallest one fits, or `what` has no batch size.
    """
    keys = {"train": ("batch_size", config.train.accumulate), "eval": ("eval_batch_size", 1)}
    if what not in keys:
        raise UserError(f"--find_batch is for {' and '.join(keys)}, not for {what}")
    key, accumulate = keys[what]
    unit = accumulate * batch_shards(Experiment(config, devices=target.devices).mesh)
    reports: dict[int, Any] = {}

    def use(units: int) -> float:
        config.data[key] = units * unit
        begin = time.perf_counter()
        report = reports[units] = compile_for(config, target, what)
        seconds = time.perf_counter() - begin
        echo(f"{key} {units * unit}: {fitting(report)}, {seconds:.0f} s")
        if not report["fits"]:
            return math.inf
        return report["bytes_per_chip"]["peak"] / report["bytes_per_chip"]["memory"]

    largest = largest_that_fits(use, config.data[key] // unit)
    if not largest:
        raise UserError(
            f"{target.name}: even with {key}={unit} {what} {fitting(reports[1])}; use more "
            "chips or config.parallel.fsdp"
        )
    return {**reports[largest], "largest_batch_size": largest * unit}


def largest_that_fits(use: Callable[[int], float], start: int = 1) -> int:
    """The largest whole number whose use of memory is at most 1; 0 if there is none.

    Upwards from `start` by doubling, or by more where the use, growing in proportion at most, must
    still fit; then by bisection, which beyond 64 stops within 1/64 of the largest.
    """
    low, high = 0, max(start, 1)
    while (share := use(high)) <= 1:
        low, high = high, high * max(2, int(1 / share))
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if use(middle) <= 1 else (low, middle)
    return low


# --- what it says ---


def parameter_count(state: Any) -> int:
    """Parameters of all networks."""
    networks = state.networks.values()
    return sum(int(np.prod(x.shape)) for n in networks for x in jax.tree.leaves(n.params))


def describe_state(state: Any, num: int = 8) -> dict[str, Any]:
    """Bytes of the state, whole and on one chip, and how its `num` largest parameters are split.

    Moments and averages are split as their parameters are; where they were not, the bytes tell.
    """
    whole = share = 0
    params = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, size = path_name(path), int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        whole += size
        share += int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        if re.match(r"networks/\w+/params/", name):
            spec = [*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec))]
            params.append({"path": name, "shape": list(leaf.shape), "split_over": spec})
    params.sort(key=lambda array: -int(np.prod(array["shape"])))
    return {"bytes": whole, "bytes_per_chip": share, "largest": params[:num]}


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    half = "half " if report["topology"].split(":")[0] in HALF_CHIPS else ""
    head = (
        f"{report['what']} on {report['topology']}"
        f"{' x ' + str(report['slices']) + ' slices' if report['slices'] > 1 else ''}: "
        f"{report['chips']} {half}chips, {report['parameters']:,} parameters, "
        f"batch {report['batch_size']}"
    )
    if "bytes_per_chip" not in report:
        return f"{head}\n{fitting(report)}"
    size, times = report["bytes_per_chip"], report["roofline"]["seconds"]
    done, written, model = (
        max(report[key], 1)
        for key in ("flops_per_chip", "written_flops_per_chip", "model_flops_per_chip")
    )
    lines = [
        f"{head}, compiled in {report['compile_seconds']:.1f} s",
        f"memory per chip: peak {size['peak'] / 2**20:,.1f} MiB of {size['memory'] / 2**20:,.0f} "
        f"({'fits' if report['fits'] else 'DOES NOT FIT'}); arguments "
        f"{size['arguments'] / 2**20:,.1f}, temporaries {size['temporaries'] / 2**20:,.1f}",
        f"FLOPs per chip: {report['flops_per_chip']:,.0f}, {done / written:.3f} of what is written "
        f"and {done / model:.3f} of the model's (without remat)",
        f"memory traffic per chip: {report['memory_traffic_per_chip'] / 2**20:,.1f} MiB (the "
        f"compiler's bytes accessed: {report['compiler_bytes_accessed'] / 2**20:,.1f})",
        *(
            f"{c['kind']:20} over {'x'.join(c['axes']):12} {c['count']:7,.0f} times "
            f"{c['bytes'] / 2**20:12,.2f} MiB"
            f"{' between slices' if c['network'] == 'dcn' else ''}"
            for c in report["collectives"]
        ),
        "least time: "
        + ", ".join(
            f"{name} {'unknown' if seconds is None else format(1e6 * seconds, ',.1f') + ' us'}"
            for name, seconds in times.items()
        ),
        f"MFU at most {report['roofline']['mfu_at_most']:.1%} (bound by "
        f"{report['roofline']['slowest']})",
    ]
    return "\n".join(lines)


def out_path(out: str, ending: str) -> Path:
    """The file `OUT` with its ending, in a directory that is there and can be written."""
    path = Path(out).with_name(Path(out).name.removesuffix(".json") + ending)
    return check_writable("out", out, path)
