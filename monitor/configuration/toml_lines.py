"""The line of each key in a TOML file, which tomllib does not report."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

__all__ = ["KeyPath", "key_lines", "line_of"]

KeyPath = tuple[str | int, ...]

_DEPTH = 4  # deeper keys are always unknown; their line is that of their first parts
_TOKEN = re.compile(
    r'(?P<string>"""(?:\\.|[^\\])*?""""{0,2}'
    r"|'''.*?''''{0,2}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*')"
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<bare>[A-Za-z0-9_-]+)"
    r"|(?P<mark>[\[\]{}=\n])"
    r"|[^\n]",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every key and table header of a text that is valid TOML.

    Keys inside an inline table have the line of the key that holds the table. The n-th `[[name]]`
    has the path (name, n).
    """
    lines: dict[KeyPath, int] = {}
    elements: dict[KeyPath, int] = {}  # array of tables -> index of its last one

    def resolve(keys: list[str]) -> KeyPath:
        path: KeyPath = ()
        for key in keys:
            path += (key,)
            if path in elements:
                path += (elements[path],)
        return path

    def record(path: KeyPath, line: int) -> None:
        for size in range(1, len(path) + 1):
            lines.setdefault(path[:size], line)

    table: KeyPath = ()
    keys: list[str] = []
    brackets = depth = 0
    in_value = False
    line = 1
    for token in _TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
        value = token.group()
        match token.lastgroup, value:
            case (("bare" | "string"), _) if not in_value and len(keys) < _DEPTH:
                quoted = token.lastgroup == "string"
                keys.append(tomllib.loads(f"key = {value}")["key"] if quoted else value)
            case "mark", "[" if not in_value:
                brackets += 1
            case "mark", "=" if not in_value:
                in_value = True
                record(table + tuple(keys), line)
            case "mark", "[" | "{":
                depth += 1
            case "mark", "]" | "}" if in_value:
                depth -= 1
            case "mark", "\n" if depth == 0:
                if brackets == 2:
                    array = (*resolve(keys[:-1]), keys[-1])
                    elements[array] = elements.get(array, -1) + 1
                if brackets:
                    table = resolve(keys)
                    record(table, line)
                keys, brackets, in_value = [], 0, False
        line += value.count("\n")
    return lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of `path`, or of the innermost table around it that has one."""
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
