"""`seal-monitor doctor`: finds out what this host can do, by trying it, and names remedies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitor.attach import calibrate
from monitor.attach.attached import Attached, request
from monitor.configuration.config import Config, ConfigError, Otlp
from monitor.evidence import cgroups
from monitor.evidence.cgroups import cgroup_mount
from monitor.host import facts as host
from monitor.host.blind_spots import (
    blind_rows,
    bypass_rows,
    filter_rows,
    memory_file_overrides,
    review_row,
)
from monitor.host.checklist import Row, table, verdict
from monitor.incidents.store import FILE as INCIDENTS
from monitor.keep import pins
from monitor.kernel import abi, arch, loader, privileges
from monitor.kernel.privileges import Capability
from monitor.life.last_run import DEFAULT_DIRECTORY, state_directory
from monitor.metrics.source import store_bytes
from monitor.provoke.announce import Announcer
from monitor.provoke.child import nobody
from monitor.sizes import mebibytes
from monitor.streams import show

__all__ = [
    "calibration_rows",
    "id_row",
    "identity_rows",
    "kept_rows",
    "otlp_rows",
    "pin_row",
    "preemption_row",
    "privilege_rows",
    "probe_rows",
    "program_rows",
    "restart_row",
    "rows",
    "run",
]

UNIT = "seal-monitor.service"
SYSTEMCTL_SECONDS = 5.0
_WIDTHS = (80, 100)  # columns of the table, least and most

# ---- The host ------------------------------------------------------------------------------------


def _requirement(check: str, require: Callable[[], None], finding: str) -> Row:
    try:
        require()
    except host.HostError as error:
        return Row("Host", check, "failed", error.why, error.remedy)
    return Row("Host", check, "ok", finding)


def _requirements() -> list[Row]:
    locked = host.lockdown() or "not known: securityfs is not mounted on /sys/kernel/security"
    table: tuple[tuple[str, Callable[[], None], str], ...] = (
        ("architecture", host.require_architecture, arch.THIS.name),
        ("mseal", host.require_mseal, "the kernel has mseal(2)"),
        ("BTF", host.require_btf, "the kernel describes its structures"),
        ("lockdown", host.require_no_lockdown, locked),
        ("libbpf", host.require_libbpf, "installed"),
        ("bpf(2)", host.require_bpf, "no filter forbids it"),
        ("privileges", host.require_privileges, "enough to load and attach BPF programs"),
    )
    return [_requirement(*row) for row in table]


def id_row(found: str | None) -> Row:
    """Whether events say which host they are of, among hosts whose names are equal or change."""
    if found:
        return Row("Host", "id", "ok", found)
    return Row(
        "Host",
        "id",
        "degraded",
        "none: /etc/machine-id is missing or not valid; events have the host's name alone",
        "run systemd-machine-id-setup; in a container mount the host's file; or set host.id",
    )


def preemption_row(found: host.Preemption, attach: str) -> Row:
    """Whether the kernel may skip runs of tracepoint programs, and so leave counts too low."""
    named = f"{found.model} ({found.source})" if found.source else found.model
    if found.skips_runs is False:
        return Row("Host", "preemption", "ok", f"{named}: no run of a probe is skipped")
    # Lost runs measured with preempt=full: none by raw_tracepoint on 6.19, more than half on 7.3.
    remedy = "boot with preempt=none, where the kernel has it"
    if attach != "raw_tracepoint":
        remedy += ", or --attach raw_tracepoint, which kernels before 7.0 never skip"
    why = "the kernel may skip runs of a probe; it counts them, and counts of denials "
    return Row(
        "Host",
        "preemption",
        "degraded",
        f"{named}: {why}are a lower bound while seal_monitor_probe_missed_runs_total rises",
        remedy,
    )


def program_rows(made: loader.Made) -> list[Row]:
    """Which compiled programs run, and what this kernel lacks of what they read."""
    if made.path:
        built = datetime.fromtimestamp(made.built, UTC).strftime("%Y-%m-%d %H:%M UTC")
        finding = f"{made.path}, digest {made.digest[:12]}, built {built} by {made.compiler}"
        found = [Row("Host", "programs", "ok", finding)]
    else:
        finding = f"no object: compiled at every start, by {made.compiler}"
        remedy = "run: make setup, in a checkout, or install the package"
        found = [Row("Host", "programs", "degraded", finding, remedy)]
    if made.absent:
        finding = f"this kernel has no {', '.join(made.absent)}: what reads them is left out"
        found.append(Row("Host", "structures", "ok", finding))
    return found


def _tracefs_row(notes: Sequence[str], sys_root: Path = host.SYS) -> Row:
    path = sys_root / "kernel/tracing"
    if (path / "events").is_dir():
        return Row("Host", "tracefs", "ok", f"mounted on {path}")
    finding = "; ".join(notes) or f"not mounted on {path}; nothing here needs it"
    return Row("Host", "tracefs", "ok", finding)


def privilege_rows(held: Collection[Capability]) -> list[Row]:
    """Which capabilities this process has, and what is lost without the others."""
    found = []
    for capability, lost in privileges.LOST.items():
        name, is_vital = capability.name, capability in privileges.VITAL
        if capability in held:
            found.append(Row("Privileges", name, "ok", "there"))
        elif is_vital and Capability.CAP_SYS_ADMIN in held:
            found.append(Row("Privileges", name, "ok", "CAP_SYS_ADMIN stands for it"))
        else:
            status = "failed" if is_vital else "degraded"
            remedy = f"run it as root, or grant {name}"
            found.append(Row("Privileges", name, status, f"lost without it: {lost}", remedy))
    return found


# ---- The probes ----------------------------------------------------------------------------------


_NO_FEXIT = "none needed: exit tracepoints do the work, at a small cost to every system call"


def probe_rows(probes: Iterable[loader.AttachedProbe], attach: str) -> list[Row]:
    """A row for each probe: the mode by which it is attached, or why it is not.

    A reason that keeps every probe from its first hook is shown only once. A missing optional probe
    has no row here: it is a blind spot.
    """
    probes = [probe for probe in probes if probe.attached or probe.lost]
    reasons = {probe.fallback for probe in probes if probe.fallback}
    is_common = len(reasons) == 1 and not any(probe.mode == "fexit" for probe in probes)
    found = [Row("Probes", "fexit", "degraded", min(reasons), _NO_FEXIT)] if is_common else []
    for probe in probes:
        if not probe.attached:
            lost = f"not attached, so what it watches is not seen: {probe.error}"
            remedy = "--attach auto tries every way to attach" if attach != "auto" else ""
            found.append(Row("Probes", probe.probe, "degraded", lost, remedy))
        elif probe.fallback and not is_common:
            fallback = f"{probe.mode} {probe.target}, because {probe.fallback}"
            found.append(Row("Probes", probe.probe, "degraded", fallback))
        else:
            found.append(Row("Probes", probe.probe, "ok", f"{probe.mode} {probe.target}"))
    return found


def calibration_rows(kernel: abi.Config, findings: calibrate.Findings) -> list[Row]:
    """What calibration found this kernel to do."""
    bit = kernel.maybe_guard_mask.bit_length() - 1
    if bit >= 0:
        marked = ("ok", f"bit {bit} of vm_flags: the cause guard_region is proved")
    elif findings.guard_regions:
        marked = ("degraded", "none: a fault in a guard region is reported as inferred")
    else:
        marked = ("ok", "none, and no guard regions to mark")
    partial = {
        True: "what precedes the seal is changed, as the event reports",
        False: "a refused call changes nothing",
    }
    anonymous = "no vm_ops (private /dev/zero counts)" if kernel.anonymous_by_ops else "no file"
    guards = "madvise installs them" if findings.guard_regions else "this kernel has none"
    behaviour = (
        ("seal bit", "ok", f"bit {kernel.sealed_mask.bit_length() - 1} of vm_flags"),
        ("guard regions", "ok", guards),
        ("maybe-guard bit", *marked),
        *((f"partial {name}", "ok", partial[to]) for name, to in findings.partial_updates.items()),
        ("madvise", "ok", f"a sealed mapping counts as anonymous when it has {anonymous}"),
    )
    return [Row("Kernel behaviour", *row) for row in behaviour]


def _try_probes(
    config: Config, announce: Callable[[int], None]
) -> tuple[list[Row], list[loader.AttachedProbe]]:
    """Load, attach and calibrate as the daemon does, then let go of everything."""
    try:
        attached = Attached(request(config), announce=announce)
    except loader.LoadError as error:
        return [Row("Probes", "attach", "failed", str(error))], []
    with attached:
        probes = list(attached.loaded.probes)
        found = [
            *program_rows(attached.loaded.made),
            _tracefs_row(attached.loaded.notes),
            *probe_rows(probes, config.attach),
        ]
        try:
            findings = attached.calibrate()
        except (calibrate.CalibrationError, loader.LoadError) as error:
            remedy = "--attach raw_tracepoint" if config.attach != "raw_tracepoint" else ""
            problem = f"the programs do not see what they must: {error}"
            found.append(Row("Kernel behaviour", "calibration", "failed", problem, remedy))
            return found, probes
        return [*found, *calibration_rows(attached.state.config, findings)], probes


# ---- Who did it ----------------------------------------------------------------------------------


def _unreadable_executables(proc: Path) -> tuple[int, int]:
    """How many processes' executables /proc hides, and how many were tried."""
    asked = hidden = 0
    for process in proc.glob("[0-9]*"):
        asked += 1
        try:
            os.readlink(process / "exe")
        except PermissionError:
            hidden += 1
        except OSError:  # a kernel thread, or gone
            asked -= 1
    return hidden, asked


def _cgroup_rows(mount: Path, is_initial: bool) -> list[Row]:
    """What the mount of cgroup2 shows; `is_initial`: in the host's cgroup namespace."""
    row = Row("Identity", "cgroup v2", "ok", f"mounted on {mount}")
    if not cgroups.has_all(mount):
        row = Row(
            "Identity",
            "cgroup v2",
            "degraded",
            f"{mount} has only the cgroups of a namespace: workloads outside of it are reported by "
            "number, without unit, container or pod",
            "run in the host's cgroup namespace (containers: --cgroupns=host), or mount the host's "
            "/sys/fs/cgroup there",
        )
    if is_initial:
        return [row]
    return [
        row,
        Row(
            "Identity",
            "cgroup namespace",
            "degraded",
            "not the host's: posture names no workload outside of it",
            "run in the host's cgroup namespace (containers: --cgroupns=host)",
        ),
    ]


def identity_rows(proc: Path = host.PROC) -> list[Row]:
    """Which facts about processes can be reported besides those from the kernel."""
    found = []
    if host.is_initial_pid_namespace(proc):
        found.append(Row("Identity", "PID namespace", "ok", "the host's"))
    else:
        found.append(
            Row(
                "Identity",
                "PID namespace",
                "degraded",
                "not the host's: of processes outside of it only the kernel's facts are reported",
                "run in the host's PID namespace (containers: --pid=host)",
            )
        )
    hidden, asked = _unreadable_executables(proc)
    if asked and not hidden:
        found.append(Row("Identity", "processes", "ok", "executables and command lines of all"))
    else:
        found.append(
            Row(
                "Identity",
                "processes",
                "degraded",
                f"executables of {hidden} of {asked} processes cannot be read; the kernel's base "
                "names are reported",
                "grant CAP_SYS_PTRACE and what capabilities those processes have; mount /proc "
                "without hidepid",
            )
        )
    mount = cgroup_mount(proc)
    if mount is not None:
        found += _cgroup_rows(mount, cgroups.is_initial_namespace(proc))
    else:
        found.append(
            Row(
                "Identity",
                "cgroup v2",
                "degraded",
                "not mounted: workloads are reported by number, without unit, container or pod",
                "run: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            )
        )
    return found


# ---- What is kept --------------------------------------------------------------------------------


def kept_rows(config: Config, directory: Path | None) -> list[Row]:
    """Where incidents and the record of a run are kept. `directory`: the state directory."""
    if directory is None:
        return [
            Row(
                "Kept",
                "state directory",
                "degraded",
                "none: no incidents are kept, and a start does not know of the run before it",
                f"make {DEFAULT_DIRECTORY}, or name one as state.directory",
            )
        ]
    is_usable = directory.is_dir() and os.access(directory, os.W_OK | os.X_OK, effective_ids=True)
    if not is_usable:
        finding = f"{directory} is not there or cannot be written to: nothing is kept"
        return [Row("Kept", "state directory", "degraded", finding, "make it, or name another")]
    found = [Row("Kept", "state directory", "ok", str(directory))]
    if not config.incidents.enabled:
        return [*found, Row("Kept", "incidents", "ok", "off: incidents.enabled = false")]
    size = store_bytes(directory / INCIDENTS)
    limit = mebibytes(config.incidents.max_size)
    aside = sorted(directory.glob(f"{INCIDENTS}.bad-*"))
    if aside:
        finding = f"a broken database was set aside: {aside[-1]}"
        found.append(Row("Kept", "incidents", "degraded", finding, "look at it, then remove it"))
    else:
        found.append(Row("Kept", "incidents", "ok", f"{mebibytes(size)} of {limit} are used"))
    return found


def otlp_rows(otlp: Otlp, directory: Path | None) -> list[Row]:
    """Whether events can be sent to a collector; nothing is sent. `directory`: the state one."""
    if not otlp.endpoint:
        return []
    from monitor.sinks import otlp_files, spool  # noqa: PLC0415

    try:
        headers = otlp_files.load(otlp).headers
    except ConfigError as error:
        return [Row("Kept", "collector", "degraded", str(error), "correct it, then reload")]
    if headers and otlp_files.is_in_the_clear(otlp.endpoint):
        finding = "the headers, which may be credentials, are sent without encryption"
        return [Row("Kept", "collector", "degraded", finding, "use https in otlp.endpoint")]
    waiting = spool.size(directory / spool.DIRECTORY) if directory else 0
    finding = f"{mebibytes(waiting)} of {mebibytes(otlp.spool_max_size)} wait to be sent"
    return [Row("Kept", "collector", "ok", finding)]


def _unit_properties() -> dict[str, str]:
    """Of the service; empty where systemd is not there, or does not answer."""
    names = ("LoadState", "FileDescriptorStoreMax", "NFileDescriptorStore")
    command = ["systemctl", "show", f"--property={','.join(names)}", UNIT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs if name in names}


_BLIND = "a monitor that is started again makes a fresh start, and is blind until then"


def pin_row(directory: Path) -> Row:
    """Whether a directory in bpffs keeps what is attached while the monitor is started again."""
    try:
        kept = pins.look(directory)
    except pins.PinError as error:
        problem, _, remedy = str(error).partition("; ")
        remedy = remedy or f"remove {directory}, or name another as state.pin"
        return Row("Kept", "restarts", "degraded", f"{problem}: {_BLIND}", remedy)
    if kept.objects and not kept.is_used:
        return _unread_row(directory, kept, "start the monitor, which goes on with it, or")
    finding = f"{directory} keeps what is attached: {kept.objects} maps, programs and links now"
    return Row("Kept", "restarts", "ok", finding)


def _unread_row(directory: Path, kept: pins.Kept, else_: str = "") -> Row:
    since = ""
    if kept.unread_seconds is not None:
        since = f" for {timedelta(seconds=int(kept.unread_seconds))}"
    finding = (
        f"{kept.objects} maps, programs and links in {directory} are attached and counting, and no "
        f"monitor has read them{since}"
    )
    remedy = f"{else_} run: seal-monitor detach {directory}".lstrip()
    return Row("Kept", "restarts", "degraded", finding, remedy)


def left_rows(directory: Path = pins.USUAL) -> list[Row]:
    """What is attached by a directory that no configuration names any more."""
    try:
        kept = pins.look(directory)
    except pins.PinError:  # it is not the monitor's, or this user may not look
        return []
    return [_unread_row(directory, kept)] if kept.objects and not kept.is_used else []


def restart_row(properties: Mapping[str, str]) -> Row:
    """Whether what is attached goes on while the service is started again. `properties`: of its
    unit.
    """
    if properties.get("LoadState") != "loaded":
        finding = f"there is no {UNIT} that systemd knows: {_BLIND}"
        return Row(
            "Kept",
            "restarts",
            "degraded",
            finding,
            "run it as this unit of systemd's, or set state.pin",
        )
    maximum = properties.get("FileDescriptorStoreMax", "0")
    if maximum == "0":
        remedy = "set FileDescriptorStoreMax=512 in the unit; systemd 246 or later keeps maps"
        return Row(
            "Kept", "restarts", "degraded", f"systemd keeps no descriptors: {_BLIND}", remedy
        )
    count = properties.get("NFileDescriptorStore", "0")
    finding = f"systemd keeps what is attached: {count} of at most {maximum} descriptors now"
    return Row("Kept", "restarts", "ok", finding)


# ---- All of it -----------------------------------------------------------------------------------


def rows(config: Config, announce: Callable[[int], None] = nobody) -> list[Row]:
    """Every check; where one of the host itself fails, only those of the host.

    Loads and attaches the BPF programs for a moment; `announce` is called with the pid of each
    process that then tries something.
    """
    facts = host.host_facts(config.host.id)
    found = [Row("Host", "kernel", "ok", facts.kernel_release), id_row(facts.id), *_requirements()]
    found.append(preemption_row(host.preemption(), config.attach))
    rights = privilege_rows(privileges.held())
    if verdict(found) == "failed":
        return found + rights
    tried, probes = _try_probes(config, announce)
    found += tried
    found += rights
    found += identity_rows()
    directory = state_directory(config.state.directory)
    found += kept_rows(config, directory)
    found += otlp_rows(config.otlp, directory)
    if config.state.pin:
        found.append(pin_row(config.state.pin))
    else:
        found.append(restart_row(_unit_properties()))
    if config.state.pin != pins.USUAL:
        found += left_rows()
    options, _ = host.kernel_configuration()
    found.append(review_row(host.system_calls()))
    found += blind_rows(probes, options, host.takes_x32_calls(options))
    found += filter_rows(config, datetime.now(UTC))
    return found + bypass_rows(probes, memory_file_overrides())


def run(config: Config, as_json: bool) -> int:
    """Print every check; 0 when the host can be monitored, else 3."""
    with Announcer("doctor") as announcer:
        found = rows(config, announcer.process)
    if as_json:
        document = {
            "status": verdict(found),
            "host": asdict(host.host_facts(config.host.id)),
            "rows": [row._asdict() for row in found],
        }
        show(json.dumps(document, indent=2))
    else:
        columns = min(max(shutil.get_terminal_size().columns, _WIDTHS[0]), _WIDTHS[1])
        show(table(found, columns, sys.stdout.isatty()))
    return 3 if verdict(found) == "failed" else 0
