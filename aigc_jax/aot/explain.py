"""What the figures of a report of `aigc compile` mean, each in a line, by its own numbers."""

from typing import Any

from aigc_jax.aot.chips import HALF_CHIPS


def explain(report: dict[str, Any]) -> list[str]:
    """A line for each figure that is not clear by itself, for one who has not read docs/scaling.md.

    Args:
        report: of `compile_for`; of one that does not fit there is less to explain.
    """
    lines = []
    if report["topology"].split(":")[0] in HALF_CHIPS:
        lines.append(
            "chip: JAX shows each chip of this kind as two devices; here each counts as a chip, "
            "with half of a chip's memory, peak and bandwidth"
        )
    if "bytes_per_chip" not in report:
        return [*lines, "the compiler gave up for want of memory, so there is nothing to count"]
    done, written, model = (
        max(report[key], 1)
        for key in ("flops_per_chip", "written_flops_per_chip", "model_flops_per_chip")
    )
    lines += [
        "memory: arguments are what the program gets (parameters, optimizer state, batch), "
        "temporaries what it makes and drops; the peak counts once what is overwritten in place",
        f"of what is written: the compiled program computes {_than(done / written)} the code of "
        "the step asks for before compilation; more: XLA computes something twice, or pads; less: "
        "a product with a single row became a sum, which is not counted",
        f"of the model's: it computes {_than(done / model)} the model needs, without "
        "rematerialisation (config.model.remat), which computes again instead of keeping",
        "memory traffic: what the chip reads from and writes to its main memory in one step, an "
        "estimate from the compiled program; the compiler's own count takes loops once",
    ]
    if report["collectives"]:
        lines.append(
            "collectives: how often in one step the chips along that axis of the mesh exchange "
            "data, and how much: what an all-gather leaves on each chip, else what each puts in"
        )
    slowest = report["roofline"]["slowest"]
    lines += [
        "least time: each resource alone at its published peak; a real step takes longer than "
        f"the largest, here {slowest}, since nothing overlaps perfectly: a bound, no forecast",
        "MFU at most: the model's FLOPs as a share of what the chip could compute in that time",
    ]
    return lines


def _than(ratio: float) -> str:
    """`5.1 % more than`, `as much as`, `3.0 % less than`."""
    share = 100 * (ratio - 1)
    if abs(share) < 0.05:
        return "as much as"
    return f"{abs(share):.1f} % {'more' if share > 0 else 'less'} than"
