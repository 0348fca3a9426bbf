"""Texts that are written and compared: sacrebleu's values, any batch and devices, beams, files."""

import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu
from runs import make_config

from aigc_jax.config import evaluation, text
from aigc_jax.data.tokenizer import tokenizer_of
from aigc_jax.errors import UserError
from aigc_jax.evaluate import Evaluator, make_evaluations
from aigc_jax.evaluations.translation import scorers
from aigc_jax.experiment import Experiment
from aigc_jax.models.transformer import EncoderDecoder
from aigc_jax.sample import drawing, gather, right_aligned, sample_chunks
from aigc_jax.tasks.seq2seq import Seq2Seq
from aigc_jax.tasks.task import Settings, inference_state
from aigc_jax.train import train

CONFIG = "configs/seq2seq/addition.py:smoke"


def test_values_are_those_that_one_counts_by_hand_and_sacrebleu_s():
    scores, signatures = scorers(("bleu", "exact_match", "chrf"))
    assert list(scores) == ["bleu", "exact_match", "chrf"]
    texts, references = ["the cat sat on the mat"], ["the cat sat on a mat"]
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; as long as the reference.
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert scores["bleu"](texts, references) == pytest.approx(by_hand)
    texts, references = ["a b c d e", "Zwei, drei."], ["a b c d e", "zwei drei."]
    assert scores["exact_match"](texts, references) == 0.5
    assert scores["bleu"](texts, references) == sacrebleu.corpus_bleu(texts, [references]).score
    assert scores["chrf"](texts, references) == sacrebleu.corpus_chrf(texts, [references]).score
    lower, of_lower = scorers(("bleu", "chrf"), lowercase=True, tokenize="char")
    assert lower["bleu"](["ABCDE"], ["abcde"]) == pytest.approx(100)
    version = sacrebleu.__version__
    common = f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert signatures["bleu"] == common
    assert signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    assert of_lower["bleu"] == common.replace("mixed", "lc").replace("13a", "char")


@functools.cache
def measured(devices: int, batch_size: int, num_beams: int = 1):
    config = make_config(CONFIG, data__eval_batch_size=batch_size)
    with config.unlocked():
        config.evals = {"sums": evaluation("translation", split="train[:20]", num_beams=num_beams)}
    experiment = Experiment(config, devices=jax.devices()[:devices])
    evaluations = make_evaluations(experiment)
    state = experiment.init()
    # As they are drawn the parameters tell no source from another.
    params = jax.tree.map(
        lambda x: x + 0.5 * jax.random.normal(jax.random.key(1), x.shape),
        jax.device_get(state.networks["model"].params),
    )
    params = jax.device_put(params, experiment.shardings.networks["model"].params)
    state = state.replace(networks={"model": state.networks["model"].replace(params=params)})
    values = Evaluator(experiment, evaluations)(state, evaluations)
    return values, list(evaluations["sums"].examples()), evaluations["sums"].card


@pytest.mark.parametrize("num_beams", [1, 3])
def test_neither_batches_nor_devices_matter(num_beams):
    values, examples, card = measured(1, 20, num_beams)
    assert set(values) == {"sums/bleu", "sums/chrf", "sums/exact_match"}
    assert len({example["hypothesis"] for example in examples}) > 1
    for one in examples:
        assert sum(map(int, one["source"].split("+"))) == int(one["reference"])
    assert [one["id"] for one in examples] == list(range(20))
    assert card["decoding"] == ("greedy" if num_beams == 1 else "beam search, 3 beams")
    assert set(card["signatures"]) == {"bleu", "chrf"}
    again, others, _ = measured(8, 7, num_beams)
    assert others == examples
    assert again == values


def test_enough_beams_find_the_best_of_all_targets():
    vocab = 5
    model = EncoderDecoder(vocab + 2, 4, 4, 1, num_heads=2, embed_dim=16)
    task = Seq2Seq(model, {"model": optax.adam(3e-3)})
    source = jnp.array([[0, 1, -1], [2, 3, 4], [4, -1, -1], [1, 1, 1]])
    state = inference_state(task.init(jax.random.key(3), {"source": source, "target": source}))
    lengths = (source >= 0).sum(axis=1)
    tokens, _ = right_aligned([np.asarray(row[row >= 0]) for row in source], 3)
    begin, end = task.begin_token, task.end_token
    # Every target of one and of two tokens, the end among them.
    first = jnp.array([[begin, a] for a in range(vocab)], jnp.int32)
    generate = jax.jit(task.generate, static_argnums=4)

    @jax.jit
    def log_probs(state):
        of_rows, read = (
            jnp.repeat(task._ended(source, task.source_end), vocab, axis=0),
            jnp.tile(first, (4, 1)),
        )
        logits = model.apply(state.networks["model"].variables(), of_rows, read)
        allowed = logits.at[..., begin].set(-jnp.inf)
        return jax.nn.log_softmax(allowed).reshape(4, vocab, 2, -1)

    log_p = np.asarray(log_probs(state))
    for penalty in (0.0, 1.0):
        asked = {"tokens": jnp.asarray(tokens), "lengths": lengths, "length_penalty": penalty}
        settings = Settings(max_new_tokens=2, num_beams=vocab + 2)
        made = jax.device_get(generate(state, jax.random.key(0), jnp.arange(4), asked, settings))
        for row in range(4):
            scores = {(end,): log_p[row, 0, 0, end]}
            for a, b in itertools.product(range(vocab), [*range(vocab), end]):
                scores[a, b] = (log_p[row, a, 0, a] + log_p[row, a, 1, b]) / 2**penalty
            best = max(scores, key=lambda target: scores[target])
            found = made["tokens"][row, 1 : 1 + made["lengths"][row]]
            assert tuple(found.tolist()) == best
            assert made["scores"][row] == pytest.approx(scores[best], rel=1e-5)


def test_a_run_keeps_what_was_compared(tmp_path):
    config = make_config(CONFIG)
    with config.unlocked():
        config.evals = {"sums": evaluation("translation", metrics="exact_match", split="test[:3]")}
    experiment = Experiment(config, devices=jax.devices()[:1])
    evaluations = make_evaluations(experiment)
    assert "signatures" not in evaluations["sums"].card
    Evaluator(experiment, evaluations, workdir=tmp_path)(experiment.init(), evaluations)
    lines = (tmp_path / "evaluations" / "sums-step0.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(evaluations["sums"].examples())
    assert list(json.loads(lines[0])) == ["id", "source", "reference", "hypothesis"]

    # Of runs that share a program each has a file.
    with config.unlocked():
        config.train.seeds = 2
        config.train.vary = (("optimizer.model.learning_rate", (1e-3, 1e-2)),)
    experiment = Experiment(config, devices=jax.devices()[:1])
    evaluations = make_evaluations(experiment)
    Evaluator(experiment, evaluations, workdir=tmp_path / "many")(experiment.init(), evaluations)
    assert {path.name for path in (tmp_path / "many" / "evaluations").iterdir()} == {
        f"sums-step0-value{value}-seed{seed}.jsonl" for value in (0, 1) for seed in (0, 1)
    }


def test_sources_and_targets_are_read_by_their_own_tokenizers(tmp_path):
    """In what is compared, and in a run that takes the tokenizers of another."""
    pairs, run = tmp_path / "pairs", tmp_path / "run"
    pairs.mkdir()
    (pairs / "train.de").write_text("ab\nba\n" * 8)
    (pairs / "train.en").write_text("xyz\nzy\n" * 8)
    config = make_config(CONFIG, train__duration="1 step", train__eval_every="never")
    with config.unlocked():
        config.data = text(str(pairs), pair="de-en", source_tokenizer="char", block_size=4)
        config.data.eval_split, config.data.batch_size = "none", 8
        config.evals = {"all": evaluation("translation", split="train[:2]", every="never")}
    experiment = Experiment(config, devices=jax.devices()[:1])
    assert experiment.task.model.source_vocab_size == 2 + 1
    evaluations = make_evaluations(experiment)
    Evaluator(experiment, evaluations)(experiment.init(), evaluations)
    found = [(one["source"], one["reference"]) for one in evaluations["all"].examples()]
    assert found == [("ab", "xyz"), ("ba", "zy")]
    assert all(set(one["hypothesis"]) <= set("xyz") for one in evaluations["all"].examples())

    train(config, run)
    sides = [tokenizer_of(str(run), [], side=side).characters for side in ("source", "target")]
    assert sides == ["ab", "xyz"]
    with pytest.raises(UserError, match=r"a tokenizer for each side; for pairs, give it as data\."):
        tokenizer_of(str(run), [])


def test_several_prompts_and_beams_of_generate():
    experiment = Experiment(make_config(CONFIG), devices=jax.devices()[:1])
    state = experiment.compile_inference()(experiment.init())

    def texts(prompts, **asked):
        shaped = drawing(experiment, asked)
        make, num = sample_chunks(experiment, Settings(max_new_tokens=3), 0, 0, prompts, shaped)
        made = gather(make(state))
        assert num == len(prompts)
        return [row[b:e].tolist() for row, b, e in zip(*map(made.get, ("tokens", "begin", "end")))]

    assert texts(["1+2", "3+4"], temperature=0.0) == [
        *texts(["1+2"], temperature=0.0),
        *texts(["3+4"], temperature=0.0),
    ]
    assert len(texts(["1+2", "3+4"], num_beams=2, length_penalty=0.5)) == 2
    for asked, message in (
        ({"num_beams": 2, "temperature": 0.5}, "temperature is for drawing, and num_beams=2"),
        ({"length_penalty": 0.5}, "length_penalty is for beams"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size is not for task seq2seq"),
        ({"num_beams": 0}, "num_beams=0"),
    ):
        with pytest.raises(UserError, match=message):
            drawing(experiment, asked)


def test_what_cannot_be_compared_is_refused(monkeypatch):
    def asked(family, **settings):
        config = make_config(family)
        with config.unlocked():
            config.evals = {"sums": evaluation("translation", **settings)}
        return Experiment(config, devices=jax.devices()[:1])

    for family, settings, message in (
        ("gpt", {}, "evals.sums: translation is of pairs of texts"),
        (CONFIG, {"metrics": "blue"}, 'did you mean "bleu"'),
        (CONFIG, {"tokenize": "spm"}, r"evals\.sums\.tokenize"),
        (CONFIG, {"num_beams": 0}, r"evals\.sums\.num_beams"),
    ):
        with pytest.raises(UserError, match=message):
            make_evaluations(asked(family, **settings))
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UserError, match="run: pip install sacrebleu"):
        make_evaluations(asked(CONFIG))
    make_evaluations(asked(CONFIG, metrics="exact_match"))
