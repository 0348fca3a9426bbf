import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from refusal import refusal

from aigc_jax import config
from aigc_jax.data import transforms
from aigc_jax.data.examples import Feature
from aigc_jax.data.transforms import Transform
from aigc_jax.errors import UserError


def test_a_list_is_read_in_order_feature_by_feature():
    text = "resize(8, 6)| random_crop( 4 ) |image+mask:random_flip | range(-1,1) |"
    assert transforms.parse(text) == [
        Transform("resize", "image", (8.0, 6.0)),
        Transform("random_crop", "image", (4.0,)),
        Transform("random_flip", "image"),
        Transform("random_flip", "mask"),
        Transform("range", "image", (-1.0, 1.0)),
    ]
    assert transforms.parse("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_flop", 'did you mean "random_flip"'),
        ("random_flip(1)", "takes 0 arguments"),
        ("resize", "takes 1 or 2 arguments"),
        ("resize(0)", "whole numbers"),
        ("resize(nan)", "whole numbers"),
        ("random_crop(1.5)", "whole numbers"),
        ("random_crop(a)", "no numbers"),
        ("range(1, -1)", "its lower and its upper end"),
        ("range(0, inf)", "its lower and its upper end"),
        ("range(-1, 1) | random_flip", "range must come last"),
        ("random_flip | random_flip", "stands twice"),
        ("binarize | random_flip | resize(8)", "resize before binarize"),
        ("random_flip, binarize", "cannot read"),
        ("flip\x1b[2J", r"cannot read .*\\x1b"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        transforms.parse(text)


def test_a_tuple_is_refused():
    with pytest.raises(UserError, match="is one string"):
        transforms.of(ConfigDict({"transforms": ("random_flip",)}))


@given(st.text(string.printable, max_size=30))
def test_any_text_is_read_or_refused(text):
    assert refusal(transforms.parse, text).isprintable()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("range(-1, 1)", (-1.0, 1.0, False)),
        ("binarize | range(0, 1)", (0.0, 1.0, True)),
        ("mask: range(0, 1)", (0.0, 255.0, False)),
        ("", (0.0, 255.0, False)),
    ],
)
def test_the_config_alone_says_what_values_there_will_be(steps, expected):
    data_config = config.images("mnist5k", scale="signed")
    data_config.transforms = steps
    assert transforms.value_range(data_config) == expected


def test_a_model_sees_the_shape_after_the_last_resize():
    data_config = config.images("x", transforms="resize(9) | random_flip | resize(8, 4)")
    loaded = {
        "image": Feature((9, 9, 3), "uint8"),
        "label": Feature((), "int64", 7),
        "sound": Feature((100,), "float64"),
    }
    assert transforms.features(data_config, loaded) == {
        "image": Feature((8, 4, 3), "float32"),
        "label": Feature((), "int32", 7),
        "sound": Feature((100,), "float32"),
    }


@pytest.mark.parametrize("scale", ["signed", "unit"])
@pytest.mark.parametrize("binarize", [False, True])
@pytest.mark.parametrize("pad_crop", [0, 4])
def test_an_old_section_becomes_one_of_today(scale, binarize, pad_crop, tmp_path):
    today = config.images("mnist5k").to_dict()
    old = {k: today[k] for k in ("source", "split", "batch_size", "placement", "image_size")}
    old |= {"scale": scale, "binarize": binarize, "flip": True, "pad_crop": pad_crop}
    new = config.upgrade_data(json.loads(json.dumps(old)))
    assert set(new) | {"eval_split", "eval_batch_size"} == set(today)
    assert transforms.value_range(ConfigDict(new)) == (
        {"signed": -1.0, "unit": 0.0}[scale],
        1.0,
        binarize,
    )
    names = [step.name for step in transforms.of(ConfigDict(new))]
    expected = ["random_crop"] * bool(pad_crop) + ["random_flip"] + ["binarize"] * binarize
    assert names == expected + ["range"]
    assert new["stratify"] is True
    assert config.upgrade_data(new) == new
    assert config.upgrade_data({**old, "source": str(tmp_path)})["stratify"] is False  # its split
    text = config.text("pydoc_text").to_dict()
    assert config.upgrade_data(text) == text


def test_an_unknown_scale_is_refused():
    with pytest.raises(UserError, match='unknown scale "loud"'):
        config.images("mnist5k", scale="loud")


def test_a_list_survives_the_command_line_and_storage():
    from absl import flags
    from ml_collections import config_flags

    stored = ConfigDict({"data": json.loads(config.images("mnist5k").to_json())})
    values, text = flags.FlagValues(), "resize(32) | random_flip | range(0, 1)"
    argv = ["aigc", f"--config.data.transforms={text}"]
    config_flags.DEFINE_config_dict("config", stored, flag_values=values, sys_argv=argv)
    values(argv)
    assert values["config"].value.data.transforms == text
