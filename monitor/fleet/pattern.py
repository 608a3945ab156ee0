"""Globs as SQLite has them, as regular expressions that ClickHouse and PostgreSQL both take."""

from __future__ import annotations

from monitor.evidence.memory_map import DELETED

__all__ = ["base_name", "pattern"]


def pattern(glob: str | None) -> str:
    """Matches a whole text; "" for None, which matches any."""
    return "" if glob is None else f"^{_expression(glob)}$"


def base_name(glob: str) -> str:
    """Matches a path by its base name, also that of a file that was deleted."""
    return f"(^|/){_expression(glob, '[^/]')}({_literal(DELETED)})?$"


def _expression(glob: str, any_character: str = "(.|\n)") -> str:
    found, place = [], 0
    while place < len(glob):
        character = glob[place]
        place += 1
        end = glob.find("]", place + 1 + glob.startswith("^", place)) if character == "[" else -1
        if end != -1:
            found.append(_set(glob[place:end]))
            place = end + 1
        else:
            wild = {"*": f"{any_character}*", "?": any_character}
            found.append(wild.get(character) or _literal(character))
    return "".join(found)


def _set(members: str) -> str:
    is_not = members.startswith("^")
    inside = members[1:] if is_not else members
    escaped = "".join(c if c.isalnum() or c == "-" else _literal(c) for c in inside)
    return f"[{'^' if is_not else ''}{escaped}]"


def _literal(text: str) -> str:
    """Only what may have a meaning is escaped: a letter after a backslash would get one."""
    plain = (not c.isascii() or c.isalnum() or c in "_ \n" for c in text)
    return "".join(c if is_plain else f"\\{c}" for c, is_plain in zip(text, plain, strict=True))
