"""Values of a YAML file, each checked; a mistake is reported with its line.

The nodes are read, not the loaded values: a node knows its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from monitor.untrusted.printable import joined
from monitor.web.errors import WebError

__all__ = ["Mistakes", "boolean", "compose", "entries", "is_null", "known", "string", "strings"]

_TAG = "tag:yaml.org,2002:"
_BOOLEANS = {"true": True, "false": False}


class Mistakes:
    """Collects what is wrong with a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[tuple[int, str]] = []

    def add(self, node: yaml.Node, key: str, text: str) -> None:
        line = node.start_mark.line + 1
        self._found.append((line, f"{self._path}:{line}: key {joined(key)!r}: {text}"))

    def check(self) -> None:
        """Raises WebError with all of them, a line each, in the order of the file."""
        if self._found:
            found = sorted(self._found, key=lambda mistake: mistake[0])
            raise WebError("\n".join(text for _, text in found))


def compose(text: str, path: Path) -> yaml.Node | None:
    """The node of the whole file, None when it is empty. Raises WebError."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise WebError(f"{place}: not valid YAML: {joined(error.problem)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WebError(f"{path}: not valid YAML: {joined(error)}") from None


def is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


def entries(
    node: yaml.Node, name: str, mistakes: Mistakes
) -> Iterator[tuple[str, str, yaml.Node, yaml.Node]]:
    """Name, dotted name, key node and value node of each entry of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        mistakes.add(node, name, "it is not a mapping; write its keys indented beneath it")
        return
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            mistakes.add(key, name, "a key beneath it is not a string; write NAME: VALUE")
            continue
        dotted = f"{name}.{key.value}" if name else key.value
        if key.value in seen:
            mistakes.add(key, dotted, "it is there twice; leave one")
        seen.add(key.value)
        yield key.value, dotted, key, value


def known(
    node: yaml.Node, name: str, valid: Sequence[str], mistakes: Mistakes
) -> dict[str, yaml.Node]:
    """The values of a mapping whose keys are all `valid`, without those that are null."""
    found = {}
    for key, dotted, key_node, value in entries(node, name, mistakes):
        if key not in valid:
            import difflib  # noqa: PLC0415 - only needed for mistakes

            nearest = difflib.get_close_matches(key[:100], valid, n=1, cutoff=0.0)[0]
            text = f"it is not supported; the nearest that is: {nearest!r}"
            mistakes.add(key_node, dotted, text)
        elif not is_null(value):
            found[key] = value
    return found


def string(node: yaml.Node, name: str, mistakes: Mistakes) -> str:
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str" and "\0" not in node.value:
        return str(node.value)
    mistakes.add(node, name, "its value is not a string; write it in quotes")
    return ""


def strings(node: yaml.Node, name: str, mistakes: Mistakes) -> tuple[str, ...]:
    if isinstance(node, yaml.SequenceNode):
        return tuple(string(each, name, mistakes) for each in node.value)
    mistakes.add(node, name, "it is not a list; write an item a line, each after '- '")
    return ()


def boolean(node: yaml.Node, name: str, mistakes: Mistakes) -> bool:
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}bool":
        value = _BOOLEANS.get(node.value.lower())
        if value is not None:
            return value
    mistakes.add(node, name, "it is neither true nor false")
    return False
