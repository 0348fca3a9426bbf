"""One step function gives the same numbers however it is run."""

import jax
import numpy as np
import pytest
from runs import FAMILIES, assert_close, assert_same, make_config, trained

from aigc_jax.aot import hlo
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.parallel.mesh import check_batch

# Another split of the batch sums in another order: float32 rounding, which Adam's first steps
# (sign-like, of size learning_rate) can blow up for single parameters with gradients near zero.
SUMS = {"rtol": 2e-4, "atol": 2e-5}
PARAMS = {"rtol": 1e-2, "atol": 5e-4}


def close(a, b):
    (state_a, metrics_a), (state_b, metrics_b) = a, b
    for one, other in zip(metrics_a, metrics_b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], err_msg=name, **SUMS)
    for name, network in state_a.networks.items():
        assert_close(network.params, state_b.networks[name].params, **PARAMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_device_equals_eight(family):
    close(trained(family, devices=1), trained(family, devices=8))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_state_has_the_types_of_all_that_follow(family):
    # Weak types become strong in the first step, and the step would be compiled a second time.
    state = jax.eval_shape(Experiment(make_config(family)).init)
    weak = [p for p, x in jax.tree_util.tree_leaves_with_path(state) if x.weak_type]
    assert not weak


@pytest.mark.parametrize("family", ["dcgan", "dense_gan", "vae", "gpt"])
def test_pmap_equals_jit(family):
    close(trained(family, parallel__mode="pmap"), trained(family))


@pytest.mark.parametrize("family", ["dense_gan", "gpt"])
def test_fsdp_equals_data_parallel(family):
    close(trained(family, parallel__data=2, parallel__fsdp=4), trained(family))


def test_all_axes_and_a_rule_for_each_network_equal_one_device():
    # Batch statistics in both networks: they are of the whole batch however it is split.
    split = (None, None, "fsdp", "tensor")
    rules = (("discriminator", ()), ("generator.*ConvTranspose_[0-2]/kernel", split))
    sizes = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}
    close(
        trained("dcgan64", parallel__rules=rules, **sizes),
        trained("dcgan64", devices=1),
    )


def test_microbatches_under_fsdp_equal_one_batch_on_one_device():
    sizes = {"parallel__data": 4, "parallel__fsdp": 2}
    close(trained("conv_vae64", train__accumulate=2, **sizes), trained("conv_vae64", devices=1))


def test_narrow_moments_are_the_same_however_they_are_split():
    narrow = {"optimizer__model__state_dtype": "bfloat16"}
    sizes = {"parallel__data": 2, "parallel__fsdp": 4}
    close(trained("vae", **narrow, **sizes), trained("vae", **narrow, devices=1))


def test_fsdp_gathers_parameters_and_never_the_batch():
    # Batch norm's scales are split over fsdp; the activations that they meet must not follow.
    programs = {}
    for axis in ("data", "fsdp"):
        rest = "fsdp" if axis == "data" else "data"
        sizes = {f"parallel__{axis}": 8, f"parallel__{rest}": 1}
        experiment = Experiment(make_config("dcgan64", **sizes))
        feed = experiment.feed.place([experiment.feed.at(0, 0)])
        lowered = experiment.compile_train().lower(experiment.abstract_state, feed, {})
        programs[axis] = hlo.analyse(lowered.compile().as_text(), experiment.mesh)
    params = [n.params for n in experiment.abstract_state.networks.values()]
    parameter_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    gathered = sum(c.bytes for c in programs["fsdp"].collectives if c.kind == "all-gather")
    assert programs["fsdp"].flops == programs["data"].flops
    assert 0 < gathered <= 2 * parameter_bytes


@pytest.mark.parametrize("family", ["dcgan", "gpt"])
def test_steps_per_call_changes_nothing(family):
    one, four = trained(family, steps=4), trained(family, steps=4, per_call=4)
    close(one, four)


@pytest.mark.parametrize("family", ["dense_gan", "vae", "gpt"])
def test_four_microbatches_equal_one_batch(family):
    # Not for the convolutional GAN: its batch statistics are those of a microbatch.
    sizes = {"data__batch_size": 32}
    close(trained(family, **sizes), trained(family, train__accumulate=4, **sizes))


@pytest.mark.parametrize("family", ["dcgan", "gpt"])
def test_placement_changes_nothing(family):
    assert_same(
        trained(family, data__placement="memory"), trained(family, data__placement="device")
    )


@pytest.mark.parametrize("family", ["dcgan", "vae", "gpt"])
def test_bfloat16_under_fsdp_is_close_to_float32(family):
    sizes = {"parallel__data": 2, "parallel__fsdp": 4}
    half, full = trained(family, train__precision="bfloat16", **sizes), trained(family)
    for network in half[0].networks.values():
        assert all(x.dtype == np.float32 for x in jax.tree.leaves(network.params))
    for one, other in zip(half[1], full[1], strict=True):
        for name in one:
            if "accuracy" not in name:
                np.testing.assert_allclose(one[name], other[name], rtol=0.03, err_msg=name)


def test_fsdp_splits_parameters_moments_and_average():
    config = make_config("gpt", parallel__data=2, parallel__fsdp=4, train__ema_decay=0.9)
    experiment = Experiment(config)
    state = experiment.init()
    network = state.networks["model"]
    for tree in (network.params, network.ema, network.opt_state):
        for x in jax.tree.leaves(tree):
            held = x.addressable_shards[0].data.size
            assert held == x.size // 4 or all(size % 4 for size in x.shape)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"data": 2, "fsdp": 4}, "fsdp=4 and tensor=1 would split it"),
        ({"rules": (("kernel", ()),)}, "rules would split it"),
    ],
)
def test_pmap_refuses_to_split_the_state(parallel, message):
    overrides = {f"parallel__{name}": value for name, value in parallel.items()}
    with pytest.raises(UserError, match=f"every device holds the whole state, but .*{message}"):
        Experiment(make_config("vae", parallel__mode="pmap", **overrides))


def test_batch_must_divide():
    with pytest.raises(UserError, match=r"batch_size=100 is not divisible by 8 devices; use 96 or"):
        check_batch(100, 1, 8, "config.data.batch_size")
