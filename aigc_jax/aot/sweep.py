"""How a config's train step scales from 4 to 256 chips, by what each chip of the program does."""

from pathlib import Path
from typing import Any

from aigc_jax.aot import topology
from aigc_jax.aot.compile import compile_for, fitting, out_path
from aigc_jax.atomic import replacing
from aigc_jax.config import Config
from aigc_jax.errors import UserError
from aigc_jax.progress import bar
from aigc_jax.run.files import write_json
from aigc_jax.run.observe import echo


def sweep(config: Config, name: str, *, out: str = "") -> dict[str, Any]:
    """Compiles the train step for slices of 4 to 256 chips.

    Weak scaling keeps the batch per chip that `config.data.batch_size` gives on the slice `name`;
    strong scaling keeps the batch. A point that does not fit or does not divide says so.

    Args:
        config: of the experiment; an axis of its mesh should be -1, so that it grows.
        name: kind and shape of the slice that the batch size is meant for, e.g. `v5e:4x4`.
        out: OUT.json gets the result and OUT.png a plot.

    Returns:
        One JSON object: for each point chips, batch size, and either what `compile_for` found out
        or `error`.

    Raises:
        UserError: no point can be compiled, or `out` cannot be written.
    """
    paths = [out_path(out, ending) for ending in (".json", ".png")] if out else []
    target = topology.describe(name)
    base = topology.chips(target.name.split(":")[1])
    kind = target.name.split(":")[0]
    points, compiled = [], {}
    shapes = [(scaling, s) for scaling in ("weak", "strong") for s in topology.SHAPES[kind]]
    for scaling, shape in bar(shapes, desc="compiling", unit="slice"):
        chips = topology.chips(shape)
        batch_size = config.data.batch_size * (chips if scaling == "weak" else base) / base
        if (shape, batch_size) not in compiled:
            compiled[shape, batch_size] = _point(config, f"{kind}:{shape}", chips, batch_size)
        point = {"scaling": scaling, **compiled[shape, batch_size]}
        points.append(point)
        echo(row(point))
    usable = [point for point in points if "flops_per_chip" in point]
    if not usable:
        raise UserError(f"no slice of {kind} can be compiled for: {points[0]['error']}")
    result = {"topology": target.name, "batch_size": config.data.batch_size, "points": points}
    if out:
        write_json(paths[0], result)
        plot(usable, f"{kind}, batch {config.data.batch_size} on {base} chips", paths[1])
        result["plot"] = str(paths[1])
    return result


def _point(config: Config, name: str, chips: int, batch_size: float) -> dict[str, Any]:
    point = {"topology": name, "chips": chips, "batch_size": batch_size}
    if not batch_size.is_integer():
        return {**point, "error": f"a batch of {batch_size:g} cannot be made"}
    config = config.copy_and_resolve_references()
    config.data.batch_size = point["batch_size"] = int(batch_size)
    try:
        report = compile_for(config, topology.describe(name))
    except UserError as error:
        return {**point, "error": str(error)}
    return report if report["fits"] else {**report, "error": fitting(report)}


def row(point: dict[str, Any]) -> str:
    """A point as a line of a table."""
    head = f"{point['scaling']:6} {point['topology']:>10} batch {point['batch_size']:>8g}: "
    if "error" in point:
        return head + point["error"]
    seconds = point["roofline"]["seconds"]
    return head + (
        f"{point['flops_per_chip']:10.3e} FLOPs, "
        f"{point['bytes_per_chip']['temporaries'] / 2**20:9,.1f} MiB temporaries, "
        f"{point['state']['bytes_per_chip'] / 2**20:8,.1f} MiB state a chip; "
        f"least {1e3 * seconds[point['roofline']['slowest']]:9.3f} ms "
        f"({point['roofline']['slowest']}), MFU at most {point['roofline']['mfu_at_most']:.1%}"
    )


def plot(points: list[dict[str, Any]], title: str, path: Path) -> None:
    """The least time of a step and the MFU that it allows, over the number of chips, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, mfu) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for scaling in ("weak", "strong"):
        line = [point for point in points if point["scaling"] == scaling]
        chips = [point["chips"] for point in line]
        bounds = [point["roofline"] for point in line]
        times.plot(chips, [1e3 * max(filter(None, b["seconds"].values())) for b in bounds], "o-")
        mfu.plot(chips, [100 * b["mfu_at_most"] for b in bounds], "o-", label=scaling)
    for axes, label in ((times, "least time of a step, ms"), (mfu, "MFU at most, %")):
        axes.set(xscale="log", xlabel="chips", ylabel=label)
        ticks = sorted({point["chips"] for point in points})
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    times.set_yscale("log")
    mfu.set_ylim(0)
    mfu.legend(title="scaling")
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)
