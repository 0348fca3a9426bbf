"""A transformer split over data, fsdp and tensor trains as it does on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from runs import assert_close, make_config, trained

from aigc_jax.aot import hlo
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.ops.layout import parameter_spec
from aigc_jax.parallel.sharding import path_name

SMOKE = "configs/lm/gpt2.py:smoke"
SCANNED = {"model__num_heads": 4, "model__remat": "none", "train__precision": "float32"}
SMALL = {**SCANNED, "model__num_layers": 1, "model__scan_layers": False}


def sizes(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    return {"parallel__data": data, "parallel__fsdp": fsdp, "parallel__tensor": tensor}


def assert_same_run(found, expected):
    """Losses and parameters but for the order of sums, which Adam's first steps can blow up."""
    for one, other in zip(found[1], expected[1], strict=True):
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-4, atol=2e-5, err_msg=name)
    params = (run[0].networks["model"].params for run in (found, expected))
    assert_close(*params, rtol=1e-2, atol=5e-4)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_any_mesh_trains_as_one_device(mesh):
    assert_same_run(trained(SMOKE, **SMALL, **sizes(*mesh)), trained(SMOKE, devices=1, **SMALL))


@pytest.mark.parametrize(
    ("mesh", "overrides"),
    [
        ((2, 2, 2), {"model__remat": "dots", "train__accumulate": 2}),
        ((1, 4, 2), {"model__remat": "block"}),
    ],
)
def test_scan_remat_and_microbatches_on_a_mesh_train_as_one_device_without(mesh, overrides):
    found = trained(SMOKE, **{**SCANNED, **sizes(*mesh), **overrides})
    assert_same_run(found, trained(SMOKE, devices=1, **SCANNED))


def test_a_block_takes_two_sums_over_tensor():
    """Shoeybi et al. 2019: one after attention, one after the MLP."""
    tokens = jax.ShapeDtypeStruct((4, 16), jnp.int32)

    def sums(num_layers):
        overrides = {**SMALL, "model__num_layers": num_layers, **sizes(1, 2, 4)}
        experiment = Experiment(make_config(SMOKE, **overrides))
        params = experiment.abstract_state.networks["model"].params
        with jax.set_mesh(experiment.mesh):
            forward = jax.jit(experiment.task.model.apply)
            compiled = forward.lower({"params": params}, tokens).compile()
        program = hlo.analyse(compiled.as_text(), experiment.mesh)
        assert not [c for c in program.collectives if c.kind == "all-gather" and "tensor" in c.axes]
        return sum(c.count for c in program.collectives if c.axes == ("tensor",))

    assert sums(2) - sums(1) == 2


def test_heads_hidden_units_and_vocabulary_are_split():
    config = make_config(SMOKE, **SCANNED, **sizes(1, 2, 4), train__ema_decay=0.9)
    network = Experiment(config).abstract_state.networks["model"]
    for tree in (network.params, network.ema, network.opt_state):
        for path, x in jax.tree.leaves_with_path(tree):
            held = tuple(
                size // part for size, part in zip(x.shape, x.sharding.shard_shape(x.shape))
            )
            expected = {
                "token_embedding": (4, 2),
                "position_embedding": (1, 2),
                "qkv/kernel": (1, 1, 2, 4),
                "attention_out/kernel": (1, 4, 2),
                "mlp_in/kernel": (1, 2, 4),
                "mlp_out/kernel": (1, 8, 1),
            }
            for name, parts in expected.items():
                if path_name(path).endswith(name):
                    assert held == parts, name


@pytest.mark.parametrize(
    ("shape", "tensor_axis", "spec"),
    [
        ((768, 3072), None, (None, "fsdp")),
        ((768, 768), None, ("fsdp",)),
        ((768, 3072), -1, (None, ("tensor", "fsdp"))),
        ((768, 768), -1, ("fsdp", "tensor")),
        ((12, 768, 768), -2, (None, "tensor", "fsdp")),
        ((767, 3), None, ()),  # 4 divides neither
        ((6, 5), -2, ("tensor",)),
        ((), None, ()),
    ],
)
def test_a_parameter_is_split_by_its_sizes(shape, tensor_axis, spec):
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    assert parameter_spec(shape, mesh, tensor_axis) == PartitionSpec(*spec)
    whole = {"data": 8, "fsdp": 1, "tensor": 1}
    assert parameter_spec(shape, whole, tensor_axis) == PartitionSpec()


def test_heads_that_do_not_divide_are_named():
    experiment = Experiment(make_config(SMOKE, **SMALL, **sizes(1, 1, 8)))
    tokens = {"tokens": jax.ShapeDtypeStruct((16, 17), jnp.int32)}
    with (
        pytest.raises(UserError, match="tensor=8 does not divide config"),
        jax.sharding.use_abstract_mesh(experiment.mesh.abstract_mesh),
    ):
        jax.eval_shape(experiment.train_step, experiment.abstract_state, tokens, {})
