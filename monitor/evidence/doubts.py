"""What a person must know who reads the path of a program: whose path it is, and what is missing.

docs/events.md, "Whose program it is", explains the words. Events may come from a stranger's
database, so nothing is taken to be of its type.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FACETS", "doubt", "facet_of", "marked", "named"]

_NAMESPACE, _NOT_VERIFIED, _PARTIAL = "own mount namespace", "not verified", "partial"
_WHY = {"gone": "it has exited", "reused": "its pid is another process's now"}

# What is counted in an incident, of each path.
FACETS: Mapping[str, str] = {"in_namespace": _NAMESPACE, "not_verified": _NOT_VERIFIED}


def doubt(process: object) -> str:
    """Of an event's process or target; empty where the path is the host's and nothing is missing.

    Empty also where the event says nothing of it: it is of an older version, or of many processes.
    """
    if not isinstance(process, Mapping) or "files" not in process:
        return ""
    identity = process.get("identity")
    if "identity" in process and not isinstance(identity, Mapping):
        return ""
    why = ""
    if isinstance(identity, Mapping):
        why = str(identity.get("reason") or _WHY.get(str(identity.get("result")), ""))
    missing = f"{_PARTIAL}: {why}" if why else ""
    match process["files"]:
        case "host":
            return missing
        case "namespace":
            return f"{_NAMESPACE}; {missing}" if missing else _NAMESPACE
    return f"{_NOT_VERIFIED}: {why}" if why else _NOT_VERIFIED


def named(process: object) -> str:
    """The program with its mark: its path, else its base name; empty where neither is known."""
    if not isinstance(process, Mapping):
        return ""
    name = process.get("executable") or process.get("name")
    mark, loaded = doubt(process), process.get("program")
    if name and isinstance(loaded, Mapping):
        name = f"{name} running {loaded.get('path')}"
    return f"{name} ({mark})" if name and mark else str(name or "")


def facet_of(process: Mapping[str, object]) -> str | None:
    """The facet that counts the path of a process; None for one of the host and for a name."""
    path = process.get("executable")
    if "files" not in process or not isinstance(path, str) or "/" not in path:
        return None
    return {"host": None, "namespace": "in_namespace"}.get(str(process["files"]), "not_verified")


def marked(path: str, facets: Mapping[str, Mapping[str, int]]) -> str:
    """The path of an incident's events with its marks, and of how many where not of all."""
    count = facets.get("executable", {}).get(path, 0)
    marks = []
    for name, words in FACETS.items():
        number = facets.get(name, {}).get(path, 0)
        if number:
            marks.append(words if number >= count else f"{number:,} of {count:,}: {words}")
    return f"{path} ({'; '.join(marks)})" if marks else path
