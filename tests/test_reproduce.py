"""Rows: published figures, their configs, and the page that is made of their results."""

import json
import math

import jax
import numpy as np
import pytest
from runs import ROOT, aigc, stop_at

from aigc_jax import compare, config_files, reproduce, rows, tasks, trials
from aigc_jax.aot.programs import train_program
from aigc_jax.errors import NotFinite, UserError
from aigc_jax.evaluate import make_evaluations, metric_names
from aigc_jax.experiment import Experiment
from aigc_jax.report.write import report

ROWS = rows.names()
# Densities and the like take a second look at images; the small forms have distances alone.
OF_MORE_IMAGES = {f"sets/{name}" for name in ("kid", "precision", "recall", "density", "coverage")}
OF_MORE_IMAGES |= {"fid/frechet"}
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
        found = math.nan if result[key] is None else result[key]  # of one seed there is no spread
        np.testing.assert_allclose(found, value, rtol=1e-12)
    assert (result["metric"], result["published"]) == (row.metric, row.published)


def test_twelve_rows_have_three_seeds():
    found = rows.results(ROOT / "results")
    assert sum(len(result["seeds"]) >= 3 for result in found.values()) >= 12


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
    flags = ["--budget=80 steps", "--config.train.eval_every=never"]  # but in the end
    places = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path}"]
    command = aigc("reproduce", "flax_vae:mnist5k", *flags, *places, devices=1)
    _, errors = command.communicate()
    assert command.returncode == 0, errors
    found = json.loads((tmp_path / "flax_vae-mnist5k.json").read_text())
    assert found["published"] is None  # of other data
    assert found["command"] == (
        'aigc reproduce flax_vae:mnist5k --budget="80 steps" --config.train.eval_every=never'
    )
    assert found["changed"] == {"train.eval_every": "never"}
    assert found["steps"] == 80
    assert found["budget"] == "80 steps"
    assert found["deterministic"] is False  # the switch, which is for GPUs
    assert found["mean"] == pytest.approx(BAND[0], abs=BAND[1])


HAVE_SMOKE = [n for n in ROWS if ":smoke" in (rows.DIRECTORY / f"{n}.py").read_text()]
NOT_HERE = {"sngan_cifar10", "wgan_gp_cifar10", "dcgan_cifar10", "vqvae_cifar10"}
NOT_HERE |= {"gpt2_openwebtext", "lm1b", "wmt", "multi30k", "neutral_vae_celeba"}


@pytest.mark.parametrize("name", HAVE_SMOKE)
def test_the_small_form_of_a_row_measures_what_the_row_does(name):
    """On made-up data, and nothing is compiled. Of rows that are run on accelerators alone, whose
    networks are in no other test, there is a step, too."""
    config = reproduce.row_config(f"{name}:smoke", seeds=1)
    experiment = Experiment(config)
    measured = metric_names(make_evaluations(experiment))
    assert {rows.row(name).metric, *rows.row(name).besides} - set(measured) <= OF_MORE_IMAGES
    if name in NOT_HERE:
        program = train_program(experiment)
        state, metrics = jax.eval_shape(program.one, *program.one_args)
        assert jax.tree.structure(state) == jax.tree.structure(experiment.abstract_state)
        assert jax.tree.leaves(metrics)


@pytest.mark.parametrize("name", [n for n in ROWS if rows.row(n).published_besides])
def test_the_fid_is_measured_besides_where_the_weights_are_given(name, monkeypatch):
    monkeypatch.delenv("AIGC_INCEPTION_WEIGHTS", raising=False)
    assert "fid" not in reproduce.row_config(name).evals
    monkeypatch.setenv("AIGC_INCEPTION_WEIGHTS", "weights.pth")
    found = reproduce.row_config(name).evals.fid
    assert (found.features, found.metrics, found.num_samples) == ("inception", "frechet", 10_000)
    assert "fid" not in reproduce.row_config(f"{name}:smoke").evals  # of too few images
    one = {"fid/frechet": rows.statistics([12.0, 14.0])}
    published = rows.row(name).published_besides["fid/frechet"]
    for sha256, told in (("6726825d01", f" (published: {published:g})"), ("1234", "")):
        cards = {"fid": {"features": {"sha256": sha256}}}
        of_weights = {"metrics": one, "protocols_besides": cards}
        line = rows.besides(rows.row(name), of_weights)[-1]
        assert line == f"Besides: fid/frechet 13 ± 13{told}."


def test_a_row_goes_on_and_seeds_that_are_asked_for_later_join(tmp_path, monkeypatch):
    """One seed, with a stop in it, then three: what was trained stays, and all are those of one
    call with three. A larger budget goes on, too."""
    name, budget = "flax_vae:smoke", "4 steps"

    def run(seeds, place, budget=budget):
        config = reproduce.row_config(name, seeds=seeds, budget=budget)
        config.parallel.cpu_devices = 1
        out = tmp_path / f"out_{place}"
        return reproduce.reproduce(name, config, tmp_path / place, out, budget=budget)

    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run(1, "added")["stopped"] == "SIGTERM"
    assert not (tmp_path / "out_added").exists()
    first = run(1, "added")
    assert (first["steps"], first["full_steps"]) == (4, 8)
    log = (tmp_path / "added/metrics.jsonl").read_text()
    found, whole = run(3, "added"), run(3, "whole")
    assert (tmp_path / "added/metrics.jsonl").read_text() == log
    assert found["seeds"]["0"] == first["seeds"]["0"]
    assert list(found["seeds"]) == ["0", "1", "2"]
    assert (found["together"], whole["together"]) == (False, True)
    for key, value in whole["seeds"].items():
        assert found["seeds"][key] == pytest.approx(value, rel=1e-5)
    assert (tmp_path / "out_added/flax_vae-smoke.png").is_file()
    with pytest.raises(UserError, match="of 4 steps and 3 seeds; one of 4 steps and 1 would"):
        run(1, "added")

    places = [str(tmp_path / "added"), str(tmp_path / "whole")]
    assert [len(compare.workdirs_of(place)) for place in places] == [2, 1]
    side_by_side = compare.compare(places, tmp_path / "both")
    assert side_by_side["config"] == {}
    assert list(side_by_side["metrics"]) == ["added", "whole"]
    with pytest.raises(UserError, match="a run stands twice"):
        compare.compare([places[0], f"{places[0]}/"], tmp_path / "both")
    assert len(report([places[0]])["runs"]) == 2  # the seed that came later is on the page, too
    added, together = side_by_side["metrics"].values()
    assert added["eval/loss"] == pytest.approx(together["eval/loss"], rel=1e-5)

    log = (tmp_path / "whole/metrics.jsonl").read_text()
    longer = run(3, "whole", budget="8 steps")
    assert (longer["steps"], longer["full_steps"]) == (8, 8)
    assert (tmp_path / "whole/metrics.jsonl").read_text().startswith(log)


def test_the_page_tells_what_was_less_than_the_row():
    row = rows.Row("", "eval/loss", 1.0, 0.1, "", "")
    part = {"mean": 2.0, "budget": "5 steps", "steps": 5, "full_steps": 40, "changed": {"k": "v"}}
    assert rows.state(row, part) == "differs after 12.5 % of its steps, keys changed (+1)"
    assert rows.state(
        row._replace(published=None), {**part, "changed": {"parallel.mode": "jit"}}
    ) == ("measured after 12.5 % of its steps")
    assert rows.spent(part) == "5 of 40 steps, `k=v`"
    assert rows.gap_line(row, part)[1].endswith(
        "+1 from the published figure, after 12.5 % of its steps, so the two are not of the same "
        "training."
    )
    whole = {**part, "budget": "full"}
    assert "with other keys than the row's" in rows.gap_line(row, whole)[1]
    whole = {**whole, "changed": {}}
    assert rows.gap_line(row, whole)[1].endswith(
        "+1 from the published figure, and why is not known."
    )
    assert rows.spent({"budget": "full", "steps": 40, "full_steps": 40}) == "full"


RESULT = {
    **{"mean": 1.0, "seeds": {"0": 1.0}, "budget": "full", "steps": 40, "command": "aigc"},
    **{"changed": {}, "config_hash": "0", "wall_seconds": 1, "device": "1 x cpu"},
    **{"versions": {}, "git_commit": "a"},
}


@pytest.mark.parametrize("spoilt", ["{", "[]", "{}", '{"seeds": 3}', '{"mean": null}'])
def test_a_result_that_is_none_is_one_line_and_stays(spoilt, tmp_path):
    path = tmp_path / "untrained_loss.json"
    path.write_text(spoilt)
    for read in (lambda: rows.results(tmp_path), lambda: reproduce.check_no_better(path, 9, 9)):
        with pytest.raises(UserError, match=r"untrained_loss.json.*give another --out"):
            read()
    assert path.read_text() == spoilt


def test_a_result_is_not_replaced_by_one_of_less(tmp_path):
    path = tmp_path / "row.json"
    path.write_text(json.dumps(RESULT))
    reproduce.check_no_better(path, 40, 1, {"parallel.cpu_devices": "1"})
    for steps, seeds, changed in ((39, 1, {}), (40, 0, {}), (40, 1, {"data.eval_split": "x"})):
        with pytest.raises(UserError, match="would replace it: give another --out"):
            reproduce.check_no_better(path, steps, seeds, changed)


def test_the_command_of_a_result_has_the_variables_that_change_its_numbers():
    given = {
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "CUDA_VERSION": "13",
        "XLA_FLAGS": "--a --b",
    }
    written = rows.variables({"variables": given})
    assert written == "JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS='--a --b' "
    assert rows.variables({}) == ""


def test_what_trained_a_row_is_told_where_it_is_not_what_measured_it():
    assert rows.trained(RESULT) == ""
    here = {"git_commit": "a", "device": "1 x cpu"}
    assert rows.trained({**RESULT, "trained": [here]}) == ""
    places = [here, {**here, "git_commit": "b"}]
    assert rows.trained({**RESULT, "trained": places}) == (
        " Trained at commit a, 1 x cpu; commit b, 1 x cpu."
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["mixture_ring8", "--check"], "no published figure to be checked against"),
        (["untrained_loss", "--config.train.seeds=2"], "is given config.train.seeds as --seeds"),
        (
            ["untrained_loss", "--config.train.duration=2 steps"],
            "config.train.duration as --budget",
        ),
        (["--list", "--out=nowhere"], "--out=nowhere is no directory"),
    ],
)
def test_what_a_row_is_not_asked_is_refused_before_the_training(flags, message, tmp_path):
    command = aigc("reproduce", *flags, cwd=tmp_path)
    _, errors = command.communicate()
    assert command.returncode == 2
    assert message in errors
    assert not (tmp_path / "runs").exists()


def test_a_value_that_is_not_finite_is_no_result(tmp_path, monkeypatch):
    config = reproduce.row_config("flax_vae:smoke", seeds=1, budget="1 step")
    config.evals = {"eval": config.evals.eval}
    ran = reproduce.Ran([tmp_path], [1], [{"step": 1, "metrics": {"loss": math.nan}}], {})
    monkeypatch.setattr(reproduce, "run_seeds", lambda *_: ran)
    with pytest.raises(NotFinite, match="eval/loss of seed 0 is nan, not finite"):
        reproduce.reproduce("flax_vae:smoke", config, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_newest_value_is_compared_of_whichever_evaluation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 40, "phase": "eval", "modes/modes": 8.0, "eval/loss": 1.0}) + "\n"
    )
    report = {"step": 20, "metrics": {"modes/modes": 3.0, "loss": 2.0, "kl": 5.0, "kl/seed0": 5.0}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = compare.last_metrics(tmp_path)
    assert found == {"modes/modes": 8.0, "eval/loss": 1.0, "eval/kl": 5.0}


def test_unknown_rows_and_wrong_words_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r'did you mean "flax_vae"'):
        rows.row("flaxvae")
    command = aigc("compare", "nothing", "there", cwd=tmp_path)
    _, errors = command.communicate()
    assert command.returncode == 2
    assert "nothing is no run" in errors
    assert config_files.load("reproduce/flax_vae").task.name == "vae"
