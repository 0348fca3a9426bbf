"""The laws of generation from prompts: its settings, its beams, its guesses, its programs."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.errors import UserError
from aigc_jax.generate.options import Options, make
from aigc_jax.generate.stop_strings import added_text
from aigc_jax.generate.text import TextGenerator
from aigc_jax.interop import huggingface as hf
from aigc_jax.models.transformer import BERT, GPT
from aigc_jax.tasks.masked_lm import MaskedLM
from aigc_jax.tasks.task import Settings

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2" / "plain"
EXPECTED = dict(np.load(GOLDEN / "expected.npz"))
KEY = jax.random.key(5)
VOCAB, BLOCK = 37, 32
GREEDY = Options(do_sample=False, temperature=1.0, max_new_tokens=12)
PROMPTS = [np.array(p, np.int32) for p in ([7, 5, 9], [11], [20, 21, 22, 23, 24], [5, 5])]


@functools.cache
def generator():
    found = hf.read(GOLDEN)
    return TextGenerator(GPT(**{**found.fields, "dropout": 0.0}))


@functools.cache
def variables():
    return {"params": jax.tree.map(jnp.asarray, hf.read(GOLDEN).parameters)}


def run(prompts, options, **more):
    return generator()(variables(), prompts, options, KEY, **more)


def log_probs(text) -> float:
    """Of the new tokens, by one pass over the whole text."""
    padded = np.zeros((1, BLOCK), np.int32)
    padded[0, : len(text.tokens)] = text.tokens
    logits = forward()(variables(), padded)[0]
    found = jax.nn.log_softmax(logits[: len(text.tokens) - 1])
    begin = len(text.tokens) - text.new
    return np.asarray(found)[np.arange(begin - 1, len(text.tokens) - 1), text.tokens[begin:]]


@functools.cache
def forward():
    return jax.jit(generator().model.apply)


@pytest.mark.parametrize("name", ["beam3", "beam4_early", "beam3_never", "beam2_short"])
def test_beams_are_those_of_transformers(name):
    asked = {
        "beam3": {"num_beams": 3},
        "beam4_early": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 2},
        "beam3_never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        "beam2_short": {"num_beams": 2, "length_penalty": -1.0},
    }[name]
    end = int(EXPECTED["end"])
    options = make({"max_new_tokens": 20, "eos_token_id": end, **asked}, VOCAB)
    found = run(list(EXPECTED["tokens"][:, :5].astype(np.int32)), options)
    for text, tokens, score in zip(
        found, EXPECTED[f"{name}/sequences"], EXPECTED[f"{name}/scores"], strict=True
    ):
        np.testing.assert_array_equal(text.tokens, tokens[: len(text.tokens)])
        assert (tokens[len(text.tokens) :] == end).all()  # their padding
        assert text.score == pytest.approx(score, abs=1e-5)


def test_beams_of_many_prompts_are_those_of_each_and_score_no_less_than_greedy():
    options = Options(num_beams=3, max_new_tokens=8, length_penalty=0.0)
    together = run(PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = run([prompt], options)
        np.testing.assert_array_equal(together[row].tokens, alone.tokens)
        (greedy,) = run([prompt], Options(temperature=0.0, max_new_tokens=8))
        assert alone.score >= log_probs(greedy).sum() - 1e-5
        assert alone.score == pytest.approx(log_probs(alone).sum(), abs=1e-4)


def test_one_beam_the_first_of_top_k_and_guessed_tokens_are_greedy():
    greedy = run(PROMPTS, GREEDY)
    ways = [
        Options(num_beams=1, temperature=0.0, max_new_tokens=12),
        Options(top_k=1, max_new_tokens=12),
        Options(prompt_lookup_num_tokens=3, max_new_tokens=12),
    ]
    for options in ways:
        for text, expected in zip(run(PROMPTS, options), greedy, strict=True):
            np.testing.assert_array_equal(text.tokens, expected.tokens)
            assert text.new == expected.new == 12


def test_guessed_tokens_stop_at_the_end_token_too():
    free = run(PROMPTS, GREEDY)
    end = int(free[0].tokens[len(PROMPTS[0]) + 4])
    stopped, guessed = (
        run(PROMPTS, Options(eos_token_id=(end, 2), max_new_tokens=12, **how))
        for how in ({"temperature": 0.0}, {"prompt_lookup_num_tokens": 5})
    )
    assert stopped[0].new <= 5
    for text, expected in zip(guessed, stopped, strict=True):
        np.testing.assert_array_equal(text.tokens, expected.tokens)


def test_a_repeating_text_takes_fewer_passes():
    generator = TextGenerator(GPT(VOCAB, 64, num_layers=1, num_heads=1, embed_dim=8))
    tokens = jnp.zeros((1, 4), jnp.int32)
    zeros = jax.tree.map(jnp.zeros_like, generator.model.init(KEY, tokens))  # token 0 every time
    found = generator._speculate(
        zeros, tokens, jnp.array([4]), jnp.array([-1]), 40, guesses=7, capacity=40, size=64
    )
    assert found.lengths[0] == 40
    assert found.passes <= 6


def test_prompts_together_and_alone_give_the_same_texts():
    options = Options(max_new_tokens=40, temperature=1.0, top_p=0.9)  # past the context
    together = run(PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = run([prompt], options, ids=[row])
        np.testing.assert_array_equal(together[row].tokens, alone.tokens)
        assert alone.new == 40


def test_no_second_program_for_another_prompt_temperature_or_number_of_tokens():
    generator = TextGenerator(generator_model())
    first = Options(max_new_tokens=9, temperature=0.7, eos_token_id=(1,))
    generator(variables(), [PROMPTS[0]], first, KEY)
    others = [
        (PROMPTS[2], Options(max_new_tokens=9, temperature=1.2, top_k=3, eos_token_id=(4,))),
        (PROMPTS[1], Options(max_new_tokens=12, top_p=0.5, min_p=0.1)),
        (PROMPTS[3], GREEDY),
    ]
    for prompt, options in others:
        generator(variables(), [prompt], options, jax.random.key(8))
        list(generator.stream(variables(), [prompt], options, KEY))
    assert generator._start._cache_size() == 1
    assert generator._advance._cache_size() == 1


def generator_model():
    return generator().model


def test_a_stream_yields_what_a_call_returns():
    end = int(run(PROMPTS, GREEDY)[0].tokens[len(PROMPTS[0]) + 3])
    options = Options(max_new_tokens=12, temperature=0.9, eos_token_id=(end,))
    rows = list(generator().stream(variables(), PROMPTS, options, KEY))
    for row, text in enumerate(run(PROMPTS, options)):
        streamed = [tokens[row] for tokens in rows if tokens[row] is not None]
        np.testing.assert_array_equal(streamed, text.tokens[len(PROMPTS[row]) :])


def test_log_probs_are_those_of_one_pass():
    options = Options(max_new_tokens=10, temperature=0.9, top_k=9, log_probs=True)
    for text in run(PROMPTS, options):
        np.testing.assert_allclose(text.log_probs, log_probs(text), atol=1e-5)


def test_a_text_ends_with_its_stop_string():
    def decode(tokens):
        return "".join(f"<{t}>" for t in tokens)

    free = run(PROMPTS, GREEDY, decode=decode)
    first, second = free[0].tokens[len(PROMPTS[0]) :][4:6]
    options = make(
        {"stop_strings": f"{first}><{second}>", "do_sample": False, "max_new_tokens": 12}, VOCAB
    )
    for text, whole in zip(run(PROMPTS, options, decode=decode), free, strict=True):
        new = decode(text.tokens[-text.new :])
        np.testing.assert_array_equal(text.tokens, whole.tokens[: len(text.tokens)])
        assert new.count(options.stop_strings[0]) == (text.new < 12 or new.endswith(f"{second}>"))
    assert run(PROMPTS[:1], options, decode=decode)[0].new <= 6


def test_a_stop_string_may_begin_with_the_space_behind_the_prompt():
    """Decoders leave out the space before the first token of what they are given."""

    def decode(tokens):
        return " ".join(f"<{t}>" for t in tokens)

    first = run(PROMPTS[:1], GREEDY)[0].tokens[len(PROMPTS[0])]
    options = dataclasses.replace(GREEDY, stop_strings=(f" <{first}>",))
    assert run(PROMPTS[:1], options, decode=decode)[0].new == 1
    assert added_text(PROMPTS[0], np.array([4, 6]), decode) == " <4> <6>"


def test_nothing_asked_of_a_model_that_fills_masks_is_nothing():
    model = BERT(9, 4, num_layers=1, num_heads=1, embed_dim=4)
    task = MaskedLM(model, {"model": optax.sgd(0.1)}, 8)
    state = jax.eval_shape(task.init, KEY, {"tokens": jnp.zeros((1, 5), jnp.int32)})
    made = task.generate(state, KEY, jnp.arange(2), {}, Settings(max_new_tokens=0))
    assert made["tokens"].shape == (2, 0)
    np.testing.assert_array_equal(made["lengths"], [0, 0])


def test_drawn_tokens_come_as_often_as_the_softmax_says():
    num, prompt = 4096, PROMPTS[0]
    options = Options(max_new_tokens=1, temperature=0.8, top_k=6, repetition_penalty=1.5)
    drawn = [int(text.tokens[-1]) for text in run([prompt] * num, options)]
    padded = np.zeros((1, BLOCK), np.int32)
    padded[0, :3] = prompt
    logits = np.array(forward()(variables(), padded)[0, 2], np.float64)
    for token in set(prompt.tolist()):
        logits[token] = logits[token] * 1.5 if logits[token] < 0 else logits[token] / 1.5
    logits = np.where(logits < np.sort(logits)[-6], -np.inf, logits / 0.8)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    counts = np.bincount(drawn, minlength=VOCAB)
    assert (counts[probabilities == 0] == 0).all()
    deviation = np.sqrt(num * probabilities * (1 - probabilities)) + 1e-9
    assert (np.abs(counts - num * probabilities) <= 4.5 * deviation).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": float("nan")}, "temperature=nan is no number; give a number in"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range; give a number in"),
        ({"num_beams": 2, "do_sample": True}, "num_beams=2 and do_sample=True"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature is for drawing, and num_beams=2"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than"),
        ({"length_penalty": 2.0}, "length_penalty is for beams"),
        ({"early_stopping": "sometimes"}, 'use True, False or "never"'),
        ({"do_sample": False, "top_k": 5}, "top_k is for drawing, and do_sample=False"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=True cannot draw at temperature=0"),
        ({"do_sample": False, "num_return_sequences": 2}, "all would be the same"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "min_new_tokens=9 is more than"),
        ({"eos_token_id": 37}, "eos_token_id: 37 is no token; they are numbers from 0 to 36"),
        ({"bad_words_ids": [[3], [99]]}, "bad_words_ids: 99 is no token"),
        ({"bad_words_ids": [[]]}, "a word has no tokens"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"prompt_lookup_num_tokens": 3, "do_sample": True}, "do not go together"),
        ({"temprature": 0.7}, 'unknown option "temprature"; did you mean "temperature"'),
        ({"top_p": 1.5}, "top_p=1.5 is out of range"),
        ({"num_beams": 2, "log_probs": True}, "num_beams=2 and log_probs do not go together"),
        ({"prompt_lookup_num_tokens": 3, "log_probs": True}, "and log_probs do not go together"),
        ({"num_beams": 0}, "num_beams=0 is out of range; give a whole number"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(given, says):
    with pytest.raises(UserError) as error:
        make(given, VOCAB)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_beams_do_not_stream_and_prompts_are_tokens_that_fit():
    with pytest.raises(UserError, match="num_beams=2 and streaming"):
        make({"num_beams": 2}, VOCAB, stream=True)
    for prompts, says in (
        ([], "there is no prompt"),
        ([[]], "the prompt is empty"),
        ([[3, 37]], "the prompt holds 37, which is no token"),
    ):
        with pytest.raises(UserError, match=says):
            run([np.array(p, np.int32) for p in prompts], GREEDY)
    long = [np.arange(30, dtype=np.int32)]
    with pytest.raises(UserError, match="30 tokens and 8 new ones are more than the 32"):
        run(long, Options(num_beams=2, max_new_tokens=8))
