"""Rows: published figures, their configs, and the page that is made of their results."""

import json
import math

import jax
import numpy as np
import pytest
from runs import ROOT, aigc

from aigc_jax import config_files, reproduce, rows, tasks, trials
from aigc_jax.aot.programs import train_program
from aigc_jax.errors import UserError
from aigc_jax.evaluate import make_evaluations, metric_names
from aigc_jax.experiment import Experiment

ROWS = rows.names()
BAND = (180.05, 4.3)  # nats; the three seeds gave 181.30, 179.39 and 179.47


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_it_is_and_its_config_is_complete(name):
    row = rows.row(name)
    config = tasks.complete(reproduce.row_config(name))
    assert row.metric.partition("/")[0] in config.evals
    assert config.train.seeds == row.seeds >= 3
    assert row.about
    assert row.source
    assert row.protocol
    assert f"aigc reproduce {name}" in (rows.DIRECTORY / f"{name}.py").read_text()


def test_the_page_of_results_is_made_of_the_files():
    results = ROOT / "results"
    made = rows.table(rows.results(results)) + trials.page(trials.results(results))
    assert (ROOT / "docs/results.md").read_text() == made


@pytest.mark.parametrize("name", sorted(rows.results(ROOT / "results")))
def test_a_result_agrees_with_itself_and_with_its_row(name):
    result, row = rows.results(ROOT / "results")[name], rows.row(name)
    values = list(result["seeds"].values())
    for key, value in rows.statistics(values).items():
        np.testing.assert_allclose(result[key], value, rtol=1e-12)
    assert (result["metric"], result["published"]) == (row.metric, row.published)
    assert len(values) >= 3


def test_the_interval_is_students():
    found = rows.statistics([1.0, 2.0, 4.0])
    assert found["mean"] == pytest.approx(7 / 3)
    assert found["std"] == pytest.approx(math.sqrt(7 / 3))
    # 4.3027 is the 97.5 % point of Student's t with two degrees of freedom.
    assert found["interval"] == pytest.approx(4.3027 * math.sqrt(7 / 9), rel=1e-4)
    assert math.isnan(rows.statistics([1.0])["interval"])


def test_a_figure_outside_the_tolerance_is_refused():
    row = rows.Row("", "eval/loss", 1.0, 0.1, "", "")
    rows.check("it", row, {"mean": 1.1, "interval": 0.2})
    with pytest.raises(UserError, match=r"it: eval/loss is 0.89 ± 0.2, published 1: -0.11"):
        rows.check("it", row, {"mean": 0.89, "interval": 0.2})
    with pytest.raises(UserError, match="no published figure"):
        rows.check("it", row._replace(published=None), {"mean": 0.89, "interval": 0.2})


def test_a_row_runs_with_its_seeds_together_and_one_after_another(tmp_path, monkeypatch):
    """The untrained loss, on text that comes with Python: ln V."""
    config = reproduce.row_config("untrained_loss:pydoc")
    config.data.batch_size = 16  # for eight devices
    config.model.num_layers, config.model.num_heads, config.model.embed_dim = 1, 2, 32
    found = reproduce.reproduce("untrained_loss", config, tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out/untrained_loss.json").read_text())
    assert written["seeds"] == found["seeds"]
    assert len(set(found["seeds"].values())) == 3
    assert (tmp_path / "out/untrained_loss.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(reproduce, "fits", lambda config: False)
    alone = reproduce.reproduce("untrained_loss", config, tmp_path / "alone", tmp_path / "out")
    assert (found["together"], alone["together"]) == (True, False)
    np.testing.assert_allclose(
        list(alone["seeds"].values()), list(found["seeds"].values()), rtol=1e-5
    )
    vocabulary = json.loads((tmp_path / "run/checkpoints/1/meta/metadata").read_text())
    symbols = len(json.loads(vocabulary["data"]["tokenizer"])["characters"])
    # The head is tied, so an untrained model expects the same character again: right in the
    # indentation of Python.
    assert math.log(symbols) - 0.2 < found["mean"] < math.log(symbols) + 0.05


def test_a_row_of_a_vae_learns_within_its_band(tmp_path):
    """flax's example VAE, three seeds of 80 steps on 5,000 embedded digits. The band is four
    standard deviations around what it gave when it was written: a loss that is summed over other
    axes, a rate or a binarisation that is another fall out of it."""
    config = reproduce.row_config("flax_vae:mnist5k", budget="80 steps")
    config.parallel.cpu_devices = 1
    config.train.eval_every = "never"  # but in the end
    name = "flax_vae:mnist5k"
    found = reproduce.reproduce(name, config, tmp_path / "run", tmp_path, budget="80 steps")
    assert (tmp_path / "flax_vae-mnist5k.json").is_file()
    assert found["published"] is None  # of other data
    assert found["command"] == 'aigc reproduce flax_vae:mnist5k --budget="80 steps"'
    assert found["steps"] == 80
    assert found["budget"] == "80 steps"
    assert found["deterministic"] is False  # the switch, which is for GPUs
    assert found["mean"] == pytest.approx(BAND[0], abs=BAND[1])


SMOKES = ("sngan_cifar10", "wgan_gp_cifar10", "dcgan_cifar10", "vqvae_cifar10", "gpt2_openwebtext")


@pytest.mark.parametrize("name", [*SMOKES, "multi30k"])
def test_a_row_of_an_accelerator_has_a_step_and_an_evaluation(name):
    """Its small form, on made-up data, as abstract values: nothing is compiled."""
    config = reproduce.row_config(f"{name}:smoke", seeds=1)
    experiment = Experiment(config)
    program = train_program(experiment)
    state, metrics = jax.eval_shape(program.one, *program.one_args)
    assert jax.tree.structure(state) == jax.tree.structure(experiment.abstract_state)
    assert jax.tree.leaves(metrics)
    assert rows.row(name).metric in metric_names(make_evaluations(experiment))


def test_unknown_rows_and_wrong_words_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r'did you mean "flax_vae"'):
        rows.row("flaxvae")
    command = aigc("compare", "nothing", "there", cwd=tmp_path)
    _, errors = command.communicate()
    assert command.returncode == 2
    assert "nothing is no run" in errors
    assert config_files.load("reproduce/flax_vae").task.name == "vae"
