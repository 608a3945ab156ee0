"""The texts of a configuration: the file itself, then its drop-ins.

`/etc/seal-monitor/config.toml` has its drop-ins in `/etc/seal-monitor/config.d`: a name that ends
in `.toml` has a directory that ends in `.d`. Whoever can write one of them can mute all violations,
so a drop-in must belong to somebody who may decide that, and be written by nobody else.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from monitor.untrusted.printable import printable
from monitor.untrusted.regular import open_regular

__all__ = ["ConfigError", "Source", "drop_ins", "main_file", "require_readable_again"]

_SIZE_LIMIT = 256 * 1024  # bytes of a file
_FILES_LIMIT = 256
_TOTAL_LIMIT = 1024 * 1024  # bytes of all drop-ins; more would take longer to read than a start may
_SUFFIX = ".toml"


class ConfigError(Exception):
    """All mistakes, one a line, each with its place and the way out."""


class Source(NamedTuple):
    """A file that was read; `name` is its path, for messages."""

    name: str
    text: str


def main_file(path: Path, *, may_be_missing: bool) -> Source | None:
    """None if it is not there and may be missing. Raises ConfigError."""
    if "\0" in str(path):
        raise ConfigError(f"cannot read {str(path)!r}: no file has such a name; name another")
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError(
            f"cannot read {str(path)!r}: {error.strerror}; make it a readable file or name another"
        ) from None
    return _source(str(path), data)


def require_readable_again(path: Path) -> None:
    """Raises ConfigError for what has nothing more to say, as a shell's <(COMMAND), or would wait
    for a writer or a terminal.
    """
    with contextlib.suppress(OSError):  # main_file() says more of it
        if not stat.S_ISREG(path.stat().st_mode) and not path.samefile(os.devnull):
            raise ConfigError(
                f"cannot read {str(path)!r} again: not a regular file; name one in its place"
            )


def drop_ins(path: Path) -> tuple[list[Source], list[str]]:
    """Those of the file at `path` by their names, and what is wrong with the others.

    Names that begin with a dot or do not end in `.toml` are left alone.
    """
    if path.suffix != _SUFFIX:
        return [], []
    directory = path.with_suffix(".d")
    shown = printable(str(directory), _SIZE_LIMIT)
    try:
        trusted = _trusted(path)
        with os.scandir(directory) as entries:
            if problem := _untrusted(directory.stat(), trusted):
                return [], [f"{shown}: {problem} {shown}"]
            names = []
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    names.append(entry.name)
                if len(names) > _FILES_LIMIT:
                    return [], [f"{shown}: more than {_FILES_LIMIT} files; join some of them"]
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"cannot read {shown}: {error.strerror}; make it a readable directory"]
    found: list[Source] = []
    problems: list[str] = []
    left = _TOTAL_LIMIT
    for name in sorted(names):
        try:
            source = _drop_in(directory / name, trusted)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if source is None:
            continue
        left -= len(source.text)
        if left < 0:
            problems.append(f"{source.name}: more than {_TOTAL_LIMIT} bytes with the files before")
            break
        found.append(source)
    return found, problems


def _trusted(path: Path) -> set[int]:
    """The users whose drop-ins count: root, who runs this, and whose the main file is."""
    try:
        return {0, os.geteuid(), path.stat().st_uid}
    except FileNotFoundError:
        return {0, os.geteuid()}


def _untrusted(status: os.stat_result, trusted: set[int]) -> str | None:
    """Why a file or directory does not count; its name completes the command."""
    if status.st_uid not in trusted:
        return f"belongs to user {status.st_uid}, who may not configure this; run: chown root"
    if status.st_mode & stat.S_IWOTH:
        return "any user can write it; run: chmod o-w"
    return None


def _drop_in(path: Path, trusted: set[int]) -> Source | None:
    """None if it was removed just now. Raises ConfigError, as for a link to nothing."""
    name = printable(str(path), _SIZE_LIMIT)
    try:
        with open_regular(path, _SIZE_LIMIT) as file:
            problem = _untrusted(os.fstat(file.fileno()), trusted)
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        why = error.strerror or str(error).removeprefix(f"{path}: ")
        raise ConfigError(
            f"cannot read {name}: {why}; correct it, or remove it from the directory"
        ) from None
    if problem:
        raise ConfigError(f"{name}: {problem} {name}")
    return _source(name, data)


def _source(name: str, data: bytes) -> Source:
    if len(data) > _SIZE_LIMIT:
        raise ConfigError(f"{name}: larger than {_SIZE_LIMIT} bytes; is it the right file?")
    try:
        return Source(name, data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
