"""A labelled text set for docs/finetuning.md, and how far simple classifiers get on it.

  pip download --no-deps --no-binary :all: vaderSentiment==2.5
  python benchmarks/movie_snippets.py vaderSentiment-2.5.tar.gz data/snippets

The package (MIT) holds the texts of Hutto and Gilbert 2014: 10,605 sentences of film reviews, each
with the mean of at least 20 people's ratings, -4 to 4, and as many again from tweets, product
reviews and editorials. A film sentence is `positive` or `negative` by the sign of its mean; those
with a mean of 0 and copies are left out. Of each class 80 % are train, 10 % validation, 10 % test,
by a hash of the text. Writes `labelled/SPLIT.csv`, and for pre-training `unlabelled/train.txt` (the
training sentences and all other texts) and `unlabelled/validation.txt`, a text a line; prints
accuracy, precision, recall and F1 on `test` of the more frequent class and of logistic regression
on tf-idf of words and pairs of words, its strength chosen on `validation`.
"""

import argparse
import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

from aigc_jax.evaluations.classification import scores

FILMS = "movieReviewSnippets"
OTHERS = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")
CLASSES = ["negative", "positive"]
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

Rows = list[tuple[str, float]]


def read(archive: Path) -> dict[str, Rows]:
    """Name of a set -> its texts and mean ratings; white space is one blank."""
    found = {}
    with tarfile.open(archive) as outer:
        inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = outer.extractfile(inner).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for name in (FILMS, *OTHERS):
            member = next(
                m for m in files.getmembers() if m.name.endswith(f"/{name}_GroundTruth.txt")
            )
            lines = files.extractfile(member).read().decode().splitlines()
            cells = [line.split("\t", 2) for line in lines]
            found[name] = [(" ".join(text.split()), float(mean)) for _, mean, text in cells]
    return found


def divide(rows: Rows) -> dict[str, list[tuple[str, str]]]:
    """Split -> texts and their classes."""
    signs: dict[str, set[bool]] = {}
    for text, mean in rows:
        if mean:
            signs.setdefault(text, set()).add(mean > 0)
    found = {split: [] for split in SHARES}
    for sign, name in enumerate(CLASSES):
        texts = [text for text, of in signs.items() if of == {bool(sign)}]
        texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        start = 0
        for split, share in SHARES.items():
            stop = len(texts) if split == "test" else start + round(share * len(texts))
            found[split] += [(text, name) for text in texts[start:stop]]
            start = stop
    return found


def write(out: Path, labelled: dict[str, list[tuple[str, str]]], others: list[str]) -> None:
    for folder in ("labelled", "unlabelled"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, rows in labelled.items():
        with open(out / "labelled" / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    held_out = {text for split in ("validation", "test") for text, _ in labelled[split]}
    train = [text for text, _ in labelled["train"]]
    train += [text for text in dict.fromkeys(others) if text not in held_out]
    texts = {"train": train, "validation": [text for text, _ in labelled["validation"]]}
    for split, of in texts.items():
        path = out / "unlabelled" / f"{split}.txt"
        path.write_text("\n".join(of) + "\n", encoding="utf-8")


def baselines(labelled: dict[str, list[tuple[str, str]]]) -> dict[str, dict[str, float]]:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = {split: [text for text, _ in rows] for split, rows in labelled.items()}
    label = {
        split: np.array([CLASSES.index(name) for _, name in rows])
        for split, rows in labelled.items()
    }
    most = np.full_like(label["test"], np.bincount(label["train"]).argmax())
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts["train"])
    seen = {split: features.transform(of) for split, of in texts.items()}
    models = [
        LogisticRegression(C=strength, max_iter=1000).fit(seen["train"], label["train"])
        for strength in (0.3, 1.0, 3.0, 10.0, 30.0)
    ]
    best = max(models, key=lambda model: model.score(seen["validation"], label["validation"]))
    told = best.predict(seen["test"])
    return {
        "more frequent class": scores(most, label["test"], CLASSES),
        f"tf-idf, C={best.C}": scores(told, label["test"], CLASSES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    found = read(given.archive)
    labelled = divide(found[FILMS])
    write(given.out, labelled, [text for name in OTHERS for text, _ in found[name]])
    counts = {
        split: {name: sum(of == name for _, of in rows) for name in CLASSES}
        for split, rows in labelled.items()
    }
    print(json.dumps({"texts": counts, **baselines(labelled)}, indent=1))


if __name__ == "__main__":
    main()
