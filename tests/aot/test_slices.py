"""One table of slices: every spelling means the same, and what does not exist is refused."""

import json
from pathlib import Path

import pytest

from aigc_jax.aot import slices, topology
from aigc_jax.aot.explain import explain
from aigc_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("spellings", "name", "machine", "hosts"),
    [
        (
            "v5litepod-16 v5e:4x4 V5E:4X4 v5litepod-4x4 tpu-v5-lite-podslice:4x4 "
            "ct5lp-hightpu-4t:4x4",
            "v5e:4x4",
            "ct5lp-hightpu-4t",
            4,
        ),
        ("v5litepod-1 v5e:1x1 ct5lp-hightpu-1t", "v5e:1x1", "ct5lp-hightpu-1t", 1),
        ("v5litepod-8 v5e:2x4 ct5lp-hightpu-8t", "v5e:2x4", "ct5lp-hightpu-8t", 1),
        ("ct5lp-hightpu-4t:2x4", "v5e:2x4", "ct5lp-hightpu-4t", 2),
        ("v4-32 v4:2x2x4 tpu-v4-podslice:2x2x4", "v4:2x2x4", "ct4p-hightpu-4t", 4),
        ("v5p-32 v5p:2x2x4 v5p-2x2x4", "v5p:2x2x4", "ct5p-hightpu-4t", 4),
        ("v5p-512 v5p:4x8x8", "v5p:4x8x8", "ct5p-hightpu-4t", 64),
        ("v6e-16 v6e:4x4 ct6e-standard-4t:4x4", "v6e:4x4", "ct6e-standard-4t", 4),
        ("tpu7x-8 tpu7x:2x2x1 v7x:2x2x1 tpu7x-standard-4t", "tpu7x:2x2x1", "tpu7x-standard-4t", 1),
    ],
)
def test_every_spelling_means_the_same_slice(spellings, name, machine, hosts):
    for spelling in spellings.split():
        found = slices.parse(spelling)
        assert (found.name, found.machine, found.hosts) == (name, machine, hosts), spelling


def test_the_accelerator_type_means_one_of_the_shapes_of_so_many_chips():
    usual, long = slices.parse("v5p:4x8x8"), slices.parse("v5p:4x4x16")
    assert usual.api_type == long.api_type == "v5p-512"
    assert usual.usual
    assert not long.usual


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e-16", 'did you mean "v5litepod-16"'),
        ("v5litepod:16", "a shape"),
        ("v5litepod-7", "nearest: v5e:1x1 (v5litepod-1), v5e:2x2 (v5litepod-4)"),
        ("v6e-12", "v6e:2x4 (v6e-8), v6e:4x4 (v6e-16)"),
        ("v4-12", "two for each chip"),
        ("v6e:3x4", "v6e:2x4 (v6e-8), v6e:4x4 (v6e-16)"),
        ("v5e:32x32", "v5e:16x16 (v5litepod-256)"),
        ("v4:4x4", "v4 has 3 dimensions; nearest: v4:2x2x2"),
        ("v5e:4x2", "v5e:2x4"),
        ("v5e:3x3", "v5e:2x4"),
        ("h100:8", "nothing is compiled for GPUs"),
        ("3x3", "write KIND:SHAPE"),
        ("v5p:8x4x4", "v5p:4x4x8"),
        ("ct5lp-hightpu-8t:4x4", "not made of machines of 8"),
        ("v5lite:4x4", 'did you mean "v5litepod:4x4"'),
    ],
)
def test_what_does_not_exist_is_refused_with_what_is_nearest(text, says):
    with pytest.raises(UserError) as refused:
        topology.describe(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_that_are_printed_are_understood():
    for kind in slices.GENERATIONS:
        for shape in slices.shapes(kind):
            found = slices.parse(f"{kind}:{'x'.join(map(str, shape))}")
            again = slices.parse(found.api_type)
            assert (again.kind, again.chips) == (kind, found.chips)
            assert again.shape == shape or not found.usual


def test_libtpu_knows_every_shape_of_the_table():
    asked = json.loads((GOLDEN / "tpu_shapes.json").read_text())
    for kind in set(slices.GENERATIONS) - {"v2", "v3"}:
        answers = asked[kind]["ours"]
        assert list(answers) == [
            "x".join(map(str, shape)) for shape in slices.shapes(kind, asked["most_chips"])
        ]
        for shape, answer in answers.items():
            found = slices.parse(f"{kind}:{shape}")
            devices = found.chips * (2 if kind in ("v4", "tpu7x") else 1)
            assert answer == f"yes {devices} {max(found.chips // 4, 1)}"
        # The table is narrower than libtpu, which takes shapes that nobody rents out.
        assert len(answers) < asked[kind]["yes"]


def test_every_figure_of_a_report_is_explained_by_its_own_numbers():
    report = {
        "topology": "tpu7x:2x2x1",
        "bytes_per_chip": {"peak": 1},
        "flops_per_chip": 1047.0,
        "written_flops_per_chip": 1000,
        "model_flops_per_chip": 1047,
        "collectives": [{}],
        "roofline": {"slowest": "memory"},
    }
    lines = "\n".join(explain(report))
    for name in ("chip", "memory", "of what is written", "of the model's", "memory traffic"):
        assert f"{name}: " in lines
    assert "computes 4.7 % more than the code" in lines
    assert "computes as much as the model needs" in lines
    assert "the largest, here memory," in lines
    assert "want of memory" in explain({"topology": "v5e:2x2"})[0]
