"""Paths as people write them."""

from pathlib import Path

from aigc_jax.errors import UserError


def expand(flag: str, path: str) -> Path:
    """The path, with `~` or `~user` at its start replaced: a shell leaves them behind a `=`.

    Args:
        flag: where the path was given, for the error message; "" where that is clear.
        path: as it was given.

    Raises:
        UserError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        where = f"--{flag}={path}" if flag else path
        raise UserError(
            f"{where}: that home is not known; set HOME, or write the whole path"
        ) from None


def home() -> Path | None:
    """The user's home; None where there is none (a container's user id without an entry)."""
    try:
        return Path.home()
    except RuntimeError:
        return None
