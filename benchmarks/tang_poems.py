"""Poems of the Tang for docs/results/transformer.md: lines of five characters, a poem a line.

  npm pack chinese-poetry@2.0.1
  python benchmarks/tang_poems.py chinese-poetry-2.0.1.tgz poems

The package (MIT licence; its poems are of the seventh to the tenth century) holds 57,607. Kept
are those of two, three or four couplets of five characters a half, each once; 90 % are train, 5 %
validation and 5 % test, by a hash of the poem. Writes `train.txt`, `validation.txt`, `test.txt`.
"""

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
_HAN = "[\u3400-\u9fff]{5}"
_POEM = re.compile(f"(?:{_HAN}，{_HAN}。){{2,4}}")


def read(archive: Path) -> list[str]:
    """The poems of that form, in the order of their hashes."""
    found = {}
    with tarfile.open(archive) as files:
        for member in files.getmembers():
            if re.search(r"/quantangshi/poet\.tang\.\d+\.json$", member.name):
                for poem in json.load(files.extractfile(member)):
                    text = "".join(poem["paragraphs"])
                    if _POEM.fullmatch(text):
                        found[hashlib.sha256(text.encode()).digest()] = text
    return [found[digest] for digest in sorted(found)]


def main() -> None:
    archive, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    poems, start = read(archive), 0
    for split, share in SHARES.items():
        stop = len(poems) if split == "test" else start + round(share * len(poems))
        text = "\n".join(poems[start:stop]) + "\n"
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        print(f"{split}: {stop - start:,} poems, {len(text):,} characters", file=sys.stderr)
        start = stop


if __name__ == "__main__":
    main()
