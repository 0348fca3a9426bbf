"""Conversations from tiny Shakespeare: of two speakers in turn the first is the user, the second
the assistant. For `configs/lm/dialogue.py`; the splits are those of TFDS's tiny_shakespeare.

  python benchmarks/shakespeare_dialogue.py FOLDER

Writes `train.jsonl`, `validation.jsonl` and `test.jsonl`. Speakers' names are left out, line breaks
become spaces, and pairs with a turn of more than `LONGEST` characters are left out.
"""

import json
import re
import sys
from pathlib import Path

from aigc_jax.config import text
from aigc_jax.data import source

LONGEST = 60
_SPEECH = re.compile(r"^([A-Z][^\n:]*):\n(.+)$", re.DOTALL)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        data = source.load(text("tiny_shakespeare"), split)
        assert data.tokenizer is not None
        assert data.arrays is not None
        play = data.tokenizer.decode(data.arrays["tokens"])
        speeches = [found[2] for part in play.split("\n\n") if (found := _SPEECH.match(part))]
        said = [" ".join(speech.split()) for speech in speeches]
        pairs = [pair for pair in zip(said[::2], said[1::2]) if max(map(len, pair)) <= LONGEST]
        lines = [
            json.dumps([{"role": "user", "content": a}, {"role": "assistant", "content": b}])
            for a, b in pairs
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(pairs)} of {len(said) // 2} pairs", file=sys.stderr)


if __name__ == "__main__":
    main()
