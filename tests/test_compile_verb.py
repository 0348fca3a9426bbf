"""Compiling for a pod that is not there: the program holds and does what arithmetic says."""

import importlib.util

import pytest
from runs import make_config

from aigc_jax.compile import compile_config, describe_topology
from aigc_jax.errors import UserError


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:4", "pod"])
def test_unknown_topology_is_refused(name):
    with pytest.raises(UserError, match=rf'unknown topology "{name}".*write KIND:'):
        describe_topology(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_missing_libtpu_names_the_extra():
    with pytest.raises(UserError, match=r"aigc-jax\[aot\]"):
        describe_topology("v5e:2x2")


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_fsdp_program_for_four_chips():
    wide = {"model__encoder__features": (512,), "model__decoder__features": (512,)}
    config = make_config("vae", parallel__data=1, parallel__fsdp=4, **wide)
    report = compile_config(config, "v5e:2x2", check=True)
    assert (report["chips"], report["fits"]) == (4, True)
    # Parameters and two moments in float32, split four ways; a TPU pads arrays to tiles.
    state = 3 * 4 * report["parameters"]
    assert state / 4 < report["bytes_per_chip"]["arguments"] < 1.3 * state / 4
    assert report["flops_per_chip"] == pytest.approx(report["model_flops_per_chip"], rel=0.01)
    assert {"all-gather", "reduce-scatter"} <= {c["kind"] for c in report["collectives"]}
    assert all(c["axes"] == ("fsdp",) for c in report["collectives"])
