"""Objects in a Google Cloud Storage bucket: the few operations that runs and data need.

A `Path` folds the two slashes of a URL, and so it travels through the program: `gs:/BUCKET/NAME`.
`url` unfolds it, and tells a place in a bucket from one on a disk. Google's own client does the
rest (the extra `gcs`); Orbax, which writes checkpoints, goes through etils and gcsfs (`place`).

An object appears whole or not at all, and every write makes a new generation of it: a write that
names the generation which it replaces is refused when somebody else has written in between.

Every function raises a `UserError` in one line where the bucket does not answer, is not there or is
not ours to use.
"""

import contextlib
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

from aigc_jax.errors import UserError, first_line

PATIENCE = 50.0  # seconds that a run waits at its start for a bucket to answer
RETRYING = 40.0  # seconds that one request is tried again: networks hiccup
_LOOKS = 10  # at an object that is being replaced
_TIMEOUT = (5.0, 20.0)  # seconds to connect, and between two bytes
# What TensorStore's errors begin with, and Orbax hands on as a ValueError or a RuntimeError.
_STATUS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED)\b")
_LAYERS = ("google", "requests", "urllib3", "aiohttp", "gcsfs")  # whose errors are the bucket's
ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"

T = TypeVar("T")
_here = threading.local()  # Google's client is for one thread


class Replaced(Exception):
    """An object is not of the generation that was to be replaced."""


class Object(NamedTuple):
    """What a listing says of an object.

    Attributes:
        size: bytes.
        updated: seconds since 1970.
    """

    size: int
    updated: float


def url(path: PurePath | str) -> str:
    """`gs://BUCKET/NAME` of a place in a bucket; empty for one on a disk."""
    parts = PurePath(path).parts
    return f"gs://{'/'.join(parts[1:])}" if parts[:1] == ("gs:",) else ""


def shown(path: PurePath) -> str:
    """The place as a person writes it."""
    return url(path) or str(path)


def place(path: Path) -> Any:
    """What Orbax takes for the path: itself, or an `epath.Path` of the URL."""
    where = url(path)
    if not where:
        return path
    with saying(where):
        _storage()
    os.environ.setdefault("EPATH_USE_TF", "0")  # it would be imported, and does not know emulators
    import aiohttp
    import fsspec.config
    from etils import epath

    # Listings change under us, by TensorStore's hand and by other runs'.
    patient = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT[0], sock_read=60.0)
    fsspec.config.conf.setdefault("gcs", {"use_listings_cache": False, "requests_timeout": patient})
    return epath.Path(where)


def check(where: str) -> None:
    """The bucket is there, and objects under this URL can be listed, written and removed.

    Raises:
        UserError: one of them is not so, or there was no answer within `PATIENCE`.
    """

    def ask():
        bucket, prefix = _split(where)
        # Orbax asks for the bucket's own description, which the right to use objects leaves out.
        _client().get_bucket(bucket, timeout=_TIMEOUT, retry=_retry())
        list(_blobs(where, max_results=1))
        probe = _blob(f"gs://{bucket}/{prefix}/.writable-{uuid.uuid4().hex[:8]}")
        probe.upload_from_string(b"", timeout=_TIMEOUT, retry=_retry())
        probe.delete(timeout=_TIMEOUT, retry=_retry())

    _answered(where, ask, "use")


def read(where: str) -> bytes | None:
    """The content of an object; None where there is none."""

    def ask():
        with contextlib.suppress(_errors().NotFound):
            return _blob(where).download_as_bytes(timeout=_TIMEOUT, retry=_retry())
        # No object, or no bucket? Whoever mistypes a name is told so.
        _client().get_bucket(_split(where)[0], timeout=_TIMEOUT, retry=_retry())
        return None

    return _answered(where, ask)


def look(where: str, retrying: float = 0.0) -> tuple[bytes, int]:
    """The content of an object and its generation; empty and 0 where there is none."""
    with saying(where):
        errors = _errors()
        for _ in range(_LOOKS):
            blob = _blob(where)
            try:
                blob.reload(timeout=_TIMEOUT, retry=_retry(retrying))
            except errors.NotFound:
                return b"", 0
            generation = int(blob.generation)
            with contextlib.suppress(errors.NotFound, errors.PreconditionFailed):  # replaced
                content = blob.download_as_bytes(
                    if_generation_match=generation, timeout=_TIMEOUT, retry=_retry(retrying)
                )
                return content, generation
    raise UserError(f"cannot read {where}: it changes all the time")


def write(where: str, content: bytes, replacing: int | None = None, retrying: float = 0.0) -> int:
    """Writes an object whole or not at all; returns its generation.

    Args:
        where: its URL.
        content: all of it.
        replacing: the generation that is to be replaced, 0 for none; by default whatever is there.
        retrying: seconds; 0 for `RETRYING`.

    Raises:
        Replaced: that is not the one that is there.
    """
    more = {} if replacing is None else {"if_generation_match": replacing}
    with saying(where, "write to"), _preconditions():
        blob = _blob(where)
        kind = "application/octet-stream"
        blob.upload_from_string(content, kind, timeout=_TIMEOUT, retry=_retry(retrying), **more)
        return int(blob.generation)


def remove(where: str, generation: int | None = None, retrying: float = 0.0) -> None:
    """Removes an object, if it is there; with a `generation` that one alone, or `Replaced`."""
    more = {} if generation is None else {"if_generation_match": generation}
    with saying(where, "write to"), _preconditions(), contextlib.suppress(_errors().NotFound):
        _blob(where).delete(timeout=_TIMEOUT, retry=_retry(retrying), **more)


def download(where: str, path: Path) -> None:
    """Writes the content of an object to a file."""
    with saying(where):
        _blob(where).download_to_filename(str(path), timeout=_TIMEOUT, retry=_retry())


def files(where: str, pattern: str = "*") -> dict[str, Object]:
    """The objects under a URL whose names match, by their names below it.

    Args:
        where: the folder.
        pattern: of a glob: `*` is one level, `**` any number of them.
    """
    prefix = _split(where)[1]
    below = f"{prefix}/" if prefix else ""
    with saying(where):
        return {
            blob.name.removeprefix(below): Object(blob.size or 0, blob.updated.timestamp())
            for blob in _blobs(where, match_glob=below + pattern)
            if not blob.name.endswith("/")  # the marker of an empty folder
        }


@contextlib.contextmanager
def saying(where: str, doing: str = "reach") -> Iterator[None]:
    """What the layers below say of a bucket, as a `UserError` of one line."""
    try:
        yield
    except (UserError, Replaced):
        raise
    except Exception as error:
        if not _of_the_bucket(error):
            raise
        raise UserError(f"cannot {doing} {where}: {_reason(error)}") from error


def refused(error: Exception) -> bool:
    """Whether the bucket could not be asked: no answer or no right, whatever is or is not there."""
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (404, "404"):
        return False
    layers = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if layers & set(_LAYERS) or isinstance(error, OSError):
        return True
    return isinstance(error, ValueError | RuntimeError) and bool(_STATUS.search(str(error)))


def _of_the_bucket(error: Exception) -> bool:
    missing = isinstance(error, FileNotFoundError) or getattr(error, "code", None) in (404, "404")
    return missing or refused(error)


def _reason(error: Exception) -> str:
    """What is wrong and what to do, from what a layer below raised."""
    text = first_line(error) or type(error).__name__
    code = getattr(error, "code", None)
    name = type(error).__name__
    if code in (401, "401") or "Credentials" in name or "UNAUTHENTICATED" in text:
        return (
            "no credentials that it takes; run `gcloud auth application-default login`, or give "
            "the machine a service account"
        )
    if code in (403, "403") or "PERMISSION_DENIED" in text or text.startswith("Forbidden"):
        what = re.search(r"storage\.\w+\.\w+", str(error))
        return f"no permission{f' ({what[0]})' if what else ''}; this account needs {ROLES} on it"
    if code in (404, "404") or isinstance(error, FileNotFoundError):
        return "there is no such bucket, or what was there is gone; see `gcloud storage ls`"
    if isinstance(error, OSError) or "Retry" in name or "Max retries" in text or "Connect" in name:
        return f"it does not answer ({name}); look whether the network and the name are right"
    return text[:200]


@contextlib.contextmanager
def _preconditions():
    failed = _errors().PreconditionFailed
    try:
        yield
    except failed as error:
        raise Replaced from error


def _answered(where: str, ask: Callable[[], T], doing: str = "reach") -> T:
    """What `ask` returns, or a `UserError` when it takes longer than `PATIENCE`: the layers below
    have waits of their own, of minutes together."""
    found: list[Any] = []
    clients = dict(_here.__dict__)  # ours is idle while we wait

    def work():
        _here.__dict__.update(clients)
        try:
            with saying(where, doing):
                found.append((ask(), None))
        except BaseException as error:
            found.append((None, error))
        clients.update(_here.__dict__)

    thread = threading.Thread(target=work, daemon=True, name="bucket")
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        _here.__dict__.clear()
        raise UserError(
            f"cannot reach {where}: no answer within {PATIENCE:.0f} s; look whether the network "
            "and the name are right"
        )
    _here.__dict__.update(clients)
    value, error = found[0]
    if error is not None:
        raise error
    return value


def _split(where: str) -> tuple[str, str]:
    bucket, _, name = where.removeprefix("gs://").partition("/")
    return bucket, name


def _storage() -> Any:
    try:
        import gcsfs  # noqa: F401
        from google.cloud import storage
    except ImportError as error:
        raise UserError(
            f'gs:// takes a package that is not here ({error}); run: pip install "aigc-jax[gcs]", '
            "or mount the bucket and give its directory"
        ) from None
    for name in ("gcsfs", "google"):  # they print tracebacks of what we say in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return storage


def _client() -> Any:
    """Google's client, one for each thread."""
    asked = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if getattr(_here, "asked", None) != asked:
        _here.client, _here.asked = _storage().Client(), asked
    return _here.client


def _retry(seconds: float = 0.0) -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(seconds or RETRYING)


def _errors() -> Any:
    """The module of the errors of Google's client."""
    _storage()
    from google.api_core import exceptions

    return exceptions


def _blob(where: str) -> Any:
    bucket, name = _split(where)
    return _client().bucket(bucket).blob(name)


def _blobs(where: str, **more: Any) -> Any:
    bucket, prefix = _split(where)
    below = f"{prefix}/" if prefix else None
    return _client().list_blobs(bucket, prefix=below, timeout=_TIMEOUT, retry=_retry(), **more)
