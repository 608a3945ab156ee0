"""Names for the frames of an event's stack: from the files that were mapped, found by build id.

It may run long after the event, and never in the daemon: files and their symbols take time and
memory. It does not guess: without the file itself there is no name. The event's process may still
live, and hold the lock that its mapped files need: they are found in threads that can be given up.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from monitor.evidence.waiting import SYSTEM_USERS, Reads, TooLong, Waiting
from monitor.symbols.budget import Budget
from monitor.symbols.debuginfod import Debuginfod, What
from monitor.symbols.demangle import Demangler
from monitor.symbols.elf import Elf, ElfError, Functions
from monitor.symbols.elf_files import (
    Hints,
    debug_files,
    is_name,
    mapped_files,
    named_files,
    usual_files,
)
from monitor.symbols.perf_map import Jit, PerfMaps
from monitor.untrusted.printable import printable
from monitor.untrusted.recent import Recent
from monitor.untrusted.regular import open_regular

__all__ = ["Resolver"]

FILE_LIMIT = 1 << 32
# Limits of what is kept open; the module that was used last is always kept.
MODULES_KEPT = 32
FUNCTIONS_KEPT = 1 << 19
FRAMES_LIMIT = 256
READ_SECONDS, AT_ONCE_SECONDS = 1.0, 5.0  # for a file, and for all of one user's: see Waiting
_BUILD_ID = re.compile(r"[0-9a-f]{4,128}")

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Key:
    """A build id, and the hints by which its file was found; None: the usual places."""

    build_id: str
    hints: Hints | None = None


@dataclass(slots=True)
class _Module:
    """A file that was mapped, and its tables of functions, the best first."""

    binary: Elf
    files: list[Elf] = field(default_factory=list)
    tables: list[Functions] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.tables))

    def find(self, offset: int) -> tuple[bytes, int] | None:
        """Name of the function at this offset of the file, and the offset where it begins."""
        address = self.binary.address(offset)
        if address is None:
            return None
        found = next(filter(None, (table.find(address) for table in self.tables)), None)
        return found and (found[0], offset - (address - found[1]))

    def close(self) -> None:
        for file in (self.binary, *self.files):
            file.close()


class Resolver:
    """Keeps files open for the next event; `close` closes them.

    `report` gets each reason why a name is missing, once. `search`: directories in which to look
    for files before the usual ones.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        report: Callable[[str], None] = lambda _: None,
        search: Sequence[Path] = (),
        root: Path = Path("/"),
        proc: Path = Path("/proc"),
    ) -> None:
        self._search = search
        self._root = root
        self._proc = proc
        self._report = report
        self._reported: Recent[str, bool] = Recent()
        self._debuginfod = Debuginfod(environment, self._report_once)
        self._demangler = Demangler()
        self._waiting = Waiting(seconds=READ_SECONDS, at_once=AT_ONCE_SECONDS)
        self._reads = Reads(self._waiting, SYSTEM_USERS)  # for the user of the event
        self._budget = Budget(cpu=lambda: time.thread_time() + self._waiting.cpu_seconds)
        self._maps = PerfMaps()
        self._modules: OrderedDict[_Key, _Module] = OrderedDict()
        self._missing: Recent[tuple[str, str, Hints], bool] = Recent()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._demangler.close()
        self._waiting.rest()
        while self._modules:
            self._modules.popitem()[1].close()

    def resolve(self, event: Event) -> dict[str, Any]:
        """The event with `symbol` filled in as `function+0x1f`, where the name is certain.

        A frame that has a symbol keeps it. An event without a stack is returned unchanged.
        """
        stack = event.get("stack")
        if not isinstance(stack, list) or len(stack) > FRAMES_LIMIT:
            return dict(event)
        process = event.get("process")
        uid = process.get("uid") if isinstance(process, dict) else None
        owner = uid if isinstance(uid, int) else None
        if not self._budget.has_left(owner):
            self._report_once(
                f"user {owner}: their files take too long to read; no more names for now"
            )
            return dict(event)
        self._reads = Reads(self._waiting, SYSTEM_USERS if owner is None else owner)
        with self._budget.spending(owner):
            return self._resolve(event, stack)

    def _resolve(self, event: Event, stack: Sequence[object]) -> dict[str, Any]:
        hints = _hints(event)
        jit = self._jit_names(event, stack)
        shown = [
            self._frame(frame, index, hints, jit) if isinstance(frame, dict) else frame
            for index, frame in enumerate(stack)
        ]
        return {**event, "stack": shown}

    def _frame(
        self, frame: Event, index: int, hints: Hints, jit: Mapping[int, tuple[bytes, int]]
    ) -> dict[str, Any]:
        if frame.get("symbol") is not None:
            return dict(frame)
        module, build_id, place = frame.get("module"), frame.get("build_id"), frame.get("offset")
        found = None
        if isinstance(module, str) and isinstance(build_id, str) and isinstance(place, int):
            # A call that does not return may be the last instruction of its function. Its return
            # address is then in the next function.
            found = self._find(module, build_id, hints, place - (index > 0))
        elif (address := _address(frame)) is not None:
            place = address
            found = jit.get(address - (index > 0))
            if isinstance(module, str) and found is None:
                self._report_once(f"{module}: no build id")
        if not found or place is None:
            return dict(frame)
        name = self._demangler.demangle(found[0].decode("utf-8", "surrogateescape"))
        return {**frame, "symbol": f"{printable(name)}+{place - found[1]:#x}"}

    # ---- Files -----------------------------------------------------------------------------------

    def _find(
        self, module: str, build_id: str, hints: Hints, offset: int
    ) -> tuple[bytes, int] | None:
        """Name of the function there, and the offset where it begins."""
        known = self._module(module, build_id, hints)
        if known is None:
            return None
        try:
            found = known.find(offset)
            reason = f"no function known at {offset:#x}"
        except ElfError as error:
            found, reason = None, str(error)
        if found is None:
            self._report_once(f"{_named(module, build_id)}: {reason}")
        return found

    def _module(self, module: str, build_id: str, hints: Hints) -> _Module | None:
        """The file with this build id. It is kept under the hints that led to it.

        A process may give its own file any build id. So a file that one process named is not used
        for another one.
        """
        places = (
            (_Key(build_id), usual_files(module, self._search, self._root)),
            (_Key(build_id, Hints(None, hints.paths)), named_files(module, hints, self._root)),
            (_Key(build_id, hints), mapped_files(module, hints, self._proc, self._reads)),
        )
        for key, _ in places:
            if known := self._modules.get(key):
                self._modules.move_to_end(key)
                return known
        asked = (module, build_id, hints)
        if self._missing.get(asked) or not _BUILD_ID.fullmatch(build_id) or not is_name(module):
            return None
        for key, paths in (*places, (_Key(build_id), self._fetch(build_id, "executable"))):
            try:
                path, binary = self._first(paths, build_id)
            except TooLong as error:
                self._report_once(f"{_named(module, build_id)}: {error}")
                continue
            if path and binary:
                return self._keep(key, self._open_module(_named(module, build_id), path, binary))
        self._report_once(f"{_named(module, build_id)}: no file with this build id found")
        self._missing.put(asked, True)
        return None

    def _keep(self, key: _Key, module: _Module) -> _Module:
        self._modules[key] = module
        while len(self._modules) > 1 and (
            len(self._modules) > MODULES_KEPT
            or sum(each.size for each in self._modules.values()) > FUNCTIONS_KEPT
        ):
            self._modules.popitem(last=False)[1].close()
        return module

    def _fetch(self, build_id: str, what: What) -> Iterator[Path]:
        """At most one path. A generator: it asks the servers only when the path is needed."""
        if path := self._debuginfod.fetch(build_id, what):
            yield path

    def _open_module(self, named: str, path: Path, binary: Elf) -> _Module:
        found = _Module(binary)
        for source in (self._own, self._apart, self._fetched, self._left):
            try:
                files, tables = source(binary, path)
            except (ElfError, TooLong) as error:
                self._report_once(f"{named}: {error}")
                continue
            found.files += files
            found.tables += [table for table in tables if len(table)]
            if found.tables:
                break
        return found

    def _first(self, paths: Iterator[Path], build_id: str) -> tuple[Path | None, Elf | None]:
        """The first file with this build id. Raises TooLong."""
        for path in paths:
            try:
                elf = self._reads.run(partial(_open, path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except TooLong:
                raise  # the others would have to wait as well
            except (OSError, ElfError, ValueError) as error:
                self._report_once(f"{printable(str(path))}: {printable(str(error))}")
                continue
            if elf.build_id == build_id:
                return path, elf
            elf.close()
        return None, None

    # Sources of a file's functions, tried in this order. Each returns the files that it opened, and
    # their tables.

    def _own(self, binary: Elf, _path: Path) -> tuple[list[Elf], list[Functions]]:
        return [], [binary.functions("SHT_SYMTAB")]

    def _apart(self, binary: Elf, path: Path) -> tuple[list[Elf], list[Functions]]:
        build_id = str(binary.build_id)
        places = self._reads.run(
            lambda: [*debug_files(build_id, path, binary.debug_link, self._root)]
        )
        return self._symbols_of(self._first(iter(places), build_id)[1])

    def _fetched(self, binary: Elf, _path: Path) -> tuple[list[Elf], list[Functions]]:
        build_id = str(binary.build_id)
        return self._symbols_of(self._first(self._fetch(build_id, "debuginfo"), build_id)[1])

    def _left(self, binary: Elf, _path: Path) -> tuple[list[Elf], list[Functions]]:
        """What stripping left: the exported functions, and those packed into the file."""
        exported = binary.functions("SHT_DYNSYM")
        try:
            files, tables = self._symbols_of(binary.mini_debug())
        except ElfError as error:
            self._report_once(f"build id {binary.build_id}: {error}")
            return [], [exported]
        return files, [exported, *tables]

    @staticmethod
    def _symbols_of(elf: Elf | None) -> tuple[list[Elf], list[Functions]]:
        if elf is None:
            return [], []
        try:
            return [elf], [elf.functions("SHT_SYMTAB")]
        except ElfError:
            elf.close()
            raise

    # ---- Code that a process made ----------------------------------------------------------------

    def _jit_names(self, event: Event, stack: Sequence[object]) -> Mapping[int, tuple[bytes, int]]:
        """Name and start by address, for the addresses in code that no file has."""
        addresses = {
            address - (index > 0)
            for index, frame in enumerate(stack)
            if isinstance(frame, dict)
            and frame.get("build_id") is None
            and frame.get("symbol") is None
            and (address := _address(frame)) is not None
        }
        process = event.get("process")
        if not addresses or not isinstance(process, dict):
            return {}
        try:
            jit = _jit(event, process, self._proc)
            return self._maps.names(jit, addresses, self._root, self._proc) if jit else {}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, TypeError, IndexError, OverflowError) as error:
            self._report_once(
                f"pid {process.get('pid')}: no names for code without a file: {error}"
            )
            return {}

    def _report_once(self, text: str) -> None:
        if not self._reported.get(text):
            self._reported.put(text, True)
            self._report(printable(text, 1024))


def _open(path: Path) -> Elf:
    """Raises OSError, ElfError, ValueError."""
    return Elf(open_regular(path, FILE_LIMIT))


def _named(module: str, build_id: str) -> str:
    return f"{module} (build id {build_id})"


def _address(frame: Event) -> int | None:
    text = frame.get("address")
    try:
        return int(text, 16) if isinstance(text, str) and len(text) <= 18 else None
    except ValueError:
        return None


def _hints(event: Event) -> Hints:
    """The event's hints at files. They are not trusted: readers compare the build id."""
    paths = []
    for path in (
        ("process", "executable"),
        ("sealed", "file", "path"),
        ("mapping", "file", "path"),
    ):
        value: object = event
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            paths.append(value)
    process = event.get("process")
    pid = process.get("pid") if isinstance(process, dict) else None
    return Hints(pid if type(pid) is int and pid > 0 else None, tuple(paths))


def _jit(event: Event, process: Event, proc: Path) -> Jit | None:
    """The event's process; None where facts are missing or the event is another host's.

    Raises OSError, ValueError.
    """
    host = event.get("host")
    boot_id = host.get("boot_id") if isinstance(host, dict) else None
    pid, vpid, uid = (process.get(key) for key in ("pid", "vpid", "uid"))
    times = event.get("time"), process.get("start")
    boot_ns = event.get("time_boot_ns")
    if (
        not all(type(number) is int for number in (pid, vpid, uid, boot_ns))
        or not all(isinstance(text, str) for text in times)
        or boot_id != (proc / "sys/kernel/random/boot_id").read_text().strip()
    ):
        return None
    # Microseconds are exact enough: a tick of the boot clock is 10 ms.
    time, start = (datetime.fromisoformat(str(text)) for text in times)
    ago = round((time - start).total_seconds() * 1e9)
    return Jit(int(str(pid)), int(str(vpid)), int(str(uid)), start, int(str(boot_ns)) - ago)
