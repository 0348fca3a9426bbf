"""Published figures of TPU chips and GPUs: the one table of them."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Published figures of what JAX shows as one TPU device: a chip, or half a chip of tpu7x.

    Attributes:
        bfloat16: peak FLOP/s.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
        ici_bandwidth: bytes/s that a chip can send to its neighbours, over all its links.
        ici_links: neighbours in a torus.
        dcn_bandwidth: bytes/s that a chip can send to other slices, its share of the hosts'
            network; None where none is published.
    """

    bfloat16: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    ici_links: int
    dcn_bandwidth: float | None


GiB = 2**30
# Keys are the start of a topology's name. Peaks, memory and its bandwidth:
# https://cloud.google.com/tpu/docs/v4 (and v5e, v5p, v6e). Interconnect: the same pages (v5e 400,
# v5p 1200, v6e 800 GB/s in both directions); v4: six links of 50 GB/s, Jouppi et al. 2023, table 4.
# Data-centre network: the same pages, for a pod of 256 chips 6.4 (v5e) and 25.6 Tbit/s (v6e), for a
# chip 50 Gbit/s (v5p). A chip of tpu7x is two devices, each with half of its 2307 TFLOP/s, 192 GiB,
# 7380 GB/s, 1200 GB/s in both directions and 100 Gbit/s: https://cloud.google.com/tpu/docs/tpu7x
CHIPS = {
    "v4": Chip(275e12, 32 * GiB, 1200e9, 300e9, 6, None),
    "v5e": Chip(197e12, 16 * GiB, 819e9, 200e9, 4, 3.125e9),
    "v5p": Chip(459e12, 95 * GiB, 2765e9, 600e9, 6, 6.25e9),
    "v6e": Chip(918e12, 32 * GiB, 1638e9, 400e9, 4, 12.5e9),
    "tpu7x": Chip(1153.5e12, 96 * GiB, 3690e9, 300e9, 6, 6.25e9),
}
HALF_CHIPS = ("tpu7x",)  # kinds whose devices are half a chip each

# Dense peaks by `device.device_kind` and dtype. float32 is what a float32 matmul gets at JAX's
# default precision: one bfloat16 pass on a TPU, TF32 on a GPU.
_PEAKS = {
    # A device of a v2 or v3 is a core, half a chip. https://cloud.google.com/tpu/docs/v3;
    # v2: Norrie et al. 2021, "The Design Process for Google's Training Chips: TPUv2 and TPUv3".
    "TPU v2": (23e12, 23e12),
    "TPU v3": (61.5e12, 61.5e12),
    "TPU v4": (CHIPS["v4"].bfloat16,) * 2,
    "TPU v5 lite": (CHIPS["v5e"].bfloat16,) * 2,
    "TPU v5e": (CHIPS["v5e"].bfloat16,) * 2,
    "TPU v5": (CHIPS["v5p"].bfloat16,) * 2,
    "TPU v5p": (CHIPS["v5p"].bfloat16,) * 2,
    "TPU v6 lite": (CHIPS["v6e"].bfloat16,) * 2,
    "TPU v6e": (CHIPS["v6e"].bfloat16,) * 2,
    "TPU7x": (CHIPS["tpu7x"].bfloat16,) * 2,
    # https://www.nvidia.com/en-us/data-center/a100/
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 156e12),
    "NVIDIA A100 80GB PCIe": (312e12, 156e12),
    # https://www.nvidia.com/en-us/data-center/h100/, halved: the page counts 2:4 sparsity
    "NVIDIA H100 80GB HBM3": (989e12, 494.5e12),
    "NVIDIA H100 PCIe": (756.5e12, 378e12),
    "NVIDIA H200": (989e12, 494.5e12),  # the same processor with more and faster memory
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The published dense peak of one device in FLOP/s; None where none is known (any CPU).

    Args:
        device_kind: `jax.devices()[0].device_kind`.
        dtype: "bfloat16" or "float32", at JAX's default matmul precision.
    """
    bfloat16, float32 = _PEAKS.get(device_kind, (None, None))
    return bfloat16 if dtype == "bfloat16" else float32 if dtype == "float32" else None
