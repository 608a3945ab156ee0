"""The compiled object in the kernel: no command needs bcc; without an object one is compiled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from monitor.kernel import compiler, layouts, loader
from monitor.kernel import object as objects
from monitor.kernel.arch import ARM64, THIS, X86_64
from monitor.kernel.btf import Btf
from monitor.kernel.loader import LoadError, LoadRequest

SECONDS = 120


@pytest.fixture(scope="module")
def made() -> objects.Object:
    return objects.read(compiler.OBJECT, compiler.digests())


@pytest.fixture
def hidden(tmp_path: Path) -> dict[str, str]:
    """The environment of a host without bcc and LLVM."""
    stub = tmp_path / "hidden/bcc.py"
    stub.parent.mkdir()
    stub.write_text("raise ImportError('hidden by a test')\n")
    return {**os.environ, "PYTHONPATH": str(stub.parent)}


def monitor(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_every_command_works_without_bcc(
    require_bpf: None, hidden: dict[str, str], tmp_path: Path
) -> None:
    result = tmp_path / "events.json"
    denied = [sys.executable, "-m", "monitor.provoke.table", "mprotect"]
    commands = {
        ("demo",): "all reported correctly.",
        ("doctor",): f"{compiler.OBJECT}",
        ("exec", "--json", str(result), "--", *denied): "1 denial",
        ("posture",): "sealed memory",
        ("incidents", "list"): "",
        ("schema",): "mprotect",
        ("--version",): "seal-monitor",
    }
    for words, expected in commands.items():
        ended = monitor(hidden, *words)
        output = " ".join(f"{ended.stdout} {ended.stderr}".split())
        assert "Traceback" not in output, output
        assert expected.replace(" ", "") in output.replace(" ", ""), (words, output)


@pytest.fixture
def daemon(
    require_bpf: None, hidden: dict[str, str], tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "monitor", "run", "--output", "json"]
    command += ["--web.listen-address", "127.0.0.1:0", "--config", str(tmp_path / "config.toml")]
    (tmp_path / "config.toml").write_text(f'[state]\ndirectory = "{tmp_path}"\n')
    with subprocess.Popen(command, env=hidden, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.send_signal(signal.SIGTERM)


def test_the_daemon_runs_without_bcc(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stdout is not None
    events = map(json.loads, daemon.stdout)
    assert any(event.get("event") == "started" for event in events)
    mapped = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert not any(name in mapped for name in ("libbcc", "libclang", "LLVM"))


def test_without_an_object_it_is_compiled(require_bpf: None, tmp_path: Path) -> None:
    """In the same way: the result is what the file has."""
    loaded = loader.load(LoadRequest(attach="tracepoint", path=tmp_path / "none"))
    try:
        expected = objects.read(compiler.OBJECT, compiler.digests())
        assert (loaded.made.path, loaded.made.digest) == ("", expected.digest)
        assert loaded.made.compiler == expected.compiler
        note = (
            f"no compiled programs at {tmp_path / 'none'}: compiled them for this start; "
            "run: make setup, in a checkout"
        )
        assert note in loaded.notes  # a host without tracefs has a note more
        assert not [probe.probe for probe in loaded.probes if probe.lost]
    finally:
        loaded.close()


def test_neither_object_nor_bcc(require_bpf: None, hidden: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from monitor.kernel import loader\n"
        "try: loader.load(loader.LoadRequest(path=Path(sys.argv[1])))\n"
        "except loader.LoadError as error: print(error)\n"
    )
    path = tmp_path / "none"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=hidden,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == (
        f"there are no compiled programs at {path}, and bcc is missing (hidden by a test); run: "
        "apt-get install python3-bpfcc, and use a virtual environment made with "
        "--system-site-packages\n"
    )


def test_same_sources_same_bytes(require_bpf: None, tmp_path: Path) -> None:
    """Another compilation, from another place, gives the file that `make setup` has made."""
    path = tmp_path / "object"
    command = [sys.executable, "-m", "monitor.kernel.compiler", "object", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert path.read_bytes() == compiler.OBJECT.read_bytes()
    written = path.stat().st_mtime_ns
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert path.stat().st_mtime_ns == written  # it does nothing twice


def test_the_object_of_another_processor(require_bpf: None, tmp_path: Path) -> None:
    """It has the same programs and maps; the only ones named after a function are mseal's."""
    other = ARM64 if THIS == X86_64 else X86_64
    path = tmp_path / "new/object"
    command = [sys.executable, "-m", "monitor.kernel.compiler", "object", str(path)]
    root = Path(__file__).parents[2]
    subprocess.run([*command, other.architecture], check=True, cwd=root)
    made = objects.read(path, compiler.digests(other))
    own = objects.read(compiler.OBJECT, compiler.digests())
    assert [each.name for each in made.maps] == [each.name for each in own.maps]
    assert {name for name in made.programs if "_sys_" not in name} == {
        name for name in own.programs if "_sys_" not in name
    }
    marks = layouts.marks(other)
    used = {marks[patch.number] for patch in made.programs["denied"].patches() if patch.form}
    assert "PAGE_SHIFT" in used or other == X86_64
    with pytest.raises(objects.ObjectError, match=f"is for {other.name}, this machine is"):
        objects.read(path, compiler.digests())


def test_a_wheel_is_built_with_an_object(
    require_bpf: None, hidden: dict[str, str], tmp_path: Path
) -> None:
    """Also where pip hides Debian's packages from the Python that builds."""
    root = Path(__file__).parents[2]
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("monitor", "bpf"):
        ignored = shutil.ignore_patterns("__pycache__", compiler.OBJECT.name)
        shutil.copytree(root / name, sources / name, ignore=ignored)
    questions = "dashboards/fleet/questions"
    shutil.copytree(root / questions, sources / questions)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(root / name, sources)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(command, cwd=sources, env=hidden, check=True, capture_output=True)
    built = tmp_path / "built/monitor/bpf" / compiler.OBJECT.name
    assert built.read_bytes() == compiler.OBJECT.read_bytes()


# A kernel may lack a member that a program reads without asking HAS() for it. Then only that
# program is left out.
LEFT_OUT = {
    name: set(programs.split())
    for names, programs in (
        (
            "userfaultfd_ctx__mm",
            "fexit_mfill_atomic_copy fexit_mfill_atomic_zeropage fexit_move_pages "
            "fexit_userfaultfd_ioctl",
        ),
        (
            "vma_munmap_struct__start vma_munmap_struct__end vma_munmap_struct__vmi "
            "vma_munmap_struct__vma vma_iterator__mas_index",
            "fexit_vms_gather_munmap_vmas",
        ),
        ("vma_remap_struct__vma", "fexit_check_prep_vma"),
        ("madvise_behavior__vma madvise_behavior__behavior", "fexit_madvise_vma_behavior"),
        ("io_uring_cqe__res", "io_uring_complete_cqe"),
        ("io_kiocb__cqe_res", "fexit_io_madvise"),
        (
            "io_madvise__addr io_madvise__len io_madvise__advice io_kiocb__opcode",
            "fexit_io_madvise io_uring_complete io_uring_complete_cqe",
        ),
    )
    for name in names.split()
}
OPTIONAL = [name for name, member in layouts._MEMBERS.items() if not member.required]


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_absent_member_costs_the_programs_that_need_it(made: objects.Object, name: str) -> None:
    values: list[int | None] = [0] * len(layouts.MARKS)
    values[layouts.MARKS.index(name)] = None
    left_out = {each.name for each in made.programs.values() if each.missing(values)}
    assert left_out == LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", OPTIONAL)
def test_programs_load_where_a_member_is_absent(
    require_bpf: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On a kernel without it: the verifier takes every program that asks for it."""
    real = layouts.values

    def without(btf: Btf) -> list[int | None]:
        found = real(btf)
        found[layouts.MARKS.index(name)] = None
        return found

    monkeypatch.setattr(layouts, "values", without)
    loaded = loader.load(LoadRequest(attach="tracepoint", switches=frozenset({"watch.compat"})))
    try:
        assert [probe.error for probe in loaded.probes if probe.lost] == []
        assert layouts.describe(name) in loaded.made.absent
    finally:
        loaded.close()


def test_a_stale_object_is_never_loaded(
    require_bpf: None, made: objects.Object, tmp_path: Path
) -> None:
    path = tmp_path / "object"
    path.write_bytes(objects.serialize(made).replace(b'"marks": "', b'"marks": "x'))
    with pytest.raises(LoadError, match="is damaged: its digest does not match; run: make setup"):
        loader.load(LoadRequest(path=path))
