"""What can happen on this host without being seen, or without an event."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from monitor.configuration.config import Config
from monitor.configuration.mutes import Mute
from monitor.host import facts as host
from monitor.host.checklist import Row
from monitor.kernel import abi
from monitor.kernel.arch import THIS
from monitor.kernel.loader import AttachedProbe
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.reviewed_calls import Effect, calls, unreviewed
from monitor.kernel.sight import BLIND_SPOTS
from monitor.kernel.syscalls import PAGE, call
from monitor.provoke.provocation import lay

__all__ = [
    "Sight",
    "blind_rows",
    "bypass_rows",
    "filter_rows",
    "memory_file_overrides",
    "review_row",
]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


_FEXIT = "a kernel that allows fexit programs, and --attach auto"
_BLIND = "Blind spots"
_AROUND = "Ways around a seal (it protects the mapping, not the bytes)"
_ALWAYS = (
    Row(
        _BLIND,
        "kernel's accesses",
        "blind",
        "a system call that meets a guard page or a protection fails with EFAULT: no signal is "
        "sent, no event made",
    ),
    Row(
        _BLIND,
        "SIGBUS",
        "blind",
        "accesses beyond the end of a file, to sealed mappings too, and userfaultfd's signals",
    ),
    Row(
        _BLIND,
        "tracers",
        "blind",
        "who traces a process decides what becomes of its faults and calls: a fault that he keeps "
        "back is counted, but the process lives on and no crash shows it; a refusal that he makes "
        "up is unverified (traced), or with fexit not seen; a call that he skips is none",
        "kernel.yama.ptrace_scope=2, where nobody needs a debugger",
    ),
)

Hooks = Mapping[str, AttachedProbe]  # probes that are attached, by name
Options = Mapping[str, str]  # the kernel's configuration; empty when it cannot be read


def _seen(probe: AttachedProbe) -> str:
    return f"seen by {probe.mode} {probe.target}"


def review_row(names: Collection[str]) -> Row:
    """Whether each of the kernel's own system calls has been reviewed. `names`: all of them."""
    check = "system calls"
    new = unreviewed(names)
    if not names:
        finding = "the kernel does not list its own: a new one would go unnoticed"
        return Row(_BLIND, check, "degraded", finding, "boot a kernel with CONFIG_KALLSYMS=y")
    if not new:
        return Row(_BLIND, check, "ok", f"{len(names)} reviewed")
    finding = (
        f"{len(names) - len(new)} reviewed; nobody has checked whether these can change sealed "
        f"memory: {', '.join(new)}"
    )
    return Row(_BLIND, check, "degraded", finding, "a newer seal-monitor")


def _hidden(hooks: Hooks) -> Row:
    check = "hidden refusals"
    if "other" in hooks:
        return Row(_BLIND, check, "ok", f"{_seen(hooks['other'])}, as operation other")
    return Row(
        _BLIND,
        check,
        "blind",
        "a seal that keeps these from unmapping memory is not reported: "
        + ", ".join(calls(Effect.HIDDEN)),
        _FEXIT,
    )


def _compat(hooks: Hooks, options: Options) -> Row:
    check = "32-bit callers"
    if options and THIS.compat_option not in options:
        return Row(_BLIND, check, "ok", "the kernel takes no 32-bit calls")
    if "compat" in hooks:
        return Row(_BLIND, check, "ok", _seen(hooks["compat"]))
    return Row(
        _BLIND,
        check,
        "blind",
        "what their system calls seal is not seen, nor are all denials of them",
        "set watch.compat = true, or use --attach raw_tracepoint, which sees them, too",
    )


def _io_uring(hooks: Hooks, options: Options, proc: Path) -> Row:
    check = "io_uring"
    if options and "CONFIG_IO_URING" not in options:
        return Row(_BLIND, check, "ok", "the kernel has none")
    if _number(proc / "sys/kernel/io_uring_disabled") == 2:
        return Row(_BLIND, check, "ok", "switched off (kernel.io_uring_disabled = 2)")
    if "io_uring_madvise" in hooks:
        return Row(_BLIND, check, "ok", _seen(hooks["io_uring_madvise"]))
    return Row(
        _BLIND,
        check,
        "blind",
        "denials of madvise through it are not seen",
        "set watch.io_uring = true, or run: sysctl kernel.io_uring_disabled=2",
    )


def _x32(hooks: Hooks, takes_x32: bool) -> Row:
    check = "x32 callers"
    if not takes_x32:
        return Row(_BLIND, check, "ok", "the kernel takes no x32 calls")
    names = [operation.name for operation in OPERATIONS if operation.number is not None]
    blind = [name for name in names if name not in hooks or hooks[name].mode == "tracepoint"]
    if not blind:
        return Row(_BLIND, check, "ok", "seen as all others")
    finding = f"not seen: {', '.join(blind)}"
    return Row(_BLIND, check, "blind", finding, "use --attach raw_tracepoint")


def blind_rows(
    probes: Iterable[AttachedProbe], options: Options, takes_x32: bool, proc: Path = host.PROC
) -> list[Row]:
    """What happens without being seen. `options`: the kernel's configuration, if it is known."""
    hooks = {probe.probe: probe for probe in probes if probe.attached}
    return [
        _hidden(hooks),
        _compat(hooks, options),
        _io_uring(hooks, options, proc),
        _x32(hooks, takes_x32),
        *_ALWAYS,
    ]


def memory_file_overrides() -> bool:
    """Whether a write to /proc/self/mem changes read-only memory (FOLL_FORCE), sealed or not.

    Yes where this process may not open the file: others may.
    """
    pages = lay("r")
    try:
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(pages.start)
            try:
                return memory.write(b"x") == 1
            except OSError:
                return False
    except OSError:
        return True
    finally:
        call("munmap", pages.start - PAGE, pages.end - pages.start + 2 * PAGE)


def _way(check: str, hooks: Hooks, methods: Sequence[str], finding: str, *remedies: str) -> Row:
    """The row of a way around a seal: seen, as the bypasses that `methods` name, or not."""
    unseen = [method for method in methods if method not in hooks]
    if not unseen:
        seen = dict.fromkeys(_seen(hooks[method]) for method in methods)
        return Row(_AROUND, check, "ok", f"{finding}: {', '.join(seen)}, as {', '.join(methods)}")
    only = "" if unseen == list(methods) else f" ({', '.join(unseen)})"
    finding += f", and nobody sees it{only}"
    return Row(_AROUND, check, "blind", finding, "; or ".join(filter(None, remedies)))


def _memory_file(hooks: Hooks, overrides: bool) -> Row:
    check = "/proc/PID/mem"
    if not overrides:
        return Row(_AROUND, check, "ok", "a write to sealed read-only memory is refused")
    return _way(
        check,
        hooks,
        ("proc_mem_write",),
        "a write to sealed read-only memory succeeds",
        "boot with proc_mem.force_override=never, where the kernel has it",
        _FEXIT,
    )


def _ptrace(hooks: Hooks, proc: Path) -> Row:
    if _number(proc / "sys/kernel/yama/ptrace_scope") == 3:
        return Row(_AROUND, "ptrace", "ok", "nobody may attach (kernel.yama.ptrace_scope = 3)")
    return _way(
        "ptrace",
        hooks,
        ("ptrace_poke",),
        "a debugger writes to sealed memory",
        "sysctl kernel.yama.ptrace_scope=3, where the kernel has it and nobody needs a debugger",
    )


def _userfaultfd(hooks: Hooks, proc: Path) -> Row:
    is_for_all = _number(proc / "sys/vm/unprivileged_userfaultfd") == 1
    return _way(
        "userfaultfd",
        hooks,
        ("userfaultfd_copy", "userfaultfd_move"),
        "fills missing pages of sealed memory and moves pages out of it",
        "sysctl vm.unprivileged_userfaultfd=0" if is_for_all else "",
        _FEXIT,
    )


def bypass_rows(
    probes: Iterable[AttachedProbe], overrides: bool, proc: Path = host.PROC
) -> list[Row]:
    """How sealed memory changes without a refusal. `overrides`: see memory_file_overrides()."""
    hooks = {probe.probe: probe for probe in probes if probe.attached}
    return [
        _memory_file(hooks, overrides),
        _ptrace(hooks, proc),
        _way(
            "MADV_DONTNEED",
            hooks,
            ("madvise_discard",),
            "on a private file mapping (RELRO) it succeeds and brings the file's bytes back",
            "--attach auto",
        ),
        _way(
            "MADV_GUARD_REMOVE",
            hooks,
            ("guard_remove",),
            "makes fresh memory of guard regions that are sealed",
            "--attach auto",
        ),
        Row(
            _AROUND,
            "pinned pages",
            "blind",
            "io_uring's registered buffers, O_DIRECT, vmsplice, RDMA and KVM write to pages that "
            "were pinned before they were sealed read-only",
            "seal before code that you do not trust runs (io_uring: kernel.io_uring_disabled=2)",
        ),
        Row(
            _AROUND,
            "mapped files",
            "blind",
            "a write to the file changes every page not yet copied; truncating it drops the "
            "private copies, too",
            "let nobody write to files that are mapped and sealed (memfd: F_SEAL_SHRINK, "
            "F_SEAL_WRITE)",
        ),
        Row(
            _AROUND,
            "mapped sockets",
            "blind",
            "getsockopt with TCP_ZEROCOPY_RECEIVE replaces the pages of a sealed mapping",
        ),
        _userfaultfd(hooks, proc),
        Row(
            _AROUND,
            "uprobes",
            "blind",
            "change sealed code; they need CAP_PERFMON or CAP_SYS_ADMIN",
        ),
    ]


class Sight:
    """What this host's monitor does not see: for each of BLIND_SPOTS whether it is one, now."""

    def __init__(self, probes: Iterable[AttachedProbe], proc: Path = host.PROC) -> None:
        """Finds out what stays as it is while the programs are attached; forks: call it before
        there are threads.
        """
        self._probes = tuple(probes)
        self._proc = proc
        self._options, _ = host.kernel_configuration()
        self._takes_x32 = host.takes_x32_calls(self._options)
        self._overrides = memory_file_overrides()

    def blind_spots(self) -> dict[str, bool]:
        """As `doctor` finds them. Reads a few small files of /proc/sys, which may be written."""
        rows = [
            *blind_rows(self._probes, self._options, self._takes_x32, self._proc),
            *bypass_rows(self._probes, self._overrides, self._proc),
        ]
        found = {row.check: row.status == "blind" for row in rows}
        return {name: found[name] for name in BLIND_SPOTS}


def filter_rows(config: Config, now: datetime) -> list[Row]:
    """What is counted but, by configuration, makes no events. `now` has a time zone."""
    off = [
        f"{kind} {name}"
        for kind, reported, usual in (
            ("denials", config.events.denials, ("sealed", "unverified")),
            ("faults", config.events.faults, [c.label for c in abi.Cause if c != abi.Cause.OTHER]),
            ("handled faults", config.events.handled_faults, ("sealed",)),
        )
        for name in usual
        if name not in reported
    ]
    found = [Row(_BLIND, "events", "blind", f"counted, no events: {', '.join(off)}")] if off else []
    return found + [_mute_row(mute, now) for mute in config.mutes]


def _mute_row(mute: Mute, now: datetime) -> Row:
    whose = mute.whose or "every executable"
    what = mute.what or "everything"
    until = f" until {mute.until:%Y-%m-%d %H:%M} UTC" if mute.until else ""
    if mute.expired(now):
        remedy = "remove the entry"
        return Row(_BLIND, "mute", "ok", f"expired: {what} of {whose} ({mute.reason})", remedy)
    finding = f"counted, no events: {what} of {whose}{until} ({mute.reason})"
    remedy = "any user can run such a program; add user or unit" if mute.is_for_any_user else ""
    return Row(_BLIND, "mute", "blind", finding, remedy)
