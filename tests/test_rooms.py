"""The rooms of the package: imports point down only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aigc_jax"

# From the ground up. A module may import those on its own line and on the lines before it.
FLOORS = (
    ("errors", "paths", "atomic", "bucket", "config", "keys", "rng", "ranges", "progress"),
    ("ops",),
    ("models",),
    ("generate",),
    ("optim", "schedules"),
    ("tasks",),
    ("data",),
    ("parallel",),
    ("run", "interop"),
    ("metrics",),
    ("experiment", "members", "build"),
    ("resume",),
    ("aot",),
    ("sample", "texts", "evaluations", "evaluate", "bench", "compare_sets", "convert"),
    ("train",),
    ("config_files", "rows", "trials"),
    ("command_line",),
    ("reproduce", "compare"),
    ("report",),
    ("api",),
    ("__init__", "manual", "check", "export", "sweep", "groups"),
    ("running", "verbs", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file):
    here = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "aigc_jax":
            imported = [f"aigc_jax.{name.name}" for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        elif isinstance(node, ast.Import):
            imported = [name.name for name in node.names]
        else:
            continue
        for module in imported:
            if module.startswith("aigc_jax"):
                assert LEVEL[room(module)] <= LEVEL[here], f"{module}, line {node.lineno}"


def test_every_module_has_a_floor():
    assert {f.relative_to(PACKAGE).with_suffix("").parts[0] for f in FILES} <= set(LEVEL)
