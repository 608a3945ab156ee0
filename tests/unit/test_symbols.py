"""Names of functions: the right ones, from wherever they are kept, or none."""

from __future__ import annotations

import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from clocks import at_most
from hypothesis import given
from journald import journald
from test_elf import CHANGES, ENDS, Change, spoilt, symbol_table
from test_fuzz_records import fuzzed

from monitor.sinks.journal import JournalSink
from monitor.symbols import debuginfod
from monitor.symbols import resolver as symbols
from monitor.symbols.elf import Elf
from monitor.symbols.resolver import Resolver

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests/assets/callers.c"
# So that a function ends where the next begins.
FLAGS = ("-Os", "-falign-functions=1", "-fno-reorder-functions", "-fno-toplevel-reorder")
NOBODY = 4_194_305  # beyond the largest pid
FUNCTIONS = {
    "local": "local",
    "exported": "exported",
    "ends_in_a_call": "ends_in_a_call",
    "comes_next": "comes_next",
    "method": "queue::push(std::vector<int, std::allocator<int> > const&)",
    "crate": "core::ptr::drop_in_place<alloc::string::String>",
}
EXPORTED = [name for name in FUNCTIONS if name != "local"]

Build = Callable[..., "Program"]


class Program:
    """A compiled program and what it said of its own functions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = subprocess.run([path], check=True, capture_output=True, text=True).stdout
        rows = [line.split() for line in lines.splitlines()]
        self.offsets = {name: int(offset) for name, offset, _ in rows}
        self.expected = {name: f"{FUNCTIONS[name]}+{int(far):#x}" for name, _, far in rows}
        with open(path, "rb") as file:
            self.build_id = Elf(file).build_id
        assert list(self.offsets) == list(FUNCTIONS)

    def event(self, **changes: Any) -> dict[str, Any]:
        """Innermost is a frame that is no return address."""
        frames = [
            {
                "address": "0x1",
                "module": self.path.name,
                "build_id": self.build_id,
                "offset": offset,
                "symbol": None,
            }
            for offset in (0, *self.offsets.values())
        ]
        process = {"pid": NOBODY, "executable": str(self.path), **changes}
        return {"process": process, "stack": frames}

    def names(self, resolver: Resolver, **changes: Any) -> dict[str, str | None]:
        stack = resolver.resolve(self.event(**changes))["stack"]
        return {name: frame["symbol"] for name, frame in zip(self.offsets, stack[1:], strict=True)}


def only(program: Program, names: list[str]) -> dict[str, str | None]:
    return {name: program.expected[name] if name in names else None for name in FUNCTIONS}


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def compile_it(*flags: str) -> Program:
        folder = tmp_path / "bin"
        folder.mkdir()
        path = folder / "callers"
        subprocess.run(["gcc", *FLAGS, *flags, SOURCE, "-o", path], check=True)
        return Program(path)

    return compile_it


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def resolver(reasons: list[str]) -> Iterator[Resolver]:
    with Resolver({}, reasons.append) as made:
        yield made


def objcopy(*words: object) -> None:
    subprocess.run(["objcopy", *map(str, words)], check=True)


# ---- Where functions are -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("-pie", "-fPIE"),
        ("-no-pie", "-fno-pie"),
        # Code that is not linked to the address of its offset in the file.
        ("-pie", "-fPIE", "-Wl,--section-start=.text=0x654320"),
        ("-pie", "-fPIE", "-Wl,-z,noseparate-code"),
        ("-static",),
    ],
    ids=" ".join,
)
def test_every_function(build: Build, resolver: Resolver, flags: tuple[str, ...]) -> None:
    program = build(*flags)
    assert program.names(resolver) == program.expected


def test_a_call_at_the_end_of_a_function(build: Build, resolver: Resolver) -> None:
    """The address it would return to is the next function's."""
    program = build()
    offset = program.offsets["ends_in_a_call"]
    event = program.event()
    event["stack"] = [{**event["stack"][0], "offset": offset}] * 2
    first, second = (frame["symbol"] for frame in resolver.resolve(event)["stack"])
    assert (first, second) == ("comes_next+0x0", program.expected["ends_in_a_call"])


def test_of_several_names_the_plainest(resolver: Resolver, build: Build) -> None:
    program = build("-static")
    table = subprocess.run(["nm", program.path], check=True, capture_output=True, text=True).stdout
    names = [line.split()[2] for line in table.splitlines() if line.split()[1] in "TtWi"]
    assert {"__mprotect", "mprotect"} <= set(names)
    address = next(
        int(line.split()[0], 16) for line in table.splitlines() if line.endswith(" __mprotect")
    )
    event = program.event()
    event["stack"] = [{**event["stack"][0], "offset": address - 0x400000 + 7}]
    assert resolver.resolve(event)["stack"][0]["symbol"] == "mprotect+0x7"


# ---- Where names are kept ------------------------------------------------------------------------


def test_a_stripped_file_names_what_it_exports(build: Build, resolver: Resolver) -> None:
    program = build("-rdynamic")
    subprocess.run(["strip", program.path], check=True)
    assert program.names(resolver) == only(program, EXPORTED)


def test_a_stripped_file_names_nothing(
    build: Build, resolver: Resolver, reasons: list[str]
) -> None:
    program = build()
    subprocess.run(["strip", program.path], check=True)
    assert program.names(resolver) == only(program, [])
    offset = program.offsets["local"] - 1
    reason = f"callers (build id {program.build_id}): no function known at {offset:#x}"
    assert reason in reasons


@pytest.mark.parametrize("place", ["{bin}", "{bin}/.debug", "{root}/usr/lib/debug{bin}"])
def test_a_file_of_symbols_by_its_link(build: Build, tmp_path: Path, place: str) -> None:
    program = build("-rdynamic")
    debug = program.path.with_name("callers.debug")
    objcopy("--only-keep-debug", program.path, debug)
    objcopy("--strip-all", f"--add-gnu-debuglink={debug}", program.path)
    root = tmp_path / "root"
    folder = Path(place.format(bin=program.path.parent, root=root))
    folder.mkdir(parents=True, exist_ok=True)
    debug.replace(folder / debug.name)
    (root / "bin").mkdir(parents=True, exist_ok=True)
    # Below the other root the same path is a link, which leads outside of it.
    (root / program.path.parent.relative_to("/")).parent.mkdir(parents=True)
    os.symlink(program.path.parent, root / program.path.parent.relative_to("/"))
    with Resolver({}, root=root) as resolver:
        assert program.names(resolver) == program.expected


def test_a_file_of_symbols_by_its_build_id(build: Build, tmp_path: Path) -> None:
    program = build()
    root = tmp_path / "root"
    home = root / "usr/bin/callers"
    home.parent.mkdir(parents=True)
    assert program.build_id
    debug = root / f"usr/lib/debug/.build-id/{program.build_id[:2]}/{program.build_id[2:]}.debug"
    debug.parent.mkdir(parents=True)
    objcopy("--only-keep-debug", program.path, debug)
    objcopy("--strip-all", program.path, home)
    with Resolver({}, root=root) as resolver:
        assert program.names(resolver) == program.expected
    # By itself it does not say where code lies in the mapped file.
    home.unlink()
    with Resolver({}, root=root) as resolver:
        assert program.names(resolver) == only(program, [])


def test_symbols_packed_into_the_file(build: Build, resolver: Resolver, tmp_path: Path) -> None:
    program = build("-rdynamic")
    packed = tmp_path / "packed.xz"
    packed.write_bytes(lzma.compress(program.path.read_bytes()))
    subprocess.run(["strip", program.path], check=True)
    objcopy("--add-section", f".gnu_debugdata={packed}", program.path)
    assert program.names(resolver) == program.expected


def test_packed_symbols_that_are_a_bomb(
    build: Build, resolver: Resolver, reasons: list[str], tmp_path: Path
) -> None:
    program = build("-rdynamic")
    packed = tmp_path / "packed.xz"
    packed.write_bytes(lzma.compress(bytes(1 << 28)))
    subprocess.run(["strip", program.path], check=True)
    objcopy("--add-section", f".gnu_debugdata={packed}", program.path)
    assert program.names(resolver) == only(program, EXPORTED)
    reason = f"build id {program.build_id}: .gnu_debugdata of more than 33554432 bytes"
    assert reason in reasons


# ---- Which file it is ----------------------------------------------------------------------------


def test_never_another_build(build: Build, resolver: Resolver, reasons: list[str]) -> None:
    """Same name, same place, same functions; rebuilt since."""
    program = build()
    wrong = "-Wl,--build-id=0x0123456789abcdef"
    subprocess.run(["gcc", *FLAGS, wrong, SOURCE, "-o", program.path], check=True)
    assert program.names(resolver) == only(program, [])
    assert reasons == [f"callers (build id {program.build_id}): no file with this build id found"]


def test_symbols_of_another_build(build: Build, resolver: Resolver) -> None:
    program = build("-rdynamic")
    debug = program.path.with_name("callers.debug")
    wrong = "-Wl,--build-id=0x0123456789abcdef"
    subprocess.run(["gcc", *FLAGS, wrong, SOURCE, "-o", debug], check=True)
    objcopy("--strip-all", f"--add-gnu-debuglink={debug}", program.path)
    assert program.names(resolver) == only(program, EXPORTED)


def test_a_process_forges_only_its_own_names(
    build: Build, resolver: Resolver, tmp_path: Path
) -> None:
    """Its file has another's build id: the frames of other processes are not named by it."""
    program = build()
    forged = tmp_path / "forged/callers"
    forged.parent.mkdir()
    objcopy("--redefine-sym", "exported=forged", program.path, forged)
    wrong = program.expected["exported"].replace("exported", "forged")
    for _ in range(2):
        own = program.names(resolver, executable=str(forged))
        assert own == {**program.expected, "exported": wrong}
        assert program.names(resolver) == program.expected


def test_no_build_id_no_name(build: Build, resolver: Resolver, reasons: list[str]) -> None:
    program = build("-Wl,--build-id=none")
    assert program.build_id is None
    assert program.names(resolver) == only(program, [])
    assert "callers: no build id" in reasons


@contextmanager
def running(program: Program) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [program.path, "--wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout
    assert child.stdin
    try:
        for _ in FUNCTIONS:
            child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_deleted_file_of_a_live_process(build: Build, resolver: Resolver) -> None:
    program = build()
    with running(program) as child:
        program.path.unlink()
        assert program.names(resolver, pid=child.pid) == program.expected
    with Resolver({}) as later:
        assert program.names(later, pid=child.pid) == only(program, [])


def test_a_directory_to_search(build: Build, resolver: Resolver) -> None:
    """Of a process that ended at once only the base name is known."""
    program = build()
    assert program.names(resolver, executable="callers") == only(program, [])
    with Resolver({}, search=[program.path.parent]) as searching:
        assert program.names(searching, executable="callers") == program.expected


def test_a_process_that_was_killed(build: Build, resolver: Resolver) -> None:
    program = build()
    with running(program) as child:
        pass
    assert child.returncode == -9
    assert program.names(resolver, pid=child.pid) == program.expected


@pytest.mark.parametrize("hostile", ["fifo", "directory", "loop"])
def test_a_path_that_is_not_a_file(
    tmp_path: Path, build: Build, resolver: Resolver, hostile: str
) -> None:
    program = build()
    place = tmp_path / "there" / "callers"
    place.parent.mkdir()
    match hostile:
        case "fifo":
            os.mkfifo(place)
        case "directory":
            place.mkdir()
        case "loop":
            place.symlink_to(place)
    assert program.names(resolver, executable=str(place)) == only(program, [])
    assert program.names(resolver) == program.expected


def test_few_modules_stay_open(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = build()
    event = program.event()
    monkeypatch.setattr(symbols, "MODULES_KEPT", 2)
    before = len(os.listdir("/proc/self/fd"))
    with Resolver({}) as resolver:
        for number in range(8):
            copy = tmp_path / f"callers{number}"
            flag = f"-Wl,--build-id=0x0123456789abcdef{number:02x}"
            subprocess.run(["gcc", *FLAGS, flag, SOURCE, "-o", copy], check=True)
            event["process"]["executable"] = str(copy)
            for frame in event["stack"]:
                frame.update(module=copy.name, build_id=f"0123456789abcdef{number:02x}")
            stack = resolver.resolve(event)["stack"]
            assert [frame["symbol"] for frame in stack[1:]] == list(program.expected.values())
            # Two files, and the demangler's two pipes.
            assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = tmp_path_factory.mktemp("sound") / "callers"
    subprocess.run(["gcc", *FLAGS, "-rdynamic", SOURCE, "-o", path], check=True)
    return Program(path)


@fuzzed
@given(CHANGES, ENDS)
def test_any_file(sound: Program, changes: list[Change], end: int) -> None:
    """The names in it may be wrong, as it is; they are safe to show, and it costs little."""
    reasons: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Resolver({}, reasons.append) as resolver:
        path = Path(folder) / "callers"
        path.write_bytes(spoilt(sound.path.read_bytes(), changes, end))
        with at_most(60, "the file may ask for any work, of another process, too"):
            names = sound.names(resolver, executable=str(path))
    assert list(names) == list(FUNCTIONS)
    assert None not in names.values() or reasons
    for text in (*names.values(), *reasons):
        assert text is None or text.isprintable()


def test_names_that_lie_nowhere(sound: Program, tmp_path: Path, reasons: list[str]) -> None:
    content = bytearray(sound.path.read_bytes())
    place = symbol_table(bytes(content))
    (strings,) = struct.unpack_from("<I", content, place + 40)  # sh_link
    (sections,) = struct.unpack_from("<Q", content, 40)  # e_shoff
    struct.pack_into("<Q", content, sections + 64 * strings + 24, 2**63)  # sh_offset
    path = tmp_path / "callers"
    path.write_bytes(content)
    with Resolver({}, reasons.append) as resolver:
        assert sound.names(resolver, executable=str(path)) == only(sound, [])
    assert reasons[1].startswith(f"callers (build id {sound.build_id}): broken ELF file (")


# ---- debuginfod ----------------------------------------------------------------------------------


@contextmanager
def server(files: dict[str, bytes], missing: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A debuginfod with these files by path, and the paths it was asked for.

    It announces `missing` bytes more than it sends.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"") + missing))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=serving.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}", asked
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


def test_debuginfod(build: Build, tmp_path: Path) -> None:
    program = build()
    debug = tmp_path / "debug"
    objcopy("--only-keep-debug", program.path, debug)
    subprocess.run(["strip", program.path], check=True)
    base = f"/buildid/{program.build_id}"
    files = {
        f"{base}/executable": program.path.read_bytes(),
        f"{base}/debuginfo": debug.read_bytes(),
    }
    program.path.unlink()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Resolver(environment) as resolver:
        assert program.names(resolver) == only(program, [])
    with server(files) as (url, asked):
        environment["DEBUGINFOD_URLS"] = f"{url}/none {url}"
        for _ in range(2):  # the second time from the cache
            with Resolver(environment) as resolver:
                assert program.names(resolver) == program.expected
        assert asked == [
            *(f"/none{base}/executable", f"{base}/executable"),
            *(f"/none{base}/debuginfo", f"{base}/debuginfo"),
        ]
    cache = tmp_path / "cache/seal-monitor/debuginfod"
    kept = sorted(path.name for path in cache.iterdir())
    assert kept == [f"{program.build_id}.debuginfo", f"{program.build_id}.executable"]


def test_a_debuginfod_that_lies(build: Build, tmp_path: Path, reasons: list[str]) -> None:
    program = build()
    program.path.rename(program.path.with_name("other"))
    base = f"/buildid/{program.build_id}"
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    with server({f"{base}/executable": b"no such thing"}) as (url, _):
        environment["DEBUGINFOD_URLS"] = url
        with Resolver(environment, reasons.append) as resolver:
            assert program.names(resolver) == only(program, [])
    assert ": no ELF file" in reasons[0]


def test_a_debuginfod_that_breaks_off(build: Build, tmp_path: Path, reasons: list[str]) -> None:
    """What came is not kept."""
    program = build()
    content = program.path.read_bytes()
    program.path.rename(program.path.with_name("other"))
    path = f"/buildid/{program.build_id}/executable"
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    with server({path: content}, missing=7) as (url, _):
        environment["DEBUGINFOD_URLS"] = url
        with Resolver(environment, reasons.append) as resolver:
            assert program.names(resolver) == only(program, [])
    assert reasons[0] == f"{url}: sent 7 bytes too few; not asked again"
    assert list((tmp_path / "seal-monitor/debuginfod").iterdir()) == []


def test_the_cache_of_debuginfod_is_bounded(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest goes first."""
    program = build()
    content = program.path.read_bytes()
    program.path.rename(program.path.with_name("other"))
    cache = tmp_path / "seal-monitor/debuginfod"
    cache.mkdir(parents=True)
    for age, name in enumerate(("new", "old"), 1):
        (cache / name).write_bytes(bytes(1000))
        os.utime(cache / name, (time.time() - age * 1000,) * 2)
    monkeypatch.setattr(debuginfod, "CACHE_LIMIT", len(content) + 1000)
    path = f"/buildid/{program.build_id}/executable"
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    with server({path: content}) as (url, _):
        environment["DEBUGINFOD_URLS"] = url
        with Resolver(environment) as resolver:
            assert program.names(resolver) == program.expected
    kept = {file.name for file in cache.iterdir()}
    assert kept == {"new", f"{program.build_id}.executable"}


def test_a_debuginfod_that_is_not_there(build: Build, tmp_path: Path, reasons: list[str]) -> None:
    program = build()
    program.path.rename(program.path.with_name("other"))
    with server({}) as (url, _):
        pass
    with Resolver(
        {"DEBUGINFOD_URLS": f"{url} file:///", "XDG_CACHE_HOME": str(tmp_path)}, reasons.append
    ) as resolver:
        assert program.names(resolver) == only(program, [])
        assert program.names(resolver, executable="/elsewhere") == only(program, [])
    assert reasons[0].startswith(f"{url}: ")
    assert "Connection refused" in reasons[0]
    assert reasons[1] == "file:///: not an http or https URL; not asked again"
    assert reasons[2:] == [
        f"callers (build id {program.build_id}): no file with this build id found"
    ]


# ---- Code that a process made --------------------------------------------------------------------


def jit_event(pid: int, start: datetime) -> dict[str, Any]:
    """A stack of two frames without a file."""
    frame = {"module": None, "build_id": None, "offset": None, "symbol": None}
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    now = datetime.now(UTC)
    return {
        "host": {"boot_id": boot},
        "time": now.isoformat().replace("+00:00", "000Z"),
        "time_boot_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "process": {
            **{"pid": pid, "vpid": pid, "uid": os.getuid()},
            "start": start.isoformat().replace("+00:00", "000Z"),
        },
        "stack": [{**frame, "address": "0x7f0000001010"}, {**frame, "address": "0x7f0000001100"}],
    }


def shown(resolver: Resolver, event: dict[str, Any]) -> list[str | None]:
    return [frame["symbol"] for frame in resolver.resolve(event)["stack"]]


MAP = b"""\
7f0000001000 100 Old:code
no line
7f0000001000 100 LazyCompile:~handle /srv/app.js:7\x1b
7f0000001100 40 next
"""
MAPPED = [
    "LazyCompile:~handle /srv/app.js:7\\x1b+0x10",
    "LazyCompile:~handle /srv/app.js:7\\x1b+0x100",
]


@pytest.fixture
def perf_map(tmp_path: Path) -> Path:
    path = tmp_path / f"tmp/perf-{NOBODY}.map"
    path.parent.mkdir()
    path.write_bytes(MAP)
    return path


def test_a_perf_map_of_a_dead_process(tmp_path: Path, perf_map: Path, reasons: list[str]) -> None:
    start = datetime.fromtimestamp(perf_map.stat().st_mtime - 5, UTC)
    event = jit_event(NOBODY, start)
    with Resolver({}, reasons.append, root=tmp_path) as resolver:
        assert shown(resolver, event) == MAPPED
        event["host"]["boot_id"] = "another host's"
        assert shown(resolver, event) == [None, None]
    assert reasons == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
            "not a regular file",
        ),
        (lambda path: os.utime(path, (0, 0)), "the map is older than the process"),
        (lambda path: os.truncate(path, 1 << 33), "8589934592 bytes, more than 33554432"),
    ],
    ids=["link", "old", "large"],
)
def test_a_perf_map_that_is_not_to_be_trusted(
    tmp_path: Path,
    perf_map: Path,
    reasons: list[str],
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    start = datetime.fromtimestamp(perf_map.stat().st_mtime - 5, UTC)
    spoil(perf_map)
    with Resolver({}, reasons.append, root=tmp_path) as resolver:
        assert shown(resolver, jit_event(NOBODY, start)) == [None, None]
    assert len(reasons) == 1
    assert reasons[0].endswith(reason)


def test_a_perf_map_of_another_user(tmp_path: Path, perf_map: Path, reasons: list[str]) -> None:
    event = jit_event(NOBODY, datetime.fromtimestamp(perf_map.stat().st_mtime - 5, UTC))
    event["process"]["uid"] = os.getuid() + 1
    with Resolver({}, reasons.append, root=tmp_path) as resolver:
        assert shown(resolver, event) == [None, None]
    assert reasons[0].endswith(f"belongs to user {os.getuid()}, not {os.getuid() + 1}")


def test_a_perf_map_of_a_live_process(resolver: Resolver, reasons: list[str]) -> None:
    """And none when its pid was another's at the time of the event."""
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    path.write_bytes(MAP)
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        start = datetime.fromtimestamp(time.time() - age, UTC)
        assert shown(resolver, jit_event(os.getpid(), start)) == MAPPED
        earlier = datetime.fromtimestamp(time.time() - age - 60, UTC)
        assert shown(resolver, jit_event(os.getpid(), earlier)) == [None, None]
        assert reasons[0].endswith(f"pid {os.getpid()} is another process now")
    finally:
        path.unlink()


# ---- Events and the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"stack": None},
        {"stack": [None, 1, "x", {}, {"address": "0xzz"}]},
        {"stack": [{"address": "0x1"}], "process": {"pid": "x", "start": 1}},
        {"stack": [{"module": "../x", "build_id": "ab/../..", "offset": 1}]},
        {"stack": [{"module": "\0", "build_id": "abcd", "offset": -1}]},
        {"stack": [{"module": "x", "build_id": "abcd", "offset": 2**70, "symbol": "main+0x1"}]},
        {"stack": [{}] * 10_000},
    ],
)
def test_what_has_no_names_comes_back_as_it_is(resolver: Resolver, event: dict[str, Any]) -> None:
    assert resolver.resolve(event) == event


def command(*words: object, text: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor", "symbolize", *map(str, words)],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        **more,
    )


def test_the_command(build: Build, tmp_path: Path) -> None:
    program = build()
    event = program.event()
    lines = f'{json.dumps(event)}\n{{"kind":"health","ä":1}}\nplain text\n'
    shown = command(text=lines)
    named, other, plain = shown.stdout.splitlines()
    with Resolver({}) as resolver:
        assert json.loads(named) == resolver.resolve(event)
    assert (other, plain) == ('{"kind":"health","ä":1}', "plain text")
    assert shown.stderr == "seal-monitor: line 3 is not a JSON object\n"
    assert shown.returncode == 1
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(event))
    again = command(file, "--verbose", text="")
    assert again.stdout.splitlines() == [named]
    assert re.fullmatch(r"seal-monitor: callers .*: no function known at 0x0\n", again.stderr)
    assert again.returncode == 0


def test_events_from_the_journal(build: Build) -> None:
    """The command line of docs/events.md and the manual page."""
    program = build()
    event = {**denial(), **program.event()}
    with journald() as daemon:
        sink = JournalSink(daemon.socket)
        sink.write(sink.render(event))
        daemon.wait_for(1, f"SEAL_MONITOR_EVENT_ID={event['id']}")
        words = "-t seal-monitor -o cat --output-fields=SEAL_MONITOR_EVENT"
        lines = daemon.shown(*words.split()).decode()
        sink.close()
    assert words in (ROOT / "docs/events.md").read_text()
    shown = command(text=lines)
    (named,) = map(json.loads, shown.stdout.splitlines())
    assert [frame["symbol"] for frame in named["stack"][1:]] == list(program.expected.values())
    assert (shown.stderr, shown.returncode) == ("", 0)


def denial() -> dict[str, Any]:
    page = (ROOT / "docs/events.md").read_text("utf-8")
    event: dict[str, Any] = json.loads(page.partition("```json\n")[2].partition("```")[0])
    return event


def test_the_command_without_its_file() -> None:
    shown = command("/nowhere", text="")
    assert shown.stderr == "seal-monitor: cannot read /nowhere: No such file or directory\n"
    assert (shown.stdout, shown.returncode) == ("", 1)
