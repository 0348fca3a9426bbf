"""The page of runs: whole, without scripts or network, whatever state the runs are in."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from runs import make_config

from aigc_jax.compare import names_of
from aigc_jax.config import as_json
from aigc_jax.errors import UserError
from aigc_jax.report import panels, read
from aigc_jax.report.write import report

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "use", "path", "rect"}


def png(shade: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_run(workdir, lines=(), report=None, **overrides):
    """A work directory as `aigc train` leaves it, of numbers that are given."""
    (workdir / "samples").mkdir(parents=True)
    config = as_json(make_config("vae", **overrides))
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "environment.json").write_text(
        json.dumps({"command": ["aigc", "train"], "versions": {"jax": "0.1"}, "devices": ["cpu"]})
    )
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if report:
        (workdir / "report.json").write_text(json.dumps(report))
    return workdir


def line(step, phase="train", /, **values):
    return {"step": step, "phase": phase, "wall_time": 1.0, **values}


class Page(html.parser.HTMLParser):
    """What a browser would see; fails where elements are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def page_of(*places, **options):
    made = report([str(place) for place in places], **options)
    with open(made["report"], encoding="utf-8") as file:
        return made, file.read()


def check_is_alone(text: str) -> Page:
    """No script, and nothing that a browser would fetch."""
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert re.match(r"data:image/png;base64,|#", value), value
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("url(") == text.count("url(#")
    return page


def test_what_runs_and_models_say_is_text_and_nothing_else(tmp_path):
    workdir = make_run(
        tmp_path / EVIL,
        [line(1, **{EVIL: 1.0, "loss": 2.0}), line(1, "eval", **{f"{EVIL}/$x_$": 3.0})],
        {"step": 1, "metrics": {EVIL: 1.0}, "protocol": {EVIL: {EVIL: EVIL, "type": EVIL}}},
    )
    (workdir / "environment.json").write_text(json.dumps({EVIL: EVIL, "devices": [EVIL]}))
    (workdir / "samples" / "1.txt").write_text(
        f"</pre><script>alert(1)</script>\x1b[2J\u202e{EVIL}"
    )
    (workdir / "samples" / f"1-{EVIL}.png").write_bytes(png(7))
    other = make_run(tmp_path / "b", [line(1, loss=2.0)])
    for places in ([workdir], [workdir, other]):
        _, text = page_of(*places, out=tmp_path / "page.html", overwrite=True)
        page = check_is_alone(text)
        assert page.tags.count("img") == 1
        assert page.text.count(EVIL) >= 8
        assert "</pre><script>alert(1)</script>\\x1b[2J\\u202e" in page.text
        assert "\x1b" not in text


def test_the_newest_pictures_are_in_the_page_itself(tmp_path):
    workdir = make_run(tmp_path / "run", [line(20, loss=1.0)])
    for name, shade in {"9.png": 1, "20.png": 2, "20-reconstructions.png": 3}.items():
        (workdir / "samples" / name).write_bytes(png(shade))
    (workdir / "samples" / "30.png").write_bytes(png(4)[:-30])  # torn
    (workdir / "samples" / "40.png").write_bytes(b"GIF89a")
    (workdir / "samples" / "notes.png").write_bytes(png(5))
    (workdir / "generated").mkdir()
    for part, shade in (("100-199", 7), ("000-099", 6)):
        (workdir / "generated" / f"samples-step20-seed1-{part}.png").write_bytes(png(shade))
    (workdir / "generated" / "traversal-step20-seed0.png").write_bytes(png(8))
    made, text = page_of(workdir)
    assert made["pictures"] == 4
    check_is_alone(text)
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    pictures = [Image.open(io.BytesIO(base64.b64decode(x))) for x in embedded]
    shades = [int(np.asarray(picture)[0, 0, 0]) for picture in pictures]
    assert sorted(shades) == [2, 3, 6, 8]
    assert shades[0] == 2  # the samples come first
    assert any("samples/30.png is left out: it is damaged" in x for x in made["left_out"])
    assert any("samples/40.png is left out: it is no PNG" in x for x in made["left_out"])


def test_numbers_are_the_newest_with_their_cards(tmp_path):
    card = {"type": "mean", "data": "mnist/test", "examples": 10_000, "features": {"sha": "ab"}}
    lines = [line(8, "eval", **{"eval/loss": 9.0, "sets/kid": 0.5}), line(9, loss=1.0)]
    report_ = {"step": 12, "metrics": {"loss": 7.25, "loss/seed0": 6.5, "loss/seed1": 8.0}}
    a = make_run(tmp_path / "a", lines, {**report_, "protocol": {"eval": card}})
    b = make_run(tmp_path / "b", lines, {"step": 8, "protocol": {"eval": card}}, seed=3)
    _, text = page_of(a, b, out=tmp_path / "page.html")
    assert "7.25 (6.5 to 8, 2 seeds)" in text
    assert text.count("Protocol card") == 1  # the same of both
    assert "mean, mnist/test, 10,000 examples" in text
    assert re.search(r"<th>features\.sha</th><td>ab</td>", text)
    run = read.read_run(a, "a")
    assert text.count("step 8</span>") == 2  # of b, and of what a did not measure at step 12
    assert run.metrics == {"eval/loss": (12, [6.5, 8.0]), "sets/kid": (8, [0.5])}
    differences = text[text.index("<h2>Config") : text.index("All keys of")]
    assert re.findall(r"<tr><th>([\w.]+)</th>", differences) == ["seed"]


def test_a_run_in_any_state_makes_a_page(tmp_path):
    workdir = make_run(tmp_path / "run")
    made, text = page_of(workdir)
    assert any("no metrics yet" in x for x in made["left_out"])
    assert any("no samples yet" in x for x in made["left_out"])
    assert any("no evaluation yet" in x for x in made["left_out"])
    assert "<h2>Curves" not in text
    good = json.dumps(line(3, loss=2.0))
    damaged = ["nonsense", '{"step": "x", "loss": 1}', '{"step": true}', '{"loss": 5}', "[1]"]
    values = '{"step": 4, "loss": "much", "kl": null, "x": [1], "y": 1e999}'
    (workdir / "metrics.jsonl").write_text("\n".join([good, *damaged, values, '{"step": 5, "lo']))
    for name in ("config.json", "environment.json", "report.json", "goodput.jsonl"):
        (workdir / name).write_text('{"metrics": 3, "step": [], "protocol": [7], "task": 1}\n{"a')
    made, text = page_of(workdir)
    assert any("6 of 8 lines are damaged" in x for x in made["left_out"])
    assert any("config.json is damaged" in x for x in made["left_out"])
    check_is_alone(text)
    assert text.count("<svg") == 1
    assert made["runs"] == {str(workdir): 4}


def test_later_lines_and_single_seeds_are_what_counts():
    lines = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 3.0, "loss/seed0": 2.0, "loss/seed1": 4.0},
        {"step": 1, "loss": 4.0},
    ]
    assert read.series(lines) == {"loss": {1: [4.0], 2: [2.0, 4.0]}}


def test_curves_of_runs_lie_over_each_other_and_keep_their_values(tmp_path):
    many = [line(step, loss=step % 7) for step in range(3, 5003)]
    a = make_run(tmp_path / "a", [*many, line(50, "eval", **{"eval/loss": 3.0, "sets/kid": 1.0})])
    b = make_run(tmp_path / "b", [line(9, loss=1.0, ms_per_step=2.0)])
    runs = [read.read_run(path, path.name) for path in (a, b)]
    lines = panels.lines_of(runs)
    assert list(lines) == ["loss", "sets/kid", "ms_per_step"]
    assert [(of.run, of.evaluated) for of in lines["loss"]] == [(0, False), (0, True), (1, False)]
    at, mean, low, high = panels._thinned(runs[0].train["loss"])
    assert len(at) == panels.POINTS
    assert mean.mean() == pytest.approx(np.mean([step % 7 for step in range(3, 5003)]))
    assert (low.min(), high.max()) == (0, 6)
    fell = {step: [1000.0 / step] for step in range(1, 101)}
    low, high = panels.limits([panels.Line(0, False, fell)])
    assert low is not None
    assert high is not None
    assert low < 10 < 1000 / 6 < high < 200  # the first five steps reach beyond
    assert panels.limits([panels.Line(0, False, {1: [5.0], 2: [1.0]})]) == (None, None)
    _, text = page_of(a, b, out=tmp_path / "page.html")
    check_is_alone(text)
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 3
    assert all(colour in plots[0] for colour in panels.COLOURS[:2])
    assert panels.COLOURS[1] not in plots[1]
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text)) <= set(ids)


def test_a_page_takes_no_other_files_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = make_run(tmp_path / "one" / "run"), make_run(tmp_path / "two" / "run")
    assert names_of([a, b]) == ["one/run", "two/run"]
    for _ in range(2):  # its own is renewed
        assert page_of(a)[0]["report"] == str(a / "report.html")
    assert page_of(a, b)[0]["report"] == "report.html"
    with pytest.raises(UserError, match=r"report\.html is there already; give another --out, or"):
        report([str(a), str(b)])
    with pytest.raises(UserError, match="a run stands twice"):
        report([str(a), str(tmp_path / "two" / ".." / "one" / "run")])
    with pytest.raises(UserError, match="is no run"):
        report([str(tmp_path)])
    with pytest.raises(UserError, match="is no file that can be written"):
        report([str(a)], out=tmp_path)
    assert list(tmp_path.glob("**/*.partial")) == []
