"""Texts as streams of token ids, made once: in memory, or in a memory-mapped file.

A text comes in pieces, each with whether a document begins with it, and can be read again and
again; so a corpus larger than memory passes through a few megabytes on its way to the file.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from aigc_jax import progress
from aigc_jax.data import cache
from aigc_jax.data.examples import Arrays, Source, fractions, in_memory
from aigc_jax.data.subwords import SubwordTokenizer
from aigc_jax.data.tokenizer import Tokenizer, from_json, tokenizer_of
from aigc_jax.errors import UserError, nearest, printable
from aigc_jax.paths import expand

Pieces = Callable[[], Iterator[tuple[bool, str]]]
"""The text of a split, from its beginning: (whether a document begins here, some of the text)."""

BY_FILE = "files"
_DOCUMENTS = (BY_FILE, "blank_lines")
BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


class Stored(NamedTuple):
    """Where the tokens of a text are kept on disk.

    Attributes:
        name: of the text, for the file's name.
        made_of: JSON values that change when the text does.
        large: whether it may be larger than memory.
    """

    name: str
    made_of: Mapping[str, Any]
    large: bool = False


def of_text(
    texts: Mapping[str, str | Pieces],
    tokenizer: str,
    identity: dict,
    about: str,
    documents: str = "",
    stored: Stored | None = None,
) -> Source:
    """The tokens of some texts, one a split. Each is tokenised once, whole.

    A text without a split's name (`""`) becomes all three: its tokens are cut after 90 % and 95 %,
    between two characters, so no split begins with half of one.

    Args:
        texts: split -> text.
        tokenizer: see `tokenizer_of`. A `char` vocabulary is that of all texts; BPE is trained on
            the split `train` (or the others but `test`, where there is none), or on the first 90 %
            of the characters of a text that becomes all three.
        identity: of the source.
        about: what was found; the splits and the tokenizer are added.
        documents: where documents end (`split_documents`); "" makes each text one stream. With it
            the source has a second feature, `begins`: whether a token is the first of a document.
            Where the tokenizer has an end token, one stands before and one after every document,
            so that a model learns how documents begin and end.
        stored: where tokens are kept that take long to make; None keeps none.

    Raises:
        UserError: `documents` is a separator that is nowhere in the texts.
    """
    _check_separator(texts, documents)
    pieces = {split: split_documents(text, documents) for split, text in texts.items()}
    keep = stored is not None and (stored.large or tokenizer not in ("char", "byte"))
    if keep:
        assert stored is not None
        made_of = {
            **stored.made_of,
            "tokenizer": named_tokenizer(tokenizer),
            "documents": documents,
        }
        made_of["format"] = 2
        with progress.waiting("tokenising"):
            arrays = cache.cached(
                stored.name,
                made_of,
                lambda: _build(pieces, tokenizer, bool(documents), stored.large),
            )
    else:
        with progress.waiting("tokenising"):
            arrays = _build(pieces, tokenizer, bool(documents), False)
    made = from_json(arrays["tokenizer"].tobytes().decode())
    found: dict[str, Arrays] = {}
    for name, array in arrays.items():
        feature, _, split = name.partition(":")
        if feature != "tokenizer":
            found.setdefault(split, {})[feature] = array
    how = "as the files are named"
    if "" in found:
        whole, how = found[""], "cut in a row"
        found = {
            split: {name: x[slice(*_boundaries(made, whole, places))] for name, x in whole.items()}
            for split, places in fractions(len(whole["tokens"])).items()
        }
    sizes = ", ".join(f"{split} {len(of['tokens']):,}" for split, of in found.items())
    if documents:
        number = sum(int(np.count_nonzero(x)) for n, x in arrays.items() if "begins" in n)
        about = f"{about}; {number:,} documents"
    return in_memory(
        found,
        {"tokens": made.vocab_size},
        identity,
        f"{about}; {made.vocab_size:,} different tokens ({printable(tokenizer)}); {sizes}, {how}",
        tokenizer=made,
    )


def split_documents(text: str | Pieces, documents: str) -> Pieces:
    """The pieces of a text, its documents cut apart.

    Args:
        text: a whole text, or what reads it.
        documents: "" for one stream; "files" for what the pieces say themselves; "blank_lines" for
            paragraphs; any other text is a separator, which is left out of the documents. Documents
            without a character but white space are left out.
    """
    whole = text
    read: Pieces = (lambda: iter([(True, whole)])) if isinstance(whole, str) else whole
    if documents in ("", BY_FILE):
        return read
    pattern = BLANK_LINES if documents == "blank_lines" else re.compile(re.escape(documents))

    def cut() -> Iterator[tuple[bool, str]]:
        rest = ""
        for begins, piece in read():
            if begins and rest.strip():
                yield True, rest
            rest = piece if begins else rest + piece
            *complete, rest = pattern.split(rest)
            yield from ((True, document) for document in complete if document.strip())
        if rest.strip():
            yield True, rest

    return cut


def _check_separator(texts: Mapping[str, str | Pieces], documents: str) -> None:
    """A separator occurs in the texts. Mostly it does so soon; one that does not is misspelt."""
    if documents in ("", *_DOCUMENTS):
        return
    for text in texts.values():
        rest = ""
        for begins, piece in [(True, text)] if isinstance(text, str) else text():
            rest = piece if begins else rest[-len(documents) :] + piece
            if documents in rest:
                return
    raise UserError(
        f'data.documents="{printable(documents)}": no text holds this separator'
        f"{nearest(documents, _DOCUMENTS)}"
    )


def named_tokenizer(tokenizer: str) -> Any:
    """What a tokenizer is a function of besides the text: of files, their sizes and dates too."""
    path = expand("", tokenizer) if "/" in tokenizer or "." in tokenizer else None
    try:
        if path is None or not path.exists():
            return tokenizer
        files = [path] if path.is_file() else sorted(path.iterdir())
        return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {printable(tokenizer)}: {error.strerror}"
        ) from error


def _build(pieces: Mapping[str, Pieces], name: str, documents: bool, large: bool) -> Arrays:
    """`tokenizer`, as bytes of JSON, and `tokens:SPLIT` and `begins:SPLIT` of every split."""

    def texts() -> Iterator[str]:
        return (text for read in pieces.values() for _, text in read())

    tokenizer = tokenizer_of(name, texts(), lambda: _train_texts(pieces))
    arrays = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
    for split, read in pieces.items():
        tokens, begins = _encoded(read(), tokenizer, documents, large)
        arrays[f"tokens:{split}"] = tokens
        if documents:
            arrays[f"begins:{split}"] = begins
    return arrays


def _train_texts(pieces: Mapping[str, Pieces]) -> Iterator[str]:
    """What a tokenizer may learn from: nothing that is held out."""
    if "" not in pieces:
        splits = ["train"] if "train" in pieces else [name for name in pieces if name != "test"]
        if not splits:
            raise UserError(
                "BPE is trained on the split train, and there is the split test alone; give the "
                "path of a tokenizer.json as data.tokenizer"
            )
        yield from (text for split in splits for _, text in pieces[split]())
        return
    left = fractions(sum(len(text) for _, text in pieces[""]()))["train"][1]
    for _, text in pieces[""]():
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def _encoded(pieces, tokenizer: Tokenizer, documents: bool, large: bool):
    """The ids of all pieces in a row, and which begin a document."""
    dtype = np.min_scalar_type(max(tokenizer.vocab_size - 1, 0))
    tokens, begins = _Growing(dtype, large), _Growing(np.dtype(np.uint8), large)
    end = getattr(tokenizer, "end_token", None) if documents else None

    def add(ids: np.ndarray, begin: bool):
        tokens.add(ids)
        if documents:
            flags = np.zeros(len(ids), np.uint8)
            flags[:1] = begin
            begins.add(flags)

    mark = None if end is None else np.array([end], dtype)
    for begin, text in _cut_well(pieces, tokenizer):
        if begin and mark is not None:
            if tokens.size:
                add(mark, False)
            add(mark, True)
        add(tokenizer.encode(text, dtype), begin and mark is None)
    if mark is not None and tokens.size:
        add(mark, False)
    return tokens.array(), begins.array()


def _cut_well(pieces, tokenizer: Tokenizer) -> Iterator[tuple[bool, str]]:
    """The pieces, cut where the tokens of the parts are those of the whole."""
    if not isinstance(tokenizer, SubwordTokenizer):
        yield from pieces
        return
    first, rest = True, ""
    for begins, piece in pieces:
        if begins:
            if rest:
                yield first, rest
            first, rest = True, piece
            continue
        rest += piece
        place = tokenizer.last_cut(rest)
        if place:
            yield first, rest[:place]
            first, rest = False, rest[place:]
    if rest:
        yield first, rest


class _Growing:
    """An array that grows at its end: in memory, or in a file that vanishes with it."""

    def __init__(self, dtype: np.dtype, on_disk: bool):
        self._dtype, self.size = dtype, 0
        self._parts: list[np.ndarray] = []
        self._file = None
        if on_disk:
            folder = cache.directory()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            except OSError as error:
                raise UserError(
                    f"a large text is tokenised into {printable(folder)}, which cannot be written: "
                    f"{error.strerror}; set AIGC_CACHE_DIR"
                ) from error

    def add(self, part: np.ndarray) -> None:
        self.size += len(part)
        if self._file is not None:
            self._file.write(np.ascontiguousarray(part).data)
        else:
            self._parts.append(part)

    def array(self) -> np.ndarray:
        if self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._parts])
        self._file.flush()
        if not self.size:
            return np.empty(0, self._dtype)
        return np.memmap(self._file, self._dtype, "r", shape=(self.size,)).view(np.ndarray)


def _boundaries(tokenizer: Tokenizer, whole: Arrays, places: tuple[int, int]):
    return [tokenizer.boundary(whole["tokens"], place) for place in places]
