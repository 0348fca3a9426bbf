"""The folder that stands for a work directory in a bucket: what is written gets there, and what is
there is gone on with."""

from pathlib import Path

import pytest
from emulator import serving

from aigc_jax import bucket
from aigc_jax.errors import UserError
from aigc_jax.run import mirror as mirror_module
from aigc_jax.run.files import open_lines, read_lines, read_optional, write_json
from aigc_jax.run.mirror import Mirror

RUN = Path("gs:/runs/a/run")


@pytest.fixture
def emulator():
    with serving() as emulator:
        yield emulator


def test_a_directory_on_a_disk_is_its_own(tmp_path):
    with Mirror(tmp_path) as mirror:
        assert mirror.folder == tmp_path
        assert mirror.shown(tmp_path / "a") == str(tmp_path / "a")
        mirror.push()


def test_lines_go_on_where_the_last_process_ended(emulator):
    for step in (1, 2):
        with Mirror(RUN) as mirror:
            assert mirror.folder.name == "run"
            with open_lines(mirror.folder / "metrics.jsonl") as lines:
                lines.write({"step": step})
            folder = mirror.folder
        assert not folder.parent.exists()
    assert read_lines(RUN / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_what_changes_is_carried_and_nothing_else(emulator):
    bucket.write("gs://runs/a/run/checkpoints/8/x", b"")
    bucket.write("gs://runs/a/run/generated/samples.png", b"picture")
    with Mirror(RUN) as mirror:
        assert not (mirror.folder / "checkpoints").exists()
        taken = mirror.folder / "generated" / "samples.png"
        assert taken.stat().st_size == 0  # its name is there, for others to be found
        write_json(mirror.folder / "report.json", {"step": 3})
        (mirror.folder / "samples").mkdir()
        (mirror.folder / "samples" / "3.txt").write_text("words")
        (mirror.folder / ".report.partial").write_text("half")
        mirror.push()
        assert read_optional(RUN / "report.json") == {"step": 3}
        generations = {name: emulator.generation(name) for name in emulator.names()}
        write_json(mirror.folder / "config.json", {})
        (mirror.folder / "report.json").unlink()
        mirror.push()
        assert mirror.shown(taken) == "gs://runs/a/run/generated/samples.png"
    names = emulator.names()
    assert names == [
        "a/run/checkpoints/8/x",
        "a/run/config.json",
        "a/run/generated/samples.png",
        "a/run/samples/3.txt",
    ]
    assert emulator.read("a/run/generated/samples.png") == b"picture"
    same = [name for name in names if emulator.generation(name) == generations.get(name)]
    assert same == [name for name in names if "config" not in name]


def test_it_is_carried_while_the_run_goes_on(emulator, monkeypatch):
    monkeypatch.setattr(mirror_module, "SECONDS", 0.01)
    with Mirror(RUN) as mirror:
        (mirror.folder / "events").write_bytes(b"1")
        while emulator.names() != ["a/run/events"]:
            pass


def test_what_the_bucket_refuses_stays_here(emulator, capsys):
    def write(keeps: bool) -> Path:
        emulator.denied = ()
        with Mirror(RUN, keeps=keeps) as mirror:
            emulator.denied = ("POST",)
            write_json(mirror.folder / "report.json", {"step": 3})
        return mirror.folder

    with pytest.raises(UserError, match=r"no permission .*; what it lacks is in ") as caught:
        write(keeps=True)
    assert Path(str(caught.value).rpartition(" ")[2], "report.json").is_file()
    folder = write(keeps=False)
    said = capsys.readouterr().err
    assert "warning: cannot write to gs://runs/a/run/report.json" in said
    assert f"what it lacks is in {folder}" in said
