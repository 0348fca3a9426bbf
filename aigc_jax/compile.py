"""Compiling a config's programs for a TPU pod, without the pod: do they fit, and what do they do.

libtpu holds XLA's TPU compiler, and it runs on a CPU. What is compiled is what `train`, `evaluate`
and `generate` run, with its shardings and donation.
"""

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import flops, hlo, rng, topology
from aigc_jax.config import Config
from aigc_jax.errors import UserError, lookup
from aigc_jax.experiment import Experiment
from aigc_jax.files import write_json
from aigc_jax.observe import say
from aigc_jax.parallel.mesh import batch_shards
from aigc_jax.parallel.sharding import batch_sharding, path_name, replicated
from aigc_jax.tasks.task import Request
from aigc_jax.topology import Topology, first_line


def compile(
    config: Config,
    name: str,
    *,
    what: str = "train",
    slices: int = 1,
    check: bool = False,
    find_batch: bool = False,
    out: str = "",
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

    Raises:
        UserError: the topology is unknown, libtpu is missing, `out` cannot be written, or with
            `check` the program does not fit.
    """
    path = out_path(out, ".json") if out else None
    target = topology.describe(name, slices)
    config = config.copy_and_resolve_references()
    if find_batch:
        report = find_largest_batch(config, target, what)
    else:
        report = compile_for(config, target, what)
    say(table(report))
    if path:
        write_json(path, report)
    if check and not report["fits"]:
        raise UserError(
            f"{name}: {what} {fitting(report)}; use a smaller batch, more chips, or "
            "config.parallel.fsdp"
        )
    return report


def compile_for(config: Config, target: Topology, what: str = "train") -> dict[str, Any]:
    """The report on one program: bytes, FLOPs and seconds are per chip and step (or batch, or
    call of `generate`). One that the compiler refuses for want of memory is reported without them.
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
        "parameters": parameter_count(experiment.abstract_state),
        "state": describe_state(experiment.abstract_state),
        "jax": jax.__version__,
    }
    begin = time.perf_counter()
    try:
        compiled = program.run.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**report, "fits": False, **refusal(error)}
    seconds = time.perf_counter() - begin

    chips, steps = len(target.devices), program.steps
    with jax.sharding.use_abstract_mesh(experiment.mesh.abstract_mesh):
        model_flops = flops.count(program.one, *program.one_args) / chips
    work = hlo.analyse(compiled.as_text(), experiment.mesh)
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    peak = sum(sizes.values()) - 2 * sizes["donated"]
    return {
        **report,
        "fits": peak <= target.chip.hbm_bytes,
        "bytes_per_chip": {**sizes, "peak": peak, "memory": target.chip.hbm_bytes},
        "flops_per_chip": work.flops / steps,
        "model_flops_per_chip": model_flops,
        "collectives": [
            {"kind": c.kind, "axes": c.axes, "count": c.count / steps, "bytes": c.bytes / steps}
            for c in work.collectives
        ],
        "roofline": roofline(compiled, work, model_flops, target.chip, steps),
        "compile_seconds": seconds,
    }


# --- what is compiled ---


class Program(NamedTuple):
    """Something to compile, and the same as a plain function.

    Attributes:
        run: the jitted function and `args`, abstract and laid out, to lower it for.
        one: what one of its `steps` does, and its arguments, to count FLOPs in.
        batch_size: examples (or samples) of a step.
    """

    run: Any
    args: tuple
    one: Callable
    one_args: tuple
    batch_size: int
    steps: int = 1


def train_program(experiment: Experiment) -> Program:
    """What `train` calls: one or several steps; of data on the devices it is fed the indices."""
    data, steps = experiment.config.data, experiment.config.train.steps_per_call
    spec = {"index": ((), np.int32)} if experiment.is_resident else experiment.data.spec
    sharding = batch_sharding(experiment.mesh, leading=1)
    feed = {
        name: jax.ShapeDtypeStruct((steps, data.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in spec.items()
    }
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), feed)
    whole, resident = replicated(experiment.mesh), {}
    if experiment.is_resident:
        resident = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
            for name, x in experiment.data.arrays.items()
        }
    state = experiment.abstract_state
    return Program(
        experiment.compile_train(),
        (state, feed, resident),
        experiment.train_step,
        (state, one, resident),
        data.batch_size,
        steps,
    )


def eval_program(experiment: Experiment) -> Program:
    """What `evaluate` calls for each batch of held-out examples."""
    if experiment.eval_data is None:
        raise UserError("config.data.eval_split is empty: there is no evaluation to compile")
    size = experiment.config.data.eval_batch_size
    spec = {**experiment.eval_data.spec, "mask": ((), np.float32), "number": ((), np.int32)}
    sharding, whole = batch_sharding(experiment.mesh), replicated(experiment.mesh)
    feed = {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in spec.items()
    }
    args = (experiment.abstract_state, feed, {})
    total = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        jax.eval_shape(experiment.eval_step, *args),
    )
    run_args = (experiment.abstract_state, total, feed, {})
    return Program(experiment.compile_eval(), run_args, experiment.eval_step, args, size)


def generate_program(experiment: Experiment) -> Program:
    """What `generate` calls unless it is told otherwise: 100 images, or a text of 500 tokens."""
    request = Request(num=1 if experiment.data.kind == "text" else 100)
    key = jax.eval_shape(lambda: rng.stream_key(0, "generate"))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(experiment.mesh))

    def generate(state, key):
        return experiment.task.generate(state, key, request)

    return Program(
        experiment.compile_generate(request),
        (experiment.abstract_state, key, None),
        generate,
        (experiment.abstract_state, key),
        request.num,
    )


PROGRAMS = {"train": train_program, "eval": eval_program, "generate": generate_program}


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
        say(f"{key} {units * unit}: {fitting(report)}, {seconds:.0f} s")
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


def roofline(
    compiled: Any, work: hlo.Program, model_flops: float, chip: flops.Chip, steps: int
) -> dict[str, Any]:
    """The least time that each resource needs, and the MFU that the slowest of them allows.

    `memory` takes the compiler's byte count, one read and write per operand of a fusion: an upper
    bound on traffic, so its time is one too.
    """
    cost = compiled.cost_analysis()
    accessed = cost.get("bytes accessed", 0.0) / steps
    sent = sum(c.sent for c in work.collectives) / steps
    times = {
        "compute": work.flops / steps / chip.bfloat16,
        "memory": accessed / chip.hbm_bandwidth,
        "interconnect": sent / chip.ici_bandwidth,
    }
    slowest = max(times, key=times.__getitem__)
    return {
        "seconds": times,
        "slowest": slowest,
        "mfu_at_most": model_flops / chip.bfloat16 / times[slowest] if times[slowest] else 0.0,
        "peaks": "published: see aigc_jax/flops.py",
    }


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    head = (
        f"{report['what']} on {report['topology']}"
        f"{' x ' + str(report['slices']) + ' slices' if report['slices'] > 1 else ''}: "
        f"{report['chips']} chips, {report['parameters']:,} parameters, "
        f"batch {report['batch_size']}"
    )
    if "bytes_per_chip" not in report:
        return f"{head}\n{fitting(report)}"
    size, times = report["bytes_per_chip"], report["roofline"]["seconds"]
    lines = [
        f"{head}, compiled in {report['compile_seconds']:.1f} s",
        f"memory per chip: peak {size['peak'] / 2**20:,.1f} MiB of {size['memory'] / 2**20:,.0f} "
        f"({'fits' if report['fits'] else 'DOES NOT FIT'}); arguments "
        f"{size['arguments'] / 2**20:,.1f}, temporaries {size['temporaries'] / 2**20:,.1f}",
        f"FLOPs per chip: {report['flops_per_chip']:,.0f} "
        f"({report['flops_per_chip'] / max(report['model_flops_per_chip'], 1):.3f} of the model's)",
        *(
            f"{c['kind']:20} over {'x'.join(c['axes']) or '-':12} {c['count']:5.0f} times "
            f"{c['bytes'] / 2**20:12,.2f} MiB"
            for c in report["collectives"]
        ),
        "least time: " + ", ".join(f"{k} {1e6 * v:,.1f} us" for k, v in times.items()),
        f"MFU at most {report['roofline']['mfu_at_most']:.1%} (bound by "
        f"{report['roofline']['slowest']})",
    ]
    return "\n".join(lines)


def out_path(out: str, ending: str) -> Path:
    """The file `OUT` with its ending, in a directory that is there and can be written."""
    path = Path(out).with_name(Path(out).name.removesuffix(".json") + ending)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out={out}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise UserError(f"cannot write --out={out}: {path} is no file that can be written")
    return path
