"""Keys that vary within a program: which can, what a run is given, and how it is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import aigc, make_config

from aigc_jax import members, tasks
from aigc_jax.config import another_state
from aigc_jax.errors import NotFinite, UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.experiment import Experiment
from aigc_jax.run.observe import check_evaluation

RATE, DECAY = "optimizer.model.learning_rate", "optimizer.model.weight_decay"
RATES = ((RATE, (1e-3, 1e-2)),)


def vae(**values):
    return make_config("vae", **values)


def test_every_run_has_its_value_and_its_seed():
    config = tasks.complete(vae(train__seeds=3, train__vary=RATES, seed=5))
    values = jax.vmap(lambda n: members.values_of(config, n))(jnp.arange(6))
    np.testing.assert_array_equal(values[RATE], np.repeat(np.float32(RATES[0][1]), 3))
    narrow = jax.vmap(lambda n: jnp.bfloat16(2) * members.values_of(config, n)[RATE])
    assert narrow(jnp.arange(6)).dtype == jnp.bfloat16  # as with a number of Python
    experiment = Experiment(config)
    np.testing.assert_array_equal(experiment.init().seed, [5, 6, 7, 5, 6, 7])
    (rows,) = experiment.feed.at(2, 5).values()
    np.testing.assert_array_equal(rows[:, 1], rows[:, 4])
    assert not np.array_equal(rows[:, 0], rows[:, 1])
    assert experiment.config.optimizer.model.learning_rate == 1e-3  # of the first run


REFUSED = {
    "unknown": (("optimizer.model.learningrate", (1e-3, 1e-2)), 'did you mean "optimizer.model.le'),
    "a size": (("task.latent_dim", (8, 16)), "cannot vary within a program, only numbers with a"),
    "of the run": (("train.checkpoint_minutes", (1.0, 2.0)), "cannot vary within a program"),
    "out of range": ((RATE, (1e-3, -1.0)), "learning_rate=-1.0 is out of range"),
    "one value": ((RATE, (1e-3,)), "is not pairs of a key and as many numbers"),
    "no number": ((RATE, (1e-3, "x")), "is not pairs of a key"),
    "an argument": (("optimizer.model.args.b2", (0.9, 1.0)), r"args.b2=1.0 is out of range"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    pair, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        Experiment(vae(train__vary=(pair,)))


def test_further_refusals():
    with pytest.raises(UserError, match=r"is for one run; set config.train.vary=\(\)"):
        Experiment(vae(train__vary=RATES, train__nonfinite="skip"))
    with pytest.raises(UserError, match="is not pairs of a key and as many numbers"):
        Experiment(vae(train__vary=(*RATES, (DECAY, (0.0, 0.1, 0.2)))))


def test_a_key_that_the_code_branches_on_or_never_reads_is_named():
    """A clipping of 0 is none; a constant schedule reads no factor."""
    clip, factor = "optimizer.model.clip_norm", "optimizer.model.decay_factor"
    both = (*RATES, (clip, (0.0, 1.0)), (factor, (0.1, 0.5)))
    experiment = Experiment(vae(train__vary=both))
    found = members.refused(experiment)
    assert set(found) == {clip, factor}
    assert "TracerBoolConversionError" in found[clip]
    assert found[factor] == "no part of a step uses it"
    for use in (experiment.init, experiment.compile_train):
        with pytest.raises(UserError, match=f"config.{clip} cannot vary within a program"):
            use()


def test_runs_are_evaluated_with_their_own_value_of_the_task():
    """beta weighs the KL in the loss that is evaluated, too."""
    experiment = Experiment(vae(train__vary=(("task.beta", (1.0, 4.0)),)))
    singles = [Experiment(members.config_of(experiment.config, value)) for value in (0, 1)]
    state = singles[0].init()
    both = jax.tree.map(lambda x: jnp.stack([x, x]), state).replace(step=state.step)
    found = Evaluator(experiment, make_evaluations(experiment))(both, ["eval"])
    for number, single in enumerate(singles):
        expected = Evaluator(single, make_evaluations(single))(state, ["eval"])
        assert found[f"eval/loss/seed{number}"] == pytest.approx(expected["eval/loss"], rel=1e-6)
    assert found["eval/loss/seed1"] > found["eval/loss/seed0"] + 1
    assert found["eval/kl/seed1"] == found["eval/kl/seed0"]


def test_a_checkpoint_is_of_its_values():
    before, after = {"train.vary": [[RATE, [0.1, 0.2]]]}, {"train.vary": []}
    assert "(the two hold other runs)" in another_state(before, after)


def test_what_is_not_finite_is_told_by_run():
    values = {"eval/loss": np.nan, "eval/loss/seed0": 1.0, "eval/loss/seed1": np.nan}
    with pytest.raises(NotFinite) as caught:
        check_evaluation(7, values, "stop")
    assert caught.value.runs == {1: "eval/loss is not a number in the evaluation at step 7"}


WEIGHTS = """
import jax, numpy as np
from aigc_jax import config_files, tasks
from aigc_jax.experiment import Experiment
config = tasks.filled(config_files.load("configs/gan/mixture.py:smoke"))
config.task.update(penalty="gradient_penalty", penalty_weight=3.0)
single = Experiment(config)
config.task.penalty_weight = 1.0
config.train.vary = (("task.penalty_weight", (1.0, 3.0)),)
both = Experiment(config)
state, feeds = both.init(), both.feed.place([both.feed.at(0, 0)])
after, _ = both.compile_train()(state, feeds, both.feed.resident)
first = single.feed.place([single.feed.at(0, 0)])
alone, _ = single.compile_train()(single.init(), first, single.feed.resident)
close = lambda x, y: np.allclose(x, y, rtol=1e-4, atol=1e-6)
same = [jax.tree.map(close, both.run_of(after, n), alone) for n in (0, 1)]
print([all(jax.tree.leaves(one)) for one in same])
"""


def test_a_field_of_the_task_can_vary():
    """By itself: here each field is checked for its type, and a traced one is no float."""
    command = aigc(devices=1, code=WEIGHTS)
    output, errors = command.communicate()
    assert output == "[False, True]\n", errors
