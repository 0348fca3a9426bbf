"""A dialogue: the loss is that of replies, fine-tuning starts from a language model, and a reply
ends with its turn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import make_config

from aigc_jax.data.roles import RoleTokenizer, encoded
from aigc_jax.data.tokenizer import CharTokenizer, tokenizer_of
from aigc_jax.errors import UserError
from aigc_jax.experiment import Experiment
from aigc_jax.models.transformer import GPT
from aigc_jax.resume import experiment_of, restore, start_state
from aigc_jax.tasks.causal_lm import CausalLM
from aigc_jax.tasks.task import inference_state
from aigc_jax.texts import Texts
from aigc_jax.train import train

TOKENIZER = RoleTokenizer(CharTokenizer("abcdefgh"))
LENGTH = 12
MODEL = GPT(TOKENIZER.vocab_size, LENGTH, 1, num_heads=2, embed_dim=16)
TASK = CausalLM(MODEL, {"model": optax.sgd(0.1)})
CHAT = [{"role": "user", "content": "abcd"}, {"role": "assistant", "content": "efg"}]


def batch_of():
    ids, learnt = encoded(TOKENIZER, CHAT)
    more = np.array([TOKENIZER.role_token("user"), 0])
    tokens = np.concatenate([ids, more])[None]
    assert tokens.shape[1] == LENGTH + 1
    weights = np.concatenate([learnt, [0, 0]])[None, 1:]
    segments = np.array([[1] * len(ids) + [2] * 2])
    names = ("tokens", "weights", "segments", "id", "mask")
    values = (tokens, weights, segments, np.arange(1), np.ones(1, np.float32))
    return {name: jnp.asarray(value) for name, value in zip(names, values)}


@pytest.fixture(scope="module")
def step():
    return jax.jit(TASK.train_step)


def test_the_loss_is_that_of_the_reply_and_user_s_words_are_no_target(step):
    batch = batch_of()
    state = TASK.init(jax.random.key(0), batch)
    new, metrics = step(state, batch, jax.random.key(1))
    tokens = batch["tokens"]
    logits = MODEL.apply(
        state.networks["model"].variables(), tokens[:, :-1], None, batch["segments"][:, :-1]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])[0]
    # user a b c d end assistant | e f g end | user a: the four after the assistant's role.
    np.testing.assert_allclose(metrics.loss.total, loss[6:10].sum(), rtol=1e-5)
    assert metrics.loss.count == 4
    found = TASK.eval_step(inference_state(state), batch, jax.random.key(0))
    np.testing.assert_allclose(found.loss.total, loss[6:10].sum(), rtol=1e-5)
    each = TASK.predict(inference_state(state), batch, jax.random.key(0))["loss"]
    np.testing.assert_allclose(each[0], loss[6:10].mean(), rtol=1e-5)
    # The last token is a target alone, and the user's: another one changes no loss and no gradient.
    other, same = step(state, {**batch, "tokens": tokens.at[0, -1].set(3)}, jax.random.key(1))
    assert same.loss.total == metrics.loss.total
    jax.tree.map(np.testing.assert_array_equal, other.networks, new.networks)
    # A word of the reply is a target: another one changes both.
    other, less = step(state, {**batch, "tokens": tokens.at[0, 9].set(0)}, jax.random.key(1))
    assert less.loss.total != metrics.loss.total


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The WORKDIR of one of characters, two steps old."""
    workdir = tmp_path_factory.mktemp("dialogue") / "lm"
    train(make_config("gpt", data__split="train[:3000]", train__duration="2 steps"), workdir)
    return workdir


@pytest.fixture(scope="module")
def dialogue(language_model):
    """An experiment on conversations in the model's words."""
    chats = '[{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No."}]\n'
    file = language_model.parent / "chats.jsonl"
    file.write_text(chats * 40)
    config = make_config("gpt", train__init_from=str(language_model))
    config.data.source, config.data.documents = str(file), "messages"
    config.data.split, config.data.eval_split = "train", ""
    config.data.tokenizer = str(language_model)
    return Experiment(config)


def test_fine_tuning_takes_all_of_a_language_model(language_model, dialogue, capsys):
    experiment = experiment_of(make_config("gpt"), language_model)
    words = experiment.data.tokenizer
    before = dict(restore(experiment, language_model).networks["model"].params)
    assert dialogue.data.tokenizer == RoleTokenizer(words)
    capsys.readouterr()
    params = dict(start_state(dialogue).networks["model"].params)
    told = "".join(capsys.readouterr())
    assert "not taken" not in told
    assert "warning" not in told
    table, old = params.pop("token_embedding"), before.pop("token_embedding")
    np.testing.assert_array_equal(table[: words.vocab_size], old)
    assert len(table) == words.vocab_size + 4
    assert np.abs(table[words.vocab_size :]).max(axis=1).min() > 0
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_vocabulary_of_other_words_is_told(language_model, tmp_path, capsys):
    size = tokenizer_of(str(language_model), ()).vocab_size
    file = tmp_path / "others.txt"
    file.write_text("".join(chr(0x4E00 + i) for i in range(size)) * 10)
    config = make_config("gpt", train__init_from=str(language_model), data__source=str(file))
    config.data.split, config.data.eval_split = "train", ""
    start_state(Experiment(config))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "has another tokenizer: its tokens mean something else" in said
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a run without a tokenizer"):
        tokenizer_of(str(tmp_path), ())


def test_a_prompt_is_framed_and_a_reply_ends_with_its_turn(language_model, dialogue):
    tokenizer, state = dialogue.data.tokenizer, inference_state(dialogue.init())
    asked = {"max_new_tokens": 8, "temperature": 0.0}
    texts = Texts(dialogue, language_model, asked, ["Is it?"])
    assert texts.options.eos_token_id == (tokenizer.end_token,)
    np.testing.assert_array_equal(texts.prompts[0], tokenizer.frame("Is it?"))
    # Every token ends the turn, so that the first one does.
    every = [*range(tokenizer.vocab_size)]
    (made,) = Texts(dialogue, language_model, {**asked, "eos_token_id": every}, ["Is it?"])(state)
    assert made["lengths"] == 1
    assert tokenizer.decode(made["tokens"][0, : made["end"][0]]).startswith("user: Is it?\nassist")
    start = Texts(dialogue, language_model, asked)
    np.testing.assert_array_equal(start.prompts[0], tokenizer.start)


def test_a_long_prompt_is_cut_or_refused(language_model, capsys):
    experiment = experiment_of(make_config("gpt"), language_model)
    asked = {"max_new_tokens": 2}
    with pytest.raises(
        UserError, match="the prompt has 30 tokens, and the model sees 16; give less"
    ):
        Texts(experiment, language_model, {**asked, "long_prompts": "refuse"}, ["a" * 30])
    capsys.readouterr()
    texts = Texts(experiment, language_model, asked, ["a" * 30, "b", "a" * 20])
    told = "".join(capsys.readouterr())
    assert "2 of the prompts have up to 30 tokens, and the model sees 16" in told
    assert "it goes on from the last 16" in told
    assert texts.num == 3
    with pytest.raises(UserError, match="long_prompts=cut: use truncate or refuse"):
        Texts(experiment, language_model, {"long_prompts": "cut"}, ["a"])
