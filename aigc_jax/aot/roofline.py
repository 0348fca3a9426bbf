"""The least time that a compiled program needs on a chip, from published peaks."""

from typing import Any

from aigc_jax.aot.chips import Chip
from aigc_jax.aot.hlo import Program


def roofline(work: Program, model_flops: float, chip: Chip, steps: int) -> dict[str, Any]:
    """The least time of each resource for one step, and the MFU that the slowest of them allows.

    Nothing here overlaps worse than perfectly and nothing waits: a bound, and no forecast. MFU is
    the model's FLOPs (Chowdhery et al. 2022, section 4.1: no rematerialisation in them) over what
    the chip could have done in that time.

    Args:
        work: what a chip does in one call.
        model_flops: of one step, a chip's share.
        chip: the published figures.
        steps: in one call.

    Returns:
        `seconds` by resource: "compute", the FLOPs really done at the bfloat16 peak (at JAX's
        default precision a float32 product is one bfloat16 pass); "memory", `work.memory_traffic`;
        "interconnect", what collectives send within a slice, over all of a chip's links; and if
        there is something between slices, "network", None where no bandwidth is published.
    """
    sent = {"ici": 0.0, "dcn": 0.0}
    for collective in work.collectives:
        sent[collective.network] += collective.sent / steps
    times: dict[str, float | None] = {
        "compute": work.flops / steps / chip.bfloat16,
        "memory": work.memory_traffic / steps / chip.hbm_bandwidth,
        "interconnect": sent["ici"] / chip.ici_bandwidth,
    }
    if sent["dcn"]:
        times["network"] = sent["dcn"] / chip.dcn_bandwidth if chip.dcn_bandwidth else None
    known = {name: seconds for name, seconds in times.items() if seconds is not None}
    slowest = max(known, key=known.__getitem__)
    return {
        "seconds": times,
        "slowest": slowest,
        "mfu_at_most": model_flops / chip.bfloat16 / max(known[slowest], 1e-12),
        "peaks": "published: see aigc_jax/aot/chips.py",
    }
