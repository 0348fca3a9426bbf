"""Conversations: roles and ends as tokens, replies marked, bad lines named."""

import json

import numpy as np
import pytest

from aigc_jax import config
from aigc_jax.data import messages, source
from aigc_jax.data.roles import RoleTokenizer, encoded
from aigc_jax.data.tokenizer import ByteTokenizer, CharTokenizer, from_json
from aigc_jax.errors import UserError


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


CHATS = [
    said("u hi", "a hello", "u bye", "a so long"),
    said("s Be brief.", "u Who?", "a Me."),
    *[said(f"u {i}", f"a {i + 1}") for i in range(38)],
]


def write(path, chats=CHATS):
    lines = [json.dumps(chat if i % 2 else {"messages": chat}) for i, chat in enumerate(chats)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_the_replies_and_their_ends_are_learnt_and_nothing_else():
    tokenizer = RoleTokenizer(CharTokenizer("abehilnosuy g"))
    ids, learnt = encoded(tokenizer, CHATS[0])
    assert tokenizer.decode(ids) == "user: hi\nassistant: hello\nuser: bye\nassistant: so long\n"
    kept = ids[learnt == 1]
    assert tokenizer.decode(kept) == "hello\nso long\n"
    assert (ids == tokenizer.end_token).sum() == 4
    assert not learnt[np.isin(ids, [tokenizer.role_token(r) for r in ("user", "assistant")])].any()


def test_a_prompt_is_the_user_s_turn_and_text_comes_back():
    tokenizer = RoleTokenizer(ByteTokenizer())
    framed = tokenizer.frame("你好?")
    assert tokenizer.decode(framed) == "user: 你好?\nassistant: "
    assert framed[-1] == tokenizer.start[0] == tokenizer.vocab_size - 2
    assert from_json(tokenizer.to_json()) == tokenizer
    assert tokenizer.decode([tokenizer.end_token] * 3) == "\n"
    # Within a character of three bytes there is no boundary, before and after a mark there is one.
    assert [tokenizer.boundary(framed, place) for place in range(5)] == [0, 1, 1, 1, 4]
    assert tokenizer.boundary(framed, len(framed)) == len(framed)


@pytest.mark.parametrize("folder", [False, True])
def test_files_become_windows_with_weights(tmp_path, folder):
    where = tmp_path if folder else write(tmp_path / "chats.jsonl")
    if folder:
        write(tmp_path / "train.jsonl")
        write(tmp_path / "valid.jsonl", CHATS[:4])
    section = config.text(str(where), documents="messages", tokenizer="byte", block_size=8)
    train, held_out = (source.load(section, split) for split in ("train", "validation"))
    assert set(train.features) == {"tokens", "weights", "segments"}
    batch = train.fetch(np.arange(train.size))
    assert batch["weights"].shape == (train.size, 8)
    end = train.tokenizer.end_token
    assert batch["tokens"].max() == end == 259
    # What follows a role of the assistant is learnt; so is the end of its turn, no other's.
    tokens, weights = train.arrays["tokens"], train.arrays["replies"]
    speaker = train.tokenizer.role_token("assistant")
    after = np.flatnonzero(tokens == speaker) + 1
    assert (weights[after] == 1).all()
    assert (weights[after - 1] == 0).all()
    assert (tokens == end).sum() == 2 * (weights & (tokens == end)).sum() + 1  # the system's
    begins = np.flatnonzero(train.arrays["begins"])
    assert set(tokens[begins]) <= {256, 257}
    assert len(begins) == (40 if folder else 36)
    assert held_out.arrays["begins"].sum() == (4 if folder else 2)
    assert "conversations, train" in train.about


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: no list of messages"),
        ('{"text": "hi"}', "line 2: no list of messages"),
        ('["hi"]', "line 2: message 1 is no object with role and content"),
        ('[{"role": "bot", "content": "hi"}]', 'message 1 has the role "bot"; there are system'),
        ('[{"role": "assistant", "content": null}]', "message 1 has no content that is a text"),
        (
            '[{"role": "user", "content": "a\\ud83d"}]',
            r"message 1 holds \\ud83d, half of a surrog",
        ),
        ('[{"role": "user", "content": "hi"}]', "no message of the role assistant"),
    ],
)
def test_a_bad_line_is_named(line, message):
    good = json.dumps(CHATS[0])
    with pytest.raises(UserError, match=message) as error:
        list(messages.conversations(f"{good}\n{line}\n".encode(), "chats.jsonl"))
    assert "chats.jsonl, line 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_read_are_counted(tmp_path):
    for name in ("a.jsonl", "b.json", "c.jsonl.1"):
        write(tmp_path / name)
    about = source.open_source(config.text(str(tmp_path), documents="messages")).about
    assert "; skipped: 1 .1, 1 .json; " in about


def test_folders_without_conversations_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    section = config.text(str(tmp_path), documents="messages")
    with pytest.raises(UserError, match=r"holds no conversations \(\.jsonl\); it holds 1 \.txt"):
        source.load(section, "train")
    (tmp_path / "chats.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no conversations"):
        source.load(section, "train")
