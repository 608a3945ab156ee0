from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitor.attach import calibrate
from monitor.configuration import config
from monitor.host import blind_spots, doctor
from monitor.host import facts as host
from monitor.host.checklist import Row, table, verdict
from monitor.kernel import abi
from monitor.kernel.loader import AttachedProbe, Made
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import PROBES, candidates
from monitor.kernel.sight import ALWAYS, BLIND_SPOTS
from monitor.provoke.provocation import mappings

EXIT = "syscalls:sys_exit_"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def attached(name: str, mode: str = "tracepoint", target: str = "") -> AttachedProbe:
    return AttachedProbe(name, mode, target or f"{EXIT}{name}", "", 9)


# ---- The table -----------------------------------------------------------------------------------

ROWS = [
    Row("Host", "kernel", "ok", "6.18.44"),
    Row("Host", "preemption", "degraded", "full: runs may be skipped", "use --attach raw"),
    Row("Blind spots", "SIGBUS", "blind", "not watched"),
]


def test_the_id_of_a_host() -> None:
    assert doctor.id_row("0f3c5a") == Row("Host", "id", "ok", "0f3c5a")
    missing = doctor.id_row(None)
    assert missing.status == "degraded"
    assert missing.finding.startswith("none: /etc/machine-id is missing")
    assert "systemd-machine-id-setup" in missing.remedy


def test_the_table_is_aligned() -> None:
    assert table(ROWS, 80, colours=False).splitlines() == [
        "Host",
        "  ok        kernel      6.18.44",
        "  degraded  preemption  full: runs may be skipped",
        "                        remedy: use --attach raw",
        "",
        "Blind spots",
        "  blind     SIGBUS      not watched",
        "",
        "This host can be monitored, with limits: 1 degraded; 1 blind spots.",
    ]


def test_long_findings_are_wrapped_under_their_column() -> None:
    row = Row("Host", "kernel", "ok", "word " * 30, "one " * 30)
    lines = table([row], 80, colours=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("  ok        kernel  word word")
    assert lines[2].startswith(" " * 20 + "word word")
    assert sum("remedy:" in line for line in lines) == 1


def test_colours_change_nothing_but_colour() -> None:
    plain, coloured = (table(ROWS, 80, colours) for colours in (False, True))
    assert coloured != plain
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == plain


def test_control_characters_are_escaped() -> None:
    shown = table([Row("Host", "mute", "ok", "a\x1b[31m\nb\udc80")], 80, colours=False)
    assert shown.splitlines()[1] == r"  ok        mute  a\x1b[31m\x0ab\x80"


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("ok", "ok"), "ok"),
        (("ok", "blind"), "ok"),
        (("degraded", "blind"), "degraded"),
        (("degraded", "failed", "ok"), "failed"),
        ((), "ok"),
    ],
)
def test_verdict_is_the_worst_status(statuses: tuple[str, ...], expected: str) -> None:
    assert verdict(Row("s", "c", status, "f") for status in statuses) == expected


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (("ok", "blind"), "This host can be monitored, with full force; 1 blind spots."),
        (("ok", "failed"), "This host cannot be monitored: 1 of 2 checks failed."),
    ],
)
def test_last_line(statuses: tuple[str, ...], words: str) -> None:
    found = [Row("s", "c", status, "f") for status in statuses]
    assert table(found, 80, colours=False).splitlines()[-1] == words


# ---- The rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "skips", "attach", "status"),
    [
        ("none", False, "auto", "ok"),
        ("full", True, "auto", "degraded"),
        ("full", True, "tracepoint", "degraded"),
        ("full", True, "raw_tracepoint", "degraded"),
        ("unknown", None, "auto", "degraded"),
    ],
)
def test_preemption(model: str, skips: bool | None, attach: str, status: str) -> None:
    row = doctor.preemption_row(host.Preemption(model, skips, "/proc/cmdline"), attach)
    assert row.status == status
    assert row.finding.startswith(f"{model} (/proc/cmdline): ")
    assert bool(row.remedy) is (status == "degraded")


REFUSED = "fexit programs are refused (Operation not permitted)"


BUILT = datetime(2030, 1, 2, 3, 4, tzinfo=UTC).timestamp()


def test_the_programs_that_run_are_named() -> None:
    made = Made("/lib/x.object", "0123456789abcdef", BUILT, "clang 14.0.6", ("a.b", "c()"))
    assert doctor.program_rows(made) == [
        Row(
            "Host",
            "programs",
            "ok",
            "/lib/x.object, digest 0123456789ab, built 2030-01-02 03:04 UTC by clang 14.0.6",
        ),
        Row("Host", "structures", "ok", "this kernel has no a.b, c(): what reads them is left out"),
    ]


def test_programs_that_were_compiled_for_this_start() -> None:
    assert doctor.program_rows(Made("", "0123", BUILT, "clang 19.1.7", ())) == [
        Row(
            "Host",
            "programs",
            "degraded",
            "no object: compiled at every start, by clang 19.1.7",
            "run: make setup, in a checkout, or install the package",
        )
    ]


def test_probes_say_how_they_are_attached() -> None:
    gone = "this kernel's BTF has no function check_prep_vma of the form that is known"
    rows = doctor.probe_rows(
        [
            attached("munmap", "fexit", "vms_gather_munmap_vmas"),
            attached("mremap", "fexit", "__ia32_sys_mremap")._replace(fallback=gone),
            AttachedProbe("madvise", "raw_tracepoint", "sys_exit", "cannot attach: no", -1),
        ],
        "auto",
    )
    assert rows == [
        Row("Probes", "munmap", "ok", "fexit vms_gather_munmap_vmas"),
        Row("Probes", "mremap", "degraded", f"fexit __ia32_sys_mremap, because {gone}"),
        Row(
            "Probes",
            "madvise",
            "degraded",
            "not attached, so what it watches is not seen: cannot attach: no",
        ),
    ]


def test_a_reason_that_all_fallbacks_share_is_shown_once() -> None:
    probes = [attached(name)._replace(fallback=REFUSED) for name in ("mprotect", "munmap")]
    signals = attached("signal_deliver", "raw_tracepoint", "signal_generate")
    rows = doctor.probe_rows([*probes, signals], "auto")
    assert [(row.check, row.status, row.finding) for row in rows] == [
        ("fexit", "degraded", REFUSED),
        ("mprotect", "ok", f"tracepoint {EXIT}mprotect"),
        ("munmap", "ok", f"tracepoint {EXIT}munmap"),
        ("signal_deliver", "ok", "raw_tracepoint signal_generate"),
    ]


def test_asked_for_raw_tracepoints_are_no_fallback() -> None:
    probe = attached("madvise", "raw_tracepoint", "sys_exit")
    assert [row.status for row in doctor.probe_rows([probe], "raw_tracepoint")] == ["ok"]


@pytest.mark.parametrize(
    ("guard_bit", "guard_regions", "row"),
    [
        (11, True, ("ok", "bit 11 of vm_flags: the cause guard_region is proved")),
        (None, True, ("degraded", "none: a fault in a guard region is reported as inferred")),
        (None, False, ("ok", "none, and no guard regions to mark")),
    ],
)
def test_calibration(guard_bit: int | None, guard_regions: bool, row: tuple[str, str]) -> None:
    kernel = abi.Config()
    kernel.sealed_mask = 1 << 42
    kernel.maybe_guard_mask = 0 if guard_bit is None else 1 << guard_bit
    partial = {"mprotect": True, "madvise": True, "mremap": False}
    rows = doctor.calibration_rows(kernel, calibrate.Findings(guard_regions, partial))
    found = {row.check: (row.status, row.finding) for row in rows}
    assert found["seal bit"] == ("ok", "bit 42 of vm_flags")
    assert found["maybe-guard bit"] == row
    assert found["partial mremap"] == ("ok", "a refused call changes nothing")
    assert found["partial mprotect"][1].startswith("what precedes the seal is changed")


ALL_ON = {"CONFIG_IA32_EMULATION": "y", "CONFIG_IO_URING": "y"}
RAW = [
    attached(operation.name, "raw_tracepoint", "sys_exit")
    for operation in OPERATIONS
    if operation.number is not None
]
FUNCTIONS = [
    *(
        attached(operation.name, "fexit", candidates(probe, "fexit")[0].target)
        for operation, probe in zip(OPERATIONS, PROBES, strict=False)
        if operation.number is not None
    ),
    attached("other", "fexit", "vms_gather_munmap_vmas"),
    attached("compat", "fexit", "mprotect_fixup"),
    attached("io_uring_madvise", "fexit", "io_madvise"),
]
WITHOUT_UNMAPPING = [probe for probe in FUNCTIONS if probe.target != "vms_gather_munmap_vmas"]


@pytest.mark.parametrize(
    ("probes", "options", "takes_x32", "statuses"),
    [
        ([attached("mprotect")], ALL_ON, True, ("blind", "blind", "blind", "blind")),
        ([attached("mprotect")], {}, True, ("blind", "blind", "blind", "blind")),
        ([attached("mprotect")], {"CONFIG_X": "y"}, False, ("blind", "ok", "ok", "ok")),
        (
            [attached("compat", "raw_tracepoint", "sys_exit")],
            ALL_ON,
            True,
            ("blind", "ok", "blind", "blind"),
        ),
        ([attached("io_uring_madvise")], ALL_ON, False, ("blind", "blind", "ok", "ok")),
        (RAW, ALL_ON, True, ("blind", "blind", "blind", "ok")),
        (FUNCTIONS, ALL_ON, True, ("ok", "ok", "ok", "ok")),
        (WITHOUT_UNMAPPING[:-2], ALL_ON, True, ("blind", "blind", "blind", "blind")),
    ],
)
def test_blind_spots_by_what_is_attached(
    tmp_path: Path,
    probes: list[AttachedProbe],
    options: dict[str, str],
    takes_x32: bool,
    statuses: tuple[str, ...],
) -> None:
    rows = blind_spots.blind_rows(probes, options, takes_x32, tmp_path)
    checks = ("hidden refusals", "32-bit callers", "io_uring", "x32 callers")
    assert [(row.check, row.status) for row in rows[:4]] == list(zip(checks, statuses, strict=True))
    assert all(row.remedy for row in rows[:4] if row.status == "blind")
    assert [(row.check, row.status) for row in rows[4:]] == [
        ("kernel's accesses", "blind"),
        ("SIGBUS", "blind"),
        ("tracers", "blind"),
    ]


def test_every_blind_spot_has_its_name(tmp_path: Path) -> None:
    rows = [
        *blind_spots.blind_rows([], ALL_ON, True, tmp_path),
        *blind_spots.bypass_rows([], True, tmp_path),
    ]
    assert sorted(row.check for row in rows) == sorted((*BLIND_SPOTS, *ALWAYS))
    assert {row.check for row in rows if row.status == "blind"} == {*BLIND_SPOTS, *ALWAYS}


def test_the_metric_has_what_the_rows_have(tmp_path: Path) -> None:
    probes = [attached("ptrace_poke"), attached("madvise_discard"), attached("guard_remove")]
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys/kernel/yama").mkdir(parents=True)
    sight = blind_spots.Sight(probes, tmp_path)
    found = sight.blind_spots()
    assert tuple(found) == BLIND_SPOTS
    assert (found["ptrace"], found["MADV_DONTNEED"], found["userfaultfd"]) == (False, False, True)
    assert sight_without(tmp_path).blind_spots()["ptrace"]
    (tmp_path / "sys/kernel/yama/ptrace_scope").write_text("3\n")
    assert not sight_without(tmp_path).blind_spots()["ptrace"]


def sight_without(proc: Path) -> blind_spots.Sight:
    """With nothing attached."""
    return blind_spots.Sight([], proc)


def test_the_trial_of_the_memory_file_leaves_no_mapping() -> None:
    assert blind_spots.memory_file_overrides() in (True, False)
    before = mappings()
    blind_spots.memory_file_overrides()
    assert [m for m in mappings() if m not in before and m.name == ""] == []


def test_what_is_seen_and_what_not_is_named(tmp_path: Path) -> None:
    rows = blind_spots.blind_rows(FUNCTIONS, ALL_ON, True, tmp_path)
    assert rows[0].finding == "seen by fexit vms_gather_munmap_vmas, as operation other"
    rows = blind_spots.blind_rows([*WITHOUT_UNMAPPING, attached("munmap")], ALL_ON, True, tmp_path)
    assert rows[3].finding == ("not seen: munmap, mmap, shmat, shmdt, brk, remap_file_pages")


def test_hidden_refusals_are_named(tmp_path: Path) -> None:
    row = blind_spots.blind_rows([], ALL_ON, True, tmp_path)[0]
    assert row.finding == (
        "a seal that keeps these from unmapping memory is not reported: arch_prctl, close, "
        "close_range, dup2, dup3, exit, io_destroy, uselib"
    )


@pytest.mark.parametrize(
    ("names", "row"),
    [
        (["munmap", "newuname"], ("ok", "2 reviewed", "")),
        (
            ["vma_swap", "munmap", "map_merge"],
            (
                "degraded",
                "1 reviewed; nobody has checked whether these can change sealed memory: map_merge, "
                "vma_swap",
                "a newer seal-monitor",
            ),
        ),
        (
            [],
            (
                "degraded",
                "the kernel does not list its own: a new one would go unnoticed",
                "boot a kernel with CONFIG_KALLSYMS=y",
            ),
        ),
    ],
)
def test_system_calls_that_nobody_has_reviewed(names: list[str], row: tuple[str, ...]) -> None:
    assert blind_spots.review_row(names) == Row("Blind spots", "system calls", *row)


def test_what_the_administrator_has_closed_is_no_blind_spot(tmp_path: Path) -> None:
    for name, value in (("io_uring_disabled", "2\n"), ("yama/ptrace_scope", "3\n")):
        path = tmp_path / "sys/kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    rows = [
        *blind_spots.blind_rows([], ALL_ON, False, tmp_path),
        *blind_spots.bypass_rows([], False, tmp_path),
    ]
    found = {row.check: (row.status, row.finding) for row in rows}
    assert found["io_uring"] == ("ok", "switched off (kernel.io_uring_disabled = 2)")
    assert found["ptrace"] == ("ok", "nobody may attach (kernel.yama.ptrace_scope = 3)")
    assert found["/proc/PID/mem"] == ("ok", "a write to sealed read-only memory is refused")


def test_ways_around_a_seal(tmp_path: Path) -> None:
    rows = blind_spots.bypass_rows([], True, tmp_path)
    assert [(row.check, row.status) for row in rows] == [
        ("/proc/PID/mem", "blind"),
        ("ptrace", "blind"),
        ("MADV_DONTNEED", "blind"),
        ("MADV_GUARD_REMOVE", "blind"),
        ("pinned pages", "blind"),
        ("mapped files", "blind"),
        ("mapped sockets", "blind"),
        ("userfaultfd", "blind"),
        ("uprobes", "blind"),
    ]


def test_ways_around_a_seal_that_are_seen(tmp_path: Path) -> None:
    methods = ("ptrace_poke", "madvise_discard", "userfaultfd_copy")
    probes = [attached(name, "fexit", f"function_of_{name}") for name in methods]
    rows = blind_spots.bypass_rows(probes, True, tmp_path)
    found = {row.check: (row.status, row.finding) for row in rows}
    assert found["ptrace"] == (
        "ok",
        "a debugger writes to sealed memory: seen by fexit function_of_ptrace_poke, as ptrace_poke",
    )
    assert found["MADV_DONTNEED"][0] == "ok"
    assert found["/proc/PID/mem"] == (
        "blind",
        "a write to sealed read-only memory succeeds, and nobody sees it",
    )
    assert found["userfaultfd"] == (
        "blind",
        "fills missing pages of sealed memory and moves pages out of it, and nobody sees it "
        "(userfaultfd_move)",
    )


def test_a_missing_optional_probe_is_not_the_hosts_problem() -> None:
    missing = AttachedProbe("proc_mem_write", "fexit", "access_remote_vm", "refused", -1)
    assert not missing.lost
    assert doctor.probe_rows([missing], "auto") == []


def test_mutes_and_switched_off_events_are_listed() -> None:
    text = """
        [events]
        denials = ["sealed"]
        faults = ["guard_region", "stack_guard", "sealed", "pkey"]
        [[mute]]
        operation = "munmap"
        executable = "/opt/engine/*"
        reason = "leaks what it sealed"
        until = 2031-12-31
        [[mute]]
        cause = "prot_none"
        reason = "a collector"
        until = 2029-12-31
    """
    rows = blind_spots.filter_rows(config.parse(text, "test"), NOW)
    assert [row[1:] for row in rows] == [
        ("events", "blind", "counted, no events: denials unverified, faults prot_none", ""),
        (
            "mute",
            "blind",
            "counted, no events: munmap of /opt/engine/* until 2031-12-31 23:59 UTC "
            "(leaks what it sealed)",
            "any user can run such a program; add user or unit",
        ),
        (
            "mute",
            "ok",
            "expired: prot_none of every executable (a collector)",
            "remove the entry",
        ),
    ]


def test_the_defaults_hide_nothing() -> None:
    assert blind_spots.filter_rows(config.parse("", "test"), NOW) == []


@pytest.mark.parametrize(
    ("files", "statuses"),
    [
        ({}, ("degraded", "degraded", "degraded")),
        ({"1/exe": "a program"}, ("degraded", "ok", "degraded")),
        (
            {"self/mountinfo": "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
            ("degraded", "degraded", "ok"),
        ),
    ],
)
def test_identity(tmp_path: Path, files: dict[str, str], statuses: tuple[str, ...]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "1/exe":
            (tmp_path / name).symlink_to(text)
        else:
            (tmp_path / name).write_text(text)
    rows = doctor.identity_rows(tmp_path)
    assert [row.check for row in rows] == ["PID namespace", "processes", "cgroup v2"]
    assert tuple(row.status for row in rows) == statuses
    assert all(row.remedy for row in rows if row.status != "ok")


# ---- What is kept --------------------------------------------------------------------------------


def test_without_a_state_directory(tmp_path: Path) -> None:
    (row,) = doctor.kept_rows(config.parse("", "test"), None)
    assert (row.check, row.status) == ("state directory", "degraded")
    assert row.remedy == "make /var/lib/seal-monitor, or name one as state.directory"
    (row,) = doctor.kept_rows(config.parse("", "test"), tmp_path / "missing")
    assert row.status == "degraded"
    assert row.finding.startswith(f"{tmp_path}/missing is not there")


def test_what_the_database_takes(tmp_path: Path) -> None:
    settings = config.parse("", "test")
    (tmp_path / "incidents.db").write_bytes(bytes(1 << 20))
    (tmp_path / "incidents.db-wal").write_bytes(bytes(1 << 19))
    directory, incidents = doctor.kept_rows(settings, tmp_path)
    assert directory == Row("Kept", "state directory", "ok", str(tmp_path))
    assert incidents == Row("Kept", "incidents", "ok", "1.5 MiB of 64.0 MiB are used")
    off = doctor.kept_rows(config.parse("[incidents]\nenabled = false\n", "test"), tmp_path)
    assert off[1].finding == "off: incidents.enabled = false"


def test_a_database_that_was_set_aside(tmp_path: Path) -> None:
    (tmp_path / "incidents.db.bad-20261121T170752Z").touch()
    _, incidents = doctor.kept_rows(config.parse("", "test"), tmp_path)
    assert incidents.status == "degraded"
    assert incidents.finding.endswith("incidents.db.bad-20261121T170752Z")


def test_whether_a_restart_is_blind() -> None:
    nothing = doctor.restart_row({})
    assert (nothing.status, "is blind until then" in nothing.finding) == ("degraded", True)
    unit = {"LoadState": "loaded", "FileDescriptorStoreMax": "0", "NFileDescriptorStore": "0"}
    none = doctor.restart_row(unit)
    assert (none.status, none.remedy[:27]) == ("degraded", "set FileDescriptorStoreMax=")
    kept = doctor.restart_row(
        {**unit, "FileDescriptorStoreMax": "512", "NFileDescriptorStore": "57"}
    )
    assert kept.finding == "systemd keeps what is attached: 57 of at most 512 descriptors now"
    assert kept.status == "ok"
