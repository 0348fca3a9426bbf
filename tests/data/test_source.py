import jax
import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data import source
from aigc_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def rows(dataset):
    """Every example of a split, as bytes."""
    batch = dataset.fetch(np.arange(dataset.size))
    key = "image" if dataset.kind == "image" else "tokens"
    return [row.tobytes() for row in batch[key]]


def text_of(dataset):
    return dataset.tokenizer.decode(dataset.arrays["tokens"])


def test_the_digits_are_whole_shared_out_by_class_and_disjoint():
    parts = {split: source.load(config.images("mnist5k"), split) for split in SPLITS}
    assert [parts[split].size for split in SPLITS] == [4000, 500, 500]
    assert len({row for part in parts.values() for row in rows(part)}) == 5000
    for part in parts.values():
        counts = np.bincount(part.arrays["label"], minlength=part.num_classes)
        assert (counts == part.size // 10).all()
    tenth = source.load(config.images("mnist5k"), "train[:10%]")
    assert (np.bincount(tenth.arrays["label"]) == 40).all()
    assert tenth.arrays["image"].max() == 255


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_embedded_text_is_cut_without_overlap_or_loss(tokenizer):
    from pydoc_data.topics import topics

    data_config = config.text("pydoc_text", tokenizer=tokenizer)
    parts = [source.load(data_config, split) for split in SPLITS]
    assert "".join(text_of(part) for part in parts) == "\n\n".join(
        topics[name] for name in sorted(topics)
    )
    assert len(parts[0].arrays["tokens"]) > 8 * len(parts[1].arrays["tokens"])
    assert parts[0].tokenizer == parts[2].tokenizer


def test_each_target_of_an_evaluation_text_counts_once():
    data_config = config.text("synthetic_tokens:50:1000", block_size=10)
    data_config.stride = 3
    held_out = source.load(data_config, "validation")
    tokens = held_out.arrays["tokens"]
    batch = held_out.fetch(np.arange(held_out.size))["tokens"]
    np.testing.assert_array_equal(batch[:, 1:].reshape(-1), tokens[1 : 1 + held_out.size * 10])
    assert len(tokens) - (1 + held_out.size * 10) < 10

    train = source.load(data_config, "train")
    tokens = train.arrays["tokens"]
    np.testing.assert_array_equal(train.fetch(np.array([7]))["tokens"], [tokens[21:32]])
    assert (train.size - 1) * 3 + 11 <= len(tokens) < train.size * 3 + 11


@pytest.mark.parametrize(
    "data_config",
    [config.images("synthetic_images:6x5x3:40"), config.text("synthetic_tokens:300:4000")],
    ids=["images", "text"],
)
def test_the_gather_is_the_same_on_the_host_and_on_the_device(data_config):
    dataset = source.load(data_config, "train")
    indices = np.array([5, 0, dataset.size - 1, 5])
    host = dataset.fetch(indices)
    compiled = jax.jit(source.take, static_argnums=2)
    device = compiled(dataset.arrays, indices.astype(np.int32), dataset.window)
    assert host.keys() == device.keys() == dataset.spec.keys()
    for name, (shape, dtype) in dataset.spec.items():
        np.testing.assert_array_equal(host[name], device[name])
        assert host[name].shape == (4, *shape)
        assert host[name].dtype == device[name].dtype == dtype


def test_synthetic_images_are_alike_in_memory_and_on_demand_and_never_repeat():
    data_config = config.images("synthetic_images:8x8x3:30")
    parts = [source.load(data_config, split) for split in SPLITS]
    assert [part.size for part in parts] == [30, 4, 4]
    assert len({row for part in parts for row in rows(part)}) == 38
    data_config.placement = "disk"
    lazy = source.load(data_config, "test+train[10:]")
    assert lazy.arrays is None
    assert rows(lazy) == rows(parts[2]) + rows(parts[0])[10:]


def test_synthetic_tokens_follow_from_the_last_two():
    tokens = source.load(config.text("synthetic_tokens:64"), "train").arrays["tokens"]
    steps = np.diff(tokens.reshape(-1, 64).astype(int), axis=1) % 64
    assert (steps == steps[:, :1]).all()
    assert tokens.dtype == np.uint8
    assert set(np.unique(tokens)) == set(range(64))


def _with(data_config, **changes):
    data_config.update(changes)
    return data_config


@pytest.mark.parametrize(
    ("data_config", "split", "message"),
    [
        (config.images("mnist5"), "train", 'unknown data set "mnist5"; did you mean "mnist5k"'),
        (config.images("fashion_mnist"), "train", "run: aigc data prepare fashion_mnist"),
        (config.images("mnist5k"), "valid", 'no split "valid"; did you mean "validation"'),
        (config.images("mnist5k"), "train[1:1]", "is empty"),
        (config.images("pydoc_text"), "train", "holds text"),
        (config.text("mnist5k"), "train", "holds images"),
        (config.text("pydoc_text", tokenizer="bytes"), "train", 'did you mean "byte"'),
        (config.text("pydoc_text", block_size=10**6), "train", "use a smaller block_size"),
        (config.images("synthetic_images:64"), "train", "write synthetic_images:HxWxC"),
        (config.text("synthetic_tokens:1"), "train", "write synthetic_tokens:VOCABULARY"),
        (config.images("./nowhere"), "train", "no file or folder ./nowhere"),
        (_with(config.images("mnist5k"), placement="tape"), "train", "memory, device or disk"),
        (_with(config.text("pydoc_text"), placement="tape"), "train", "memory, device or disk"),
        (_with(config.text("pydoc_text"), stride=0), "train", "data.stride=0"),
        (_with(config.images("mnist5k"), image_size=32), "train", "only files are resized"),
    ],
)
def test_bad_input_is_answered_with_what_to_do(data_config, split, message):
    with pytest.raises(UserError, match=message):
        source.load(data_config, split)
