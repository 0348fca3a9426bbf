"""The keys of a config: each has a range, its default lies within, and nothing else passes."""

import contextlib
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import FAMILIES, make_config

from aigc_jax import keys, optim, ranges, tasks
from aigc_jax.config import (
    another_state,
    as_json,
    base,
    best_metric,
    evaluation,
    flatten,
    from_json,
    images,
    optimizer,
    steps,
    text,
)
from aigc_jax.errors import UserError
from aigc_jax.tasks.family import Spec, image_shape

CONFIGS = {family: tasks.filled(make_config(family)) for family in FAMILIES}


def paths(config, prefix=""):
    """Every key that `tasks.check` answers for."""
    flat = flatten(config, sections=type(config))
    return [p for p in flat if ".args." not in p and not p.endswith(("task.name", "model.name"))]


KEYS = sorted({(path, family) for family, config in CONFIGS.items() for path in paths(config)})
by_key = {}
for key_path, of_family in KEYS:
    by_key.setdefault(key_path, of_family)


def allowed(path, family):
    """The range of a key, as the tables have it."""
    config = CONFIGS[family]
    shared = {p: key.allowed for p, key in tasks.config_lib.shared_keys(config).items()}
    return (shared | tasks.fields_allowed(config))[path]


def with_value(family, path, value):
    config = CONFIGS[family].copy_and_resolve_references()
    node = config
    *sections, last = path.split(".")
    for section in sections:
        node = node[section]
    with node.unlocked():
        del node[last]  # else it takes True for 1.0
        node[last] = value
    return config


# What no key may be, and what is of no use as a number; then numbers beyond a range's ends.
NEVER = [None, math.nan, math.inf, -math.inf, 1e300, 10**5000, b"x", {1}, object()]


def wrong(range_of):
    """Values out of a range, without asking the range."""
    if not isinstance(range_of, ranges.Range):
        others = st.sampled_from(
            [-0.5, 2.5, -(10**6), (None,), ("(",), (math.nan,), "\\0no such\\n"]
        )
        # A text may be any text and a tuple any tuple: their users check what they say.
        return others.filter(lambda x: x not in range_of)
    low, high = range_of.low, range_of.high
    number = st.integers if range_of.whole else st.floats
    outside = [st.sampled_from(["1", "", (), True, False, 1j])]
    if low > -math.inf:
        outside.append(number(max_value=math.ceil(low) - 1))
    if high < math.inf:
        outside.append(number(min_value=math.floor(high) + 1))
    if range_of.whole:
        outside.append(st.floats(0, 1e6))
    ends = {low: range_of.ends[0] == "(", high: range_of.ends[1] == ")"}
    outside += [st.just(end) for end, out in ends.items() if out]
    return st.one_of(outside)


@pytest.mark.parametrize("path", by_key)
def test_every_key_refuses_what_is_out_of_its_range_in_one_line_that_names_it(path):
    family = by_key[path]

    @settings(max_examples=15, database=None)
    @given(st.one_of(st.sampled_from(NEVER), wrong(allowed(path, family))))
    def refuses(value):
        with pytest.raises(UserError) as refusal:
            tasks.check(with_value(family, path, value))
        message = str(refusal.value)
        assert message.startswith(f"config.{path}=")
        assert "\n" not in message
        assert len(message) < 800

    refuses()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_default_lies_in_its_range(family):
    config = CONFIGS[family]
    tasks.check(config)
    for path, key in tasks.config_lib.shared_keys(config).items():
        assert key.default in key.allowed, path
        assert key.about
    for path, section in tasks.family(config).sections(config).items():
        for name, default in section.fields().items():
            if isinstance(default, bool | int | float | tuple):
                known = keys.field(section.cls, name, default)
                assert default in known, f"{path}.{name}"
                # A number whose row is missing may be anything: it is to have one.
                rows = {name, *(f"{owner.__name__}.{name}" for owner in section.cls.__mro__)}
                assert isinstance(default, bool | str) or rows & keys.FIELDS.keys(), (
                    f"{path}.{name}"
                )


def test_sections_are_made_of_the_tables():
    config = base()
    train, lora = ({n: key.default for n, key in t.items()} for t in (keys.TRAIN, keys.LORA))
    assert config.train.to_dict() == {**train, "lora": lora}
    assert images("a", batch_size=7, scale="unit").transforms == "range(0, 1)"
    assert (text("a", block_size=9).stride, text("a", block_size=9, stride=2).stride) == (9, 2)
    assert optimizer("sgd", 0.5, momentum=0.9, warmup="3 steps").args.momentum == 0.9
    assert evaluation("mean", every="2 steps", bins=3).bins == 3
    for make in (images, text):
        with pytest.raises(UserError, match='unknown key "bach_size"; did you mean "batch_size"'):
            make("a", bach_size=3)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("train.duratoin", "train.duration"),
        ("data.batchsize", "data.batch_size"),
        ("model.encoder.feature", "model.encoder.features"),
        ("model.encodre.features", "model.encoder.features"),
        ("optimizer.model.momentum", "optimizer.model"),
        ("sead", "seed"),
        ("task.latent", "task.latent_dim"),
    ],
)
def test_a_key_that_nobody_reads_is_refused(path, hint):
    config = CONFIGS["vae"].copy_and_resolve_references()
    *sections, last = path.split(".")
    with config.unlocked():
        node = config
        for section in sections:
            if section not in node:
                node[section] = {}
            node = node[section]
        node[last] = 3
    with pytest.raises(UserError, match=rf"unknown config.{path}; did you mean \"{hint}"):
        tasks.complete(config)


def test_missing_sections_are_named():
    for name in ("task", "model", "data", "optimizer", "train", "parallel"):
        for value in (None, 3, "no"):
            config = base()
            config.data = images("mnist5k")
            with config.ignore_type():
                if value is None:
                    del config[name]
                else:
                    config[name] = value
            with pytest.raises(UserError, match=f"config.{name} is missing or no section"):
                tasks.complete(config)
    with pytest.raises(UserError, match=r"config.data is empty"):
        tasks.complete(base())
    config = make_config("vae")
    for path in ("optimizer.model", "evals.eval"):
        broken = config.copy_and_resolve_references()
        section, name = path.split(".")
        with broken.unlocked(), broken[section].ignore_type():
            broken[section][name] = 3
        with pytest.raises(UserError, match=f"config.{path} is no section"):
            tasks.complete(broken)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=5), of, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, database=None)
@given(st.data())
def test_a_stored_config_of_any_content_is_read_or_refused(data):
    """Damage at any place: the whole, a section, or a value."""
    stored = CONFIGS["vae"].to_dict()
    node, name = {"": stored}, ""
    while isinstance(node[name], dict) and node[name] and data.draw(st.booleans()):
        node = node[name]
        name = data.draw(st.sampled_from(sorted(node)))
    node[name] = data.draw(JSON)
    with contextlib.suppress(UserError):
        tasks.complete(from_json(node[""] if name == "" else stored))


@pytest.mark.parametrize("unit", ["steps", "epochs", "examples", ""])
def test_a_duration_beyond_what_a_run_counts_is_refused(unit):
    for number in ("9" * 400, "100000000000000000000000000000"):
        with pytest.raises(UserError, match=r"^config.train.duration=.* is more than the 2,147"):
            steps(f"{number} {unit}", "config.train.duration", 8, 80)


@given(st.integers(0, 2**31 - 1))
def test_a_duration_in_steps_is_that_many(count):
    assert steps(f"{count} steps", "key", 7, 100) == steps(count, "key", 7, 100) == count


@pytest.mark.parametrize("duration", ["0 epochs", "never", "", "0.0 steps", "-1 steps", "１ step"])
def test_a_run_has_a_length(duration):
    with pytest.raises(UserError, match=r"config.train.duration=.* is not a duration above 0"):
        tasks.complete(make_config("vae", train__duration=duration))


OTHER_STATES = {
    "train.ema_decay": (0.9, r"train.ema_decay was 0.0 and is 0.9 \(there are no moving averages"),
    "train.freeze": (("encoder/",), "train.freeze was"),
    "train.lora.rank": (3, "train.lora.rank was 8 and is 3"),
    "optimizer.model.state_dtype": ("bfloat16", "model.state_dtype was float32 and is bfloat16"),
    "optimizer.model.clip_norm": (1.0, "model.clip_norm was 0.0 and is 1.0"),
    "optimizer.model.args.mu_dtype": ("bfloat16", "args.mu_dtype was float32"),
}
SAME_STATE = {
    "optimizer.model.learning_rate": 0.5,
    "optimizer.model.args.b1": 0.5,
    "task.latent_dim": 7,  # a checkpoint tells shapes itself
    "train.duration": "9 steps",
}


def flat(config):
    return flatten(as_json(tasks.complete(config)))


def test_what_makes_another_state_is_told_with_the_reason():
    before = flat(make_config("vae"))
    assert another_state(before, before) == ""
    for path, (value, reason) in OTHER_STATES.items():
        after = flat(with_value("vae", path, value))
        assert re.search(reason, another_state(before, after))
        assert another_state(after, before)
    for path, value in SAME_STATE.items():
        assert another_state(before, flat(with_value("vae", path, value))) == ""


def test_another_optimizer_takes_its_own_arguments_and_is_no_state_to_go_on_from():
    stored = tasks.complete(make_config("vae", optimizer__model__args={"b1": 0.5}))
    config, dropped = tasks.renamed(from_json(as_json(stored)), {"optimizer.model.name": "sgd"})
    gone = ("b1", "b2", "eps", "eps_root", "mu_dtype")
    assert dropped == [f"config.optimizer.model.args.{name}" for name in gone]
    args = tasks.complete(config).optimizer.model.args
    assert args.to_dict() == optim.defaults("sgd")
    assert another_state(flat(stored), flat(config)) == (
        "config.optimizer.model.name was adam and is sgd (the two keep different states)"
    )
    same, dropped = tasks.renamed(stored, {"optimizer.model.name": "adam"})
    assert (same.to_dict(), dropped) == (stored.to_dict(), [])


def test_another_pair_of_networks_takes_its_own_fields():
    config, dropped = tasks.renamed(make_config("dcgan64"), {"model.name": "dense"})
    assert "config.model.generator.kernel_size" in dropped
    generator = tasks.complete(config).model.generator.to_dict()
    assert generator == {"features": (8, 8, 8, 8), "spectral_norm": False}


@pytest.mark.parametrize("family", ["dcgan", "conv_vae", "dense_gan", "vae"])
def test_a_model_says_which_sides_it_can_make(family):
    config = tasks.filled(make_config(family))
    part = "generator" if "gan" in family else "decoder"
    section = tasks.family(config).sections(config)[f"model.{part}"]
    given = config.model[part]
    if not hasattr(section.cls, "side_multiple"):
        assert image_shape(Spec("data", (9, 7, 1)), section, given) == (9, 7, 1)
        return
    side = 2 ** len(given.features)
    assert image_shape(Spec("data", (side, 3 * side, 1)), section, given) == (side, 3 * side, 1)
    with pytest.raises(UserError, match=f"must be multiples of {side}; set config.data.image_size"):
        image_shape(Spec("data", (side, side + 1, 1)), section, given)


def test_best_needs_a_direction():
    assert best_metric("accuracy") == ("eval/accuracy", True)
    with pytest.raises(UserError, match="is a lower or a higher value better"):
        tasks.complete(make_config("vae", train__best="oddity"))
