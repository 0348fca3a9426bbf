"""What the launchers share: words from a person are checked, then shown or run, never pasted.

Standard library only, so that a laptop without the environment can launch.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from aigc_jax.aot import slices  # noqa: E402  (the table of TPU slices, standard library only)

MOUNT = "/mnt/runs"  # where every launcher puts the bucket that holds the work directories
PORT = 8482  # of the coordinator; JAX's own default has moved between releases


class Parser(argparse.ArgumentParser):
    """Takes flags before `--` and the command to launch after it; errors are one line, exit 2."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags as attributes, `command` being the words after `--`."""
        argv = list(sys.argv[1:] if argv is None else argv)
        cut = argv.index("--") if "--" in argv else len(argv)
        args = self.parse_args(argv[:cut])
        args.command = argv[cut + 1 :]
        return args

    def error(self, message: str):
        refuse(message)


Flags = Mapping[str, tuple[str, dict]]
"""Flag -> (the verbs that take it, what `add_argument` takes)."""


def run_verb(
    prog: str,
    about: str,
    verbs: Mapping[str, Callable[[argparse.Namespace], int]],
    flags: Flags,
    name_help: str,
    name_type: Callable[[str], str] | None = None,
    launching: Sequence[str] = ("run",),
    passing: Sequence[str] = (),
) -> int:
    """Parses `VERB NAME --flags -- COMMAND`, runs the verb and returns its exit code.

    Args:
        prog: the launcher, e.g. `launch/tpu.py`.
        about: its docstring, shown by `--help`.
        verbs: their functions; the first line of a docstring is the verb's help.
        flags: of the verbs, besides `--dry-run`.
        name_help: what NAME names.
        name_type: what NAME may be; by default `name`.
        launching: the verbs that take a command.
        passing: the verbs that hand flags after `--` on to gcloud.
    """
    top = Parser(prog=prog, description=about)
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, function in verbs.items():
        line = (function.__doc__ or "").splitlines()[0]
        sub = subparsers.add_parser(verb, help=line, description=line)
        sub.add_argument("name", type=name_type or name, metavar="NAME", help=name_help)
        sub.add_argument("--dry-run", action="store_true", help="print, run nothing")
        for flag, (users, options) in flags.items():
            if verb in users.split():
                sub.add_argument(flag, **options)
        if verb in launching:
            sub.epilog = "After two hyphens, the command: -- aigc train --config=... --workdir=..."
        if verb in passing:
            sub.epilog = "After two hyphens, more flags for gcloud: -- --labels=team=vision"
    args = top.parse()
    if args.verb in passing:
        for word in args.command:
            if not word.startswith("--"):
                refuse(f"{args.verb} hands flags on to gcloud, and {word!r} is none")
    elif args.command and args.verb not in launching:
        refuse(f"{args.verb} takes no command: {show(args.command)} is too much")
    return verbs[args.verb](args)


def refuse(message: str):
    """Ends with exit code 2 and one line that says what to mend."""
    print("error: " + " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """An argument type: text that matches the whole of `pattern`, described by `what`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return check


name = matching(
    r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
    "a name: lower-case letters, digits and hyphens, a letter first, at most 63",
)
project = matching(r"([a-z0-9.]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "a project id, like my-project")
# by their shape: new ones come, like the AI zone us-south1-ai1b
location = matching(r"[a-z]+-[a-z]+[0-9]+(-[a-z0-9]{1,8})?", "a zone or region, like us-west4-a")
zone = matching(r"[a-z]+-[a-z]+[0-9]+-[a-z0-9]{1,8}", "a zone, like us-west4-a")
flag = matching(r"--[a-z][-a-z0-9]*(=.+)?", "a flag, like --labels=team=vision")
variable = matching(r"(?s:[A-Za-z_][A-Za-z0-9_]*=.*)", "NAME=VALUE")
account = matching(
    r"[^@\s]+@[^@\s]+", "a service account, like NAME@PROJECT.iam.gserviceaccount.com"
)
bucket = matching(r"[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]", "a bucket's name, without gs://")


def tpu_slice(text: str) -> slices.Slice:
    """An argument type: a TPU slice in any spelling, `v5e:4x4` or `v5litepod-16`."""
    try:
        return slices.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """An argument type: a whole number from 1."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def natural(text: str) -> int:
    """An argument type: a whole number from 0."""
    return 0 if text == "0" else positive(text)


def port(text: str) -> int:
    """An argument type: a port that needs no privilege."""
    if not (text.isascii() and text.isdigit() and 1024 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1024 to 65535")
    return int(text)


def check_command(command: Sequence[str], durable: bool = False) -> None:
    """Refuses a command that cannot end well, before anything starts to cost.

    Args:
        command: the words after `--`.
        durable: whether the machines may vanish, so that a `--workdir` must be in a bucket, and
            `aigc train` must have one; what another command keeps, and where, it knows itself.
    """
    example = f"-- aigc train --config=FILE --workdir={MOUNT}/NAME"
    if not command:
        refuse(f"the command is missing; write it last, after two hyphens: {example}")
    if any("\0" in word for word in command):
        refuse("a word of the command holds a NUL byte")
    workdir = None
    for i, word in enumerate(command):
        match = re.fullmatch(r"--?workdir(?:=(.*))?", word, re.DOTALL)
        if match:
            workdir = match[1] if match[1] is not None else "".join(command[i + 1 : i + 2])
    if workdir is not None and re.match(r"(?!gs://)[a-z0-9]+://", workdir):
        refuse(
            f"--workdir={workdir}: work directories are paths or gs:// URLs; mount other buckets, "
            f"and write --workdir={MOUNT}/NAME"
        )
    ours = any(Path(word).name in ("aigc", "aigc_jax") for word in command)
    if durable and (ours or workdir) and not (workdir or "").startswith((f"{MOUNT}/", "gs://")):
        refuse(f"machines that may vanish need a --workdir in the bucket: {example}")


def show(argv: Sequence[str]) -> str:
    """The command as a person would paste it into a shell."""
    words = [shlex.quote(word) for word in argv]
    line = " ".join(words)
    if len(line) <= 100:
        return line
    return " ".join(f"\\\n    {w}" if w.startswith(("--", "'--")) else w for w in words)


def run(argv: Sequence[str], dry_run: bool, stdin: str | None = None) -> int:
    """Runs a command from the root of the repository, or prints it; its exit code."""
    if dry_run:
        print(show(argv))
        return 0
    print(f"+ {show(argv)}", file=sys.stderr)
    return _call(argv, input=stdin).returncode


def output(argv: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    done = _call(argv, capture_output=True)
    return done.returncode, done.stdout, done.stderr


def run_all(commands: Sequence[Sequence[str]], dry_run: bool) -> int:
    """Runs commands one after another until one fails; its exit code."""
    for argv in commands:
        code = run(argv, dry_run)
        if code:
            return code
    return 0


def _call(argv: Sequence[str], **options) -> subprocess.CompletedProcess:
    sys.stdout.flush()
    try:
        return subprocess.run(argv, text=True, cwd=REPOSITORY, check=False, **options)
    except FileNotFoundError:
        refuse(f"{argv[0]} is not installed here; launch/README.md says what each launcher needs")
        raise
