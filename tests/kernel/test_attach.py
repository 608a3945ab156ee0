"""What the loader attaches and hands over, and what it says where it cannot."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from harness import (
    WITH_TRACEFS,
    WITHOUT_TRACEFS,
    Harness,
    new_cgroup,
    own_programs,
    why_no_fexit,
)

from monitor.attach import attached
from monitor.keep.identify import map_fields
from monitor.kernel import attacher, loader, probes
from monitor.kernel.loader import Loaded, LoadError, LoadRequest
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import AT_SEAL, OPTIONAL, PROBES, Hook, Probe

ROOT = Path(__file__).parent.parent.parent
WITH_NUMBER = [operation.name for operation in OPERATIONS if operation.number is not None]
WITH_MADVISE = ["madvise_discard", "guard_remove"]
BY_EXITS = ["ptrace_poke", *WITH_MADVISE]  # of the optional ones
ALWAYS = [*WITH_NUMBER, "mseal", "signal_deliver", *BY_EXITS]
PROGRAMS = len(ALWAYS) - len(WITH_MADVISE) + 1  # that of faults is two
LoadFunction = Callable[..., Loaded]
MISSING = "syscalls:sys_exit_no_such_call"


@pytest.fixture
def load(require_bpf: None) -> Iterator[LoadFunction]:
    loads: list[Loaded] = []

    def load(attach: str, *switches: str) -> Loaded:
        loads.append(loader.load(LoadRequest(attach=attach, switches=frozenset(switches))))
        return loads[-1]

    yield load
    for loaded in loads:
        loaded.close()


def by_probe(loaded: Loaded) -> dict[str, tuple[str, str]]:
    return {probe.probe: (probe.mode, probe.target) for probe in loaded.probes if probe.attached}


def prog_ids(loaded: Loaded) -> set[int]:
    found = set()
    for program in (each for probe in loaded.probes if probe.attached for each in probe.programs):
        for line in Path(f"/proc/self/fdinfo/{program}").read_text().splitlines():
            if line.startswith("prog_id:"):
                found.add(int(line.split()[1]))
    return found


def wait_for_programs(gone: set[int]) -> None:
    """Wait until none is loaded: the kernel frees a program a grace period after its end."""
    deadline = time.monotonic() + 30
    while gone & own_programs().keys():
        assert time.monotonic() < deadline, f"still loaded: {gone & own_programs().keys()}"
        time.sleep(0.02)


def run(code: str, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Python with the project's modules; `prefix` are words before its command."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="session")
def require_fexit(require_bpf: None) -> None:
    if reason := why_no_fexit():
        pytest.skip(reason)


def test_auto_takes_the_first_hook_of_each_probe(load: LoadFunction) -> None:
    reason = why_no_fexit()
    loaded = load("auto")
    if not reason:
        assert by_probe(loaded) == by_probe(load("fexit"))
        return
    expected = {name: ("tracepoint", f"syscalls:sys_exit_{name}") for name in WITH_NUMBER}
    expected["mseal"] = ("tracepoint", "syscalls:sys_exit_mseal")
    expected["signal_deliver"] = ("raw_tracepoint", "signal_generate")
    expected["ptrace_poke"] = ("tracepoint", "syscalls:sys_exit_ptrace")
    expected |= dict.fromkeys(WITH_MADVISE, expected["madvise"])
    assert by_probe(loaded) == expected
    assert not any(probe.lost for probe in loaded.probes)
    assert {p.probe for p in loaded.probes if not p.attached} == OPTIONAL - set(BY_EXITS)
    own = [p for p in loaded.probes if p.probe not in ("signal_deliver", *WITH_MADVISE)]
    assert {p.fallback for p in own if p.attached} == {reason}
    assert len(loaded.links) == PROGRAMS


def test_functions_are_attached_once(require_fexit: None, load: LoadFunction) -> None:
    loaded = load("fexit")
    found = by_probe(loaded)
    assert {mode for mode, _ in found.values()} == {"fexit", "raw_tracepoint"}
    assert [name for name, (mode, _) in found.items() if mode != "fexit"] == ["signal_deliver"]
    unmapping = ("munmap", "mmap", "shmat", "shmdt", "brk", "remap_file_pages", "other")
    assert {found[name][1] for name in unmapping} == {"vms_gather_munmap_vmas"}
    assert found["mprotect"] == found["pkey_mprotect"] == ("fexit", "mprotect_fixup")
    assert found["madvise"] == found["process_madvise"]
    assert set(found) == {*ALWAYS, *OPTIONAL, "other", "compat", "io_uring_madvise"}
    assert found["proc_mem_write"] == found["ptrace_poke"]
    assert {found[name] for name in WITH_MADVISE} == {found["madvise"]}
    # Two functions for userfaultfd, for mseal where there are 32-bit callers, and for mremap where
    # its source is checked in the call's own.
    targets = {target for _, target in found.values()}
    with_two = targets & {"__ia32_sys_mremap", "__ia32_sys_mseal"}
    assert len(loaded.links) == len(targets) + len(with_two) + 2  # two of faults


def test_no_switch_is_needed_where_functions_see_all(
    require_fexit: None, load: LoadFunction
) -> None:
    switched = load("fexit", "watch.io_uring", "watch.compat")
    assert by_probe(switched) == by_probe(load("fexit"))


FUNCTIONS = ("mprotect", "munmap", "mmap_fixed", "mremap_source", "madvise", "shmdt", "brk")


def test_without_the_functions_the_calls_stand_in(require_fexit: None) -> None:
    """One hook for each call, also for those that shared a function."""
    with new_cgroup("calls") as cgroup:
        harness = Harness("fexit", cgroup, without=AT_SEAL)
        try:
            found = by_probe(harness.loaded)
            for name in WITH_NUMBER:
                assert found[name] == ("fexit", f"__ia32_sys_{name}")
            assert not {"other", *WITH_MADVISE} & set(found)
            for name in FUNCTIONS:
                made = harness.provoke(name)
                assert made.denials() == [(made.line["operation"], "sealed", "none")]
            made = harness.provoke("mlock_limit_fixed")
            assert made.denials() == [("mmap", "unverified", "other_cause")]
        finally:
            harness.close()


def test_a_function_that_sees_no_refusal_is_replaced(
    require_fexit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the kernel's check had moved elsewhere: calibration finds that by real refusals."""
    name = "io_madvise"
    silent = Hook("fexit", name, f"fexit_{name}", at_seal=True, sees_compat=True)
    changed = tuple(
        probe._replace(hooks=(silent, *probe.hooks[1:])) if "mprotect" in probe.name else probe
        for probe in PROBES
    )
    for module in (attacher, probes):
        monkeypatch.setattr(module, "PROBES", changed)
    monkeypatch.setattr(attached, "AT_SEAL", AT_SEAL | {name})
    with attached.Attached(LoadRequest(attach="fexit")) as programs:
        assert by_probe(programs.loaded)["mprotect"] == ("fexit", name)
        programs.calibrate()
        found = {probe.probe: probe for probe in programs.loaded.probes}
        assert found["mprotect"].target == "__ia32_sys_mprotect"
        assert found["pkey_mprotect"].target == "__ia32_sys_pkey_mprotect"
        assert found["mprotect"].fallback == ("a refusal made to try io_madvise was not seen there")
        assert found["munmap"].target == "vms_gather_munmap_vmas"


def test_raw_tracepoint_is_attached_once(load: LoadFunction) -> None:
    loaded = load("raw_tracepoint")
    expected = dict.fromkeys([*WITH_NUMBER, "mseal", *BY_EXITS], ("raw_tracepoint", "sys_exit"))
    expected["signal_deliver"] = ("raw_tracepoint", "signal_generate")
    expected["compat"] = ("raw_tracepoint", "sys_exit")  # comes with it
    assert by_probe(loaded) == expected
    assert len(loaded.links) == 3  # two of faults


@pytest.mark.parametrize(
    ("switch", "probe", "target"),
    [
        ("watch.io_uring", "io_uring_madvise", "io_uring_complete"),
        ("watch.compat", "compat", "sys_exit"),
    ],
)
def test_a_switch_adds_its_probe(load: LoadFunction, switch: str, probe: str, target: str) -> None:
    loaded = load("tracepoint", switch)
    assert by_probe(loaded)[probe] == ("raw_tracepoint", target)
    assert len(loaded.links) == PROGRAMS + 1


def with_hooks(name: str, *hooks: Hook) -> tuple[Probe, ...]:
    return tuple(probe._replace(hooks=hooks) if probe.name == name else probe for probe in PROBES)


def test_only_the_refused_probe_falls_back(
    load: LoadFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    bogus = Hook("tracepoint", MISSING, "exit_mprotect", "exit_call", 0)
    raw = Hook("raw_tracepoint", "sys_exit", "raw_exit")
    monkeypatch.setattr(attacher, "PROBES", with_hooks("mprotect", bogus, raw))
    loaded = load("auto")
    found = by_probe(loaded)
    assert found["mprotect"] == ("raw_tracepoint", "sys_exit")
    assert found["munmap"][0] == ("tracepoint" if why_no_fexit() else "fexit")
    (fallback,) = [probe.fallback for probe in loaded.probes if probe.probe == "mprotect"]
    assert fallback.startswith(f"cannot attach to {MISSING}: ")
    assert set(found) >= set(ALWAYS)


def test_a_refused_probe_leaves_the_others(
    load: LoadFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    bogus = Hook("tracepoint", MISSING, "exit_mprotect", "exit_call", 0)
    monkeypatch.setattr(attacher, "PROBES", with_hooks("mprotect", bogus))
    loaded = load("tracepoint")
    (refused,) = [probe for probe in loaded.probes if probe.lost]
    assert (refused.probe, refused.mode, refused.target) == ("mprotect", "tracepoint", MISSING)
    assert refused.program == -1
    assert refused.error.startswith(f"cannot attach to {MISSING}: ")
    assert "\n" not in refused.error
    assert set(by_probe(loaded)) == set(ALWAYS) - {"mprotect"}


def test_a_refused_raw_tracepoint_leaves_the_others(
    load: LoadFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    bogus = Hook("raw_tracepoint", "no_such_tracepoint", "signal_generate", only=True)
    monkeypatch.setattr(attacher, "PROBES", with_hooks("signal_deliver", bogus))
    loaded = load("tracepoint")
    (refused,) = [probe for probe in loaded.probes if probe.lost]
    assert refused.probe == "signal_deliver"
    assert refused.error.startswith("cannot attach to no_such_tracepoint: ")
    assert set(by_probe(loaded)) == set(ALWAYS) - {"signal_deliver"}


def test_nothing_attached_is_an_error(require_bpf: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bogus = Hook("tracepoint", MISSING, "exit_mprotect", "exit_call", 0)
    monkeypatch.setattr(attacher, "PROBES", (Probe("mprotect", (bogus,)),))
    before = set(own_programs())
    with pytest.raises(LoadError, match=f"^cannot attach to {MISSING}: "):
        loader.load(LoadRequest(attach="tracepoint"))
    wait_for_programs(set(own_programs()) - before)


def test_descriptors_are_not_inherited(load: LoadFunction) -> None:
    loaded = load("tracepoint", "watch.io_uring", "watch.compat")
    descriptors = {
        *loaded.maps.values(),
        *loaded.links,
        *(each for p in loaded.probes if p.attached for each in p.programs),
    }
    assert min(descriptors) > 2
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in descriptors)


def test_close_leaves_no_descriptor_and_no_program(load: LoadFunction) -> None:
    before = set(os.listdir("/proc/self/fd"))
    loaded = load("tracepoint")
    programs = prog_ids(loaded)
    assert len(programs) == PROGRAMS
    assert programs <= own_programs().keys()
    loaded.close()
    assert set(os.listdir("/proc/self/fd")) == before
    wait_for_programs(programs)


CHILDREN = """
import os
from monitor.kernel import loader
loaded = loader.load(loader.LoadRequest(attach="tracepoint"))
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none")
"""


def test_the_loader_leaves_no_child(require_bpf: None) -> None:
    assert run(CHILDREN).stdout == "none\n"


HOLD = """
import os, signal, time
from monitor.attach import attached
from monitor.kernel import loader, probes
loaded = loader.load(loader.LoadRequest(attach="tracepoint"))
ids = []
for probe in filter(lambda probe: probe.attached, loaded.probes):
    text = open(f"/proc/self/fdinfo/{probe.program}").read()
    ids += [int(line.split()[1]) for line in text.splitlines() if line.startswith("prog_id:")]
print(*ids, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_programs_end_with_the_process_that_holds_them(
    require_bpf: None, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            programs = {int(word) for word in process.stdout.readline().split()}
            assert programs
            assert programs <= own_programs().keys()
        finally:
            process.send_signal(number)
            process.wait(10)
    assert process.returncode == -number
    wait_for_programs(programs)


TRY_AS = """
import os, sys
from monitor.attach import attached
from monitor.kernel import loader, probes
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    loader.load(loader.LoadRequest(attach=sys.argv[1]))
except loader.LoadError as error:
    print(error)
"""


@pytest.mark.parametrize("attach", ["auto", "tracepoint", "raw_tracepoint"])
@pytest.mark.parametrize("prefix", [WITH_TRACEFS, WITHOUT_TRACEFS], ids=["mounted", "unmounted"])
def test_not_root_is_one_clear_line(require_bpf: None, attach: str, prefix: Sequence[str]) -> None:
    done = run(TRY_AS, attach, prefix=prefix)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    by_tracepoints = attach == "tracepoint" or (attach == "auto" and why_no_fexit())
    if prefix == WITHOUT_TRACEFS and by_tracepoints:
        assert line == (
            "tracefs is not mounted and mounting it failed (Operation not permitted); "
            "run: mount -t tracefs tracefs /sys/kernel/tracing"
        )
    else:
        problem, remedy = line.rsplit("; ", 1)
        assert remedy == "run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"
        assert "Permission denied" in problem or "not permitted" in problem


TRACEFS = """
import json, os
from monitor.attach import attached
from monitor.kernel import loader, probes
loaded = loader.load(loader.LoadRequest(attach="tracepoint"))
print(json.dumps([loaded.notes, not any(probe.lost for probe in loaded.probes),
    os.path.isdir("/sys/kernel/tracing/events")]))
"""


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (WITH_TRACEFS, [[], True, True]),
        (
            WITHOUT_TRACEFS,  # nothing stays mounted that was not
            [["tracefs was not mounted: used a private mount while loading"], True, False],
        ),
    ],
    ids=["mounted", "unmounted"],
)
def test_tracefs(require_bpf: None, prefix: Sequence[str], expected: list[object]) -> None:
    done = run(TRACEFS, prefix=prefix)
    assert done.stderr == ""
    assert json.loads(done.stdout) == expected


def test_the_ring_has_the_size_asked_for(require_bpf: None) -> None:
    loaded = loader.load(LoadRequest(attach="tracepoint", ring_size=1 << 17))
    try:
        assert map_fields(loaded.maps["ring"])["max_entries"] == 1 << 17
    finally:
        loaded.close()


def test_calibration_finds_the_seal(harness: Harness) -> None:
    assert harness.config.sealed_mask.bit_count() == 1
    assert harness.config.maybe_guard_mask.bit_count() <= 1
    assert harness.config.canary_pid == 0
    assert set(harness.findings.partial_updates) == {"mprotect", "madvise", "mremap"}
