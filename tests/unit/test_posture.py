from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from test_segments import BUILD_ID, PROGRAM, elf_file

from monitor.evidence.memory_map import parse_smaps
from monitor.posture import scan as posture
from monitor.posture.scan import Group, Memory, Process, Reader, grouped, measure, pids, total
from monitor.posture.smaps import patience
from monitor.untrusted.segments import NOTHING, Segments, read_segments

TICKS = os.sysconf("SC_CLK_TCK")

# ---- A recorded /proc ----------------------------------------------------------------------------

# start, end, permissions, offset, inode, sealed, name
Line = tuple[int, int, str, int, int, bool, str]


def smaps(*lines: Line) -> str:
    return "".join(
        f"{start:08x}-{end:08x} {permissions} {offset:08x} fe:00 {inode} {name}\n"
        f"Rss: 4 kB\nVmFlags: rd mr mw me {'sl ' if sealed else ''}\n"
        for start, end, permissions, offset, inode, sealed, name in lines
    ).replace("fe:00 0 ", "00:00 0 ")


def program(
    inode: int, path: str, *, code: bool = False, relro: bool = False, base: int = 0x10000
) -> tuple[Line, ...]:
    """PROGRAM of test_segments as the dynamic linker maps it: code of 2 pages, RELRO of one."""
    return (
        (base, base + 0x1000, "r--p", 0, inode, False, path),
        (base + 0x1000, base + 0x3000, "r-xp", 0x1000, inode, code, path),
        (base + 0x3000, base + 0x4000, "r--p", 0x2000, inode, relro, path),
        (base + 0x4000, base + 0x5000, "rw-p", 0x3000, inode, False, path),
    )


def record(
    proc: Path,
    pid: int,
    text: str | None,
    *,
    name: str = "app",
    executable: str | None = "/usr/bin/app",
    cgroup: str = "/system.slice/app.service",
    tables_kib: int = 100,
    state: str = "S",
    flags: int = 0,
    start: int = 100,
    parent: int = 1,
) -> None:
    """A process as /proc shows it; without `text` its mappings may not be read."""
    directory = proc / str(pid)
    directory.mkdir(parents=True)
    fields = [state, str(parent), *["0"] * 4, str(flags), *["0"] * 12, str(start), *["0"] * 30]
    (directory / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    (directory / "status").write_text(f"Name:\tx\nVmPTE:\t{tables_kib:8} kB\n")
    (directory / "cgroup").write_text(f"1:cpu:/old\n0::{cgroup}\n")
    (directory / "smaps").write_text(text or "")
    (directory / "root").symlink_to(proc / "files")
    if executable is not None:
        (directory / "exe").symlink_to(executable)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path


def install(proc: Path, path: str = "usr/bin/app") -> int:
    """A program file; its inode."""
    file = proc / "files" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(elf_file(*PROGRAM))
    return file.stat().st_ino


def read(proc: Path, pid: int = 42) -> Process:
    process = Reader(proc, keep=10).process(pid)
    assert process is not None
    return process


# ---- What mappings add up to ---------------------------------------------------------------------


def measured(lines: Iterable[Line], segments: Segments = NOTHING) -> Memory:
    text = smaps(*lines).encode().splitlines()
    return measure(parse_smaps(iter(text)), lambda _: segments)


def test_ranges_and_bytes() -> None:
    assert measured([]) == Memory()
    assert measured(
        [
            (0x1000, 0x2000, "r--p", 0, 0, True, ""),
            (0x2000, 0x5000, "rw-p", 0, 0, True, "[anon:x]"),  # next to it: the same range
            (0x5000, 0x6000, "rw-p", 0, 0, False, ""),
            (0x6000, 0x7000, "---p", 0, 0, True, "[heap]"),
            (0x8000, 0xA000, "r-xp", 0, 0, True, ""),
            (0xA000, 0xB000, "rwxp", 0, 0, False, ""),
            (0xB000, 0xC000, "r-xs", 0, 0, False, ""),
        ]
    ) == Memory(3, 0x7000, 0x4000, 0x2000, 0, 0)


def test_what_the_kernel_maps_and_seals_itself_is_left_out() -> None:
    names = ("[vvar]", "[vvar_vclock]", "[vdso]", "[uprobes]", "[vsyscall]")
    lines: list[Line] = [
        (0x1000 * n, 0x1000 * (n + 1), "r-xp", 0, 0, True, name) for n, name in enumerate(names, 1)
    ]
    assert measured(lines) == Memory()
    # A program that takes such a name for its own is not believed.
    own: Line = (0x9000, 0xA000, "r-xp", 0, 0, True, "[anon:vdso]")
    assert measured([*lines, own]) == Memory(1, 0x1000, 0x1000, 0x1000, 0, 0)


def found(content: bytes) -> Segments:
    return read_segments(io.BytesIO(content))


@pytest.mark.parametrize(
    ("code", "relro", "expected"),
    [
        (False, False, Memory(0, 0, 0x2000, 0, 0x1000, 0)),
        (True, False, Memory(1, 0x2000, 0x2000, 0x2000, 0x1000, 0)),
        (False, True, Memory(1, 0x1000, 0x2000, 0, 0x1000, 0x1000)),
        (True, True, Memory(1, 0x3000, 0x2000, 0x2000, 0x1000, 0x1000)),
    ],
)
def test_code_and_relro(code: bool, relro: bool, expected: Memory) -> None:
    lines = program(7, "/a", code=code, relro=relro)
    assert measured(lines, found(elf_file(*PROGRAM))) == expected


def test_relro_is_distinguished_from_what_lies_beside_it() -> None:
    segments = found(elf_file(*PROGRAM))
    whole = list(program(7, "/a"))
    still_writable = [*whole[:2], (*whole[2][:2], "rw-p", *whole[2][3:])]
    assert measured(still_writable, segments).relro_bytes == 0
    shared = [*whole[:2], (*whole[2][:2], "r--s", *whole[2][3:])]
    assert measured(shared, segments).relro_bytes == 0
    # Other bytes of the file mapped where RELRO would be; another file there.
    for other in ((0x1000, 7, "/a"), (0x2000, 8, "/b")):
        offset, inode, path = other
        line: Line = (0x13000, 0x14000, "r--p", offset, inode, True, path)
        assert measured([*whole[:2], line], segments)[4:] == (0, 0)
    # A part of it, and what the linker has made read-only beyond it.
    longer: Line = (0x13000, 0x16000, "r--p", 0x2000, 7, True, "/a")
    assert measured([*whole[:2], longer], segments)[4:] == (0x1000, 0x1000)
    # The same file twice: each by its own place.
    twice = [*whole, *program(7, "/a", relro=True, base=0x90000)]
    assert measured(twice, segments)[4:] == (0x2000, 0x1000)


def test_total() -> None:
    assert total([]) == Memory()
    assert total([Memory(1, 2, 3, 4, 5, 6), Memory(10, 20, 30, 40, 50, 60)]) == (
        *(11, 22, 33, 44, 55, 66),
    )


# ---- One process ---------------------------------------------------------------------------------


def test_a_process(proc: Path) -> None:
    inode = install(proc)
    lines = program(inode, "/usr/bin/app", relro=True)
    record(proc, 42, smaps(*lines), name="a) (b\x1b", start=7 * TICKS, parent=3)
    process = read(proc)
    assert (process.pid, process.parent_pid, process.name) == (42, 3, "a) (b\\x1b")
    assert process.executable == "/usr/bin/app"
    assert (process.build_id, process.workload) == (BUILD_ID.hex(), "app.service")
    assert (process.state, process.memory) == (
        "sealing",
        Memory(1, 0x1000, 0x2000, 0, 0x1000, 0x1000),
    )
    assert [(mapping.start, mapping.end) for mapping in process.sealed] == [(0x13000, 0x14000)]
    assert abs(process.age - (time.clock_gettime(time.CLOCK_BOOTTIME) - 7)) < 1


def test_so_many_sealed_mappings_are_kept(proc: Path) -> None:
    lines: list[Line] = [
        (n << 13, (n << 13) + 0x1000, "r--p", 0, 0, True, "") for n in range(1, 30)
    ]
    record(proc, 42, smaps(*lines))
    assert (len(read(proc).sealed), read(proc).memory) == (10, Memory(29, 29 * 0x1000))
    process = Reader(proc).process(42)
    assert process is not None
    assert process.sealed == ()


@pytest.mark.parametrize("inode_differs", [False, True])
def test_a_file_that_is_another_one_now_is_not_believed(proc: Path, inode_differs: bool) -> None:
    inode = install(proc) + inode_differs
    record(proc, 42, smaps(*program(inode, "/usr/bin/app")))
    process = read(proc)
    assert process.memory is not None
    assert process.memory.relro_bytes == (0 if inode_differs else 0x1000)
    assert process.build_id == (None if inode_differs else BUILD_ID.hex())


def test_an_updated_executable_keeps_its_name(proc: Path) -> None:
    path = "/usr/bin/app (deleted)"
    record(proc, 42, smaps(*program(7, path)), executable=path)
    process = read(proc)
    assert (process.executable, process.build_id) == ("/usr/bin/app", None)


def test_what_has_no_memory_is_no_process(proc: Path) -> None:
    record(proc, 1, smaps(*program(7, "/a")))
    record(proc, 2, "", flags=0x00200040)  # a kernel thread
    record(proc, 3, "", state="Z")
    record(proc, 4, "")  # on its way out
    record(proc, 5, smaps(*program(7, "/a")), executable=None)  # ENOENT: the same
    (proc / "self").mkdir()
    (proc / "6").mkdir()  # gone while it was looked at
    assert pids(proc) == [1, 2, 3, 4, 5, 6]
    assert [process.pid for process in Reader(proc).processes()] == [1]
    assert Reader(proc).process(7) is None


def test_too_large(proc: Path) -> None:
    record(proc, 1, smaps(*program(7, "/a", code=True)), tables_kib=4096)
    record(proc, 2, smaps(*program(7, "/a", code=True)), tables_kib=4097)
    assert [(p.pid, p.state, p.memory is None) for p in Reader(proc).processes()] == [
        (1, "sealing", False),
        (2, "too_large", True),
    ]
    process = Reader(proc, page_tables_limit=None).process(2)
    assert process is not None
    assert process.state == "sealing"


def test_too_many_mappings(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posture, "MAPPINGS_LIMIT", 4)
    record(proc, 1, smaps(*program(7, "/a", code=True)))
    record(proc, 2, smaps(*program(7, "/a", code=True), (0x90000, 0x91000, "r--p", 0, 0, True, "")))
    assert [(p.state, p.memory is None) for p in Reader(proc).processes()] == [
        ("sealing", False),
        ("too_large", True),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_unreadable(proc: Path) -> None:
    record(proc, 1, smaps(*program(7, "/a")))
    (proc / "1/smaps").chmod(0o400)
    for directory in (proc, *proc.parents):
        if directory.stat().st_uid == 0 and not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    (proc / "2").mkdir(0o755)
    (proc / "2/stat").touch(0o400)
    os.seteuid(65534)
    try:
        process, hidden = read(proc, 1), read(proc, 2)
    finally:
        os.seteuid(0)
    assert (process.state, process.memory, process.name) == ("unreadable", None, "app")
    assert (hidden.state, hidden.memory, hidden.name) == ("unreadable", None, "")


def test_not_in_time(proc: Path) -> None:
    """The other processes of who lets a read wait are not read either, those of others are."""
    for pid, name in ((1, "a"), (2, "a"), (3, "b")):
        lines = smaps(*program(7, "/a"))
        record(proc, pid, lines, cgroup=f"/system.slice/{name}.service", executable=f"/bin/{name}")
    (proc / "1/smaps").unlink()
    os.mkfifo(proc / "1/smaps")
    found = list(Reader(proc, waiting=patience(0.05)).processes())
    os.close(os.open(proc / "1/smaps", os.O_WRONLY | os.O_NONBLOCK))
    assert [(each.executable, each.state, each.memory is None) for each in found] == [
        ("/bin/a", "timed_out", True),
        ("/bin/a", "timed_out", True),
        ("/bin/b", "not_sealing", False),
    ]


def test_without_a_cgroup(proc: Path) -> None:
    record(proc, 1, smaps(*program(7, "/a")))
    (proc / "1/cgroup").write_text("1:name=systemd:/x\n")
    assert read(proc, 1).workload == "unknown"
    (proc / "1/cgroup").unlink()
    assert read(proc, 1).workload == "unknown"


def test_pauses(proc: Path) -> None:
    """Between processes, and within one that has many mappings."""
    lines: list[Line] = [
        (n << 13, (n << 13) + 0x1000, "r--p", 0, 0, False, "") for n in range(1, 1001)
    ]
    record(proc, 1, smaps(*lines))
    record(proc, 2, smaps(*lines[:10]))
    pauses: list[None] = []
    assert len(list(Reader(proc, pause=lambda: pauses.append(None)).processes())) == 2
    assert len(pauses) == 3 + 2


def test_this_process_and_all_others() -> None:
    process = read(Path("/proc"), os.getpid())
    assert process.executable == os.path.realpath(f"/proc/{os.getpid()}/exe")
    assert process.memory is not None
    # Python itself is linked with RELRO, and so are its libraries.
    assert 0 < process.memory.relro_bytes < process.memory.executable_bytes
    assert process.build_id is not None
    assert 0 < process.age < 86_400
    assert os.getpid() in {process.pid for process in Reader().processes()}


# ---- Many processes ------------------------------------------------------------------------------


def a_process(pid: int, state: posture.State, memory: Memory | None, **values: str) -> Process:
    executable, workload = values.get("executable", "/a"), values.get("workload", "w")
    return Process(pid, 1, "a", 100.0, executable, None, workload, state, memory, ())


def test_grouped() -> None:
    processes = [
        a_process(1, "not_sealing", Memory(0, 0, 10, 0, 5, 0), workload="a"),
        a_process(2, "sealing", Memory(1, 100, 10, 10, 5, 5), workload="b"),
        a_process(3, "sealing", Memory(2, 11, 10, 1, 5, 0), workload="c"),
        a_process(4, "unreadable", None, workload="c"),
        a_process(5, "sealing", Memory(1, 100, 1, 1, 1, 1), workload="c"),
    ]
    none = dict.fromkeys(posture.STATES, 0)
    assert grouped(processes, lambda process: process.workload) == [
        Group("c", none | {"sealing": 2, "unreadable": 1}, Memory(3, 111, 11, 2, 6, 1)),
        Group("b", none | {"sealing": 1}, Memory(1, 100, 10, 10, 5, 5)),
        Group("a", none | {"not_sealing": 1}, Memory(0, 0, 10, 0, 5, 0)),
    ]
