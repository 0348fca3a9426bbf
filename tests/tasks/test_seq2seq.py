"""The laws of sequence to sequence: weights, exact match, generation, any devices; and its data."""

import dataclasses
import functools
import gzip
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_close, make_config, trained

from aigc_jax import config
from aigc_jax.data import source, subwords
from aigc_jax.data.sides import of_side
from aigc_jax.data.text_pairs import packed
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.models.transformer import EncoderDecoder
from aigc_jax.resume import describe_data, described_data
from aigc_jax.tasks.seq2seq import Seq2Seq
from aigc_jax.tasks.task import Settings, Task, inference_state

CONFIG = "configs/seq2seq/addition.py:smoke"
VOCAB, LENGTH, KEY = 9, 4, jax.random.key(5)
MODEL = EncoderDecoder(VOCAB + 2, LENGTH + 1, LENGTH + 1, 1, num_heads=2, embed_dim=16)
TASK = Seq2Seq(MODEL, {"model": optax.adam(3e-3)})


def batch_of(size, key=0):
    lengths = jax.random.randint(jax.random.key(key), (2, size, 1), 0, LENGTH + 1)
    tokens = jax.random.randint(jax.random.key(key + 1), (2, size, LENGTH), 0, VOCAB)
    sides = jnp.where(jnp.arange(LENGTH) < lengths, tokens, -1)
    both = {"source": sides[0], "target": sides[1]}
    return {**both, "id": jnp.arange(size), "mask": jnp.ones(size)}


@functools.cache
def start():
    return jax.jit(TASK.init)(jax.random.key(0), batch_of(2))


evaluate = jax.jit(lambda state, batch: TASK.eval_step(inference_state(state), batch, KEY))


def test_only_tokens_and_the_end_are_predicted():
    batch = batch_of(20)
    found = evaluate(start(), batch)
    count = (batch["target"] >= 0).sum() + 20
    assert float(found.loss.count) == count == float(found.accuracy.count)
    step = jax.jit(TASK.train_step)(start(), batch, jax.random.key(0))[1]
    np.testing.assert_allclose(step.loss.total, found.loss.total, rtol=1e-5)
    masked = {**batch, "mask": batch["mask"].at[6:].set(0)}
    counted = evaluate(start(), masked).loss.total
    params = {"params": start().networks["model"].params}
    total = 0.0
    ended = lambda row: jnp.append(row[row >= 0], TASK.end_token)[None]  # noqa: E731
    for row in range(6):
        targets = ended(batch["target"][row])
        tokens = jnp.append(TASK.begin_token, targets[0, :-1])[None]
        logits = MODEL.apply(params, ended(batch["source"][row]), tokens)
        total += optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()
    np.testing.assert_allclose(counted, total, rtol=1e-5)


def test_exact_match_is_what_greedy_decoding_gets_right():
    """Twelve that were learnt by heart are right, and others are not."""
    batch, step = batch_of(20), jax.jit(TASK.train_step)
    learnt = jax.tree.map(lambda x: x[:12], batch)
    state = start()
    for i in range(120):
        state, _ = step(state, learnt, jax.random.key(i))
    exact = jax.jit(TASK.predict)(inference_state(state), batch, KEY)["exact_match"]
    assert exact[:12].sum() > 6
    assert exact.sum() < 20
    np.testing.assert_allclose(evaluate(state, batch).compute()["exact_match"], exact.mean())
    lengths = (batch["source"] >= 0).sum(axis=1)
    right_aligned = jnp.stack(
        [jnp.roll(row, LENGTH - n) for row, n in zip(batch["source"], lengths)]
    )
    inputs = {"tokens": right_aligned, "lengths": lengths, "temperature": jnp.asarray(0.0)}
    made = jax.jit(TASK.generate, static_argnums=4)(
        inference_state(state), jax.random.key(0), jnp.arange(20), inputs, Settings()
    )
    for row in range(20):
        found = made["tokens"][row, made["begin"][row] : made["end"][row]]
        target = batch["target"][row]
        assert exact[row] == np.array_equal(found, target[target >= 0])


def test_packed_pairs_have_the_loss_and_the_gradients_of_separate_ones():
    width = 3 * (LENGTH + 1)
    longer = MODEL.clone(source_length=width + 1, block_size=width + 1)
    task = dataclasses.replace(TASK, model=longer)
    pairs = [([1, 2, 3], [4]), ([5], [6, 7, 8, 2]), ([3, 3], [1, 1])]
    pairs += [([2, 4, 6, 8], [5, 5, 5]), ([7, 1], [2])]

    def batch(of, rows):
        sides = {side: np.full((rows, width), -1, np.int32) for side in ("source", "target")}
        for row, pair in enumerate(of):
            for side, tokens in zip(sides, pair):
                sides[side][row, : len(tokens)] = tokens
        return {**sides, "id": np.arange(rows), "mask": np.ones(rows)}

    separate = batch(pairs, len(pairs))
    rows = packed({side: separate[side] for side in ("source", "target")})
    assert len(rows["source"]) == 2
    assert rows["source"][0].tolist() == [1, 2, 3, -1, 5, -1, 3, 3, -1, 2, 4, 6, 8, -1, -1]
    together = {**rows, "id": np.arange(2), "mask": np.ones(2)}
    state = jax.jit(task.init)(jax.random.key(0), separate)
    steps = [
        jax.jit(dataclasses.replace(task, packed=pack).train_step)(state, of, jax.random.key(1))
        for pack, of in ((False, separate), (True, together), (True, separate))
    ]
    (one, expected), *others = steps
    for other, found in others:
        assert float(found.loss.count) == float(expected.loss.count) == 11 + 5
        np.testing.assert_allclose(found.loss.total, expected.loss.total, rtol=1e-5)
        params = (run.networks["model"].params for run in (one, other))
        assert_close(*params, rtol=1e-3, atol=1e-4)


def test_it_is_a_task_and_makes_something_of_nothing():
    assert isinstance(TASK, Task)
    made = TASK.generate(
        inference_state(start()), jax.random.key(0), jnp.arange(2), {}, Settings(max_new_tokens=3)
    )
    assert made["tokens"].shape == (2, 4)
    long = {"tokens": jnp.zeros((2, 5), jnp.int32)}
    with pytest.raises(UserError, match="the source has 5 tokens, and the model reads 4"):
        TASK.generate(inference_state(start()), jax.random.key(0), jnp.arange(2), long, Settings())


def test_one_device_equals_a_mesh_and_jit_equals_pmap_and_microbatches_change_nothing():
    state, metrics = trained(CONFIG, devices=1)
    mesh = {"parallel__data": 2, "parallel__fsdp": 2, "parallel__tensor": 2}
    for other in (mesh, {"parallel__mode": "pmap"}, {"train__accumulate": 2}):
        found, seen = trained(CONFIG, **other)
        assert_close(found.networks["model"].params, state.networks["model"].params, 1e-3, 1e-4)
        for a, b in zip(seen, metrics):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


def test_a_run_is_built_again_without_its_data():
    experiment = Experiment(make_config(CONFIG))
    again = Experiment(experiment.config, data=described_data(describe_data(experiment.data)))
    assert again.task.model == experiment.task.model
    assert experiment.unit == ("tokens", 2)


def rows(data, side):
    return [data.tokenizer.decode(row[row >= 0]) for row in data.arrays[side]]


def test_sums_are_right_and_no_pair_is_in_two_splits():
    seen = set()
    for split in ("train", "validation", "test"):
        data = source.load(config.text("addition:2"), split)
        for asked, told in zip(rows(data, "source"), rows(data, "target"), strict=True):
            assert sum(map(int, asked.split("+"))) == int(told)
            seen.add(asked)
    assert len(seen) == 10_000


def test_short_numbers_are_as_frequent_as_long_ones_and_held_out_sums_are_never_trained_on():
    asked, sums = {}, source.open_source(config.text("addition:3:by_length"))
    for split in ("train", "validation", "test"):
        read = sums.read(split, np.arange(min(sums.sizes[split], 60_000)))
        texts = [[sums.tokenizer.decode(row[row >= 0]) for row in side] for side in read.values()]
        asked[split] = [tuple(map(int, text.split("+"))) for text in texts[0]]
        assert list(map(sum, asked[split])) == list(map(int, texts[1]))
    unordered = {split: {tuple(sorted(pair)) for pair in of} for split, of in asked.items()}
    assert not unordered["validation"] & unordered["test"]
    assert not (unordered["validation"] | unordered["test"]) & unordered["train"]
    assert len(set(asked["validation"])) == len(set(asked["test"])) == 1000
    # A number is below 10 in 1/3 + 1/30 + 1/300 of the draws, and both are independent.
    below = np.array(asked["train"]) < 10
    np.testing.assert_allclose(below.mean(axis=0), 0.37, atol=0.01)
    np.testing.assert_allclose(below.all(axis=1).mean(), 0.37**2, atol=0.01)
    assert len(unordered["train"]) > 20_000
    for wrong in ("addition:5:by_length", "addition:3:by_size", "addition:3:by_length:2"):
        with pytest.raises(UserError, match="addition"):
            source.load(config.text(wrong), "train")


def test_copies_and_mirror_images():
    for name, turn in (("synthetic_copy", 1), ("synthetic_reverse", -1)):
        data = source.load(config.text(f"{name}:5:3"), "validation")
        pairs = list(zip(rows(data, "source"), rows(data, "target"), strict=True))
        assert all(a.split()[::turn] == b.split() for a, b in pairs)
        assert {len(a.split()) for a, _ in pairs} == {1, 2, 3}


def test_lines_of_two_files_are_pairs(tmp_path):
    (tmp_path / "train.de").write_text("ein Hund\n\nzwei Hunde und viele mehr\n")
    (tmp_path / "train.en").write_text("a dog\n\ntwo dogs\n")
    (tmp_path / "test_2016.de.gz").write_bytes(gzip.compress(b"Hund\n"))
    (tmp_path / "test_2016.en.gz").write_bytes(gzip.compress(b"dog\n"))
    section = config.text(str(tmp_path), pair="de-en", block_size=10)
    train, test = (source.load(section, split) for split in ("train", "test"))
    assert (rows(train, "source"), rows(train, "target")) == (["ein Hund"], ["a dog"])
    assert rows(test, "target") == ["dog"]
    assert train.features == test.features
    assert "tokens): test 0, train 2;" in train.about
    section.pack = True
    train, test = (source.load(section, split) for split in ("train", "test"))
    assert (
        train.features
        == test.features
        == {side: test.features["source"]._replace(shape=(10,)) for side in ("source", "target")}
    )
    assert "(those of train in 1 rows)" in train.about
    with pytest.raises(UserError, match=r"data\.pack is for pairs of files"):
        source.load(config.text("synthetic_reverse", pack=True), "train")
    section.pack = False
    (tmp_path / "train.en").write_text("a dog\n")
    with pytest.raises(UserError, match=r"train\.de has 3 lines and .*train\.en has 1"):
        source.load(section, "train")
    for pair, message in (("de", "write two endings"), ("de-fr", "no pairs of files")):
        with pytest.raises(UserError, match=message):
            source.load(config.text(str(tmp_path), pair=pair), "train")


def test_each_side_may_have_a_tokenizer_of_its_own(tmp_path):
    write_pairs(tmp_path, train_de="ab\nba\n" * 5, train_en="xyz\nzy\n" * 5)
    section = config.text(str(tmp_path), pair="de-en", source_tokenizer="char")
    data = source.load(section, "train")
    read = {side: of_side(data.tokenizer, side) for side in data.arrays}
    assert {side: one.characters for side, one in read.items()} == {"source": "ab", "target": "xyz"}
    assert {side: f.num_classes for side, f in data.features.items()} == {"source": 2, "target": 3}
    for side, lines in (("source", ["ab", "ba"]), ("target", ["xyz", "zy"])):
        assert [read[side].decode(row[row >= 0]) for row in data.arrays[side]] == lines * 5
    # What a run encodes is a source, and what it decodes a target; so it is after a checkpoint.
    again = described_data(describe_data(data)).tokenizer
    assert again == data.tokenizer
    assert again.decode(again.encode("ab")) == "xy"
    assert again.vocab_size == 3
    section.source_tokenizer = ""
    assert source.load(section, "train").tokenizer.characters == "abxyz"
    with pytest.raises(UserError, match=r"data\.source_tokenizer is for pairs of files"):
        source.load(config.text("synthetic_reverse", source_tokenizer="char"), "train")
    write_pairs(tmp_path, train_de="\n\n", train_en="x\ny\n")  # a vocabulary of nothing
    section.source_tokenizer = "char"
    with pytest.raises(UserError, match=r'the split "train" of .* is empty'):
        source.load(section, "train")


def test_a_vocabulary_of_the_sources_ends_with_their_end():
    """A task with two tables that hold the same is the task with one, whatever the head's bias."""
    own = MODEL.clone(source_vocab_size=VOCAB + 1, tied_head=False)
    task, batch = dataclasses.replace(TASK, model=own), batch_of(6)
    params = start().networks["model"].params
    table, last = params["token_embedding"], params["token_embedding"][-1:]
    both = {"source_embedding": jnp.concatenate([table[:VOCAB], last]), "head": table}
    params = {**params, **both, "head_bias": jnp.zeros(VOCAB + 2)}
    state = jax.jit(task.init)(jax.random.key(0), batch_of(2))
    state = state.replace(networks={"model": state.networks["model"].replace(params=params)})
    step = jax.jit(lambda task, state: task.train_step(state, batch, KEY)[1], static_argnums=0)
    np.testing.assert_allclose(
        step(task, state).loss.total, step(TASK, start()).loss.total, rtol=1e-5
    )
    inputs = {"tokens": jnp.maximum(batch["source"], 0), "temperature": jnp.float32(0.0)}
    draw = jax.jit(
        lambda task, state: task.generate(state, KEY, batch["id"], inputs, Settings("samples", 4)),
        static_argnums=0,
    )
    found, expected = draw(task, inference_state(state)), draw(TASK, inference_state(start()))
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    moved = {**params, "head_bias": jnp.arange(VOCAB + 2.0)}
    state = state.replace(networks={"model": state.networks["model"].replace(params=moved)})
    stats = jax.jit(lambda state: task.eval_step(inference_state(state), batch, KEY))(state)
    trained = step(task, state)
    np.testing.assert_allclose(trained.loss.total, stats.loss.total, rtol=1e-5)


def write_pairs(folder, **sides):
    """`train_de="..."` is what train.de holds."""
    for name, content in sides.items():
        (folder / name.replace("_", ".")).write_bytes(content.encode())


def test_a_tokenizer_s_file_that_changed_is_read_anew(tmp_path):
    write_pairs(tmp_path, train_de="aaaa aaaa\n" * 9, train_en="bbbb bbbb\n" * 9)
    section = config.text(str(tmp_path), pair="de-en", tokenizer=str(tmp_path / "tokenizer.json"))
    for size in (258, 260):
        made = subwords.train(["aaaa aaaa bbbb bbbb"] * 9, size)
        (tmp_path / "tokenizer.json").write_text(made.definition)
        data = source.load(section, "train")
        assert data.tokenizer == made
        assert rows(data, "target") == ["bbbb bbbb"] * 9


def test_lines_end_at_line_feeds_alone_so_no_pair_is_shifted(tmp_path):
    odd = ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"]
    lines = {"de": [f"a{c}z" for c in odd], "en": [f"b{i}" for i in range(len(odd))]}
    write_pairs(
        tmp_path,
        train_de="\ufeff" + "\r\n".join(lines["de"]) + "\r\n",
        train_en="\n".join(lines["en"]),
    )
    data = source.load(config.text(str(tmp_path), pair="de-en"), "train")
    assert (rows(data, "source"), rows(data, "target")) == (lines["de"], lines["en"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_de_gz": ""}, "holds both `train.de` and `train.de.gz`; move one of them away"),
        ({"val_de": "a"}, "holds `val.de` and no `val.en`; add it"),
        ({"test_en_gz": "a"}, "holds `test.en.gz` and no `test.de`; add it"),
    ],
)
def test_files_without_their_other_half_or_there_twice_are_refused(files, message, tmp_path):
    write_pairs(tmp_path, train_de="a\n", train_en="b\n", **files)
    with pytest.raises(UserError, match=re.escape(message)):
        source.load(config.text(str(tmp_path), pair="de-en"), "train")


def test_a_damaged_archive_is_named(tmp_path):
    damaged = bytearray(gzip.compress(b"a b c\n" * 400))
    damaged[12:20] = b"\xff" * 8
    (tmp_path / "train.de.gz").write_bytes(damaged)
    write_pairs(tmp_path, train_en="b\n")
    with pytest.raises(UserError, match=r"cannot read .*train\.de\.gz: "):
        source.load(config.text(str(tmp_path), pair="de-en"), "train")


@pytest.mark.parametrize("name", ["addition:2", "pydoc_text", "."])
def test_keys_that_pairs_or_other_sources_do_not_obey_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, train_de="a\n", train_en="b\n")
    with pytest.raises(
        UserError, match=r"data\.(pair is for files|documents and data\.pair exclude)"
    ):
        source.load(config.text(name, pair="de-en", documents="files"), "train")


@pytest.mark.parametrize(
    ("task", "data"), [("causal_lm", "addition:1"), ("seq2seq", "synthetic_tokens")]
)
def test_data_of_another_kind_is_refused(task, data):
    asked = make_config(CONFIG if task == "seq2seq" else "gpt")
    asked.data.source, asked.data.split = data, "train"
    asked.data.eval_split = ""
    with pytest.raises(UserError, match=f"task {task} needs"):
        Experiment(asked)
