import jax
import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data import source
from aigc_jax.data.examples import in_memory
from aigc_jax.data.tokenizer import IdTokenizer
from aigc_jax.errors import UserError

SPLITS = ("train", "validation", "test")


def rows(dataset):
    """Every example of a split, as bytes."""
    batch = dataset.fetch(np.arange(dataset.size))
    return [row.tobytes() for row in batch["image"]]


def text_of(dataset):
    return dataset.tokenizer.decode(dataset.arrays["tokens"])


def test_the_digits_are_whole_shared_out_by_class_and_disjoint():
    parts = {split: source.load(config.images("mnist5k"), split) for split in SPLITS}
    assert [parts[split].size for split in SPLITS] == [4000, 500, 500]
    assert len({row for part in parts.values() for row in rows(part)}) == 5000
    for part in parts.values():
        counts = np.bincount(part.arrays["label"], minlength=part.features["label"].num_classes)
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
    assert host.keys() == device.keys() == dataset.features.keys()
    for name, feature in dataset.features.items():
        np.testing.assert_array_equal(host[name], device[name])
        assert host[name].shape == (4, *feature.shape)
        assert host[name].dtype == device[name].dtype == feature.dtype


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
        (_with(config.images("mnist5k"), image_size=-1), "train", "image_size=-1: use a side"),
        (_with(config.images("mnist5k"), channels=3), "train", "has 1, and only files"),
        (_with(config.images("mnist5k"), fit="squash"), "train", "use crop, pad, stretch"),
        (_with(config.images("mnist5k"), background="puce5"), "train", "is no colour"),
        (config.images("mnist5k:9"), "train", 'leave out ":9"'),
        (config.images("mnist5k", transforms="mask: random_flip"), "train", 'no feature "mask"'),
        (config.images("mnist5k", transforms="label: random_flip"), "train", "is for images"),
        (config.images("mnist5k", transforms="random_crop(29)"), "train", "exceeds the image"),
        (config.images(""), "train", "data.source is empty"),
        (config.images("no/where"), "train", "no file or folder no/where"),
        (config.images("n" * 5000), "train", "unknown data set"),
        (config.images("a\0b"), "train", r"unknown data set \"a\\x00b"),
        (config.images("~nobody-here/x"), "train", "home is not known"),
        (config.text("pydoc_text", documents="messages"), "train", "is for files of conversations"),
        (config.text("synthetic_tokens", documents="files"), "train", "no documents to tell apart"),
        (config.text("/dev/null"), "train", "is not a folder of texts or a text file"),
    ],
)
def test_bad_input_is_answered_with_what_to_do(data_config, split, message):
    with pytest.raises(UserError, match=message):
        source.load(data_config, split)


def test_a_device_is_given_no_more_tokens_than_it_can_count(monkeypatch):
    tokens = np.broadcast_to(np.uint8(0), (2**31,))
    made = in_memory({"train": {"tokens": tokens}}, {"tokens": 9}, {}, "", tokenizer=IdTokenizer(9))
    monkeypatch.setitem(source.BUILT_IN, "large", lambda parameters, data: made)
    section = config.text("large")
    assert source.load(section, "train").size > 2**24
    section.placement = "device"
    assert source.load(section, "train[:-1]").size > 2**24
    with pytest.raises(UserError, match=r"2,147,483,648 tokens, .* data\.placement=memory"):
        source.load(section, "train")


@pytest.mark.parametrize("placement", ["memory", "disk"])
@pytest.mark.parametrize("name", ["mnist5k", "synthetic_images:28x28x1:40"])
def test_a_set_that_lies_there_decoded_is_resized_too(name, placement):
    plain = source.load(config.images(name), "test[:5]").arrays
    for changes in ({"transforms": "resize(64) | range(0, 1)"}, {"image_size": 64}):
        data_config = _with(config.images(name), placement=placement, **changes)
        large = source.load(data_config, "test[:5]")
        assert large.features["image"].shape == (64, 64, 1)
        fetched = large.fetch(np.arange(5))
        np.testing.assert_array_equal(fetched["label"], plain["label"])
        small = fetched["image"].reshape(5, 64, 64).astype(float)
        mean = small.mean(axis=(1, 2))
        np.testing.assert_allclose(mean, plain["image"].mean(axis=(1, 2, 3)), atol=2)
        assert "resized to 64x64" in large.about
    both = _with(config.images(name), transforms="resize(64) | resize(32, 30)", fit="stretch")
    assert source.load(both, "test[:5]").features["image"].shape == (32, 30, 1)


def test_a_source_of_other_features_needs_nothing_more(monkeypatch):
    """Pairs, labels and sound are further names: memory, disk and resizing know no kinds."""
    arrays = {
        "image": np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6, 1),
        "target": np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3),
        "sound": np.linspace(-1, 1, 4 * 10, dtype=np.float32).reshape(4, 10),
        "speaker": np.array([0, 1, 2, 1], np.int32),
    }
    made = in_memory({"train": arrays}, {"speaker": 3}, {}, "pairs")
    monkeypatch.setitem(source.BUILT_IN, "pairs", lambda parameters, tokenizer: made)
    steps = "image+target: resize(3) | target: random_flip"
    for placement in ("memory", "disk"):
        data_config = _with(config.images("pairs", transforms=steps), placement=placement)
        dataset = source.load(data_config, "train[1:]")
        assert {name: f.shape for name, f in dataset.features.items()} == {
            "image": (3, 3, 1),
            "target": (3, 3, 3),
            "sound": (10,),
            "speaker": (),
        }
        batch = dataset.fetch(np.array([2, 0]))
        np.testing.assert_array_equal(batch["sound"], arrays["sound"][[3, 1]])
        assert batch["target"].shape == (2, 3, 3, 3)
