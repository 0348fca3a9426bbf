"""A checkpoint beside other code, other configs, readers, and names that are not ours."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same

from aigc_jax.errors import UserError
from aigc_jax.run.checkpoint import Checkpoints
from aigc_jax.run.stored import checksum, held

VALUES = {"bias": np.array([1, 2], np.float32), "kernel": np.array([[3, 4]], np.float32)}


def state_of(step: int):
    params = jax.tree.map(jnp.asarray, VALUES)
    network = {"params": params, "opt_state": (jnp.int32(step),), "ema": dict(params)}
    return {"step": jnp.int32(step), "networks": {"model": network}}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def restored(checkpoints: Checkpoints, state, *args, **kwargs):
    found = checkpoints.restore(abstract(state), *args, **kwargs)
    assert found is not None
    return found


def save(path, states, metrics=None, **kwargs) -> Checkpoints:
    checkpoints = Checkpoints(path, **{"keep": 10, **kwargs})
    for step, state in states.items():
        checkpoints.save(step, state, {}, (metrics or {}).get(step))
    checkpoints.close()
    return Checkpoints(path, **kwargs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(path, {1: state_of(1), 2: state_of(2)})
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_not_saved(copy, bad):
    state = state_of(3)
    state["networks"]["model"]["params"]["bias"] = jnp.array([1.0, bad])
    checkpoints = Checkpoints(copy, keep=2)
    with pytest.raises(UserError, match=r"after step 3 is not finite .*: networks/model/params/b"):
        checkpoints.save(3, state, {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]
    assert_same(restored(checkpoints, state), state_of(2))


@pytest.mark.parametrize(("higher", "best"), [(False, 2), (True, 4)])
def test_the_best_is_finite_and_knows_its_direction(tmp_path, higher, best):
    values = {1: 0.5, 2: 0.25, 3: math.nan, 4: 0.75, 5: math.inf, 6: -math.inf, 7: None, 8: 0.5}
    metrics = {step: {"all/score": x} for step, x in values.items() if x is not None}
    states = {step: state_of(step) for step in values}
    kwargs = {"keep": 1, "best": "all/score", "higher_is_better": higher}
    checkpoints = save(tmp_path, states, metrics, **kwargs)
    assert checkpoints.best_step() == best
    assert checkpoints.steps() == [best, 8]
    assert restored(checkpoints, state_of(0), best)["step"] == best


def test_no_metric_no_best(saved):
    assert Checkpoints(saved, best="loss").best_step() is None


def test_arrays_that_older_code_did_not_write_are_made(saved):
    state = {**state_of(2), "seed": jnp.uint32(0)}
    state["networks"]["model"]["ema_stats"] = {"mean": jnp.zeros(3)}
    asked = []

    def missing(path, shape, found):
        asked.append(path)
        assert_same(found["networks/model/ema/bias"], VALUES["bias"])
        return jnp.full(shape.shape, 7, shape.dtype)

    checkpoints = Checkpoints(saved, read_only=True)
    found = restored(checkpoints, state, missing=missing)
    assert sorted(asked) == ["networks/model/ema_stats/mean", "seed"]
    assert found["seed"] == 7
    del found["seed"], found["networks"]["model"]["ema_stats"]
    assert_same(found, state_of(2))
    for refusing in (None, lambda *_: None):
        with pytest.raises(UserError, match=r"it lacks networks/model/ema_stats/mean, seed"):
            restored(checkpoints, state, missing=refusing)


def test_what_is_there_is_verified_though_something_is_missing(copy, capsys):
    path = copy / "2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["checksum"]
    meta["fingerprints"]["networks/model/params/bias"][1] ^= 1
    path.write_text(json.dumps({**meta, "checksum": checksum(meta)}))
    state = {**state_of(1), "seed": jnp.uint32(0)}
    found = restored(Checkpoints(copy), state, missing=lambda *_: jnp.uint32(0))
    assert found["step"] == 1
    assert (
        "2 cannot be read (networks/model/params/bias is not what was saved)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.pop("ema"), "also holds networks/model/ema/bias, networks/model/"),
        (lambda network: network["params"].update(bias=jnp.zeros(5)), r"bias \(2 there, 5 now\)"),
        (lambda network: network.update(opt_state=(jnp.int32(0),) * 2), "lacks networks/model/opt"),
    ],
)
def test_a_config_that_does_not_fit_is_blamed_not_the_checkpoint(saved, change, message):
    state = state_of(0)
    change(state["networks"]["model"])
    with pytest.raises(UserError, match=rf"this config does not make the model of .*{message}"):
        restored(Checkpoints(saved), state)


def test_parameters_of_a_run_of_unknown_structure(saved):
    assert Checkpoints(saved.parent / "none").parameters() is None
    step, networks = Checkpoints(saved, read_only=True).parameters()
    assert step == 2
    assert jax.tree.map(lambda x: type(x).__name__, networks["model"])["bias"] == "ndarray"
    assert_same(networks, {"model": VALUES})
    assert Checkpoints(saved).parameters(1, "ema")[0] == 1
    assert Checkpoints(saved).parameters(part="frozen") == (2, {})
    with pytest.raises(UserError, match=r"no checkpoint of step 9 in .*; there are \[1, 2\]"):
        Checkpoints(saved).parameters(9)


def test_damaged_parameters_are_not_given(copy):
    path = copy / "2" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"float32", ', '"float32", 1'))
    assert Checkpoints(copy).parameters()[0] == 1


def test_names_that_are_not_ours_are_left_alone(copy, capsys):
    strays = ["08", "²", "1.5", "-3", "best", "2.unreadable", "007"]
    for name in strays:
        (copy / name).mkdir()
    (copy / "9").write_text("a file")
    assert Checkpoints(copy, read_only=True).steps() == [1, 2]
    checkpoints = Checkpoints(copy, keep=2)
    assert restored(checkpoints, state_of(0), set_aside=True)["step"] == 2
    for step in (3, 4):
        checkpoints.save(step, state_of(step), {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [3, 4]
    assert all((copy / name).exists() for name in strays)
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_is_being_read_is_not_deleted(copy):
    checkpoints = Checkpoints(copy, keep=1)
    with held(copy / "2"):
        for step in (3, 4):
            checkpoints.save(step, state_of(step), {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]
        assert_same(restored(Checkpoints(copy, read_only=True), state_of(0), 2), state_of(2))
    checkpoints.save(5, state_of(5), {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [5]


def test_one_deleted_before_it_was_held_is_looked_for_no_more(copy, monkeypatch, capsys):
    """As when the run that trains is faster than its reader."""
    checkpoints = Checkpoints(copy, read_only=True)
    listed, seen = checkpoints._listed, []

    def lagging():
        seen.append(listed())
        if len(seen) == 1:
            shutil.rmtree(copy / "2")
            return [1, 2]
        return listed()

    monkeypatch.setattr(checkpoints, "_listed", lagging)
    assert restored(checkpoints, state_of(0))["step"] == 1
    assert capsys.readouterr().err == ""


def test_what_is_written_down_is_json(copy):
    checkpoints = Checkpoints(copy, keep=3)
    checkpoints.save(3, state_of(3), {"note": [math.nan]}, {"perplexity": math.inf})
    checkpoints.close()

    def refuse(constant):
        raise AssertionError(constant)

    text = (copy / "3" / "meta" / "metadata").read_text()
    meta = json.loads(text, parse_constant=refuse)
    assert (meta["note"], meta["metrics"]) == ([None], {"perplexity": None})
    assert Checkpoints(copy).meta()["metrics"] == {"perplexity": None}
