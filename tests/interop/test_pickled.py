"""Arrays are read from pickles, and nothing that a pickle says is run."""

import io
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.interop import pickled

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path.append(str(GOLDEN.parent / "metrics"))

import sets  # noqa: E402


@pytest.mark.parametrize("name", ["old", "new"])
def test_tensors_of_both_formats(name):
    found = pickled.torch_arrays(GOLDEN / f"tensors_{name}.pth")
    expected = sets.tensors()
    expected["row"] = expected["matrix"][1]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_of_numpy(tmp_path, protocol):
    draw = np.random.RandomState(0)
    nested = {
        "a": {"kernel": draw.normal(size=(2, 3)).astype(np.float32), "bias": np.arange(3)},
        "b": np.asfortranarray(draw.normal(size=(4, 5))),
        "c": np.arange(4, dtype=">i4"),
        "d": np.zeros((0, 2)),
    }
    (tmp_path / "x").write_bytes(pickle.dumps(nested, protocol))
    found = pickled.numpy_arrays(tmp_path / "x")
    np.testing.assert_equal(found, nested)


def test_pythons_own_values_are_as_pickle_reads_them():
    value = {"a": [1, -2, 2**40, True, None, 1.5], (1, "b"): (b"c", (), ("d", "e", "f", "g"), [])}
    value["again"] = value["a"]
    for protocol in (2, 3, 4, 5):
        if protocol > 2:  # which writes bytes as a call
            assert pickled.parse(io.BytesIO(pickle.dumps(value, protocol))) == value
        ordered = OrderedDict(x=1, y=[])
        assert pickled.parse(io.BytesIO(pickle.dumps(ordered, protocol))) == {"x": 1, "y": []}


class Evil:
    """Makes a file when its pickle is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_run(tmp_path):
    marker, path = tmp_path / "was_run", tmp_path / "evil"
    content = pickle.dumps({"a": Evil(marker)}, 3)
    path.write_bytes(content)
    for read in (pickled.numpy_arrays, pickled.torch_arrays):
        with pytest.raises(UserError, match=r"cannot read .*evil.*damaged, or holds more than"):
            read(path)
    assert not marker.exists()
    pickle.loads(content)["a"].close()
    assert marker.exists()  # the test would have seen it


def test_damaged_files_are_one_line(tmp_path):
    for name in ("old", "new"):
        whole = (GOLDEN / f"tensors_{name}.pth").read_bytes()
        for end in (0, 1, 10, 30, len(whole) // 3, len(whole) // 2, len(whole) - 30):
            (tmp_path / "cut.pth").write_bytes(whole[:end])
            with pytest.raises(UserError, match="cannot read") as refused:
                pickled.torch_arrays(tmp_path / "cut.pth")
            assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="cannot read"):
        pickled.torch_arrays(tmp_path / "nowhere.pth")


def test_a_view_beyond_its_numbers_is_refused(tmp_path):
    whole = (GOLDEN / "tensors_old.pth").read_bytes()
    shape = b"K\x03K\x04\x86"  # of "matrix": (3, 4)
    assert whole.count(shape) == 1
    (tmp_path / "x.pth").write_bytes(whole.replace(shape, b"K\x63K\x04\x86"))
    with pytest.raises(UserError, match="the numbers of matrix are not all there"):
        pickled.torch_arrays(tmp_path / "x.pth")
