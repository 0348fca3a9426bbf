"""Launchers run by their tests."""

import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
NASTY = [
    "a b",
    "it's",
    '"quoted"',
    "$(touch pwned)",
    "`touch pwned`",
    "${HOME}",
    "$(HOME)",
    "a;b&&c|d>e",
    "*",
    "back\\slash",
    "two\nlines",
    "--config.name=- x: [y] #z",
    "",
    "ü€",
]


def launch(argv, **options) -> subprocess.CompletedProcess:
    script, *rest = shlex.split(argv) if isinstance(argv, str) else argv
    path = str(REPOSITORY / "launch" / script)
    return subprocess.run(
        [sys.executable, path, *rest], capture_output=True, text=True, timeout=60, **options
    )


def printed(argv) -> str:
    done = launch(argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shim(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
