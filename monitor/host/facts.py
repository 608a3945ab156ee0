"""Facts about this host, found out by trying, never from a version number."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from monitor.evidence.events import Host
from monitor.evidence.memory_map import bounded_lines, parse_smaps
from monitor.kernel import bpf, filters
from monitor.kernel.arch import NUMBERS, PROCESSORS, THIS
from monitor.kernel.syscalls import LIBC, call

__all__ = [
    "HostError",
    "Preemption",
    "host_facts",
    "host_name",
    "is_initial_pid_namespace",
    "kernel_configuration",
    "kernel_seals",
    "lockdown",
    "machine_id",
    "preemption",
    "require",
    "require_architecture",
    "require_bpf",
    "require_btf",
    "require_libbpf",
    "require_mseal",
    "require_no_lockdown",
    "require_privileges",
    "system_calls",
    "takes_x32_calls",
]

PROC, SYS, BOOT, ETC = Path("/proc"), Path("/sys"), Path("/boot"), Path("/etc")

_CAP_SYS_ADMIN = 21
# Linux 5.8 split both from CAP_SYS_ADMIN, which still stands for them (capabilities(7)).
_CAPABILITIES = {39: "CAP_BPF", 38: "CAP_PERFMON"}
_ALL_USERS = "0 0 4294967295"  # uid_map of the initial user namespace
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in include/linux/proc_ns.h
_MACHINE_ID_LIMIT = 64
_GZIP = 31  # zlib's window bits for data with the head of gzip
_X32_GETPID = THIS.x32_bit | NUMBERS["getpid"]
# Only T: a weak symbol (W) is a call that the kernel was built without, a local one (t) a part.
_SYSTEM_CALL = re.compile(rb" T %s(\w+)\s" % THIS.native_function("").encode())


class HostError(Exception):
    """This host cannot be monitored. `why`: the reason, `remedy`: the way out, one line each."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}\n{remedy}")
        self.why = why
        self.remedy = remedy


def _read(path: Path) -> str | None:
    """The file's text without surrounding spaces; None where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return None


def _status(proc: Path) -> dict[str, str]:
    lines = (_read(proc / "self/status") or "").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# ---- What must be there --------------------------------------------------------------------------


def require_architecture(
    machine: str = os.uname().machine, pointer_size: int = ctypes.sizeof(ctypes.c_void_p)
) -> None:
    """Raises HostError unless this is a 64-bit Python on a processor that arch.py knows."""
    if machine not in PROCESSORS:
        known = " and ".join(processor.name for processor in PROCESSORS.values())
        raise HostError(
            f"this machine is {machine}; seal-monitor knows {known}",
            "run it on a host with one of them",
        )
    if pointer_size != 8:
        raise HostError("this Python is a 32-bit program", "use a 64-bit Python")


def _mseal_with_wrong_flags() -> int:
    return -call("mseal", 0, 0, 2**64 - 1)


def require_mseal(attempt: Callable[[], int] = _mseal_with_wrong_flags, proc: Path = PROC) -> None:
    """Raises HostError where mseal(2) cannot be called.

    `attempt` makes a call that cannot succeed and returns its errno. mm/mseal.c refuses wrong
    flags with EINVAL. It never returns EPERM: that comes from a seccomp filter.
    """
    error = attempt()
    if error not in (errno.ENOSYS, errno.EPERM):
        return
    if _status(proc).get("Seccomp", "0") == "0":
        raise HostError("this kernel has no mseal(2)", "boot Linux 6.10 or later")
    raise HostError(
        f"mseal(2) fails with {errno.errorcode[error]}: a seccomp filter forbids it, or this "
        "kernel has none",
        f"run outside the filter, or allow system call {NUMBERS['mseal']} in it, on Linux 6.10 or "
        "later",
    )


def require_btf(sys: Path = SYS) -> None:
    """Raises HostError where the kernel does not describe its structures."""
    if not os.access(sys / "kernel/btf/vmlinux", os.R_OK):
        raise HostError(
            f"this kernel offers no BTF: {sys}/kernel/btf/vmlinux cannot be read",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of distributions are",
        )


def require_privileges(proc: Path = PROC) -> None:
    """Raises HostError unless this process may load BPF programs and attach them."""
    users = _read(proc / "self/uid_map")
    if users is not None and users.split() != _ALL_USERS.split():
        raise HostError(
            "this process runs in a user namespace, where no capability allows BPF programs",
            "run it as root of the host (with containers: without user namespaces)",
        )
    effective = int(_status(proc).get("CapEff", "0"), 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing and not effective >> _CAP_SYS_ADMIN & 1:
        raise HostError(
            f"this process lacks {' and '.join(missing)}",
            "run it as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH",
        )


def require_libbpf(load: Callable[[], object] = bpf.libbpf) -> None:
    """Raises HostError without libbpf, which loads the BPF programs."""
    try:
        load()
    except bpf.LibraryError as error:
        why, _, remedy = str(error).partition("; ")
        raise HostError(why, remedy) from error


def lockdown(sys: Path = SYS, proc: Path = PROC) -> str | None:
    """none, integrity or confidentiality (kernel_lockdown(7)); None where it is not known.

    Where securityfs is not mounted, it is what the kernel was booted with.
    """
    text = _read(sys / "kernel/security/lockdown")
    if text is not None:
        found = re.search(r"\[(\w+)\]", text)
        return found[1] if found else None
    asked: list[str] = re.findall(r"(?:^|\s)lockdown=(\w+)", _read(proc / "cmdline") or "")
    return asked[-1] if asked else None


def require_bpf(attempt: Callable[[], str] = lambda: filters.refusal("bpf")) -> None:
    """Raises HostError where bpf(2) is refused to everybody here, whatever privileges he has."""
    error = attempt()
    if not error:
        return
    if filters.has_filter():
        raise HostError(f"bpf(2) fails with {error}: a seccomp filter forbids it", filters.REMEDY)
    if error == "ENOSYS":
        raise HostError(
            "this kernel has no bpf(2)", "boot a kernel built with CONFIG_BPF_SYSCALL=y"
        )
    raise HostError(
        f"bpf(2) fails with {error}: a security module forbids it",
        "allow it in the policy of that module",
    )


def require_no_lockdown(sys: Path = SYS, proc: Path = PROC) -> None:
    """Raises HostError in lockdown mode confidentiality: there BPF may not read kernel memory."""
    if lockdown(sys, proc) == "confidentiality":
        raise HostError(
            "the kernel is locked down (confidentiality), so BPF programs may not read its memory",
            "boot with lockdown=integrity, or without lockdown",
        )


def require(proc: Path = PROC, sys: Path = SYS) -> None:
    """Raises HostError with the first reason why this host cannot be monitored."""
    require_architecture()
    require_mseal(proc=proc)
    require_btf(sys)
    require_no_lockdown(sys, proc)
    require_libbpf()
    require_privileges(proc)
    require_bpf()


# ---- What the host is ----------------------------------------------------------------------------


def host_name() -> str:
    """The name that the host has now."""
    return socket.gethostname()


def machine_id(etc: Path = ETC) -> str | None:
    """The id in /etc/machine-id, 32 hexadecimal digits (machine-id(5)); None without a valid one:
    in an image that has not booted yet the file is empty or says "uninitialized".
    """
    try:
        with (etc / "machine-id").open("rb") as file:
            text = file.read(_MACHINE_ID_LIMIT)
    except OSError:
        return None
    found = re.fullmatch(rb"([0-9a-f]{32})\n?", text)
    return found[1].decode() if found and found[1].strip(b"0") else None


def host_facts(own_id: str = "", proc: Path = PROC, etc: Path = ETC) -> Host:
    """The host as every event names it; `own_id` is the configured id, "" for the machine id.

    Raises OSError where /proc is not mounted.
    """
    kernel = proc / "sys/kernel"
    return Host(
        name=host_name(),
        boot_id=(kernel / "random/boot_id").read_text("ascii").strip(),
        kernel_release=(kernel / "osrelease").read_text("utf-8", errors="replace").strip(),
        id=own_id or machine_id(etc),
    )


class Preemption(NamedTuple):
    """`model` is none, voluntary, lazy, full, rt or unknown.

    `skips_runs`: whether another task may run while one is inside bpf(2), so that the kernel
    skips runs of tracepoint programs; None when unknown. `source`: where the model is from.
    """

    model: str
    skips_runs: bool | None
    source: str


_SKIPS_RUNS = {"none": False, "voluntary": False, "lazy": True, "full": True, "rt": True}
# CONFIG_PREEMPT_RT and CONFIG_PREEMPT_DYNAMIC leave one of the others set: their order matters.
_MODEL_OPTIONS = {
    "CONFIG_PREEMPT_RT": "rt",
    "CONFIG_PREEMPT_LAZY": "lazy",
    "CONFIG_PREEMPT": "full",
    "CONFIG_PREEMPT_VOLUNTARY": "voluntary",
    "CONFIG_PREEMPT_NONE": "none",
}


def kernel_configuration(proc: Path = PROC, boot: Path = BOOT) -> tuple[dict[str, str], str]:
    """The running kernel's CONFIG_ options that are set, and the file they are from.

    From /proc/config.gz, else /boot/config-RELEASE; empty where neither can be read.
    """
    import zlib  # noqa: PLC0415 - not every command reads it; the module gzip is heavy

    release = _read(proc / "sys/kernel/osrelease") or ""
    for path in (proc / "config.gz", boot / f"config-{release}"):
        try:
            data = path.read_bytes()
            text = zlib.decompress(data, _GZIP) if path.suffix == ".gz" else data
        except (OSError, zlib.error):
            continue
        lines = text.decode("utf-8", errors="replace").splitlines()
        options = (line.partition("=") for line in lines if line.startswith("CONFIG_"))
        return {name: value for name, _, value in options}, str(path)
    return {}, ""


def _model(proc: Path, sys: Path, boot: Path) -> tuple[str, str]:
    switch = sys / "kernel/debug/sched/preempt"
    if found := re.search(r"\((\w+)\)", _read(switch) or ""):
        return found[1], str(switch)
    version = _read(proc / "version") or ""
    if "PREEMPT_RT" in version:
        return "rt", str(proc / "version")
    options, path = kernel_configuration(proc, boot)
    built_in = next((model for name, model in _MODEL_OPTIONS.items() if name in options), "")
    if "PREEMPT_DYNAMIC" in version:
        asked = re.findall(r"(?:^|\s)preempt=(\w+)", _read(proc / "cmdline") or "")
        if asked and asked[-1] in _SKIPS_RUNS:
            return asked[-1], str(proc / "cmdline")
    if built_in:
        return built_in, path
    return "unknown", ""


def kernel_seals(proc: Path = PROC) -> bool:
    """Whether the kernel seals the mappings that it makes itself, such as the vdso: by this
    process's own. CONFIG_MSEAL_SYSTEM_MAPPINGS, 6.15 on. False where it cannot be read.
    """
    try:
        with open(proc / "self/smaps", "rb") as file:
            return any(
                each.name == b"[vdso]" and bool(each.sealed)
                for each in parse_smaps(bounded_lines(file))
            )
    except OSError:
        return False


def preemption(proc: Path = PROC, sys: Path = SYS, boot: Path = BOOT) -> Preemption:
    """The running kernel's preemption model, from the first source that has it.

    The sources: debugfs (the model in force), the kernel's version text, its command line, its
    configuration.
    """
    model, source = _model(proc, sys, boot)
    return Preemption(model, _SKIPS_RUNS.get(model), source)


def is_initial_pid_namespace(proc: Path = PROC) -> bool:
    """Whether pids here are the same as in the kernel's records."""
    try:
        return (proc / "self/ns/pid").readlink() == Path(_INITIAL_PID_NAMESPACE)
    except OSError:
        return False


def system_calls(proc: Path = PROC) -> frozenset[str]:
    """The kernel's own names of the system calls that it has; empty where it does not list them.

    From kallsyms, which anyone may read (kernel.kptr_restrict hides addresses, not names). tracefs
    must be mounted, needs root, and leaves out calls that only 32-bit programs make.
    """
    try:
        symbols = (proc / "kallsyms").read_bytes()
    except OSError:
        return frozenset()
    return frozenset(name.decode("ascii") for name in _SYSTEM_CALL.findall(symbols))


def takes_x32_calls(options: Mapping[str, str], proc: Path = PROC) -> bool:
    """Whether the kernel was built with CONFIG_X86_X32_ABI and takes such calls.

    `options`: the kernel's configuration, if it is known. Tried in a child; but under a seccomp
    filter, which may refuse such calls or end their process, the answer is yes: it is not known.
    """
    if not THIS.x32_bit or (options and "CONFIG_X86_X32_ABI" not in options):
        return False
    if _status(proc).get("Seccomp", "0") != "0":
        return True
    child = os.fork()
    if not child:
        os._exit(0 if LIBC.syscall(_X32_GETPID, *[0] * 6) > 0 else 1)
    return os.waitpid(child, 0)[1] == 0
