"""Files that comments, docstrings and pages name are in the tree."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import words

TREE = frozenset(words.files(words.ROOT))
DIRECTORIES = frozenset(str(folder) for path in TREE for folder in Path(path).parents)

# Rightly named, but not in the tree.
OTHERS = {
    "build/definitions.h": "make setup generates it",
    "bpf/seal_monitor.object": "make setup generates it",
    "docs/metrics.md.new": "make docs renames it when it is whole",
    "docs/formats.md.new": "make docs renames it when it is whole",
    "monitor/bpf": "bpf/, as a wheel has it",
    "docs/web-configuration.md": "of Prometheus's exporter toolkit",
    "capability.h": "Linux",
}
LINUX = re.compile(
    r"(arch/(x86|arm64)|fs|include/(linux|trace|uapi)|ipc|kernel|lib|linux|mm)/[\w./-]+\.[ch]"
)

# A path from the root of the tree; or a source or a page, with some of its directories or none.
# What comes before it shows that it is not a part of a URL, an absolute path or a variable.
NAMED = re.compile(
    r"(?<![\w./$<>*-])(?:"
    r"(?:monitor|bpf|tests|docs|dashboards|systemd)/[\w./*-]*+"
    r"|[\w*.][\w./*-]*\.(?:py|md|[ch])\b"
    r")(?![\w(/=$-])"
)

NO_PROSE = (".json", ".ts", ".tsx", ".js", ".css")


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Numbers and lines of what a person reads: of code only comments, docstrings and includes."""
    if name.endswith(".py"):
        yield from python_prose(text)
    elif name.endswith((".c", ".h")):
        for match in re.finditer(r"/\*.*?\*/|#include [^\n]*", text, re.DOTALL):
            yield from numbered(match[0], 1 + text.count("\n", 0, match.start()))
    elif not name.endswith(NO_PROSE):
        yield from numbered(text, 1)


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield from numbered(docstring, node.lineno)


def numbered(text: str, first: int) -> Iterator[tuple[int, str]]:
    return enumerate(text.split("\n"), first)


def exists(path: str) -> bool:
    """Whether a path, or the end of one, is known. NAME and X stand for any name."""
    path = path.removeprefix("../").rstrip("/.")
    if path in DIRECTORIES or LINUX.fullmatch(path):
        return True
    pattern = re.sub(r"NAME|(?<![A-Za-z])X(?![A-Za-z])", "*", path)
    return any(fnmatchcase(f"/{known}", f"*/{pattern}") for known in (*TREE, *OTHERS))


def missing(name: str, text: str) -> list[str]:
    return [
        f"{name}:{number}: {match[0]}"
        for number, line in prose(name, text)
        for match in NAMED.finditer(line)
        if not exists(match[0])
    ]


def test_every_file_that_is_named_is_in_the_tree() -> None:
    elsewhere = ("CHANGELOG.md", "tests/unit/test_paths.py")  # history; examples
    assert [
        line
        for name, text in words.texts(words.ROOT)
        if name not in elsewhere
        for line in missing(name, text)
    ] == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.md", "`gone.py`, kernel/abi.py\nand monitor/gone/", ["1: gone.py", "2: monitor/gone/"]),
        (
            "a.py",
            '"""In\ndocs/gone."""\ncode = "gone.py"  # gone.h',
            ["3: gone.h", "2: docs/gone."],
        ),
        ("a.c", '#include "gone.h"\n/* See\n * gone.md. */ "gone.c"', ["1: gone.h", "3: gone.md"]),
        ("Makefile", "docs/*.md docs/*.gone tests/assets/NAME.c", ["1: docs/*.gone"]),
        ("a.service", "/usr/share/gone.md mm/mseal.c //host/docs/gone.md $(X)/gone.md", []),
        ("a.json", "gone.py", []),
    ],
)
def test_what_is_found(name: str, text: str, expected: list[str]) -> None:
    assert missing(name, text) == [f"{name}:{line}" for line in expected]


def test_the_tree_in_contributing_names_every_program_and_header() -> None:
    text = (words.ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tree = text.partition("\n## The tree\n")[2].partition("\n## ")[0]
    sources = {
        path.removeprefix("bpf/") for path in TREE if re.fullmatch(r"bpf/\w[\w.]*\.[ch]", path)
    }
    assert sources - set(re.findall(r"[\w.]+\.[ch]\b", tree)) == set()
