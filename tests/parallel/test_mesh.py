"""The mesh: sizes that multiply to the devices, and slices that only the data axis crosses."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from aigc_jax.config import base
from aigc_jax.errors import UserError
from aigc_jax.parallel.mesh import make_mesh


def section(data, fsdp=1, tensor=1):
    parallel = base().parallel
    parallel.data, parallel.fsdp, parallel.tensor = data, fsdp, tensor
    return parallel


def test_one_axis_takes_the_rest():
    assert make_mesh(section(-1, 2, 2)).shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(section(2, -1)).shape == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 3), "needs a multiple of 3 devices, there are 8; use fsdp=1|2|4|8$"),
        ((-1, 2, 3), r"a multiple of 6 devices, there are 8; use tensor=1\|2\|4$"),
        ((2, 2), "needs 4 devices, there are 8; use data=4 or fsdp=4 or tensor=2$"),
        ((3, 5), "needs 15 devices, there are 8; 8 = data x fsdp x tensor must hold$"),
        ((-1, -1), "only one may be -1"),
        ((0, 8), "sizes are positive"),
    ],
)
def test_sizes_that_do_not_multiply_say_what_would(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(section(*sizes), jax.devices())


@pytest.fixture(scope="module")
def two_slices():
    """The 32 abstract chips of two slices of v5e:4x4."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:4x4", chips_per_host_bounds=(2, 2, 1), num_slices=2
    ).devices


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("sizes", [(-1, 16), (-1, 4, 2), (2, -1), (-1,)])
def test_slices_split_the_data_axis_outermost(two_slices, sizes):
    mesh = make_mesh(section(*sizes), two_slices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    half = mesh.shape["data"] // 2
    assert set(slices[:half].flat) | set(slices[half:].flat) == {0, 1}
    assert len(set(slices[:half].flat)) == len(set(slices[half:].flat)) == 1


@pytest.mark.tpu_compiler
def test_any_split_of_a_slice_is_a_mesh(two_slices):
    # 4 x 2 x 2 is no product of the torus's sides, 4 and 4.
    mesh = make_mesh(section(4, 2, 2), two_slices[:16])
    assert {device.id for device in mesh.devices.flat} == {d.id for d in two_slices[:16]}


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("sizes", [(1, -1), (1, 16, 2)])
def test_other_axes_may_not_cross_slices(two_slices, sizes):
    with pytest.raises(UserError, match=r"would cross the 2 slices of 16 chips.*a divisor of 16"):
        make_mesh(section(*sizes), two_slices)
