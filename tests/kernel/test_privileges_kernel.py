"""What each capability is for, by taking it away; what the daemon does without those it gave up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import WITH_TRACEFS, WITHOUT_TRACEFS, new_cgroup
from test_daemon import READY_SECONDS, Running, assert_conserved

from monitor.incidents.search import Filter, Incidents
from monitor.incidents.store import FILE
from monitor.kernel import attacher, loader
from monitor.kernel.abi import Kind
from monitor.kernel.privileges import IDENTITY, LOADING, LOST, Capability
from monitor.provoke import table as provoke

ROOT = Path(__file__).parents[2]
NOBODY = 65534
ALL = LOADING | IDENTITY
PYTHON = os.path.realpath(sys.executable)  # others may not be allowed to reach the environment's
UNPRIVILEGED = Path("/proc/sys/kernel/unprivileged_bpf_disabled")


def with_only(capabilities: Collection[Capability], user: int = NOBODY) -> Sequence[str]:
    names = "".join(f",+{each.name.removeprefix('CAP_').lower()}" for each in capabilities)
    sets = [f"--{which}=-all{names}" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *sets, "--"]


@pytest.fixture(scope="module")
def program(build_directory: Path) -> Path:
    """A copy of the program and of what it imports, that any user may read."""
    place = Path(tempfile.mkdtemp(prefix="program-", dir=build_directory))
    for source in (ROOT / "monitor", ROOT / "bpf"):
        shutil.copytree(source, place / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/apart.py", place)
    for name in ("prometheus_client", "structlog"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, place / name)
    subprocess.run(["chmod", "-R", "a+rX", place], check=True)
    return place


def environment(program: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(program), "PYTHONSAFEPATH": "1"}


Start = Callable[..., Running]


@pytest.fixture
def start(build_directory: Path, program: Path, require_bpf: None) -> Iterator[Start]:
    """Starts a daemon behind a command that takes its capabilities; waits until it is ready."""
    folder = build_directory / f"daemon-{time.monotonic_ns()}"
    folder.mkdir()
    running: list[Running] = []

    def _start(prefix: Sequence[str], configuration: str = "", *flags: str) -> Running:
        daemon = Running(
            folder,
            configuration,
            *flags,
            command=[*WITH_TRACEFS, *prefix, PYTHON, str(program / "apart.py"), "run"],
            environment=environment(program),
        )
        running.append(daemon)
        daemon.health("started", READY_SECONDS)
        return daemon

    yield _start
    for daemon in running:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def in_effect(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def mask(capabilities: Collection[Capability]) -> int:
    return sum(1 << each for each in capabilities)


# ---- Loading -------------------------------------------------------------------------------------


def attempt(program: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Load and attach by tracepoints; prints the loader's notes."""
    code = (
        "from monitor.host import facts; from monitor.kernel import loader; "
        "facts.require_privileges(); "
        "loaded = loader.load(loader.LoadRequest(attach='tracepoint')); "
        "print(loaded.notes, not any(probe.lost for probe in loaded.probes))"
    )
    return subprocess.run(
        [*prefix, PYTHON, "-c", code],
        env=environment(program),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_loading_needs_no_more(program: Path, require_bpf: None) -> None:
    done = attempt(program, *WITH_TRACEFS, *with_only(LOADING))
    assert (done.stdout, done.stderr) == ("[] True\n", "")


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        (Capability.CAP_BPF, "this process lacks CAP_BPF"),
        (Capability.CAP_PERFMON, "this process lacks CAP_PERFMON"),
        (
            Capability.CAP_DAC_READ_SEARCH,
            "cannot read tracefs (Permission denied); run as root, or with CAP_BPF, CAP_PERFMON "
            "and CAP_DAC_READ_SEARCH",
        ),
    ],
)
def test_loading_needs_each(
    program: Path, capability: Capability, said: str, require_bpf: None
) -> None:
    done = attempt(program, *WITH_TRACEFS, *with_only(LOADING - {capability}))
    assert done.stdout == ""
    assert said in done.stderr


def test_mounting_tracefs_needs_cap_sys_admin(program: Path, require_bpf: None) -> None:
    done = attempt(program, *WITHOUT_TRACEFS, *with_only(LOADING))
    assert done.stdout == ""
    assert "tracefs is not mounted and mounting it failed (Operation not permitted)" in done.stderr
    done = attempt(program, *WITHOUT_TRACEFS, *with_only({*LOADING, Capability.CAP_SYS_ADMIN}))
    note = "tracefs was not mounted: used a private mount while loading"
    assert (done.stdout, done.stderr) == (f"['{note}'] True\n", "")


def test_the_loader_has_given_up_the_rest_before_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_bpf: None
) -> None:
    status = tmp_path / "status"
    look = attacher.look_at_kernel

    def look_and_report() -> object:  # in the child, after which it compiles
        status.write_text(Path("/proc/self/status").read_text())
        return look()

    monkeypatch.setattr(attacher, "look_at_kernel", look_and_report)
    before = in_effect(Path("/proc/self/status"))
    loader.load(loader.LoadRequest()).close()
    fields = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
    for name in ("CapPrm", "CapEff"):
        assert int(fields[name], 16) == mask(LOADING)
    for name in ("CapInh", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert in_effect(Path("/proc/self/status")) == before  # only the child


# ---- Watching ------------------------------------------------------------------------------------


# Lives until its standard input ends.
DENIED = "import sys; from monitor.provoke import table; table.main(['mprotect']); sys.stdin.read()"


def identity(daemon: Running, result: str) -> float:
    return daemon.metric(f'seal_monitor_identity_lookups_total{{result="{result}"}}')


@pytest.mark.parametrize(
    ("capabilities", "executable", "result"),
    [
        (ALL, PYTHON, "complete"),
        (ALL - {Capability.CAP_SYS_PTRACE}, os.path.basename(PYTHON), "partial"),
        (LOADING, os.path.basename(PYTHON), "partial"),
    ],
    ids=["all", "without CAP_SYS_PTRACE", "loading alone"],
)
def test_any_user_counts_and_reports(
    start: Start,
    program: Path,
    capabilities: Collection[Capability],
    executable: str,
    result: str,
) -> None:
    daemon = start(with_only(capabilities))
    with subprocess.Popen(
        [PYTHON, "-c", DENIED], env=environment(program), stdin=subprocess.PIPE
    ) as child:
        denial = daemon.wait_for(lambda event: event["kind"] == "denial")
        child.communicate()
    with provoke.run("guard_region_write") as child_that_dies:
        child_that_dies.communicate()
    fault = daemon.wait_for(lambda event: event["kind"] == "fault")
    assert (denial["verdict"], fault["cause"]) == ("sealed", "guard_region")
    assert denial["process"]["executable"] == executable
    # Nothing proves that it is the command line of that program.
    if result == "partial":
        assert denial["process"]["command_line"] is None
        assert denial["process"]["identity"]["reason"] == "not permitted"
    else:
        assert denial["process"]["command_line"].startswith(PYTHON)
    assert identity(daemon, result) >= 1
    assert identity(daemon, {"complete": "partial", "partial": "complete"}[result]) == 0
    assert daemon.metric('seal_monitor_canary_runs_total{result="failure"}') == 0
    for status in Path(f"/proc/{daemon.process.pid}/task").glob("*/status"):
        assert in_effect(status) == mask(IDENTITY & set(capabilities))
    assert_conserved(daemon.stop())


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        (ALL, {}),
        (
            ALL - {Capability.CAP_SYS_PTRACE},
            {"memory_map": "Permission denied", "modules": "Permission denied"},
        ),
    ],
    ids=["all", "without CAP_SYS_PTRACE"],
)
def test_what_a_snapshot_needs(
    start: Start,
    program: Path,
    build_directory: Path,
    capabilities: Collection[Capability],
    missing: dict[str, str],
) -> None:
    """Of a process of root's, taken as another user."""
    state = build_directory / f"state-{len(capabilities)}"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    daemon = start(with_only(capabilities), f'[state]\ndirectory = "{state}"\n')
    with subprocess.Popen(
        [PYTHON, "-c", DENIED], env=environment(program), stdin=subprocess.PIPE
    ) as child:
        result = "partial" if missing else "taken"
        daemon.wait_for_metric(f'seal_monitor_snapshots_total{{result="{result}"}}', 1)
        child.communicate()
    daemon.stop()
    with Incidents(state / FILE) as incidents:
        (incident,) = incidents.search(Filter(), 2)
        (snapshot,) = incidents.snapshots(incident)
    assert snapshot["missing"] == missing
    assert snapshot["pid"] == child.pid
    assert (snapshot["memory_map"] is None) == bool(missing)
    assert snapshot["limits"]["stack"]
    assert snapshot["seccomp"]["mode"] in ("disabled", "filter")


def stopped_child_of(pid: int) -> int:
    """The next process that the daemon starts, stopped when it executes its program."""
    deadline = time.monotonic() + 30
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while time.monotonic() < deadline:
        for child in children.read_text().split():
            with suppress(OSError):  # it has ended
                if b"monitor.provoke.table" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGSTOP)
                    return int(child)
        time.sleep(0.0005)
    raise AssertionError("no canary")


@pytest.mark.parametrize("user", [0, NOBODY])
def test_after_the_drop(start: Start, build_directory: Path, user: int) -> None:
    folder = build_directory / f"events-{user}"
    folder.mkdir()
    os.chown(folder, user, user)
    events = folder / "events.jsonl"
    prefix = with_only(ALL, user) if user else ()  # root by hand has everything
    daemon = start(prefix, "[canary]\ninterval = 1\n", "--events-file", str(events))
    pid = daemon.process.pid

    child = stopped_child_of(pid)  # the canary
    try:
        assert in_effect(Path(f"/proc/{child}/status")) == 0
    finally:
        os.kill(child, signal.SIGCONT)

    daemon.configuration.write_text("[canary]\ninterval = 1\n[events]\nfaults = []\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.health("reloaded")
    assert daemon.metric("seal_monitor_config_last_reload_successful") == 1

    events.rename(folder / "events.jsonl.1")
    with provoke.run("munmap") as violation:
        violation.communicate()
    daemon.wait_for(lambda event: event["kind"] == "denial")
    deadline = time.monotonic() + 30
    while not (events.exists() and "munmap" in events.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert daemon.metric('seal_monitor_probe_missed_runs_total{probe="munmap"}') == 0
    # A scrape may be the one before, for a second.
    daemon.wait_for_metric('seal_monitor_denials_total{operation="munmap",verdict="sealed"}', 1)
    deadline = time.monotonic() + 30
    while daemon.metric('seal_monitor_canary_runs_total{result="success"}') < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert daemon.metric('seal_monitor_canary_runs_total{result="failure"}') == 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        assert in_effect(status) == mask(IDENTITY)
    assert_conserved(daemon.stop())


@pytest.fixture
def unprivileged_bpf_disabled() -> Iterator[None]:
    before = UNPRIVILEGED.read_text()
    if before.strip() == "0":
        UNPRIVILEGED.write_text("2")
    yield
    if UNPRIVILEGED.read_text() != before:
        UNPRIVILEGED.write_text(before)


# All that the daemon does with its descriptors, as the user nobody without any capability.
WITHOUT_ANY = """
import apart, json, os
from monitor.kernel import privileges
from monitor.provoke import table as provoke
from monitor.attach.attached import Attached
from monitor.kernel.counters import missed_runs
from monitor.kernel.loader import LoadRequest
apart.see_own_cgroup_alone()
with Attached(LoadRequest(attach="tracepoint")) as attached:
    attached.calibrate()
    attached.state.config.emit_verdicts = 1 << 0
    attached.state.config.emit_seals = True
    attached.state.config.event_interval_ns = attached.state.config.host_interval_ns = 1
    os.setresuid(65534, 65534, 65534)
    privileges.keep(())
    with provoke.run("munmap") as child:
        child.communicate()
    state = attached.state
    workloads = [key for key, _ in state.workloads.items()]
    print(json.dumps({
        "held": len(privileges.held()),
        "workloads": len(workloads),
        "removed": [state.workloads.remove(key) for key in workloads],
        "left": len(list(state.workloads.items())),
        "buckets": len(list(state.buckets.items())) > 0,
        "missed": [missed_runs(number) for probe in attached.loaded.probes
            for number in probe.programs[:1]][:1],
        "denials": sum(map(sum, state.counters().denials)),
        "records": [record.kind for record in attached.ring.drain().records
            if record.pid == child.pid],
    }))
"""


@pytest.mark.usefixtures("unprivileged_bpf_disabled", "require_bpf")
def test_held_descriptors_need_no_capability(program: Path) -> None:
    assert UNPRIVILEGED.read_text().strip() in ("1", "2")
    done = subprocess.run(
        [PYTHON, "-c", WITHOUT_ANY],
        env=environment(program),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "held": 0,
        "workloads": 1,
        "removed": [True],
        "left": 0,
        "buckets": True,
        "missed": [0],
        "denials": 1,
        "records": [Kind.SEAL, Kind.DENIAL],
    }


def test_root_with_somebody_elses_checkout(start: Start, program: Path) -> None:
    program.chmod(0o700)
    os.chown(program, NOBODY, NOBODY)
    try:
        daemon = start(())
        assert daemon.metric('seal_monitor_canary_runs_total{result="success"}') >= 1
        daemon.stop()
    finally:
        program.chmod(0o755)
        os.chown(program, 0, 0)


# ---- Looking up ----------------------------------------------------------------------------------

PATHS = """
import os, sys
from pathlib import Path
from monitor.evidence.cgroups import Cgroups
pid, mapping = sys.argv[1:3]
def attempt(what, look):
    try:
        print(what, look())
    except PermissionError:
        print(what, "refused")
attempt("executable", lambda: os.readlink(f"/proc/{pid}/exe"))
attempt("file", lambda: os.readlink(f"/proc/{pid}/map_files/{mapping}"))
attempt("command line", lambda: len(Path(f"/proc/{pid}/cmdline").read_bytes()) > 0)
cgroups = Cgroups()
cgroups.path(1 << 40, None)  # a walk, so that there is none for ten seconds
print("walked", flush=True)
cgroup = int(input())
print("cgroup", (cgroups.path(cgroup, None) or b"unknown").decode())
"""


def looked_up(program: Path, capabilities: Collection[Capability]) -> dict[str, str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapping = next(line.split()[0] for line in maps if line.endswith("libc.so.6"))
    mapping = "-".join(f"{int(bound, 16):x}" for bound in mapping.split("-"))
    with subprocess.Popen(
        [*with_only(capabilities), PYTHON, "-c", PATHS, str(os.getpid()), mapping],
        env=environment(program),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline()) and line != "walked\n":
            lines.append(line)
        with new_cgroup("young") as cgroup:
            rest, errors = process.communicate(f"{cgroup.stat().st_ino}\n", timeout=30)
    assert (errors, process.returncode) == ("", 0)
    words = (line.rpartition(" ") for line in [*lines, *rest.splitlines()])
    return {what: found.strip() for what, _, found in words}


def test_what_looking_up_needs(program: Path) -> None:
    whole = looked_up(program, IDENTITY)
    assert whole["executable"] == os.readlink("/proc/self/exe")
    assert whole["file"].endswith("/libc.so.6")
    assert whole["command line"] == "True"
    assert "-young" in whole["cgroup"]
    lost = {
        Capability.CAP_SYS_PTRACE: {"executable": "refused", "file": "refused"},
        Capability.CAP_DAC_READ_SEARCH: {"cgroup": "unknown", "file": "refused"},
    }
    assert set(lost) == IDENTITY <= LOST.keys()
    for capability, refused in lost.items():
        assert looked_up(program, IDENTITY - {capability}) == whole | refused
