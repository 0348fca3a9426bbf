"""What a bucket says is one line, soon; objects are whole, and replaced by whom we mean."""

import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from emulator import serving

from aigc_jax import bucket
from aigc_jax.errors import UserError
from aigc_jax.paths import expand

PLACE = "gs://runs/a"


@pytest.fixture
def emulator():
    with serving() as emulator:
        yield emulator


def test_a_path_and_its_url():
    assert bucket.url(expand("workdir", "gs://runs/a/b/")) == "gs://runs/a/b"
    assert bucket.url(Path("gs://runs/a") / "b") == "gs://runs/a/b"
    assert bucket.url("runs/a") == bucket.url("/gs/a") == ""
    assert bucket.shown(Path("runs/a")) == "runs/a"


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("workdir", "gs://runs", "needs a name in the bucket, gs://runs/NAME"),
        ("workdir", "gs://Runs/a", "write gs://BUCKET/NAME"),
        ("workdir", "gs://runs/a*", "write gs://BUCKET/NAME, without"),
        ("workdir", "s3://runs/a", "of buckets only gs://"),
        ("out", "gs://runs/a", "a URL is not possible here"),
        ("config", "https://example.com/a.py", "a URL is not possible here"),
        ("TFDS_DATA_DIR", "s3://runs", "TFDS_DATA_DIR=s3://runs: of buckets only gs://"),
    ],
)
def test_other_urls_are_refused(flag, value, part):
    with pytest.raises(UserError, match=part):
        expand(flag, value)


def test_a_generation_is_replaced_by_whoever_knows_it(emulator):
    first = bucket.write(f"{PLACE}/x", b"1", replacing=0)
    with pytest.raises(bucket.Replaced):
        bucket.write(f"{PLACE}/x", b"2", replacing=0)
    second = bucket.write(f"{PLACE}/x", b"2", replacing=first)
    with pytest.raises(bucket.Replaced):
        bucket.remove(f"{PLACE}/x", first)
    assert bucket.look(f"{PLACE}/x") == (b"2", second)
    bucket.remove(f"{PLACE}/x", second)
    assert bucket.look(f"{PLACE}/x") == (b"", 0)
    assert bucket.read(f"{PLACE}/x") is None
    bucket.remove(f"{PLACE}/x")  # it is not there, as asked


def test_files_by_their_names_below(emulator):
    for name in ("x", "d/y.json", "d/e/z.json"):
        bucket.write(f"{PLACE}/{name}", b"12")
    assert list(bucket.files(PLACE)) == ["x"]
    assert sorted(bucket.files(PLACE, "**")) == ["d/e/z.json", "d/y.json", "x"]
    assert list(bucket.files(f"{PLACE}/d", "*.json")) == ["y.json"]
    assert bucket.files(PLACE)["x"].size == 2


def test_a_check_leaves_nothing(emulator):
    bucket.check(PLACE)
    assert emulator.names() == []


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_wrong_name(emulator):
    for call in (bucket.check, bucket.read):
        assert "gs://nobody/a: there is no such bucket" in refusal(call, "gs://nobody/a")


@pytest.mark.parametrize("denied", ["GET", "POST", "DELETE"])
def test_a_permission_that_is_lacking(emulator, denied):
    emulator.denied = (denied,)
    said = refusal(bucket.check, PLACE)
    assert "cannot use gs://runs/a: no permission" in said
    assert bucket.ROLES in said


def test_a_bucket_that_refuses_connections(emulator, monkeypatch):
    monkeypatch.setattr(bucket, "RETRYING", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{probe.getsockname()[1]}")
        for call in (bucket.check, bucket.read):
            assert "it does not answer" in refusal(call, PLACE)


def test_a_bucket_that_never_answers(monkeypatch):
    monkeypatch.setattr(bucket, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        begin = time.monotonic()
        for call in (bucket.check, bucket.read):
            assert "no answer within" in refusal(call, PLACE)
        assert time.monotonic() - begin < 30


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(bucket, "_here", threading.local())
    calls = (bucket.check, bucket.read, bucket.look, bucket.remove, bucket.files, bucket.place)
    for call in (*calls, lambda where: bucket.write(where, b"")):
        place = Path(PLACE) if call is bucket.place else PLACE
        assert 'pip install "aigc-jax[gcs]"' in refusal(call, place)


def test_together_they_are_within_a_minute():
    assert bucket.PATIENCE < 60
    assert bucket.RETRYING < bucket.PATIENCE
