"""Skips that count as failures where BPF is required; fixtures that leave nothing behind."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from apart import see_own_cgroup_alone
from harness import (
    Harness,
    entered_cgroup,
    new_cgroup,
    own_programs,
    why_no_bpf,
    why_no_fexit,
)

# The modes that this kernel has.
ATTACH_MODES = (
    *(() if why_no_bpf() or why_no_fexit() else ("fexit",)),
    *("tracepoint", "raw_tracepoint"),
)
ASSETS = Path(__file__).parent / "assets"
COMPILER_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

# Binaries of the assets made elsewhere, for machines without a compiler.
BUILT_ASSETS = os.environ.get("SEAL_MONITOR_BUILT_ASSETS")


# The variables of the caller's environment that the tests and what they start may see. Left out:
# language, width of the terminal, proxies, debuginfod, Python's settings, the user before sudo.
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "SEAL_MONITOR_*", "PYTEST_*")


def pytest_configure() -> None:
    """The tests start the same way, whoever starts them and from where.

    Signals are as at a terminal. In the background, or under nohup, some are ignored, and all that
    the tests start would ignore them as well.
    """
    for name in list(os.environ):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ENVIRONMENT):
            del os.environ[name]
    os.environ.pop("SEAL_MONITOR_DEBUG", None)
    os.environ["LANG"] = "C.UTF-8"
    os.environ["PATH"] += os.pathsep + "/usr/sbin:/sbin"  # not everybody's has these
    os.umask(0o022)
    # Daemons of this session hear nothing of the trials of others, which run beside it.
    directory = f"{tempfile.gettempdir()}/seal-monitor-run-{os.getpid()}"
    os.environ["SEAL_MONITOR_RUNTIME_DIRECTORY"] = directory
    if find_spec("hypothesis"):  # not in an emulated machine
        from hypothesis import settings  # noqa: PLC0415

        settings.register_profile("no deadline", deadline=None)  # a busy machine misses any
        settings.load_profile("no deadline")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def pytest_unconfigure() -> None:
    """A daemon that was killed leaves its socket."""
    shutil.rmtree(os.environ["SEAL_MONITOR_RUNTIME_DIRECTORY"], ignore_errors=True)


# ---- Skips ---------------------------------------------------------------------------------------


def required() -> bool:
    return os.environ.get("SEAL_MONITOR_REQUIRE_BPF") == "1"


def allowed(test: str, reason: str, entries: Sequence[dict[str, str]]) -> bool:
    """Whether an entry of allowed_skips.toml covers this skip."""
    return any(
        fnmatch.fnmatchcase(test, entry["test"]) and fnmatch.fnmatchcase(reason, entry["reason"])
        for entry in entries
    )


def allowed_skips() -> list[dict[str, str]]:
    """The entries of allowed_skips.toml. Raises ValueError for one that is not complete."""
    path = Path(__file__).parent / "allowed_skips.toml"
    entries: list[dict[str, str]] = tomllib.loads(path.read_text("utf-8")).get("skip", [])
    for entry in entries:
        if set(entry) != {"test", "reason", "why"} or not all(entry.values()):
            raise ValueError(f"{path}: an entry has test, reason and why: {entry}")
    return entries


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (required() and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not allowed(report.nodeid, reason, allowed_skips()):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped though SEAL_MONITOR_REQUIRE_BPF=1: {reason}\n"
            f"Make it run, or list it with its reason in tests/allowed_skips.toml."
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


# ---- Nothing is left behind ----------------------------------------------------------------------


class Belongings(NamedTuple):
    """What a session could leave behind: programs and children, id -> name."""

    programs: dict[int, str]
    children: dict[int, str]
    mounts: set[str]


def _children() -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        before, _, after = text.rpartition(")")
        if int(after.split()[1]) == os.getpid():
            found[int(path.parent.name)] = before.partition("(")[2]
    return found


def _held_by_others() -> set[int]:
    """Ids of the BPF programs that processes outside of this session hold."""
    ours = {os.getpid(), *_children()}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in ours:
            continue
        text = ""
        # A process may end, or close one, at any time.
        with contextlib.suppress(OSError):
            for name in os.listdir(process / "fdinfo"):
                with contextlib.suppress(OSError):
                    text += (process / "fdinfo" / name).read_text()
        found |= {int(line.split()[1]) for line in text.splitlines() if line.startswith("prog_id:")}
    return found


def _is_worker(config: pytest.Config) -> bool:
    """Whether other sessions run beside this one, each with a part of the tests."""
    return hasattr(config, "workeroutput")


def _belongings(config: pytest.Config) -> Belongings:
    """What is there now. A worker leaves programs out: other workers have theirs."""
    mounts = {
        " ".join(line.split()[3:5])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    }
    programs = {} if why_no_bpf() or _is_worker(config) else own_programs()
    return Belongings(programs, _children(), mounts)


def _left_behind(config: pytest.Config) -> list[str]:
    before, now = config.stash[_BEFORE], _belongings(config)
    programs = {
        number: name for number, name in now.programs.items() if number not in before.programs
    }
    children = {pid: name for pid, name in now.children.items() if pid not in before.children}
    for number in _held_by_others() if programs else ():
        programs.pop(number, None)
    return [
        *(f"BPF program {name} ({number})" for number, name in programs.items()),
        *(f"child process {name} ({pid})" for pid, name in children.items()),
        *(f"mount {mount}" for mount in now.mounts - before.mounts),
    ]


_BEFORE = pytest.StashKey[Belongings]()
_LEFT = pytest.StashKey[list[str]]()
_CGROUP = pytest.StashKey[AbstractContextManager[None]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """A cgroup for the session: its programs see only that, and its processes start there."""
    stash = session.config.stash
    stash[_BEFORE] = _belongings(session.config)
    stash[_LEFT] = []
    if not why_no_bpf():
        stash[_CGROUP] = entered_cgroup(os.getpid())
        stash[_CGROUP].__enter__()
        see_own_cgroup_alone()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker has left behind, as it reports at its end."""
    node.config.stash[_LEFT] += getattr(node, "workeroutput", {}).get("left", [])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    deadline = time.monotonic() + 60  # the kernel frees programs a grace period after their end
    while (left := _left_behind(config)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _CGROUP in config.stash:
        try:
            config.stash[_CGROUP].__exit__(None, None, None)
        except OSError as error:
            left.append(f"processes in a cgroup: {error}")
    config.stash[_LEFT] += left
    if _is_worker(config):
        config.workeroutput["left"] = left  # type: ignore[attr-defined]
    if config.stash[_LEFT]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for what in config.stash[_LEFT]:
        terminalreporter.write_line(f"FAILED: the tests left behind: {what}", red=True)


# ---- Side by side --------------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share programs or a file's fixtures go to the same worker, one after the other."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - it may not be there

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            mode = re.search(rf"\[({'|'.join(ATTACH_MODES)})\b", nodeid)
            return mode[1] if mode else nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a line for suite.py. Workers write none: the session that started them does."""
    results = os.environ.get("SEAL_MONITOR_RESULTS")
    if results and "PYTEST_XDIST_WORKER" not in os.environ:
        step = {"test": report.nodeid, "seconds": report.duration, "failed": report.failed}
        with open(results, "a", encoding="utf-8") as log:
            log.write(json.dumps(step) + "\n")


# ---- Fixtures ------------------------------------------------------------------------------------


def _compiler() -> str:
    found = shutil.which("gcc")
    if not found:
        pytest.skip("gcc is not installed")
    return found


@pytest.fixture(scope="session")
def build_directory() -> Iterator[Path]:
    """A directory that any user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="seal-monitor-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def compiled(build_directory: Path) -> Callable[[str], Path]:
    """Path of the compiled program tests/assets/NAME.c."""

    def build(name: str) -> Path:
        if BUILT_ASSETS:
            return Path(BUILT_ASSETS) / name
        program = build_directory / name
        if not program.exists():
            source = ASSETS / f"{name}.c"
            subprocess.run([_compiler(), *COMPILER_FLAGS, source, "-o", program], check=True)
        return program

    return build


@pytest.fixture
def run_c(tmp_path: Path) -> Callable[..., str]:
    """Compile a C program given as text, run it; its output."""

    def run(text: str, *flags: str) -> str:
        source, program = tmp_path / "program.c", tmp_path / "program"
        source.write_text(text)
        subprocess.run([_compiler(), "-w", *flags, source, "-o", program], check=True)
        return subprocess.run([program], check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with server.key and .pem, client.key and .pem, and encrypted.key."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    subprocess.run(
        [
            *("openssl", "ec", "-aes128", "-passout", "pass:secret"),
            *("-in", "server.key", "-out", "encrypted.key"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="session")
def require_bpf() -> None:
    """Skips on a machine that cannot load the programs."""
    if reason := why_no_bpf():
        pytest.skip(f"no BPF programs can be loaded here: {reason}")


@pytest.fixture(scope="session", params=ATTACH_MODES)
def harness(request: pytest.FixtureRequest, require_bpf: None) -> Iterator[Harness]:
    """The programs, attached in each mode in turn."""
    with new_cgroup(request.param) as cgroup:
        harness = Harness(request.param, cgroup)
        try:
            yield harness
        finally:
            harness.close()
