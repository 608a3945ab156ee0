"""What a scrape is answered, of every metric."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from monitor.kernel.abi import Cause, Counters, Disposition, Kind, Outcome, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.sight import BLIND_SPOTS
from monitor.metrics.collector import build
from monitor.metrics.reading import KernelFacts, ProbeState
from monitor.metrics.table import METRICS
from monitor.metrics.tally import DELAY_BUCKETS, Tally
from monitor.posture.scan import STATES, Figures, Memory

OPERATION = {operation.name: index for index, operation in enumerate(OPERATIONS)}
FACTS = KernelFacts("6.12.107-amd64", True, {"mprotect": True, "mremap": False})


@dataclass
class Values:
    """A source whose numbers are set by hand."""

    kernel: Counters = field(default_factory=Counters)
    by_workload: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    states: Sequence[ProbeState] = ()
    blind: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(BLIND_SPOTS, False))
    judged: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    programs: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    ring: int = 0
    tracked: int = 0
    removed: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys(("info", "warning", "critical"), 0)
    )
    own: Counters = field(default_factory=Counters)

    def counters(self) -> Counters:
        return self.kernel

    def announced(self) -> Counters:
        return self.own

    def workload_denials(self) -> Mapping[str, tuple[int, int, int]]:
        return self.by_workload

    def violations(self) -> Mapping[tuple[str, str, str], int]:
        return self.judged

    def probes(self) -> Sequence[ProbeState]:
        return self.states

    def violating_programs(self) -> Mapping[tuple[str, str, str], float]:
        return self.programs

    def blind_spots(self) -> Mapping[str, bool]:
        return self.blind

    def ring_used_bytes(self) -> int:
        return self.ring

    def incident_store_bytes(self) -> int:
        return 20480

    def incidents_removed(self) -> Mapping[str, int]:
        return self.removed

    def workloads_tracked(self) -> int:
        return self.tracked

    def workloads_maximum(self) -> int:
        return 1024


def registry(source: Values, tally: Tally | None = None) -> CollectorRegistry:
    return build(source, tally or Tally(["console", "file"]), FACTS, "0.1.0", "abc123")


def lines(registry: CollectorRegistry, *starts: str) -> list[str]:
    """The lines of the exposition that begin so, after the prefix common to all."""
    text = generate_latest(registry).decode()
    prefix = "seal_monitor_"
    return [
        line.removeprefix(prefix)
        for line in text.splitlines()
        if line.startswith(tuple(prefix + start for start in starts))
    ]


def test_known_label_values_are_there_from_the_start() -> None:
    shown = registry(Values())
    families = {family.name: family for family in shown.collect()}
    for metric in METRICS:
        if metric.optional:
            assert metric.full_name.removesuffix("_total") not in families
            continue
        expected: set[tuple[str, ...]] = {()}
        for values in metric.labels.values():
            known = () if isinstance(values, str) else values
            expected = {(*labels, value) for labels in expected for value in known}
        samples = families[metric.full_name.removesuffix("_total")].samples
        given = {tuple(sample.labels[label] for label in metric.labels) for sample in samples}
        assert expected <= given, metric.name
        if metric.type == "counter":
            assert {sample.value for sample in samples} <= {0}, metric.name


@dataclass
class Waiting:
    used_bytes: int = 8192
    oldest_seconds: float = 90.5


def test_what_waits_for_a_collector_is_there_where_one_is_configured() -> None:
    tally = Tally(["otlp"])
    tally.spools["otlp"] = Waiting()
    tally.sent["accepted"] += 17
    tally.spool_dropped["info"] += 19
    shown = registry(Values(), tally)
    assert lines(shown, "sink_spool", "sink_sent") == [
        'sink_spool_bytes{sink="otlp"} 8192.0',
        'sink_spool_oldest_seconds{sink="otlp"} 90.5',
        'sink_sent_total{result="accepted",sink="otlp"} 17.0',
        'sink_sent_total{result="refused",sink="otlp"} 0.0',
        'sink_spool_dropped_total{severity="info",sink="otlp"} 19.0',
        'sink_spool_dropped_total{severity="warning",sink="otlp"} 0.0',
        'sink_spool_dropped_total{severity="critical",sink="otlp"} 0.0',
    ]


def test_the_first_scrape() -> None:
    shown = registry(Values())
    assert lines(shown, "denials_total") == [
        f'denials_total{{operation="{name}",verdict="{verdict}"}} 0.0'
        for name in OPERATION
        for verdict in ("sealed", "not_sealed", "unverified")
    ]
    assert lines(shown, "workload_denials_total", "sink_errors_total", "canary", "config") == [
        'workload_denials_total{verdict="sealed",workload="other"} 0.0',
        'workload_denials_total{verdict="not_sealed",workload="other"} 0.0',
        'workload_denials_total{verdict="unverified",workload="other"} 0.0',
        'canary_runs_total{result="success"} 0.0',
        'canary_runs_total{result="failure"} 0.0',
        "canary_last_success_timestamp_seconds 0.0",
        "canary_interval_seconds 0.0",
        'sink_errors_total{sink="console"} 0.0',
        'sink_errors_total{sink="file"} 0.0',
        "config_last_reload_successful 0.0",
        "config_last_reload_success_timestamp_seconds 0.0",
    ]
    assert lines(shown, "build", "kernel", "seal_", "partial_update_possible") == [
        'build_info{revision="abc123",version="0.1.0"} 1.0',
        'kernel_info{release="6.12.107-amd64"} 1.0',
        "seal_supported 1.0",
        'partial_update_possible{operation="mprotect"} 1.0',
        'partial_update_possible{operation="madvise"} 0.0',
        'partial_update_possible{operation="mremap"} 0.0',
    ]


def test_violations_by_severity() -> None:
    """Whose a dropped record was, and how bad, nobody knows: it is taken for the worst."""
    source = Values(
        judged={
            ("nginx.service", "denial", "warning"): 102,
            ("nginx.service", "denial", "critical"): 1,
            ("other", "bypass", "critical"): 2,
        }
    )
    source.kernel.events[Kind.DENIAL][Outcome.DROPPED] = 5
    source.kernel.events[Kind.BYPASS][Outcome.DROPPED] = 7
    source.kernel.events[Kind.SEAL][Outcome.DROPPED] = 11
    found = [line for line in lines(registry(source), "violations_total") if line[-4:] != " 0.0"]
    assert sorted(found) == [
        'violations_total{kind="bypass",severity="critical",workload="other"} 9.0',
        'violations_total{kind="denial",severity="critical",workload="nginx.service"} 1.0',
        'violations_total{kind="denial",severity="critical",workload="other"} 5.0',
        'violations_total{kind="denial",severity="warning",workload="nginx.service"} 102.0',
    ]


def test_the_kernels_counters() -> None:
    source = Values(
        by_workload={"nginx.service": (7, 1, 2), "other": (1, 0, 0), '/a"b\\': (0, 0, 3)},
        states=(
            ProbeState("mprotect", "tracepoint", True, 5),
            ProbeState("madvise", "raw_tracepoint", False, 0),
            ProbeState("mremap", "fexit", True, None),
        ),
        ring=4096,
        tracked=2,
        removed={"info": 17, "warning": 0, "critical": 0},
    )
    source.kernel.denials[OPERATION["mprotect"]][Verdict.SEALED] = 13
    source.kernel.denials[OPERATION["brk"]][Verdict.UNVERIFIED] = 2
    source.kernel.partial_updates[OPERATION["mprotect"]] = 3
    source.kernel.seals = 11
    source.kernel.sealed_bytes = (1 << 53) - 1
    shown = registry(source)
    assert [line for line in lines(shown, "denials", "partial_updates") if line[-4:] != " 0.0"] == [
        'denials_total{operation="mprotect",verdict="sealed"} 13.0',
        'denials_total{operation="brk",verdict="unverified"} 2.0',
        'partial_updates_total{operation="mprotect"} 3.0',
    ]
    assert lines(shown, "workload", "probe", "ring", "seals", "incident") == [
        "seals_total 11.0",
        'workload_denials_total{verdict="sealed",workload="other"} 1.0',
        'workload_denials_total{verdict="not_sealed",workload="other"} 0.0',
        'workload_denials_total{verdict="unverified",workload="other"} 0.0',
        'workload_denials_total{verdict="sealed",workload="nginx.service"} 7.0',
        'workload_denials_total{verdict="not_sealed",workload="nginx.service"} 1.0',
        'workload_denials_total{verdict="unverified",workload="nginx.service"} 2.0',
        'workload_denials_total{verdict="sealed",workload="/a\\"b\\\\"} 0.0',
        'workload_denials_total{verdict="not_sealed",workload="/a\\"b\\\\"} 0.0',
        'workload_denials_total{verdict="unverified",workload="/a\\"b\\\\"} 3.0',
        'probe_attached{mode="tracepoint",probe="mprotect"} 1.0',
        'probe_attached{mode="raw_tracepoint",probe="madvise"} 0.0',
        'probe_attached{mode="fexit",probe="mremap"} 1.0',
        'probe_missed_runs_total{probe="mprotect"} 5.0',
        'probe_missed_runs_total{probe="madvise"} 0.0',
        "ring_used_bytes 4096.0",
        "workloads_tracked 2.0",
        "workloads_maximum 1024.0",
        "incident_store_bytes 20480.0",
        'incidents_removed_total{severity="info"} 17.0',
        'incidents_removed_total{severity="warning"} 0.0',
        'incidents_removed_total{severity="critical"} 0.0',
    ]
    (line,) = lines(shown, "sealed_bytes_total")
    assert int(float(line.split()[1])) == (1 << 53) - 1


def test_the_last_violation_of_a_program() -> None:
    source = Values(programs={("nginx.service", "denial", "nginx"): 1764403200.5})
    assert lines(registry(source), "last_violation") == [
        'last_violation_timestamp_seconds{kind="denial",program="nginx",workload="nginx.service"}'
        " 1.7644032005e+09"
    ]


def test_announced_violations_are_in_no_other_count() -> None:
    source = Values()
    source.own.denials[OPERATION["mprotect"]][Verdict.SEALED] = 3
    source.own.faults[Cause.SEALED][0] = 2
    source.own.bypasses[1] = 1
    source.own.seals = 9
    shown = registry(source)
    assert lines(shown, "announced") == [
        'announced_violations_total{kind="denial"} 3.0',
        'announced_violations_total{kind="fault"} 2.0',
        'announced_violations_total{kind="bypass"} 1.0',
    ]
    counted = lines(shown, "denials", "faults", "bypasses", "seals", "events", "workload_denials")
    assert {line.rpartition(" ")[2] for line in counted} == {"0.0"}


def test_a_blind_spot_is_1_and_every_name_is_there() -> None:
    source = Values(blind={name: name in ("ptrace", "x32 callers") for name in BLIND_SPOTS})
    assert lines(registry(source), "blind_spot") == [
        'blind_spot{name="hidden refusals"} 0.0',
        'blind_spot{name="32-bit callers"} 0.0',
        'blind_spot{name="io_uring"} 0.0',
        'blind_spot{name="x32 callers"} 1.0',
        'blind_spot{name="/proc/PID/mem"} 0.0',
        'blind_spot{name="ptrace"} 1.0',
        'blind_spot{name="MADV_DONTNEED"} 0.0',
        'blind_spot{name="MADV_GUARD_REMOVE"} 0.0',
        'blind_spot{name="userfaultfd"} 0.0',
    ]


def test_the_source_is_read_at_every_scrape() -> None:
    source = Values()
    shown = registry(source)
    for count in (1, 2, 97):
        source.kernel.seals = count
        assert lines(shown, "seals_total") == [f"seals_total {count}.0"]


def test_a_fault_whose_handler_failed_counts_once() -> None:
    source = Values()
    shown = registry(source)
    faults = source.kernel.faults[Cause.STACK_GUARD]

    def scrape() -> tuple[float, float]:
        """handler, handler_failed"""
        line = 'faults_total{cause="stack_guard",disposition="%s"} '
        found = lines(shown, line % "handler", line % "handler_failed")
        return float(found[0].split()[1]), float(found[1].split()[1])

    # As the kernel counts: every delivery to a handler, and those that then failed.
    for handler, failed, exported in [
        (0, 0, (0, 0)),
        (3, 1, (2, 1)),
        (4, 1, (3, 1)),  # between the two deliveries of the fourth
        (4, 2, (3, 2)),  # what was exported is not taken back
        (5, 2, (3, 2)),
        (6, 2, (4, 2)),
    ]:
        faults[Disposition.HANDLER], faults[Disposition.HANDLER_FAILED] = handler, failed
        assert scrape() == exported


def test_events_by_result() -> None:
    source, tally = Values(), Tally()
    denials, faults = source.kernel.events[Kind.DENIAL], source.kernel.events[Kind.FAULT]
    denials[Outcome.SUBMITTED] = 9  # 6 delivered, 1 failed, 2 filtered by the daemon
    denials[Outcome.SUPPRESSED] = 100
    denials[Outcome.FILTERED] = 10
    denials[Outcome.DROPPED] = 4
    faults[Outcome.FILTERED] = 5
    tally.event("denial", "delivered", 6)
    tally.event("denial", "failed")
    tally.event("denial", "filtered", 2)
    tally.event("suppression", "delivered")
    tally.event("health", "delivered")
    shown = [line for line in lines(registry(source, tally), "events") if line[-4:] != " 0.0"]
    assert shown == [
        'events_total{kind="denial",result="delivered"} 6.0',
        'events_total{kind="denial",result="suppressed"} 100.0',
        'events_total{kind="denial",result="filtered"} 12.0',
        'events_total{kind="denial",result="dropped"} 4.0',
        'events_total{kind="denial",result="failed"} 1.0',
        'events_total{kind="fault",result="filtered"} 5.0',
        'events_total{kind="suppression",result="delivered"} 1.0',
        'events_total{kind="health",result="delivered"} 1.0',
    ]


def test_the_daemons_own_counts() -> None:
    tally = Tally(["console"])
    tally.canary("success", 1000.5)
    tally.canary("failure", 1060.0)
    tally.intervals(60, 3600)
    for result in ("complete", "complete", "gone", "reused", "partial"):
        tally.identity(result)
    tally.sink_error("console")
    tally.sink_queue("console", 7)
    tally.sink_queue("console", 3)
    tally.decode_error()
    tally.reload(True, 2000.0)
    tally.reload(False, 3000.0)
    shown = registry(Values(), tally)
    assert lines(shown, "canary", "identity", "sink", "decode", "config") == [
        'canary_runs_total{result="success"} 1.0',
        'canary_runs_total{result="failure"} 1.0',
        "canary_last_success_timestamp_seconds 1000.5",
        "canary_interval_seconds 60.0",
        'identity_lookups_total{result="complete"} 2.0',
        'identity_lookups_total{result="partial"} 1.0',
        'identity_lookups_total{result="gone"} 1.0',
        'identity_lookups_total{result="reused"} 1.0',
        'sink_errors_total{sink="console"} 1.0',
        'sink_queue_events{sink="console"} 3.0',
        "decode_errors_total 1.0",
        "config_last_reload_successful 0.0",
        "config_last_reload_success_timestamp_seconds 2000.0",
    ]


def test_what_processes_have_sealed() -> None:
    tally = Tally()
    shown = registry(Values(), tally)
    assert {line.split()[1] for line in lines(shown, "posture")} == {"0.0"}
    figures = Figures(
        processes=dict(zip(STATES, (3, 40, 2, 1, 4), strict=True)),
        sealed_bytes={"nginx.service": 12288, "other": 4096},
        memory=Memory(5, 16384, 8000, 2000, 0, 0),
        sealing_executables=2,
        stopped_executables=1,
        duration=2.5,
        finished=1000.5,
    )
    tally.posture_seen(figures)
    tally.intervals(60, 3600)
    assert lines(shown, "posture") == [
        'posture_processes{state="sealing"} 3.0',
        'posture_processes{state="not_sealing"} 40.0',
        'posture_processes{state="unreadable"} 2.0',
        'posture_processes{state="too_large"} 1.0',
        'posture_processes{state="timed_out"} 4.0',
        'posture_sealed_bytes{workload="other"} 4096.0',
        'posture_sealed_bytes{workload="nginx.service"} 12288.0',
        'posture_sealed_ratio{memory="executable"} 0.25',
        'posture_sealed_ratio{memory="relro"} 0.0',
        'posture_executables{state="sealing"} 2.0',
        'posture_executables{state="stopped"} 1.0',
        "posture_scan_duration_seconds 2.5",
        "posture_last_success_timestamp_seconds 1000.5",
        "posture_interval_seconds 3600.0",
    ]


def test_the_delay_histogram() -> None:
    tally = Tally()
    for seconds in (0.001, 0.0011, 0.25, 12.0, -0.5):
        tally.delay(seconds)
    counts = dict.fromkeys(map(str, DELAY_BUCKETS), 3)
    counts.update({"0.001": 2, "0.25": 4, "0.5": 4, "1.0": 4, "2.5": 4, "5.0": 4, "10.0": 4})
    assert lines(registry(Values(), tally), "event_delay") == [
        *(f'event_delay_seconds_bucket{{le="{le}"}} {count}.0' for le, count in counts.items()),
        'event_delay_seconds_bucket{le="+Inf"} 5.0',
        "event_delay_seconds_count 5.0",
        "event_delay_seconds_sum 12.2521",
    ]


def test_the_process_metrics_are_the_standard_ones() -> None:
    text = generate_latest(registry(Values())).decode()
    assert "\nprocess_resident_memory_bytes " in text
    assert "\nprocess_cpu_seconds_total " in text


def test_promtool_accepts_the_exposition() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    source = Values(
        by_workload={"a.service": (1, 2, 3)}, states=[ProbeState("mprotect", "tracepoint", True, 0)]
    )
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(registry(source)),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
