import pytest

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
    from tensorflow_datasets.core import splits as tfds

    infos = {
        name: tfds.SplitInfo(name=name, shard_lengths=[size], num_bytes=0, filename_template=None)
        for name, size in SIZES.items()
    }
    theirs = [
        (
            part.splitname,
            part.from_ or 0,
            infos[part.splitname].num_examples if part.to is None else part.to,
        )
        for part in tfds.AbstractSplit.from_spec(split).to_absolute(infos)
    ]
    assert [tuple(part) for part in splits.parse(split, SIZES, "it")] == theirs


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
