"""Compiling a config's train step for a TPU pod, without the pod: does it fit, and what does it do.

libtpu holds XLA's TPU compiler, and it runs on a CPU. The step that is compiled is the one that
`train` runs, with its shardings and donation.
"""

import importlib.util
import os
import re
import time
from typing import Any

import jax
import numpy as np

from aigc_jax import flops, hlo
from aigc_jax.config import Config
from aigc_jax.errors import UserError, nearest
from aigc_jax.experiment import Experiment
from aigc_jax.observe import say
from aigc_jax.parallel.sharding import batch_sharding


def compile_config(config: Config, topology: str, *, check: bool = False) -> dict[str, Any]:
    """Compiles the train step for a topology and reports what each chip holds and does.

    Args:
        config: of the experiment; a data set on the devices is counted as read from the host.
        topology: kind and shape of the slice, e.g. `v5e:4x4`.
        check: a program that does not fit is an error.

    Returns:
        One JSON object; bytes, FLOPs and seconds are per chip and step.

    Raises:
        UserError: the topology is unknown, libtpu is missing, or with `check` the step does not
            fit.
    """
    devices, chip = describe_topology(topology)
    config = config.copy_and_resolve_references()
    config.data.placement = "memory"
    experiment = Experiment(config, devices=devices)
    feed = abstract_feed(experiment)
    begin = time.perf_counter()
    try:
        compiled = experiment.compile_train().lower(experiment.abstract_state, feed, {}).compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "hbm" not in str(error).lower():
            raise
        raise UserError(f"{topology}: the step does not fit: {first_line(error)}") from None
    seconds = time.perf_counter() - begin

    steps = config.train.steps_per_call
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), feed)
    model_flops = flops.count(experiment.train_step, experiment.abstract_state, one, {})
    program = hlo.analyse(compiled.as_text(), experiment.mesh)
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    peak = sum(sizes.values()) - 2 * sizes["donated"]
    report = {
        "topology": topology,
        "chips": len(devices),
        "mesh": dict(experiment.mesh.shape),
        "batch_size": config.data.batch_size,
        "precision": config.train.precision,
        "parameters": parameter_count(experiment.abstract_state),
        "bytes_per_chip": {**sizes, "peak": peak, "memory": chip.hbm_bytes},
        "fits": peak <= chip.hbm_bytes,
        "flops_per_chip": program.flops // steps,
        "model_flops_per_chip": model_flops / len(devices),
        "collectives": [
            {"kind": c.kind, "axes": c.axes, "count": c.count // steps, "bytes": c.bytes // steps}
            for c in program.collectives
        ],
        "roofline": roofline(compiled, program, model_flops / len(devices), chip, steps),
        "compile_seconds": seconds,
        "jax": jax.__version__,
    }
    say(table(report))
    if check and not report["fits"]:
        raise UserError(
            f"{topology}: a chip needs {peak / 2**30:.2f} GiB and has "
            f"{chip.hbm_bytes / 2**30:.0f}; use a smaller batch, more chips, or "
            "config.parallel.fsdp"
        )
    return report


def describe_topology(name: str) -> tuple[list, flops.Chip]:
    """The abstract devices of a slice, one per chip, and the chip's published figures."""
    match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", name)
    if not match or match[1] not in flops.CHIPS:
        kind = name.split(":")[0]
        raise UserError(
            f'unknown topology "{name}"{nearest(kind, flops.CHIPS)}; write KIND:ROWSxCOLUMNS, e.g. '
            "v5e:4x4, v5e:16x16, v6e:8x8 or v5p:4x4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'compiling for a TPU needs libtpu: pip install "aigc-jax[aot]", or uv sync --extra aot'
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is no TPU VM: do not look for one
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=(2, 2, 1)
        )
    except Exception as error:
        raise UserError(f"{name} is no topology that libtpu knows: {first_line(error)}") from None
    chips = {}
    for device in description.devices:  # a v4 chip shows its two cores
        chips.setdefault(tuple(device.coords), device)
    return list(chips.values()), flops.CHIPS[match[1]]


def first_line(error: Exception) -> str:
    """The first line of a message that has many."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]


def abstract_feed(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what one call is fed, laid out over the mesh."""
    data = experiment.config.data
    sharding = batch_sharding(experiment.mesh, leading=1)
    leading = (experiment.config.train.steps_per_call, data.batch_size)
    return {
        name: jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in experiment.data.spec.items()
    }


def parameter_count(state: Any) -> int:
    """Parameters of all networks."""
    networks = state.networks.values()
    return sum(int(np.prod(x.shape)) for n in networks for x in jax.tree.leaves(n.params))


def roofline(
    compiled: Any, program: hlo.Program, model_flops: float, chip: flops.Chip, steps: int
) -> dict[str, Any]:
    """The least time that each resource needs, and the MFU that the slowest of them allows.

    `memory` takes the compiler's byte count, one read and write per operand of a fusion: an upper
    bound on traffic, so its time is one too.
    """
    cost = compiled.cost_analysis()
    accessed = cost.get("bytes accessed", 0.0) / steps
    sent = sum(c.sent for c in program.collectives) / steps
    times = {
        "compute": program.flops / steps / chip.bfloat16,
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
    size = report["bytes_per_chip"]
    times = report["roofline"]["seconds"]
    lines = [
        f"{report['topology']}: {report['chips']} chips, {report['parameters']:,} parameters, "
        f"batch {report['batch_size']}, compiled in {report['compile_seconds']:.1f} s",
        f"memory per chip: peak {size['peak'] / 2**20:,.1f} MiB of {size['memory'] / 2**20:,.0f} "
        f"({'fits' if report['fits'] else 'DOES NOT FIT'}); arguments "
        f"{size['arguments'] / 2**20:,.1f}, temporaries {size['temporaries'] / 2**20:,.1f}",
        f"FLOPs per chip: {report['flops_per_chip']:,} "
        f"({report['flops_per_chip'] / max(report['model_flops_per_chip'], 1):.3f} of the model's)",
        *(
            f"{c['kind']:20} over {'x'.join(c['axes']) or '-':12} {c['count']:5} times "
            f"{c['bytes'] / 2**20:12,.2f} MiB"
            for c in report["collectives"]
        ),
        "least time: " + ", ".join(f"{k} {1e6 * v:,.1f} us" for k, v in times.items()),
        f"MFU at most {report['roofline']['mfu_at_most']:.1%} (bound by "
        f"{report['roofline']['slowest']})",
    ]
    return "\n".join(lines)
