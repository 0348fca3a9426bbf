"""Programs of known work compiled for a TPU: its compiler, in libtpu, runs on a CPU."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from programs import AUTO, BATCH, compiled_text, scanned_mlp, shapes

from aigc_jax.aot import flops, topology
from aigc_jax.aot.hlo import analyse
from aigc_jax.aot.hlo.text import Module, memory_bytes
from aigc_jax.ops.attention import splash_attention

pytestmark = [
    pytest.mark.tpu_compiler,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


def test_tpu_program_of_an_fsdp_step_has_the_model_flops():
    """XLA's TPU compiler runs on a CPU."""
    devices = topology.describe("v5e:4x4").devices
    mesh = Mesh(np.array(devices).reshape(2, 8), ("data", "fsdp"), axis_types=AUTO)
    args = ((4096, 512), BATCH), ((3, 512, 512), (None, "fsdp")), ((512, 256), ("fsdp",))
    program = analyse(compiled_text(scanned_mlp, mesh, *args), mesh)
    with jax.set_mesh(mesh):
        assert program.flops * mesh.size == flops.count(scanned_mlp, *shapes(*args))
    assert all(c.axes in {("fsdp",), ("data",), ("data", "fsdp")} for c in program.collectives)
    assert any(c.kind == "all-gather" and c.axes == ("fsdp",) for c in program.collectives)


TRAFFIC_OF = {
    "elementwise": (lambda x: jnp.tanh(x) + 1, [(4096, 4096)], 2 * 4096 * 4096),
    "matmul": (jnp.dot, [(2048, 8192), (8192, 2048)], 2 * 2048 * 8192 + 2048 * 2048),
    "slice": (lambda x: x[:1024] * 2, [(8192, 4096)], 2 * 1024 * 4096),
    "scan": (
        lambda x, ws: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0],
        [(8192, 1024), (6, 1024, 1024)],
        (2 * 8192 + 6 * 1024) * 1024,  # between the layers it stays on the chip
    ),
    "stack": (
        lambda x: lax.scan(lambda c, _: (c + 1, c), x, length=5)[1],
        [(4096, 4096)],
        (1 + 5) * 4096 * 4096,  # in place, a part of the stack at a time
    ),
}


@pytest.mark.parametrize("program", TRAFFIC_OF)
def test_memory_traffic_of_small_tpu_programs_is_that_of_arithmetic(program):
    fn, args, numbers = TRAFFIC_OF[program]
    mesh = Mesh(np.array(topology.describe("v5e:2x2").devices[:1]), ("data",))
    text = compiled_text(fn, mesh, *((shape, ()) for shape in args))
    assert analyse(text, mesh).memory_traffic == pytest.approx(4 * numbers, rel=0.01)


def test_padded_bytes_of_the_arguments_are_those_the_compiler_allots():
    mesh = Mesh(np.array(topology.describe("v5e:2x2").devices[:1]), ("data",))
    shapes = [(3,), (7, 200), (5, 3, 130), (4, 32, 32), (2, 1, 129), ()]
    dtypes = [jnp.float32, jnp.bfloat16, jnp.int8, jnp.float32, jnp.uint16, jnp.int32]
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))
        for shape, dtype in zip(shapes, dtypes)
    ]
    compiled = jax.jit(lambda *args: [x + 1 for x in args]).lower(*structs).compile()
    entry = Module(compiled.as_text(), lambda _: 0).entry
    padded = [memory_bytes(i.shape) for i in entry.values() if i.opcode == "parameter"]
    assert len(padded) == len(shapes)
    assert sum(padded) == compiled.memory_analysis().argument_size_in_bytes


def test_what_crosses_slices_is_told_apart():
    devices = np.array(topology.describe("v5e:2x2", slices=2).devices).reshape(2, 4)
    devices = devices[:, [0, 3, 1, 2]].reshape(2, 2, 2)  # ids do not run with the mesh
    mesh = Mesh(devices, ("slice", "data", "fsdp"), axis_types=(AxisType.Auto,) * 3)

    def exchange(x):
        x = lax.psum(x, "slice")
        x = lax.psum(x, "data")
        return lax.all_gather(x, "fsdp", tiled=True) + lax.all_to_all(x, "slice", 1, 1).sum()

    split = P(("slice", "data", "fsdp"))
    fn = jax.shard_map(exchange, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    struct = jax.ShapeDtypeStruct((1024, 2), jnp.float32, sharding=NamedSharding(mesh, split))
    found = analyse(jax.jit(fn).lower(struct).compile().as_text(), mesh).collectives
    assert {(c.kind, c.axes, c.group_size, c.network) for c in found} >= {
        ("all-gather", ("fsdp",), 2, "ici"),
        ("all-reduce", ("slice",), 2, "dcn"),
        ("all-reduce", ("data",), 2, "ici"),
        ("all-to-all", ("slice",), 2, "dcn"),
    }
    assert all((c.network == "dcn") == ("slice" in c.axes) for c in found)


@pytest.mark.parametrize("block", [128, 256])
def test_attention_kernels_count_in_the_program_as_in_the_jaxpr(block):
    """Six of nine products of the scores' shape are needed; three are computed again."""
    mesh = Mesh(np.array(topology.describe("v5e:2x2").devices[:1]), ("data",))
    batch, length, heads, head_dim = 2, 512, 3, 64

    def loss(q, k, v):
        return jnp.sum(splash_attention(q, k, v, block=block).astype(jnp.float32) ** 2)

    struct = jax.ShapeDtypeStruct(
        (batch, length, heads, head_dim), jnp.bfloat16, sharding=NamedSharding(mesh, P())
    )
    step = jax.grad(loss, argnums=(0, 1, 2))
    blocks = length // block
    product = 2 * batch * heads * head_dim * block**2 * (blocks * (blocks + 1) // 2)
    outputs = 2 * batch * length * heads * head_dim  # times their gradients: beside the kernels
    with jax.set_mesh(mesh):
        assert flops.count(step, *[struct] * 3) == 9 * product + outputs
        assert flops.count(step, *[struct] * 3, needed=True) == 6 * product + outputs
        text = jax.jit(step).lower(*[struct] * 3).compile().as_text()
    assert analyse(text, mesh).flops == 9 * product
