"""What can be asked of a text generation: Hugging Face's names, and which of them go together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aigc_jax import ranges
from aigc_jax.errors import UserError, nearest, printable

WHOLE = ranges.Range(0, 2**22, "[]", whole=True)
POSITIVE = ranges.Range(1, 2**16, "[]", whole=True)
RANGES: dict[str, Any] = {
    "max_new_tokens": WHOLE,
    "min_new_tokens": WHOLE,
    "temperature": ranges.Range(0.0),
    "top_k": WHOLE,
    "top_p": ranges.Range(0.0, 1.0, "[]"),
    "min_p": ranges.Range(0.0, 1.0, "[]"),
    "repetition_penalty": ranges.Range(0.0, 1e6, "(]"),
    "no_repeat_ngram_size": ranges.Range(0, 2**10, "[]", whole=True),
    "num_beams": ranges.Range(1, 2**8, "[]", whole=True),
    "length_penalty": ranges.Range(-1e3, 1e3, "[]"),
    "num_return_sequences": POSITIVE,
    "prompt_lookup_num_tokens": ranges.Range(0, 2**8, "[]", whole=True),
}


@dataclass(frozen=True)
class Options:
    """How texts are drawn. Every name means what it means to Hugging Face's `generate`.

    Attributes:
        max_new_tokens: tokens to add to a prompt, at most.
        min_new_tokens: no end token before so many.
        do_sample: draw; False takes the likeliest token every time, None does so at temperature 0
            and with beams and draws otherwise.
        temperature: the logits are divided by it.
        top_k: draw among the k likeliest tokens; 0: among all.
        top_p: draw among the likeliest tokens that together have this probability.
        min_p: draw among the tokens that are at least so likely, as a share of the likeliest one's
            probability (Nguyen et al. 2024).
        repetition_penalty: logits of tokens that the text or its prompt holds are divided by it,
            negative ones multiplied (Keskar et al. 2019, section 4.1); 1: none.
        no_repeat_ngram_size: no sequence of so many tokens comes twice; 0: any may.
        bad_words_ids: sequences of tokens that do not come. One that is a single end token is none
            of them: `min_new_tokens` is for that.
        num_beams: of beam search; 1: none.
        length_penalty: a beam's score is the sum of its log-probabilities divided by its new tokens
            to this power.
        early_stopping: of beams: True stops at `num_beams` ended ones, False where the best running
            one is unlikely to become better, "never" where it cannot.
        num_return_sequences: texts for each prompt.
        eos_token_id: a token, or several, that end a text.
        stop_strings: texts that end a text; they belong to it.
        prompt_lookup_num_tokens: tokens guessed from the text so far and checked at once; 0: none.
            The text is that without.
        long_prompts: what becomes of a prompt that is longer than the context: "truncate" lets the
            model see its end, "refuse" makes none.
        log_probs: whether the tokens' log-probabilities are asked for.
    """

    max_new_tokens: int = 500
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    eos_token_id: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    prompt_lookup_num_tokens: int = 0
    long_prompts: str = "truncate"
    log_probs: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        if self.do_sample is not None:
            return not self.do_sample
        return self.temperature == 0 or self.num_beams > 1 or self.prompt_lookup_num_tokens > 0


def make(given: Mapping[str, Any], vocab_size: int, stream: bool = False) -> Options:
    """The options that are given; None stands for what was not.

    Args:
        given: by name.
        vocab_size: tokens are numbers below it.
        stream: whether tokens are to come one by one.

    Raises:
        UserError: an unknown name, a value out of its range, or two that contradict each other.
    """
    given = {name: value for name, value in given.items() if value is not None}
    known = {field.name: field.default for field in dataclasses.fields(Options)}
    for name, value in given.items():
        if name not in known:
            raise UserError(f'unknown option "{printable(name)}"{nearest(name, known)}')
        if name in RANGES:
            _check_number(name, value)
        elif isinstance(known[name], bool) and name != "early_stopping":
            _check_switch(name, value)
    if given.get("do_sample") is not None:
        _check_switch("do_sample", given["do_sample"])
    if "eos_token_id" in given:
        given["eos_token_id"] = _tokens("eos_token_id", given["eos_token_id"], vocab_size)
    if "bad_words_ids" in given:
        given["bad_words_ids"] = _words(given["bad_words_ids"], vocab_size)
    if "stop_strings" in given:
        given["stop_strings"] = _strings(given["stop_strings"])
    if given.get("early_stopping", False) not in (True, False, "never"):
        raise UserError(
            f'early_stopping={printable(given["early_stopping"])}: use True, False or "never"'
        )
    if given.get("long_prompts", "refuse") not in ("truncate", "refuse"):
        raise UserError(f"long_prompts={printable(given['long_prompts'])}: use truncate or refuse")
    options = Options(**given)
    _check_together(options, {n for n, v in given.items() if v != known[n]}, stream)
    return options


def _check_together(options: Options, changed: set[str], stream: bool) -> None:
    draws = sorted(changed & {"temperature", "top_k", "top_p", "min_p"})
    if "temperature" in draws and options.temperature == 0:
        draws.remove("temperature")
    if options.greedy and draws:
        why = "do_sample=False" if options.do_sample is False else "taking the likeliest token"
        if options.num_beams > 1:
            why = f"num_beams={options.num_beams}"
        elif options.prompt_lookup_num_tokens and options.do_sample is None:
            why = "prompt_lookup_num_tokens"
        raise UserError(
            f"{draws[0]} is for drawing, and {why} draws nothing; leave one of them out"
        )
    if options.do_sample and options.temperature == 0:
        raise UserError("do_sample=True cannot draw at temperature=0; leave one of them out")
    if options.min_new_tokens > options.max_new_tokens:
        raise UserError(
            f"min_new_tokens={options.min_new_tokens} is more than "
            f"max_new_tokens={options.max_new_tokens}"
        )
    beams = options.num_beams
    if beams > 1:
        refused = {
            "do_sample=True": options.do_sample,
            "streaming": stream,
            "prompt_lookup_num_tokens": options.prompt_lookup_num_tokens,
            "stop_strings": options.stop_strings,
            "log_probs": options.log_probs,
        }
        for name, asked in refused.items():
            if asked:
                raise UserError(f"num_beams={beams} and {name} do not go together")
        if options.num_return_sequences > beams:
            raise UserError(
                f"num_return_sequences={options.num_return_sequences} is more than "
                f"num_beams={beams}"
            )
    else:
        for name in ("length_penalty", "early_stopping"):
            if name in changed:
                raise UserError(f"{name} is for beams; set num_beams to 2 or more")
        if options.greedy and options.num_return_sequences > 1:
            raise UserError(
                f"num_return_sequences={options.num_return_sequences}: without drawing and without "
                "beams all would be the same"
            )
    if options.prompt_lookup_num_tokens:
        if options.do_sample:
            raise UserError("prompt_lookup_num_tokens and do_sample=True do not go together")
        alone = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_new_tokens")
        for name in (*alone, "stop_strings", "log_probs"):
            if name in changed:
                raise UserError(f"prompt_lookup_num_tokens and {name} do not go together")
        if stream:
            raise UserError("prompt_lookup_num_tokens and streaming do not go together")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{name}=nan is no number; give {RANGES[name]}")
    ranges.check(value, RANGES[name], name)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name}={printable(value)}: use True or False")


def _tokens(name: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    ids = (value,) if isinstance(value, int) else value
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise UserError(f"{name}={printable(value)}: use a token's number, or several")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise UserError(
                f"{name}: {printable(token)} is no token; they are numbers from 0 to "
                f"{vocab_size - 1}"
            )
    return tuple(ids)


def _words(value: Any, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"bad_words_ids={printable(value)}: use a list of lists of tokens")
    words = tuple(_tokens("bad_words_ids", word, vocab_size) for word in value)
    if not all(words):
        raise UserError("bad_words_ids: a word has no tokens")
    return words


def _strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(s, str) and s for s in strings):
        raise UserError(f"stop_strings={printable(value)}: use texts that are not empty")
    return tuple(strings)
