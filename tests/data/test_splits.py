import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import refusal

from aigc_jax.data import splits
from aigc_jax.errors import UserError

SIZES = {"train": 1003, "validation": 7, "test": 50}


@pytest.mark.parametrize(
    "split",
    [
        "train",
        "train[:95%]",
        "train[95%:]",
        "train[100:200]",
        "train[-5%:]",
        "train[:-3]",
        "train[12.5%:37.5%]",
        "validation[50%:]",
        "validation[:50%]",
        "test + validation[1:3]",
        "all",
    ],
)
def test_a_split_is_what_tfds_says_it_is(split):
    assert [tuple(part) for part in splits.parse(split, SIZES, "it")] == _theirs(split)


def _theirs(split):
    from tensorflow_datasets.core import splits as tfds

    infos = {
        name: tfds.SplitInfo(name=name, shard_lengths=[size], num_bytes=0, filename_template=None)
        for name, size in SIZES.items()
    }
    return [
        (
            part.splitname,
            part.from_ or 0,
            infos[part.splitname].num_examples if part.to is None else part.to,
        )
        for part in tfds.AbstractSplit.from_spec(split).to_absolute(infos)
    ]


_BOUNDS = st.one_of(  # both of one unit: TFDS takes the second one's for both
    *(
        st.tuples(bound, bound).filter(any)
        for bound in (
            st.just("") | st.integers(-60, 60).map(str),
            st.just("") | st.integers(-100, 100).map(lambda percent: f"{percent}%"),
        )
    )
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(SIZES)), _BOUNDS), min_size=1, max_size=3))
def test_any_slice_is_what_tfds_says_it_is(parts):
    split = "+".join(f"{name}[{low}:{high}]" for name, (low, high) in parts)
    try:
        ours = [tuple(part) for part in splits.parse(split, SIZES, "it")]
    except UserError as error:
        if "beyond" in str(error):
            return  # TFDS moves it inside
        ours = []
    assert ours == [part for part in _theirs(split) if part[1] < part[2]]


@given(st.text(string.printable + "é\x00\u0663", max_size=30), st.booleans())
def test_any_text_is_a_split_or_refused_in_one_line(text, within):
    split = f"train[{text}]" if within else text
    assert refusal(splits.parse, split, SIZES, "it").isprintable()


@pytest.mark.parametrize(
    "bound", ["_", "9" * 5000, "1__0", "\u0663", "9" * 5000 + "%", "1e3", "nan%"]
)
def test_a_bound_that_is_no_number_is_refused(bound):
    with pytest.raises(UserError, match=r"is not a number or a percentage|beyond"):
        splits.parse(f"train[:{bound}]", SIZES, "it")


@pytest.mark.parametrize("percent", [1, 50, 95, 99.9])
def test_two_halves_share_nothing_and_lose_nothing(percent):
    (low,) = splits.parse(f"train[:{percent}%]", SIZES, "it")
    (high,) = splits.parse(f"train[{percent}%:]", SIZES, "it")
    assert (low.start, low.stop, high.stop) == (0, high.start, 1003)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", 'no split "trian"; did you mean "train"'),
        ("train[5:5]", "empty"),
        ("train[200:100]", "empty"),
        ("train[:2000]", "beyond its 1003"),
        ("train[a:b]", "not a number"),
        ("train[5]", "cannot read the split"),
        ("", "cannot read the split"),
    ],
)
def test_a_bad_split_is_refused(split, message):
    with pytest.raises(UserError, match=message):
        splits.parse(split, SIZES, "it")
