"""Programs of known work compiled for eight CPU devices, and a TPU's forms as text."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from programs import AUTO, BATCH, compiled_text, scanned_mlp, shapes

from aigc_jax.aot import flops
from aigc_jax.aot.hlo import Collective, analyse


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=AUTO, devices=jax.devices()[:8])


MLP = ((64, 16), BATCH), ((5, 16, 16), (None, "fsdp")), ((16, 8), ("fsdp",))


@pytest.fixture(scope="module")
def mlp_text(mesh):
    return compiled_text(scanned_mlp, mesh, *MLP)


def test_devices_of_an_fsdp_step_share_the_model_flops(mesh, mlp_text):
    with jax.set_mesh(mesh):
        model_flops = flops.count(scanned_mlp, *shapes(*MLP))
    assert analyse(mlp_text, mesh).flops * mesh.size == model_flops


def test_fsdp_gathers_each_kernel_over_fsdp_and_reduces_each_gradient_over_data(mesh, mlp_text):
    program = analyse(mlp_text, mesh)
    kernels, head = 5 * 16 * 16 * 4, 16 * 8 * 4
    gathered = [c for c in program.collectives if c.kind == "all-gather"]
    assert [(c.axes, c.group_size) for c in gathered] == [(("fsdp",), 4)]
    # Once forward and once backward, but that the last ones of the pass may be kept.
    assert kernels + head <= gathered[0].bytes <= 2 * (kernels + head)
    assert gathered[0].sent == gathered[0].bytes * 3 / 4
    reduced = {c.axes for c in program.collectives if c.kind in ("all-reduce", "reduce-scatter")}
    assert {axis for axes in reduced for axis in axes} == {"data", "fsdp"}


def test_replicated_work_shows_as_flops_above_the_share(mesh):
    text = compiled_text(jnp.dot, mesh, ((8, 16), ()), ((16, 4), ()))
    program = analyse(text, mesh)
    assert (program.flops, program.collectives) == (2 * 8 * 16 * 4, [])


SIZE = 8 * 16 * 4  # bytes of one device's part of a float32 (64, 16) array
MANUAL = {
    "all-reduce": (lambda x, axis: lax.psum(x, axis), SIZE),
    "all-gather": (lambda x, axis: lax.all_gather(x, axis, tiled=True), None),
    "reduce-scatter": (lambda x, axis: lax.psum_scatter(x, axis, tiled=True), SIZE),
    "all-to-all": (lambda x, axis: lax.all_to_all(x, axis, 1, 0, tiled=True), SIZE),
}


@pytest.mark.parametrize(
    ("axes", "group_size"), [(("data",), 2), (("fsdp",), 4), (("data", "fsdp"), 8)], ids=str
)
@pytest.mark.parametrize("kind", MANUAL)
def test_every_kind_is_counted_by_axis_once_per_trip(mesh, kind, axes, group_size):
    collective, size = MANUAL[kind]

    def body(x):
        return lax.scan(lambda c, _: (c + jnp.sum(collective(c + 1, axes)), None), x, length=3)[0]

    fn = jax.shard_map(body, mesh=mesh, in_specs=P(*BATCH), out_specs=P(*BATCH), check_vma=False)
    found = analyse(compiled_text(fn, mesh, ((64, 16), BATCH)), mesh).collectives
    size = SIZE * group_size if size is None else size
    assert found == [Collective(kind, axes, group_size, count=3, bytes=3 * size)]


def test_a_permutation_sends_its_array_once(mesh):
    def shift(x):
        return lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    fn = jax.shard_map(shift, mesh=mesh, in_specs=P(*BATCH), out_specs=P(*BATCH))
    found = analyse(compiled_text(fn, mesh, ((64, 16), BATCH)), mesh).collectives
    assert found == [Collective("collective-permute", ("fsdp",), 4, count=1, bytes=SIZE)]
    assert found[0].sent == SIZE


def test_convolutions_and_their_gradients_count_as_in_the_jaxpr():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=AUTO, devices=jax.devices()[:1])
    down, up = nn.Conv(4, (3, 3), (2, 2)), nn.ConvTranspose(3, (5, 5), (2, 2))
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    h, first = jax.eval_shape(down.init_with_output, jax.random.key(0), x)
    second = jax.eval_shape(up.init, jax.random.key(0), h)

    def loss(first, second, x):
        return jnp.sum(up.apply(second, down.apply(first, x)) ** 2)

    step = jax.grad(loss, argnums=(0, 1, 2))
    text = jax.jit(step).lower(first, second, x).compile().as_text()
    assert analyse(text, mesh).flops == flops.count(step, first, second, x)


def test_a_loop_without_a_trip_count_is_refused_if_there_is_work_in_it(mesh):
    def fn(body):
        return lambda x: lax.while_loop(lambda x: jnp.sum(x) < 9.0, body, x)

    assert analyse(compiled_text(fn(jnp.exp), mesh, ((8, 8), ())), mesh).flops == 0
    with pytest.raises(ValueError, match="trip count"):
        analyse(compiled_text(fn(lambda x: x @ x), mesh, ((8, 8), ())), mesh)


def test_a_conditional_counts_its_dearest_branch(mesh):
    def fn(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert analyse(compiled_text(fn, mesh, ((8, 8), ())), mesh).flops == 2 * 2 * 8**3


MESH = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=AUTO)
GROUPS = {
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": ("data",),
    "replica_groups={{0,1,2,3},{4,5,6,7}}": ("fsdp",),
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": ("fsdp",),
    "replica_groups={}": ("data", "fsdp"),
    "replica_groups=[1,8]<=[8]": ("data", "fsdp"),
    "replica_groups=[2,4]<=[8]": ("fsdp",),
    "replica_groups=[4,2]<=[2,4]T(1,0)": ("data",),
    "replica_groups=[4,2]<=[2,2,2]T(1,2,0)": ("data",),
    "replica_groups=mesh['a'=2,'b'=4] {'a'}": ("data",),
    "replica_groups=mesh['a'=2,'b'=4] {'b'}": ("fsdp",),
    "replica_groups=mesh['a'=8] {'a':(1)2}": ("data",),
    "replica_groups=mesh['a'=8] {'a':(2)2}": ("fsdp",),
    "replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}": ("data", "fsdp"),
    "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}": ("fsdp",),
    "replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=(0,4,1,5,2,6,3,7) {'c'}": ("data",),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_in_every_notation_are_named_by_the_axes_they_span(groups):
    text = f"""
ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {{
  %x = bf16[8,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  ROOT %y = bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}} all-reduce(%x), {groups}, to_apply=%add
}}
"""
    (found,) = analyse(text, MESH).collectives
    assert (found.kind, found.axes, found.bytes) == ("all-reduce", GROUPS[groups], 8 * 128 * 2)


# An all-gather in three pieces, the second beside a matrix multiplication; then an all-reduce of
# which each device keeps its slice.
GATHER = (
    "%gather = bf16[64,32]{1,0} all-gather(%a), channel_id=4, replica_groups=[2,4]<=[8], "
    'dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
)
TPU = f"""
%start (a: bf16[16,32]) -> (bf16[16,32], bf16[64,32], u32[]) {{
  %a = bf16[16,32]{{1,0:T(8,128)(2,1)}} parameter(0)
  {GATHER}
  ROOT %call = (bf16[16,32]{{1,0}}, bf16[64,32]{{1,0:T(8,128)(2,1)S(1)}}, u32[]{{:S(2)}}) \
custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion (a: bf16[16,32], x: bf16[4,2,8], w: bf16[8,16,1]) -> bf16[4,2,16] {{
  %x = bf16[4,2,8]{{2,1,0}} parameter(1)
  %w = bf16[8,16,1]{{1,0,2}} parameter(2)
  %a = bf16[16,32]{{1,0}} parameter(0)
  {GATHER}
  ROOT %conv = bf16[4,2,16]{{2,1,0}} convolution(%x, %w), window={{size=1}}, dim_labels=0bf_io0->0bf
}}

%done (a: bf16[16,32]) -> bf16[64,32] {{
  %a = bf16[16,32]{{1,0}} parameter(0)
  {GATHER}
  ROOT %y = bf16[64,32]{{1,0}} custom-call(%gather), custom_call_target="AsyncCollectiveDone"
}}

%all-reduce-scatter.1 (g: bf16[64,32]) -> bf16[16,32] {{
  %g = bf16[64,32]{{1,0}} parameter(0)
  %sum = bf16[64,32]{{1,0}} all-reduce(%g), replica_groups=[2,4]<=[8], to_apply=%add
  %i = u32[] partition-id()
  ROOT %slice = bf16[16,32]{{1,0}} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={{16,32}}
}}

ENTRY %main (a: bf16[16,32], x: bf16[4,2,8], w: bf16[8,16,1]) -> bf16[16,32] {{
  %a = bf16[16,32]{{1,0}} parameter(0)
  %x = bf16[4,2,8]{{2,1,0}} parameter(1)
  %w = bf16[8,16,1]{{1,0,2}} parameter(2)
  %s = (bf16[16,32]{{1,0}}, bf16[64,32]{{1,0}}, u32[]{{:S(2)}}) fusion(%a), calls=%start
  %f = bf16[4,2,16]{{2,1,0}} fusion(%a, %x, /*index=2*/%w), calls=%async_collective_fusion
  %d = bf16[64,32]{{1,0}} fusion(%a), kind=kCustom, calls=%done
  ROOT %r = bf16[16,32]{{1,0}} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""


def test_a_tpus_fused_collectives_are_told_for_what_they_are():
    size = 64 * 32 * 2
    gathered = Collective("all-gather", ("fsdp",), 4, count=1, bytes=size)
    scattered = Collective("reduce-scatter", ("fsdp",), 4, count=1, bytes=size)
    program = analyse(TPU, MESH)
    assert program.flops == 2 * 4 * 2 * 8 * 16
    assert program.collectives == [gathered, scattered]


# A stack of three kernels of which each trip of a loop reads one, and an array that is updated row
# by row in place, for a TPU, whose arrays are padded to tiles. S(1) is the chip's own memory.
TRAFFIC = """\
%slice_and_multiply (w: f32[3,64,128], i: s32[], x: f32[64,128]) -> f32[64,128] {
  %w = f32[3,64,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %x = f32[64,128]{1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %s = f32[1,64,128]{2,1,0:T(8,128)} dynamic-slice(%w, %i, %zero, %zero), \\
dynamic_slice_sizes={1,64,128}
  %b = f32[64,128]{1,0:T(8,128)} bitcast(%s)
  ROOT %y = f32[64,128]{1,0:T(8,128)} multiply(%x, %b)
}

%update (a: bf16[3,8,200], i: s32[]) -> bf16[3,8,200] {
  %a = bf16[3,8,200]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %one = bf16[]{:T(256)} constant(1)
  %row = bf16[1,8,200]{2,1,0:T(8,128)(2,1)} broadcast(%one), dimensions={}
  %zero = s32[]{:T(128)} constant(0)
  ROOT %u = bf16[3,8,200]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%a, %row, %i, %zero, %zero)
}

%body (c: (s32[], f32[64,128], f32[3,64,128], bf16[3,8,200])) -> (s32[], f32[64,128], \
f32[3,64,128], bf16[3,8,200]) {
  %c = (s32[]{:T(128)S(6)}, f32[64,128]{1,0:T(8,128)S(1)}, f32[3,64,128]{2,1,0:T(8,128)}, \
bf16[3,8,200]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%c), index=0
  %x = f32[64,128]{1,0:T(8,128)S(1)} get-tuple-element(%c), index=1
  %w = f32[3,64,128]{2,1,0:T(8,128)} get-tuple-element(%c), index=2
  %a = bf16[3,8,200]{2,1,0:T(8,128)(2,1)} get-tuple-element(%c), index=3
  %y = f32[64,128]{1,0:T(8,128)S(1)} fusion(%w, %i, %x), kind=kLoop, calls=%slice_and_multiply
  %u = bf16[3,8,200]{2,1,0:T(8,128)(2,1)} fusion(%a, %i), kind=kLoop, calls=%update
  ROOT %out = (s32[]{:T(128)S(6)}, f32[64,128]{1,0:T(8,128)S(1)}, f32[3,64,128]{2,1,0:T(8,128)}, \
bf16[3,8,200]{2,1,0:T(8,128)(2,1)}) tuple(%i, %y, %w, %u)
}

ENTRY %main (x: f32[64,128], w: f32[3,64,128], a: bf16[3,8,200]) -> f32[64,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %w = f32[3,64,128]{2,1,0:T(8,128)} parameter(1)
  %a = bf16[3,8,200]{2,1,0:T(8,128)(2,1)} parameter(2)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %start = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %c = (s32[]{:T(128)S(6)}, f32[64,128]{1,0:T(8,128)S(1)}, f32[3,64,128]{2,1,0:T(8,128)}, \
bf16[3,8,200]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %near, %w, %a)
  %loop = (s32[]{:T(128)S(6)}, f32[64,128]{1,0:T(8,128)S(1)}, f32[3,64,128]{2,1,0:T(8,128)}, \
bf16[3,8,200]{2,1,0:T(8,128)(2,1)}) while(%c), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[64,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
  ROOT %out = f32[64,128]{1,0:T(8,128)} copy(%last)
}
"""


def test_memory_traffic_is_what_crosses_to_and_from_main_memory():
    tile = 64 * 128 * 4
    row = 8 * 256 * 2  # 200 columns are padded to two tiles of 128
    # x is read once and written once, each kernel is read once, each row is written once.
    assert analyse(TRAFFIC, MESH).memory_traffic == 2 * tile + 3 * tile + 3 * row


LOOP = """
%condition (c: (s32[], f32[8,8], s32[])) -> pred[] {{
  %c = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  {limit}
  ROOT %less = pred[]{{:T(512)}} compare(%i, %n), direction=LT
}}

%body (c: (s32[], f32[8,8], s32[])) -> (s32[], f32[8,8], s32[]) {{
  %c = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%c), index=1
  %n = s32[]{{:T(128)}} get-tuple-element(%c), index=2
  %step = s32[]{{:T(128)}} constant({step})
  %next = s32[]{{:T(128)}} add(%i, %step)
  %y = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]{{:T(128)}}) tuple(%next, %y, %n)
}}

ENTRY %main (x: f32[8,8]) -> (s32[], f32[8,8], s32[]) {{
  %x = f32[8,8]{{1,0}} parameter(0)
  %zero = s32[] constant({start})
  %i = s32[]{{:T(128)}} copy(%zero)
  %n = s32[]{{:T(128)}} constant(7)
  %c = (s32[]{{:T(128)}}, f32[8,8]{{1,0}}, s32[]{{:T(128)}}) tuple(%i, %x, %n)
  ROOT %loop = (s32[], f32[8,8], s32[]) while(%c), condition=%condition, body=%body
}}
"""
LIMITS = ["%n = s32[] constant(7)", "%n = s32[]{:T(128)} get-tuple-element(%c), index=2"]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(("start", "step", "trips"), [(0, 1, 7), (3, 1, 4), (0, 2, 4), (9, 1, 0)])
def test_trip_counts_are_read_from_conditions(limit, start, step, trips):
    text = LOOP.format(limit=limit, start=start, step=step)
    assert analyse(text, MESH).flops == trips * 2 * 8**3


CONVOLUTION = """
ENTRY %main (x: f32[]) -> f32[] {{
  %x = f32[{}] parameter(0)
  %w = f32[{}] parameter(1)
  ROOT %y = f32[{}] convolution(%x, %w), {}
}}
"""
DOWN = "window={size=5x5 stride=2x2 pad=1_2x1_2}, dim_labels=b01f_01io->b01f"
UP = "window={size=5x5 pad=3_2x3_2 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f"
DILATED = "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
PADDED = "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0io->0bf"


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "attributes", "products"),
    [
        ("5,6", "6,7", "5,7", "dim_labels=bf_io->bf", 5 * 6 * 7),
        # Four matrix multiplications, by dilation; one with four right-hand sides, by padding.
        ("4,5,6", "4,6,7", "4,5,7", DILATED, 4 * 5 * 6 * 7),
        ("5,6,1", "4,6,7", "4,5,7", PADDED, 4 * 5 * 6 * 7),
        # Two images, from 8 x 8 x 3 to 4 x 4 x 6, and the transposed convolution back.
        ("2,8,8,3", "5,5,3,6", "2,4,4,6", DOWN, 2 * 3 * 6 * 4**2 * 5**2),
        ("2,4,4,6", "5,5,6,3", "2,8,8,3", UP, 2 * 3 * 6 * 4**2 * 5**2),
    ],
)
def test_matrix_multiplications_and_convolutions_in_a_tpus_words(
    lhs, rhs, out, attributes, products
):
    text = CONVOLUTION.format(lhs, rhs, out, attributes)
    assert analyse(text, MESH).flops == 2 * products
