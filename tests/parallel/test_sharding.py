"""Rules decide where arrays lie; what they do not name follows FSDP; bad ones are named."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from aigc_jax.config import base
from aigc_jax.errors import UserError
from aigc_jax.parallel.mesh import make_mesh
from aigc_jax.parallel.sharding import path_name, state_shardings


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def network():
    params = {"Dense_0": {"kernel": array(12, 8), "bias": array(8)}, "table": array(16, 6)}
    return {"params": params, "opt_state": {"mu": params, "row": {"table": array(16)}}}


STATE = {"networks": {"generator": network(), "discriminator": network()}, "step": array()}


def specs(rules=(), **sizes):
    """Path -> spec of `STATE` on eight devices."""
    parallel = base().parallel
    parallel.update({"data": -1, **sizes})
    shardings = state_shardings(STATE, make_mesh(parallel), rules)
    return {path_name(p): s.spec for p, s in jax.tree.leaves_with_path(shardings)}


def test_by_default_the_largest_divisible_dimension_is_split():
    found = specs(fsdp=4, tensor=2)
    for tree in ("params", "opt_state/mu"):
        assert found[f"networks/generator/{tree}/Dense_0/kernel"] == P("fsdp")
        assert found[f"networks/generator/{tree}/table"] == P("fsdp")
    assert found["step"] == P()
    assert set(specs().values()) == {P()}


def test_small_arrays_stay_whole_unless_a_rule_splits_them():
    parallel = base().parallel
    parallel.update({"data": -1, "fsdp": 4})
    mesh, rules = make_mesh(parallel), (("generator/params/Dense_0/bias", ("fsdp",)),)
    shardings = state_shardings(STATE, mesh, rules, min_size=90)
    split = [path_name(p) for p, s in jax.tree.leaves_with_path(shardings) if s.spec != P()]
    assert split == [
        f"networks/{network}/{tree}"
        for network, tree in (
            *(
                ("discriminator", f"{part}/{name}")
                for part in ("opt_state/mu", "params")
                for name in ("Dense_0/kernel", "table")
            ),
            ("generator", "opt_state/mu/Dense_0/kernel"),
            ("generator", "opt_state/mu/table"),
            ("generator", "params/Dense_0/bias"),
            ("generator", "params/Dense_0/kernel"),
            ("generator", "params/table"),
        )
    ]


def test_a_rule_decides_about_its_arrays_alone():
    tensor = [["generator.*kernel", [None, "tensor"]], ["table", [["fsdp", "tensor"]]]]  # as JSON
    found = specs([["discriminator", []], *tensor], fsdp=4, tensor=2)
    assert {s for name, s in found.items() if "discriminator" in name} == {P()}
    for tree in ("params", "opt_state/mu"):
        assert found[f"networks/generator/{tree}/Dense_0/kernel"] == P(None, "tensor")
        assert found[f"networks/generator/{tree}/Dense_0/bias"] == P("fsdp")
        assert found[f"networks/generator/{tree}/table"] == P(("fsdp", "tensor"))


def test_moments_of_fewer_dimensions_pass_over_a_rule_for_parameters():
    assert (
        specs((("table", ("fsdp", None)),), fsdp=4)["networks/generator/opt_state/row/table"] == P()
    )


KERNEL = r"networks/generator/params/Dense_0/kernel \(12, 8\)"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (("Dense_1/kernel", ("fsdp",)),),
            "matches no array; of 6 parameters the nearest are .*ker",
        ),
        ((("kernel", ()), ("Dense_0/kernel", ("fsdp",))), "decides nothing: earlier rules"),
        ((("kernel", ("model",)),), r'unknown axis "model" in .*; known: data, fsdp, tensor'),
        ((("kernel", ("fsdp", "fsdp")),), 'axis "fsdp" stands twice'),
        (
            (("generator/params.*kernel", ("data",)),),
            KERNEL + ": dimension 0 of size 12 .* data=8;",
        ),
        ((("generator/params.*bias", (None, "data")),), "it has 1 dimensions, the rule names 2"),
        ((("kernel", "fsdp"),), "cannot read .*; write"),
        (("kernel",), "cannot read .*; write"),
        ((("kernel(", ("fsdp",)),), "cannot read .*unterminated"),
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(UserError, match=message):
        specs(rules)
