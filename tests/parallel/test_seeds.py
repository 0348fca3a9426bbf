"""Several seeds in one program are several runs, and so are several values of a key."""

import importlib.util

import jax
import numpy as np
import pytest
from runs import assert_close, make_config

from aigc_jax.aot.compile import compile
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.resume import restore
from aigc_jax.train import train

STEPS = "4 steps"
GENERATOR, DISCRIMINATOR = (f"optimizer.{n}.learning_rate" for n in ("generator", "discriminator"))
DECAY = "optimizer.model.weight_decay"
ADAMW = {"optimizer__model__name": "adamw"}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make test-tpu"
)


def small(family, **values):
    return make_config(family, train__duration=STEPS, train__checkpoint_every="2 steps", **values)


RATES = ((GENERATOR, (1e-3, 3e-4)), (DISCRIMINATOR, (1e-4, 2e-3)))
DECAYS = ((DECAY, (0.0, 10.0)),)
CASES = {
    "batch split": ("vae", {"train__seeds": 3}),
    "seeds split": ("dense_gan", {"train__seeds": 8}),
    "two runs on each device": (
        "vae",
        {"train__seeds": 8, "train__vary": DECAYS, "train__steps_per_call": 2, **ADAMW},
    ),
    "values by pmap": (
        "dense_gan",
        {"train__seeds": 2, "train__vary": RATES, "parallel__mode": "pmap"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_of_one_program_end_as_each_alone(case, tmp_path):
    family, values = CASES[case]
    config = small(family, **values)
    summary = train(config, tmp_path / "all")
    experiment = Experiment(config)
    state = restore(experiment, tmp_path / "all")
    evaluations = make_evaluations(experiment)
    found = Evaluator(experiment, evaluations)(state, evaluations)
    first = {0} if case == "two runs on each device" else set()  # of one case: each is compiled
    for number in {experiment.seeds - 1} | first:
        run = experiment.run_of(state, number)
        value, seed = divmod(number, config.train.seeds)
        own = {key.replace(".", "__"): x[value] for key, x in config.train.vary}
        own |= {"train__seeds": 1, "train__vary": (), "seed": config.seed + seed}
        alone = small(family, **{**values, **own})
        expected = train(alone, tmp_path / str(number))
        single = Experiment(alone)
        end = restore(single, tmp_path / str(number))
        assert int(run.seed) == alone.seed
        for name, rate in single.learning_rates(3).items():
            many = experiment.learning_rates(3)
            assert many[f"{name}/seed{number}" if config.train.vary else name] == rate
        assert_close(jax.device_get(run), jax.device_get(end), rtol=2e-4, atol=2e-5)
        for name, value in Evaluator(single, make_evaluations(single))(end, evaluations).items():
            np.testing.assert_allclose(found[f"{name}/seed{number}"], value, rtol=2e-4)
        for name, value in expected["metrics"].items():
            np.testing.assert_allclose(
                summary["metrics"][f"{name}/seed{number}"], value, rtol=2e-3, err_msg=name
            )


@pytest.mark.tpu_compiler
@needs_libtpu
def test_a_chip_of_a_tpu_computes_its_own_seed_and_no_more():
    """Four seeds on four chips: a chip's FLOPs are those of one whole run, and what the chips tell
    each other is the metrics, while those of one run exchange its gradients."""
    one = compile(small("vae"), "v5e:2x2")
    four = compile(small("vae", train__seeds=4), "v5e:2x2")
    assert four["flops_per_chip"] == pytest.approx(4 * one["flops_per_chip"], rel=0.01)
    told = [sum(found["bytes"] for found in of["collectives"]) for of in (four, one)]
    assert told[0] < 200 < 1000 < told[1]
