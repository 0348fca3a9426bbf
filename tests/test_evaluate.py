"""An evaluation's values depend on what its protocol says and on nothing else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import make_config

from aigc_jax.config import best_metric, evaluation
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, check_best, eval_feed, make_evaluations, products
from aigc_jax.experiment import Experiment


def measure(family: str, devices: int, batch_size: int, **overrides):
    config = make_config(family, data__eval_batch_size=batch_size, **overrides)
    experiment = Experiment(config, devices=jax.devices()[:devices])
    evaluations = make_evaluations(experiment)
    return Evaluator(experiment, evaluations)(experiment.init(), evaluations)


@pytest.mark.parametrize("family", ["vae", "dcgan"])
def test_neither_batch_size_nor_devices_matter(family):
    # 20 examples; binarisation, z and what is generated beside them are random.
    values = [measure(family, *case) for case in ((8, 16), (8, 1), (1, 7), (2, 20))]
    for other in values[1:]:
        assert other.keys() == values[0].keys()
        for name, value in other.items():
            assert value == pytest.approx(values[0][name], rel=1e-5), name


def test_the_images_shown_are_the_images_evaluated():
    experiment = Experiment(make_config("vae"))
    data, seed = experiment.held_out(), jnp.uint32(0)
    feed = eval_feed(experiment, "eval")
    seen = [experiment.eval_batch(seed, batch)[0] for batch in feed]
    images = np.concatenate([np.asarray(b["image"])[np.asarray(b["mask"]) > 0] for b in seen])
    shown = experiment.held_out_batch(data, seed, np.arange(data.size))["image"]
    np.testing.assert_array_equal(shown, images)
    assert set(np.unique(shown)) == {0.0, 1.0}


def test_per_example_values_are_those_of_the_mean():
    config = make_config("vae")
    with config.unlocked():
        config.evals.spread = evaluation("per_example")
        config.evals.validation = evaluation(split="validation[:10]")
    experiment = Experiment(config)
    evaluations = make_evaluations(experiment)
    assert [evaluations[name].card["examples"] for name in config.evals] == [20, 20, 10]
    values = Evaluator(experiment, evaluations)(experiment.init(), evaluations)
    assert values["spread/loss_mean"] == pytest.approx(values["eval/loss"], rel=1e-5)
    assert values["spread/loss_p05"] < values["spread/loss_p50"] < values["spread/loss_p95"]
    assert 0 < values["spread/loss_standard_error"] < values["spread/loss_mean"]
    assert {f"{e}/{m}" for e, found in evaluations.items() for m in found.metrics} == set(values)
    assert values["validation/loss"] != values["eval/loss"]


def test_last_and_averaged_parameters_can_both_be_asked_for():
    config = make_config("dense_gan", train__ema_decay=0.9)
    config.optimizer.generator.learning_rate = config.optimizer.discriminator.learning_rate = 0.01
    with config.unlocked():
        config.evals.last = evaluation(parameters="last")
    experiment = Experiment(config, devices=jax.devices()[:1])
    state, run = experiment.init(), experiment.compile_train()
    for step in range(3):
        feed = experiment.feed.place([experiment.feed.at(step, 0)])
        state, _ = run(state, feed, experiment.feed.resident)
    evaluations = make_evaluations(experiment)
    assert [e.card["parameters"] for e in evaluations.values()] == ["moving average", "last"]
    values = Evaluator(experiment, evaluations)(state, evaluations)
    assert values["eval/generator_loss"] != values["last/generator_loss"]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ("loss", ("eval/loss", False)),
        ("accuracy", ("eval/accuracy", True)),
        ("real_accuracy", ("eval/real_accuracy", True)),
        ("test/perplexity", ("test/perplexity", False)),
        ("highest eval/loss", ("eval/loss", True)),
        ("lowest spread/unheard_of", ("spread/unheard_of", False)),
    ],
)
def test_best_says_what_and_which_way(best, expected):
    assert best_metric(best) == expected


def test_a_best_that_cannot_be_is_refused():
    with pytest.raises(UserError, match='"lowest eval/unheard_of" or "highest eval/unheard_of"'):
        best_metric("unheard_of")
    config = make_config("vae", train__best="accuracy")
    experiment = Experiment(config)
    with pytest.raises(UserError, match="is no metric of this run; there are eval/"):
        check_best(experiment.config, make_evaluations(experiment))


def test_unknown_types_and_parameters_are_refused():
    for key, value, message in (
        ("type", "mear", 'did you mean "mean"'),
        ("parameters", "averge", "is not one of average or last"),
    ):
        config = make_config("vae")
        config.evals["eval"][key] = value
        with pytest.raises(UserError, match=message):
            make_evaluations(Experiment(config))


def test_cards_say_to_what_accelerators_round_operands():
    assert not products("float32", "cpu")
    assert not products("bfloat16", "gpu")
    assert "TF32" in products("float32", "gpu")["products"]
    assert "bfloat16" in products("float32", "tpu")["products"]
    with jax.default_matmul_precision("highest"):
        assert products("float32", "gpu") == {"products": "highest"}


def test_examples_without_anything_to_predict_have_no_part_in_the_spread(tmp_path):
    """A window inside the words of a user: its loss is not 0, it has none."""
    words = "The quick brown fox jumps over the lazy dog, again and again."
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": "No."}]
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(turns)}\n" * 40)
    config = make_config("gpt", data__source=str(tmp_path / "chats.jsonl"))
    config.data.documents, config.data.eval_split = "messages", "validation"
    config.data.split = "train"
    with config.unlocked():
        config.evals.spread = evaluation("per_example")
        del config.evals["eval"]
    experiment = Experiment(config, devices=jax.devices()[:1])
    data = experiment.eval_split("spread")
    counted = data.fetch(np.arange(data.size))["weights"].any(axis=1)
    assert 0 < counted.sum() < data.size
    evaluations = make_evaluations(experiment)
    assert evaluations["spread"].card["counted"] == "tokens of replies, in examples that hold some"
    values = Evaluator(experiment, evaluations)(experiment.init(), evaluations)
    guess = np.log(experiment.task.model.vocab_size)  # every loss of an untrained model is about it
    for name in ("mean", "p05", "p50", "p95"):
        assert values[f"spread/loss_{name}"] == pytest.approx(guess, rel=0.2)
