"""Programs compiled for a slice that is not here, read by what they must hold."""

import importlib.metadata
import importlib.util
import itertools
import json
import re

import pytest
from runs import FAMILIES, ROOT, make_config

from aigc_jax.__main__ import main
from aigc_jax.aot import topology
from aigc_jax.aot.compile import compile, largest_that_fits, refusal
from aigc_jax.errors import UserError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the extra `aot`"
)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "pod"])
def test_unknown_topology_is_refused_and_the_known_kinds_are_listed(name):
    with pytest.raises(UserError, match=rf'unknown topology "{name}".*v4, v5e, v5p, v6e'):
        topology.describe(name)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_missing_libtpu_names_the_extra():
    with pytest.raises(UserError, match=r"aigc-jax\[aot\]"):
        topology.describe("v5e:2x2")


@pytest.mark.parametrize("start", [1, 3, 16, 1000])
@pytest.mark.parametrize("largest", [0, 1, 2, 17, 64, 999, 123_456])
def test_search_finds_the_largest_that_fits(start, largest):
    tried = []

    def use(n):  # memory that grows with n beside a part that does not
        tried.append(n)
        return (n + 100) / (largest + 100.5)

    found = largest_that_fits(use, start)
    assert largest * (1 - 1 / 64) < found <= largest if largest > 64 else found == largest
    assert len(set(tried)) == len(tried) <= 16  # each is a compilation


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (
            "total memory required for HLO temporaries (19.77G) exceeds available HBM (15.75G).",
            19.77,
        ),
        ("Ran out of memory in memory space hbm. Used 19.77G of 15.75G hbm. Exceeded by 4G", 19.77),
    ],
)
def test_refusals_tell_what_was_needed(text, needed):
    found = refusal(ValueError(f"RESOURCE_EXHAUSTED: {text}\nSee https://..."))
    assert found["bytes_needed"] == round(needed * 2**30)
    assert found["bytes_available"] == round(15.75 * 2**30)
    assert found["refused"] == text


@pytest.mark.tpu_compiler
@needs_libtpu
def test_fsdp_program_for_four_chips(tmp_path):
    wide = {"model__encoder__features": (512,), "model__decoder__features": (512,)}
    config = make_config("vae", parallel__data=1, parallel__fsdp=4, **wide)
    report = compile(config, "v5e:2x2", check=True, out=str(tmp_path / "made" / "report"))
    assert (report["chips"], report["fits"]) == (4, True)
    # Parameters and two moments in float32, split four ways; a TPU pads arrays to tiles.
    state = 3 * 4 * report["parameters"]
    assert report["state"]["bytes"] == pytest.approx(state, rel=1e-4)
    assert report["state"]["bytes_per_chip"] == pytest.approx(state / 4, rel=0.01)
    assert state / 4 < report["bytes_per_chip"]["arguments"] < 1.3 * state / 4
    assert report["flops_per_chip"] == pytest.approx(report["model_flops_per_chip"], rel=0.01)
    assert {"all-gather", "reduce-scatter"} <= {c["kind"] for c in report["collectives"]}
    assert all(c["axes"] == ("fsdp",) for c in report["collectives"])
    written = json.loads((tmp_path / "made" / "report.json").read_text())
    assert written == json.loads(json.dumps(report))


@pytest.mark.tpu_compiler
@needs_libtpu
@pytest.mark.parametrize("what", ["eval", "generate"])
def test_evaluation_and_generation_compile_without_touching_the_state(what):
    report = compile(make_config("vae"), "v5e:2x2", what=what)
    forward, size = report["model_flops_per_chip"], report["bytes_per_chip"]
    assert size["donated"] == 0
    # 16 images through encoder and decoder, or 100 through the decoder, a fourth on each chip.
    products = {"eval": 2 * 784 * 32 + 32 * 40 + 20 * 32, "generate": 20 * 32 + 32 * 784}[what]
    assert forward == 2 * {"eval": 16, "generate": 100}[what] * products / 4
    assert report["flops_per_chip"] == forward


@pytest.mark.tpu_compiler
@needs_libtpu
def test_what_does_not_fit_is_reported_and_with_check_refused(tmp_path, capsys):
    flags = [f"--config={FAMILIES['gpt']}", "--config.data.batch_size=4194304"]
    flags += [f"--out={tmp_path / 'report.json'}"]
    with pytest.raises(SystemExit) as exit:
        main(["compile", *flags, "--check"])
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert "does not fit: " in captured.err.splitlines()[-1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fits"] is False
    assert report["bytes_needed"] > report["bytes_available"] == 15.75 * 2**30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config=FILE is missing"),
        (["--sweep", "--check"], "do not go together"),
        (["--sweep", "--what=eval"], "train step"),
        (["--slices=0"], "--slices=0 is out of range"),
        (["--out=/proc/there/report"], "cannot write --out"),
    ],
)
def test_bad_flags_are_one_line(flags, message, capsys):
    config = [f"--config={FAMILIES['vae']}"] if flags else []
    with pytest.raises(SystemExit) as exit:
        main(["compile", *config, *flags])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.tpu_compiler
@needs_libtpu
def test_several_slices_have_their_own_devices():
    target = topology.describe("v5e:2x2", slices=2)
    assert [d.slice_index for d in target.devices] == [0] * 4 + [1] * 4
    assert len(topology.describe("v4:2x2x2").devices) == 8  # not its sixteen cores


def described(report) -> dict:
    """What a golden holds: every collective, and how the state is split."""
    collectives = [
        f"{c['kind']} over {' x '.join(c['axes'])}: {c['count']:.0f} times, {c['bytes']:.0f} bytes"
        for c in report["collectives"]
    ]
    split = {
        f"{a['path']} {a['shape']}": " x ".join(str(axis or "-") for axis in a["split_over"])
        for a in report["state"]["largest"]
    }
    return {
        "compiler": f"libtpu {importlib.metadata.version('libtpu')}",
        "collectives": collectives,
        "state_bytes_per_chip": report["state"]["bytes_per_chip"],
        "split": split,
    }


@pytest.mark.tpu_compiler
@needs_libtpu
@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        *itertools.product(("dense_gan", "vae", "gpt"), ("data4_fsdp1", "data2_fsdp2")),
        ("gpt", "fsdp2_tensor2"),  # its all-to-alls are of dropout's words, drawn flat
    ],
)
def test_collectives_and_shardings_are_the_reviewed_ones(family, mesh, renew):
    axes = {name: int(size) for name, size in re.findall(r"([a-z]+)(\d+)", mesh)}
    config = make_config(
        family, **{f"parallel__{name}": axes.get(name, 1) for name in ("data", "fsdp", "tensor")}
    )
    if family == "gpt":  # a vocabulary that does not change with Python's help texts
        config.data.source, config.data.split = "synthetic_tokens:64", "train[:1000]"
        config.data.eval_split = "validation[:500]"
    found = described(compile(config, "v5e:2x2"))
    golden = ROOT / "tests" / "golden" / f"compile_{family}_{mesh}.json"
    if renew:
        golden.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        pytest.skip(f"wrote {golden}")
    expected = json.loads(golden.read_text(encoding="utf-8"))
    hint = (
        "if the change is meant: pytest tests/aot/test_compile_verb.py -k reviewed --renew-goldens"
    )
    if found["compiler"] != expected["compiler"]:  # another one may merge or split collectives
        found["compiler"] = expected["compiler"]
        for side in (found, expected):
            side["collectives"] = [line.split(":")[0] for line in side["collectives"]]
    assert found == expected, hint


@pytest.mark.tpu_compiler
@needs_libtpu
def test_sweep_keeps_a_chips_work_or_splits_it_and_names_what_does_not_divide(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(topology.SHAPES, "v5e", ("2x2", "2x4", "4x4"))
    flags = [f"--config={FAMILIES['vae']}", "--config.data.batch_size=24", "--topology=v5e:2x2"]
    with pytest.raises(SystemExit) as exit:
        main(["compile", "--sweep", *flags, f"--out={tmp_path / 'sweep'}"])
    assert not exit.value.code
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    weak, strong = (
        {p["chips"]: p for p in points if p["scaling"] == s} for s in ("weak", "strong")
    )
    assert {chips: p["batch_size"] for chips, p in weak.items()} == {4: 24, 8: 48, 16: 96}
    assert len({p["flops_per_chip"] for p in weak.values()}) == 1
    assert strong[4]["flops_per_chip"] == 2 * strong[8]["flops_per_chip"]
    assert "24 is not divisible by 16" in strong[16]["error"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
