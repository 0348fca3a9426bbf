"""Pairs of texts, from one to the other: lines of two files, or made from their number.

An example is `source` and `target`, token ids, each filled up with -1 at its end.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aigc_jax.data import cache, encoding, folder
from aigc_jax.data.examples import Arrays, Feature, Source, in_memory
from aigc_jax.data.identity import Entry, identity, of_bytes
from aigc_jax.data.order import permuted
from aigc_jax.data.sides import PairTokenizer, of_side
from aigc_jax.data.synthetic import hashed
from aigc_jax.data.text import named_tokenizer
from aigc_jax.data.tokenizer import CharTokenizer, IdTokenizer, Tokenizer, from_json, tokenizer_of
from aigc_jax.errors import UserError, printable

PADDING = -1
SIDES = ("source", "target")
_HELD_OUT = 1000  # pairs of validation and of test, or a tenth where there are few
_MOST = 1 << 20  # training pairs that are made
_DRAWS = 1 << 18  # among which the held-out sums are
_SUM_CHARACTERS = CharTokenizer("+0123456789")


def from_files(
    path: str,
    pair: str,
    tokenizer: str,
    longest: int,
    pack: bool = False,
    source_tokenizer: str = "",
) -> Source:
    """The lines of `STEM.de` and `STEM.en`, for the pair "de-en". A tokenizer is trained, if at
    all, on the split train.

    The split is the first word of the stem: `train.de`, `val.de.gz`, `test_2016_flickr.de`. The
    n-th lines of both files are a pair (`encoding.lines`). Pairs with an empty side, and those with
    a side of more tokens than `longest`, are left out.

    Args:
        path: a folder.
        pair: the endings of the files, from which to which.
        tokenizer: see `tokenizer_of`; of both sides, unless the sources have their own.
        longest: tokens of a side.
        pack: whether training rows of `longest` places hold several pairs, see `packed`; a side
            then has at most `longest` - 1 tokens.
        source_tokenizer: of the sources; empty: `tokenizer`.

    Raises:
        UserError: there are no such files, one of a split lacks the other or is there twice, their
            lines do not match, or one cannot be read.
    """
    width, longest = longest, longest - pack  # with its end a side is to fit in a row
    match = re.fullmatch(r"(\w+)-(\w+)", pair)
    if not match or match[1] == match[2]:
        raise UserError(f'data.pair="{printable(pair)}": write two endings of files, e.g. "de-en"')
    texts: dict[str, list[list[str]]] = {}
    entries: dict[str, Entry] = {}
    for split, files in _files(path, *match.groups()).items():
        sides = []
        for file in files:
            lines, entries[file.name] = _read(file)
            sides.append(lines)
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"{printable(files[0])} has {len(sides[0]):,} lines and {printable(files[1])} has "
                f"{len(sides[1]):,}; each line is to be the other's translation"
            )
        texts[split] = sides
    whole = identity(entries, {})

    def learnt(name: str, numbers: Sequence[int], side: str = "") -> Tokenizer:
        """A tokenizer of the sides of these numbers."""
        lines = [line for both in texts.values() for i in numbers for line in both[i]]
        train = texts.get("train") or next(iter(texts.values()))
        return tokenizer_of(name, lines, lambda: (x for i in numbers for x in train[i]), side)

    def build() -> Arrays:
        if source_tokenizer:
            source, target = (
                learnt(source_tokenizer, (0,), "source"),
                learnt(tokenizer, (1,), "target"),
            )
            made = PairTokenizer(source, target)
        else:
            made = learnt(tokenizer, (0, 1))
        arrays = {"tokenizer": np.frombuffer(made.to_json().encode(), np.uint8)}
        each = [of_side(made, side) for side in SIDES]
        for split, both in texts.items():
            rows = [[one.encode(line) for line in side] for one, side in zip(each, both)]
            kept = [all(0 < len(side[i]) <= longest for side in rows) for i in range(len(rows[0]))]
            for name, side, one in zip(SIDES, rows, each):
                ids = [row for row, keep in zip(side, kept) if keep]
                arrays[f"{name}:{split}"] = _padded(ids, one.vocab_size)
            arrays[f"left_out:{split}"] = np.array([len(kept) - sum(kept)])
        return arrays

    made_of = {"identity": whole, "pair": pair, "tokenizer": named_tokenizer(tokenizer)}
    made_of |= {"longest": longest, "format": 1}
    if source_tokenizer:
        made_of["source_tokenizer"] = named_tokenizer(source_tokenizer)
    arrays = cache.cached(f"{Path(path).name}-{pair}", made_of, build)
    made = from_json(arrays["tokenizer"].tobytes().decode())
    widths = {side: max(arrays[f"{side}:{split}"].shape[1] for split in texts) for side in SIDES}
    found = {
        split: {side: _widened(arrays[f"{side}:{split}"], n) for side, n in widths.items()}
        for split in texts
    }
    left_out = ", ".join(f"{split} {int(arrays[f'left_out:{split}'][0]):,}" for split in texts)
    sizes = ", ".join(f"{split} {len(of['source']):,}" for split, of in found.items())
    if pack:
        for split, of in found.items():
            found[split] = {side: _widened(rows, width) for side, rows in of.items()}
        if "train" in found:
            found["train"] = packed(found["train"])
            sizes += f" (those of train in {len(found['train']['source']):,} rows)"
    about = (
        f"{printable(path)}: pairs {pair}; {sizes}; left out (empty, or of more than "
        f"{longest} tokens): {left_out}; {made.vocab_size:,} different tokens "
        f"({printable(tokenizer)})"
    )
    sizes_of = {side: of_side(made, side).vocab_size for side in SIDES}
    if source_tokenizer:
        about += f", of the sources {sizes_of['source']:,} ({printable(source_tokenizer)})"
    return in_memory(
        found,
        sizes_of,
        whole,
        about,
        tokenizer=made,
    )


def packed(pairs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Several pairs in a row: their sources one after the other, each with one place of padding
    behind it for its end, and their targets alike. A pair goes into the first of the last 64 rows
    begun that has room for both of its sides.

    Args:
        pairs: `source` and `target`, `[pairs, width]`, filled up at their ends, which have a place
            of padding at least.
    """
    sizes = np.stack([(rows != PADDING).sum(axis=1) + 1 for rows in pairs.values()], axis=1)
    width = next(iter(pairs.values())).shape[1]
    rows: list[list[int]] = []
    room = np.zeros((0, 2), int)  # of the last rows
    for pair, size in enumerate(sizes):
        fits = np.flatnonzero((room >= size).all(axis=1))
        if not fits.size:
            rows.append([])
            room = np.concatenate([room[-63:], [[width, width]]])
            fits = [len(room) - 1]
        room[fits[0]] -= size
        rows[len(rows) - len(room) + fits[0]].append(pair)
    made = {}
    for side, (name, of) in enumerate(pairs.items()):
        made[name] = np.full((len(rows), width), PADDING, of.dtype)
        for row, members in zip(made[name], rows):
            places = np.cumsum([0, *sizes[members, side]])
            for pair, begin in zip(members, places):
                row[begin : begin + sizes[pair, side]] = of[pair, : sizes[pair, side]]
    return made


def addition(parameters: str) -> Source:
    """`addition:DIGITS`, 3 by default: "12+345" and "357". Every pair of numbers of up to so many
    digits is in one split alone.

    `addition:DIGITS:by_length` draws the number of digits of each number first, so that short
    numbers come as often as long ones, as Keras' example `addition_rnn` does; see `_by_length`.
    """
    first, *rest = parameters.split(":")
    if rest and rest != ["by_length"]:
        raise UserError(
            f'cannot read "addition:{printable(parameters)}"; write addition:DIGITS or '
            "addition:DIGITS:by_length"
        )
    if rest:
        return _by_length(_numbers("addition", first, [3], [(1, 4)])[0])
    digits = _numbers("addition", parameters, [3], [(1, 4)])[0]
    size = 10 ** (2 * digits)
    held_out = min(_HELD_OUT, size // 10)
    sizes = {"validation": held_out, "test": held_out, "train": min(size - 2 * held_out, _MOST)}
    starts = dict(zip(sizes, (0, held_out, 2 * held_out)))

    def read(split: str, indices: np.ndarray) -> Arrays:
        return _sums(permuted(indices + starts[split], size, 0, 0), digits)

    about = f"sums of numbers of up to {digits} digits"
    return _made(sizes, _sum_widths(digits), _SUM_CHARACTERS, read, about)


def _by_length(digits: int) -> Source:
    """Sums whose numbers are below 10, 100, ... with the same probability, any of these as likely.

    A twentieth of all pairs, an order of the two being the same pair, belongs to validation, one to
    the test, and the rest to training. Training draws with replacement from its pairs; validation
    and test are the first 1,000 different pairs, where there are as many, of such draws from
    theirs.
    """
    size, side = 10 ** (2 * digits), 10**digits
    first_test, first_train = size // 20, size // 10

    def draw(numbers: np.ndarray) -> np.ndarray:
        """The pairs of so many draws."""
        words = [hashed(numbers * 4 + part) for part in range(4)]
        lengths = (1 + words[0] % digits, 1 + words[1] % digits)
        return (words[2] % 10 ** lengths[0]) * side + words[3] % 10 ** lengths[1]

    def places(pairs: np.ndarray) -> np.ndarray:
        """Where the pairs, without regard to order, stand among all: this tells the split."""
        first, second = np.divmod(pairs, side)
        unordered = np.minimum(first, second) * side + np.maximum(first, second)
        return permuted(unordered, size, 0, 0)

    held_out: dict[str, np.ndarray] = {}
    drawn = draw(np.arange(_DRAWS))
    place = places(drawn)
    for split, first, last in (("validation", 0, first_test), ("test", first_test, first_train)):
        within = (place >= first) & (place < last)
        _, kept = np.unique(place[within], return_index=True)
        held_out[split] = drawn[within][np.sort(kept)][:_HELD_OUT]

    def read(split: str, indices: np.ndarray) -> Arrays:
        if split != "train":
            return _sums(held_out[split][indices], digits)
        numbers = _DRAWS + indices  # of draws: those before are of the held-out pairs
        pairs = draw(numbers)
        while (refused := np.flatnonzero(places(pairs) < first_train)).size:
            numbers[refused] += _MOST
            pairs[refused] = draw(numbers[refused])
        return _sums(pairs, digits)

    sizes = {split: len(pairs) for split, pairs in held_out.items()}
    about = f"sums of numbers of up to {digits} digits, of each the number of digits drawn first"
    return _made({**sizes, "train": _MOST}, _sum_widths(digits), _SUM_CHARACTERS, read, about)


def _sum_widths(digits: int) -> dict[str, int]:
    return {"source": 2 * digits + 1, "target": digits + 1}


def _sums(pairs: np.ndarray, digits: int) -> Arrays:
    """The texts of pairs that are numbered first * 10^digits + second."""
    first, second = np.divmod(pairs, 10**digits)
    texts = {
        "source": np.char.add(np.char.add(first.astype("U"), "+"), second.astype("U")),
        "target": (first + second).astype("U"),
    }
    widths = _sum_widths(digits)
    return {side: _characters(texts[side], _SUM_CHARACTERS, widths[side]) for side in widths}


def copied(parameters: str) -> Source:
    """`synthetic_copy:VOCABULARY:LENGTH`, 16 and 12 by default: any tokens, and the same again."""
    return _repeated("synthetic_copy", parameters, lambda row: row)


def reversed_(parameters: str) -> Source:
    """`synthetic_reverse:VOCABULARY:LENGTH`, as `copied`: any tokens, and their mirror image."""
    return _repeated("synthetic_reverse", parameters, lambda row: row[::-1])


def _repeated(name: str, parameters: str, turn: Callable[[np.ndarray], np.ndarray]) -> Source:
    vocab_size, longest = _numbers(name, parameters, [16, 12], [(2, 2**15), (1, 1024)])
    sizes = {"train": 1 << 16, "validation": _HELD_OUT, "test": _HELD_OUT}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))

    def read(split: str, indices: np.ndarray) -> Arrays:
        rows = []
        for index in (indices + starts[split]).tolist():
            words = np.random.SeedSequence((index, vocab_size, longest)).generate_state(longest + 1)
            rows.append((words[1:] % vocab_size)[: 1 + words[0] % longest].astype(np.int32))
        turned = [turn(row) for row in rows]
        sides = zip(SIDES, (rows, turned))
        return {side: _widened(_padded(of, vocab_size), longest) for side, of in sides}

    widths: dict[str, int] = dict.fromkeys(SIDES, longest)
    about = f"up to {longest} of {vocab_size} tokens"
    return _made(sizes, widths, IdTokenizer(vocab_size), read, about)


def _made(sizes, widths: Mapping[str, int], tokenizer: Tokenizer, read, about: str) -> Source:
    dtype = str(_dtype(tokenizer.vocab_size))
    listed = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    return Source(
        sizes,
        {side: Feature((width,), dtype, tokenizer.vocab_size) for side, width in widths.items()},
        read,
        lambda _: identity({}, sizes),
        tokenizer=tokenizer,
        about=f"computed: {about}; {listed}",
    )


def _numbers(name: str, parameters: str, defaults: list[int], ranges: list[tuple[int, int]]):
    words = parameters.split(":") if parameters else []
    words += [str(default) for default in defaults[len(words) :]]
    fitting = len(words) == len(ranges) and all(
        word.isascii() and word.isdecimal() and len(word) < 9 and low <= int(word) <= high
        for word, (low, high) in zip(words, ranges)
    )
    if not fitting:
        form = ":".join(f"({low} to {high})" for low, high in ranges)
        raise UserError(f'cannot read "{name}:{printable(parameters)}"; write {name}:{form}')
    return [int(word) for word in words]


def _dtype(vocab_size: int) -> np.dtype:
    return np.min_scalar_type(-max(vocab_size, 1))  # signed, for the padding


def _characters(texts: np.ndarray, tokenizer: CharTokenizer, width: int) -> np.ndarray:
    """Short texts as rows of ids: `[texts, width]`."""
    codes = texts.astype(f"U{width}").view(np.uint32).reshape(len(texts), width)
    table = np.full(128, PADDING, _dtype(tokenizer.vocab_size))  # NumPy fills up with zeros
    table[[ord(c) for c in tokenizer.characters]] = np.arange(tokenizer.vocab_size)
    return table[codes]


def _padded(rows: list[np.ndarray], vocab_size: int) -> np.ndarray:
    width = max(map(len, rows), default=0)
    out = np.full((len(rows), width), PADDING, _dtype(vocab_size))
    for line, row in zip(out, rows):
        line[: len(row)] = row
    return out


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=PADDING)


def _files(path: str, first: str, second: str) -> dict[str, tuple[Path, Path]]:
    """Split -> the two files of it."""
    endings = {f".{side}{zipped}": side for side in (first, second) for zipped in ("", ".gz")}
    stems: dict[str, dict[str, Path]] = {}
    for file in sorted(Path(path).iterdir()):
        for ending, side in endings.items():
            if file.name.endswith(ending):
                of = stems.setdefault(file.name.removesuffix(ending), {})
                if side in of:
                    raise UserError(
                        f"{printable(path)} holds both `{printable(of[side].name)}` and "
                        f"`{printable(file.name)}`; move one of them away"
                    )
                of[side] = file
    found: dict[str, tuple[Path, Path]] = {}
    halves = []
    for stem, sides in stems.items():
        word = re.split(r"[^a-z]+", stem.lower())[0]
        split = folder.named_splits(path, [word]).get(word) if word else None
        if len(sides) < 2:
            halves += [stem] if split else []
            continue
        if split is None or split in found:
            why = "is a second one of the split" if split else "begins with no name of a split"
            raise UserError(f"{printable(path)}: `{printable(stem)}` {why} {split or ''}".rstrip())
        found[split] = (sides[first], sides[second])
    if not found:
        raise UserError(
            f"{printable(path)} holds no pairs of files *.{first} and *.{second}, such as "
            f"train.{first} and train.{second}"
        )
    for stem in halves:
        ((side, file),) = stems[stem].items()
        lacking = f"{stem}.{second if side == first else first}"
        raise UserError(
            f"{printable(path)} holds `{printable(file.name)}` and no `{printable(lacking)}`; add "
            "it, or move the former away"
        )
    return found


def _read(file: Path) -> tuple[list[str], Entry]:
    try:
        content = file.read_bytes()
        plain = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {printable(file)}: {printable(error)}") from error
    return encoding.lines(plain, os.fspath(file)), of_bytes(content)
