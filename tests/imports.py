"""What a run of seal-monitor imports, and which lines import it.

Run as a program with a file and a command line of seal-monitor: once that has ended, the file has a
JSON object of every module that was imported, with the lines that led to it, the nearest first.
Without a command line it imports what `run` does before it asks the kernel for anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["COMMAND", "HEAVY", "NOT_COMPILED", "OF_INCIDENTS", "culprits"]

COMMAND = (sys.executable, "-P", __file__)

# What a daemon with the default configuration does not need: from 0.3 to 7 MiB each.
HEAVY = frozenset(
    (
        *("asyncio", "concurrent.futures", "multiprocessing"),
        *("ssl", "_ssl", "hashlib", "_hashlib", "secrets", "uuid"),
        *("http.client", "http.server", "urllib.request", "email", "socketserver", "wsgiref"),
        *("bz2", "lzma", "shutil", "tempfile", "gzip", "tarfile", "zipfile", "difflib"),
        *("importlib.metadata", "importlib.resources", "typing_extensions"),
        *("structlog", "prometheus_client", "yaml", "bcrypt", "jinja2", "elftools", "jsonschema"),
        *("bcc", "rich"),
        *("monitor.report", "monitor.symbols.resolver", "monitor.web.access", "monitor.web.tls"),
        "monitor.provoke.table",
    )
)
OF_INCIDENTS = frozenset(("sqlite3", "monitor.incidents.store", "monitor.incidents.snapshot"))

# A program that prints those modules below a directory that are not compiled for its interpreter.
NOT_COMPILED = """\
import importlib.util, pathlib, struct, sys
for source in pathlib.Path(sys.argv[1]).rglob("*.py"):
    kept, status = pathlib.Path(importlib.util.cache_from_source(source)), source.stat()
    facts = struct.pack("<III", 0, int(status.st_mtime), status.st_size)
    if not kept.exists() or kept.read_bytes()[:16] != importlib.util.MAGIC_NUMBER + facts:
        print(source)
"""

Importers = Mapping[str, Sequence[str]]


def _lines(frame: FrameType | None) -> Iterable[str]:
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith("importlib") and "importlib" not in frame.f_code.co_filename:
            yield f"{name}:{frame.f_lineno}"
        frame = frame.f_back


def culprits(importers: Importers, heavy: Iterable[str]) -> list[str]:
    """A line for each of the heavy modules that was imported."""
    found = sorted(importers.keys() & set(heavy))
    return [f"{name}, imported by {', by '.join(importers[name])}" for name in found]


def _record(file: Path, command: list[str]) -> int:
    importers: dict[str, list[str]] = {}

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import":
            importers.setdefault(str(arguments[0]), list(_lines(sys._getframe(1))))

    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.addaudithook(hook)
    from monitor import cli  # noqa: PLC0415 - from here on it is recorded

    try:
        return cli.main(command) if command else _begin_run()
    finally:
        # Left out: what could not be imported, and what parts.py has removed again.
        found = {name: lines for name, lines in importers.items() if name in sys.modules}
        file.write_text(json.dumps(found))


def _begin_run() -> int:
    from monitor import daemon  # noqa: F401, PLC0415
    from monitor.configuration.config import parse  # noqa: PLC0415
    from monitor.sinks.opened import open_sinks  # noqa: PLC0415

    config = parse('output = {format = "json", events_file = "/dev/null"}', "")
    return len(open_sinks(config)) - 2


if __name__ == "__main__":
    sys.exit(_record(Path(sys.argv[1]), sys.argv[2:]))
