"""The tree in CONTRIBUTING.md is the order of monitor/: each imports only from those above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
_, _, BELOW = TREE.partition("\n    monitor/ ")
LAYERS = [
    name.removesuffix("/").removesuffix(".py")
    for name in re.findall(r"^ {6}(\S+)", BELOW.partition("\n    systemd/ ")[0], re.MULTILINE)
]
NO_LAYERS = {"__init__", "__main__"}


def imported(path: Path) -> Iterator[str]:
    """The packages and modules right below monitor/ that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: names its imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "monitor":
                yield rest.partition(".")[0]


def test_the_tree_names_all() -> None:
    there = {
        path.stem
        for path in (ROOT / "monitor").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(LAYERS) == sorted(there - NO_LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_come_from_above(layer: str) -> None:
    place = ROOT / "monitor" / layer
    files = [*place.rglob("*.py")] if place.is_dir() else [place.with_suffix(".py")]
    assert files
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = {str(file.relative_to(ROOT)): set(imported(file)) - allowed for file in files}
    assert {file: names for file, names in wrong.items() if names} == {}
