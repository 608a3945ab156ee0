"""Whose path a person reads, and what is missing, in words."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.evidence.doubts import doubt, facet_of, marked, named

EXECUTED = "it has executed another program since"
PATH = "/usr/bin/sleep"


def process(files: str | None, result: str = "complete", reason: str | None = None) -> Any:
    identity = {"result": result, "reason": reason}
    return {"name": "sleep", "executable": PATH, "files": files, "identity": identity}


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (process("host"), ""),
        (process("host", "partial", "not permitted"), "partial: not permitted"),
        (process("namespace"), "own mount namespace"),
        (
            process("namespace", "partial", "not permitted"),
            "own mount namespace; partial: not permitted",
        ),
        (process(None), "not verified"),
        (process(None, "partial", EXECUTED), f"not verified: {EXECUTED}"),
        (process(None, "gone"), "not verified: it has exited"),
        (process(None, "reused"), "not verified: its pid is another process's now"),
        ({"files": None, "identity": None}, ""),  # of many processes
        ({"name": "x", "executable": PATH}, ""),  # of an older version
        ({"files": "namespace", "executable": PATH}, "own mount namespace"),  # a target
        ({"files": None, "executable": PATH}, "not verified"),
        (None, ""),
        (3, ""),
        ([], ""),
        ({}, ""),
        ({"files": [], "identity": 3}, ""),
        ({"files": [], "identity": {"result": [], "reason": {}}}, "not verified"),
    ],
)
def test_doubt(who: object, words: str) -> None:
    assert doubt(who) == words


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (process("host"), PATH),
        (process("namespace"), f"{PATH} (own mount namespace)"),
        (process(None, "gone") | {"executable": "sleep"}, "sleep (not verified: it has exited)"),
        ({"name": "x", "executable": None, "files": None, "identity": None}, "x"),
        (None, ""),
        ({}, ""),
    ],
)
def test_named(who: object, words: str) -> None:
    assert named(who) == words


@pytest.mark.parametrize(
    ("who", "facet"),
    [
        (process("host"), None),
        (process("namespace"), "in_namespace"),
        (process(None), "not_verified"),
        (process(None) | {"executable": "sleep"}, None),
        ({"executable": PATH}, None),
    ],
)
def test_facet(who: Any, facet: str | None) -> None:
    assert facet_of(who) == facet


@pytest.mark.parametrize(
    ("marks", "shown"),
    [
        ({}, PATH),
        ({"in_namespace": {PATH: 12}}, f"{PATH} (own mount namespace)"),
        ({"in_namespace": {PATH: 3}}, f"{PATH} (3 of 12: own mount namespace)"),
        (
            {"in_namespace": {PATH: 3}, "not_verified": {PATH: 4}},
            f"{PATH} (3 of 12: own mount namespace; 4 of 12: not verified)",
        ),
        ({"in_namespace": {"/other": 12}}, PATH),
    ],
)
def test_marks_of_an_incident(marks: dict[str, dict[str, int]], shown: str) -> None:
    assert marked(PATH, {"executable": {PATH: 12}, **marks}) == shown
