"""Tokenizers of the `tokenizers` library: byte-level BPE trained here, and those of others."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from aigc_jax.data import encoding
from aigc_jax.errors import UserError, first_line, printable

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_MASKS = ("[MASK]", "<mask>")
LEAST = 257  # tokens: the bytes and the end of a text
MOST = 2**20
_PIECE = 1 << 16  # characters encoded at a time
# Places where a byte-level text can be cut: the library's rule for words ends one there, whatever
# follows, so the tokens of the parts are those of the whole.
_CUT = re.compile(r"(?<=\w)(?= \w)|(?<=\w\n)(?=\w)")


@dataclass(frozen=True)
class SubwordTokenizer:
    """Pieces of words, by a model of the `tokenizers` library.

    Attributes:
        definition: what `tokenizer.json` holds.
    """

    definition: str

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: some vocabularies have holes."""
        return len(self._begins)

    @property
    def end_token(self) -> int | None:
        """What ends a document; None where the vocabulary has nothing for it."""
        return self._special(_ENDS)

    @property
    def mask_token(self) -> int | None:
        """What stands for a masked token; None where the vocabulary has nothing for it."""
        return self._special(_MASKS)

    def encode(self, text: str, dtype: Any = np.int32) -> Integer[np.ndarray, "length"]:
        """The ids; nothing is put before or after the text.

        Raises `UserError` for half of a surrogate pair, and for characters that the vocabulary
        lacks where it has no token for unknown ones either: the library would leave them out.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = printable(text[error.start])
            raise UserError(
                f"the text holds {half} at {error.start}: half of a surrogate pair, no character"
            ) from None
        parts = _cut(text) if self._byte_level else [text]
        found = self._library.encode_batch_fast(parts, add_special_tokens=False)
        ids = np.concatenate([np.asarray(one.ids, dtype) for one in found])
        if self._drops and len(text):
            self._check_whole(text)
        return ids

    def boundary(self, ids: Integer[np.ndarray, "length"], place: int) -> int:
        """The last place up to `place` where a token and a character begin."""
        for start in range(place, max(place - 16, -1), -1):
            if start == len(ids) or self._begins[ids[start]]:
                return start
        return place

    def last_cut(self, text: str) -> int:
        """The last place in the last part of a text where it can be cut so that the tokens of both
        sides are those of the whole; 0 if there is none. A text of a tokenizer that is not
        GPT-2's kind is cut at its end."""
        if not self._byte_level:
            return len(text)
        start = max(len(text) - 4096, 0)
        return max((found.start() for found in _CUT.finditer(text, start)), default=0)

    def decode(self, ids: Sequence[int] | Integer[Any, "length"]) -> str:
        """Bytes that are not UTF-8, which a model may well emit, become U+FFFD."""
        return self._library.decode(np.asarray(ids, int).tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        return json.dumps({"kind": "subwords", "definition": self.definition})

    def frame(self) -> tuple[list[int], list[int]]:
        """What the vocabulary's authors put before and after one text, as BERT's [CLS] and [SEP]:
        ids, mostly none."""
        plain, whole = (
            self._library.encode("a", add_special_tokens=special).ids for special in (False, True)
        )
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        return [], []

    def with_mask(self, vocab_size: int) -> "SubwordTokenizer":
        """The tokenizer, with a mask as its last token where a model of `vocab_size` tokens has one
        more than it."""
        from tokenizers import Tokenizer

        if self.vocab_size + 1 != vocab_size:
            return self
        library = Tokenizer.from_str(self.definition)
        library.add_special_tokens([_MASKS[0]])
        if library.token_to_id(_MASKS[0]) != vocab_size - 1:  # the ids have holes
            return self
        return SubwordTokenizer(library.to_str())

    def described(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says of it."""
        tokens = {"mask_token": self.mask_token, "eos_token": self.end_token}
        named = {n: self._library.id_to_token(i) for n, i in tokens.items() if i is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", **named}

    def _special(self, names):
        ids = (self._library.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def _check_whole(self, text):
        """Every character, but for white space, is in a token."""
        missing = set(text)
        for start, stop in self._library.encode(text, add_special_tokens=False).offsets:
            missing -= set(text[start:stop])
        missing = sorted(c for c in missing if not c.isspace())
        if missing:
            shown = "".join(printable(c) for c in missing[:20])
            raise UserError(
                f"the text holds {len(missing)} characters outside the vocabulary, which has no "
                f'token for unknown ones: "{shown}"'
            )

    @cached_property
    def _library(self):
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises nothing else
            raise UserError(f"this is no tokenizer.json: {first_line(error)}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _parts(self) -> dict[str, Any]:
        return json.loads(self.definition)

    @cached_property
    def _byte_level(self) -> bool:
        """Whether words are what GPT-2 takes for them, so that `_CUT` holds."""
        before = self._parts.get("pre_tokenizer") or {}
        plain = before.get("type") == "ByteLevel" and before.get("use_regex", True)
        return plain and not before.get("add_prefix_space") and not self._parts.get("normalizer")

    @cached_property
    def _drops(self) -> bool:
        """Whether the library leaves unknown characters out."""
        model = self._parts.get("model", {})
        bytes_too = "ByteLevel" in json.dumps(self._parts.get("pre_tokenizer"))
        known = model.get("unk_token") is not None or model.get("unk_id") is not None
        return not (bytes_too or known or model.get("byte_fallback"))

    @cached_property
    def sizes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of each id the bytes that it stands for, and how many characters begin with them; one
        that ends a document or masks stands for none. None where tokens are no strings of bytes."""
        if not self._byte_level:
            return None
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        sizes = np.zeros((2, max(vocabulary.values(), default=-1) + 1), np.int64)
        written = self._library.get_added_tokens_decoder()  # as they are, not byte by byte
        for token, i in vocabulary.items():
            if i in written:
                sizes[:, i] = len(token.encode()), len(token)
            else:
                sizes[:, i] = len(token), sum(c not in self._later for c in token)
        for none in (self.end_token, self.mask_token):
            if none is not None:
                sizes[:, none] = 0
        return sizes[0], sizes[1]

    @cached_property
    def _later(self) -> set[str]:
        return {chr(c) for c in _later_bytes()}

    @cached_property
    def _begins(self) -> np.ndarray:
        """Of each id, whether its first byte begins a character."""
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        begins = np.ones(max(vocabulary.values(), default=-1) + 1, bool)
        later = self._later if self._byte_level else set()
        for token, i in vocabulary.items():
            in_hex = re.fullmatch("<0x([0-9A-F]{2})>", token)
            if in_hex:
                begins[i] = int(in_hex[1], 16) & 0xC0 != 0x80
            elif token[:1] in later:
                begins[i] = False
        return begins


def train(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2): the 256 bytes, the
    end of a text, and the most frequent pairs, joined one after the other. Any text can be encoded
    and comes back as it was. The same texts give the same tokenizer.

    Args:
        texts: what to learn from; pairs that occur once are not joined, so a short text may give
            fewer tokens than asked for.
        vocab_size: tokens, `LEAST` to `MOST`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def read(path: Path) -> SubwordTokenizer:
    """A `tokenizer.json`, or a folder with one, or with GPT-2's `encoder.json` and `vocab.bpe` (or
    the same files as `vocab.json` and `merges.txt`), or with BERT's `vocab.txt`.

    Raises:
        UserError: there is none, or the library cannot read it.
    """
    try:
        if path.is_file():
            return _checked(_text(path), path)
        if (path / "tokenizer.json").is_file():
            return _checked(_text(path / "tokenizer.json"), path)
        for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            if (path / vocabulary).is_file() and (path / merges).is_file():
                return _gpt2(path / vocabulary, path / merges)
        if (path / "vocab.txt").is_file():
            return _bert(path)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {printable(path)}: {error}") from error
    raise UserError(
        f"{printable(path)} holds no tokenizer: no tokenizer.json, nor encoder.json and vocab.bpe, "
        "nor vocab.txt"
    )


def _gpt2(vocabulary: Path, merges: Path) -> SubwordTokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises nothing else
        raise UserError(
            f"cannot read {printable(vocabulary)} and {merges.name}: {first_line(error)}"
        ) from None
    tokenizer = Tokenizer(model)
    (spaced,) = _switches(vocabulary.parent, add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return SubwordTokenizer(tokenizer.to_str())


def _switches(folder: Path, **defaults: bool | None) -> list[Any]:
    """Those of `tokenizer_config.json`, or the defaults where it has none, or is not there."""
    path = folder / "tokenizer_config.json"
    try:
        stored = json.loads(_text(path)) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {printable(path)}: {first_line(error)}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{printable(path)} is no JSON object")
    found = []
    for name, default in defaults.items():
        value = stored.get(name)
        if not isinstance(value, bool | None):
            is_ = f"{name}={printable(value)} is neither true nor false"
            raise UserError(f"{printable(path)}: {is_}")
        found.append(default if value is None else value)
    return found


def _bert(folder: Path) -> SubwordTokenizer:
    """WordPiece (Devlin et al. 2019) of a `vocab.txt`, a token a line; whether it knows capitals
    stands in `tokenizer_config.json`, and without one it does not."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = _text(folder / "vocab.txt").removesuffix("\n").split("\n")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if lacking := [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in vocabulary]:
        raise UserError(f"{printable(folder / 'vocab.txt')} lacks {', '.join(lacking)}")
    chinese, accents, lower = _switches(
        folder, tokenize_chinese_chars=True, strip_accents=None, do_lower_case=True
    )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(  # pyright: ignore
        handle_chinese_chars=chinese,
        strip_accents=accents,
        lowercase=lower,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    tokenizer.decoder = decoders.WordPiece()  # pyright: ignore
    ends = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)  # pyright: ignore
    special = [t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocabulary]
    tokenizer.add_special_tokens(special)
    return SubwordTokenizer(tokenizer.to_str())


def _text(path: Path) -> str:
    return encoding.decode(path.read_bytes(), str(path))


def _checked(definition: str, path: Path) -> SubwordTokenizer:
    tokenizer = SubwordTokenizer(definition)
    try:
        size = tokenizer.vocab_size
    except UserError as error:
        raise UserError(f"{printable(path)}: {error}") from None
    if not size:
        raise UserError(f"{printable(path)}: its vocabulary is empty")
    return tokenizer


def _cut(text: str) -> list[str]:
    """The text in parts of about `_PIECE` characters, whose tokens are those of the whole."""
    parts, start = [], 0
    while len(text) - start > _PIECE:
        place = _CUT.search(text, start + _PIECE)
        if place is None:
            break
        parts.append(text[start : place.start()])
        start = place.start()
    return [*parts, text[start:]]


def _later_bytes() -> list[int]:
    """The characters by which GPT-2 writes the bytes 0x80 to 0xBF, which begin no character: those
    that are printed in Latin 1 stand for themselves, the others for 256 and on, in their order."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in printed]
    return [b if b in printed else 256 + others.index(b) for b in range(0x80, 0xC0)]
