"""Any event that the schema allows, for tests of what is made of events."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from monitor.evidence import events

__all__ = ["any_event"]

_SCHEMA = events.schema()
_LARGEST = (1 << 63) - 1

# Of a pattern Python's regular expressions make digits of any script, and days that no month has.
_TIMES = st.builds(
    lambda moment, ns: f"{moment:%Y-%m-%dT%H:%M:%S}.{ns:09d}Z",
    st.datetimes(datetime(1970, 1, 1), datetime(2554, 7, 21)),
    st.integers(0, 999_999_999),
)
_TEXTS = st.one_of(
    st.text(max_size=40),
    # What json.loads makes of "\udc80".
    st.text(
        st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"]), max_size=3
    ),
)
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)


def any_event(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    made: st.SearchStrategy[dict[str, Any]] = _of({"$ref": f"#/$defs/{kind}"})
    return made


def _of(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that this part of the schema allows; not every keyword is known here."""
    if reference := node.get("$ref"):
        others = {key: value for key, value in node.items() if key != "$ref"}
        return _of(_SCHEMA["$defs"][reference.rpartition("/")[2]] | others)
    for choice in ("oneOf", "anyOf"):
        if choice in node:
            return st.one_of([_of(each) for each in node[choice]])
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    types = node["type"] if isinstance(node["type"], list) else [node["type"]]
    return st.one_of([_OF_TYPE[each](node) for each in types])


def _string(node: dict[str, Any]) -> st.SearchStrategy[str]:
    pattern = node.get("pattern")
    if pattern == _SCHEMA["$defs"]["time"]["pattern"]:
        return _TIMES
    if pattern:
        return st.from_regex(pattern.replace(r"\d", "[0-9]"), fullmatch=True)
    return _TEXTS


def _object(node: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" in node:
        assert node["required"] == list(node["properties"])
        return st.fixed_dictionaries({k: _of(v) for k, v in node["properties"].items()})
    others = node["additionalProperties"]
    return st.dictionaries(_TEXTS, _ANYTHING if others is True else _of(others), max_size=3)


_OF_TYPE: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "null": lambda _: st.none(),
    "boolean": lambda _: st.booleans(),
    "integer": lambda node: st.integers(node.get("minimum", -_LARGEST), _LARGEST),
    "number": lambda node: st.floats(node.get("minimum"), allow_nan=False, allow_infinity=False),
    "array": lambda node: st.lists(_of(node["items"]), max_size=4),
    "object": _object,
    "string": _string,
}
