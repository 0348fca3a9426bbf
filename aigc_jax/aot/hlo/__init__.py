"""What a compiled program does on one device, read off its optimised HLO.

The compiler's own `cost_analysis` counts a loop's body once and knows nothing of meshes. Here every
computation is walked from the entry with the trip counts of the loops around it.
"""

from dataclasses import dataclass

from jax.sharding import AbstractMesh, Mesh

from aigc_jax.aot.hlo.collectives import Collective, collectives
from aigc_jax.aot.hlo.products import instruction_flops
from aigc_jax.aot.hlo.text import Module
from aigc_jax.aot.hlo.traffic import memory_traffic


@dataclass(frozen=True)
class Program:
    """What one device does in one call.

    Attributes:
        flops: two for each product in matrix multiplications, convolutions and kernels, as in
            `aigc_jax.aot.flops.count`.
        memory_traffic: bytes read from and written to the device's main memory, see
            `traffic.memory_traffic`.
        collectives: sorted by kind and axes.
    """

    flops: int
    memory_traffic: int
    collectives: list[Collective]


def analyse(text: str, mesh: Mesh | AbstractMesh) -> Program:
    """Counts the work of `compiled.as_text()` for a program compiled for `mesh`.

    A TPU's forms are understood: matrix multiplications written as convolutions, an all-gather cut
    into pieces that run beside other work (one collective), an all-reduce fused with the slice that
    each device keeps (a reduce-scatter), exchanges between slices. A conditional counts as its
    branch with the most FLOPs.

    Args:
        text: optimised HLO.
        mesh: the mesh of the program's shardings; devices in HLO are places in it, counted row by
            row.

    Raises:
        ValueError: a loop with FLOPs or collectives in it has no trip count that can be read.
    """
    module = Module(text, instruction_flops)
    runs = module.runs(module.entry)
    return Program(
        module.flops(module.entry),
        memory_traffic(module, runs),
        collectives(runs, mesh, module.partitions),
    )
