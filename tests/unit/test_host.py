from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from monitor.evidence.events import Host
from monitor.host import facts as host
from monitor.kernel import bpf
from monitor.kernel.privileges import LOCKED_DOWN, with_remedy
from monitor.kernel.tracefs import why_unreadable

ALL = "000001ffffffffff"
BPF_ALONE = f"{1 << 39:016x}"
BPF_AND_PERFMON = f"{1 << 39 | 1 << 38:016x}"
ADMIN = f"{1 << 21:016x}"
INITIAL = "         0          0 4294967295\n"


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def status(capabilities: str = ALL, seccomp: int = 0) -> str:
    return f"Name:\tpython3\nCapEff:\t{capabilities}\nSeccomp:\t{seccomp}\n"


def refused(require: Callable[[], None]) -> tuple[str, str]:
    with pytest.raises(host.HostError) as caught:
        require()
    assert str(caught.value) == f"{caught.value.why}\n{caught.value.remedy}"
    assert len(str(caught.value).splitlines()) == 2
    return caught.value.why, caught.value.remedy


@pytest.mark.parametrize("machine", ["armv8l", "i686", "riscv64"])
def test_another_architecture_is_refused(machine: str) -> None:
    assert refused(lambda: host.require_architecture(machine)) == (
        f"this machine is {machine}; seal-monitor knows x86-64 and arm64",
        "run it on a host with one of them",
    )


def test_a_32_bit_python_is_refused() -> None:
    assert refused(lambda: host.require_architecture("x86_64", 4)) == (
        "this Python is a 32-bit program",
        "use a 64-bit Python",
    )


def test_a_kernel_without_mseal_is_refused(tmp_path: Path) -> None:
    proc = write(tmp_path, {"self/status": status()})
    assert refused(lambda: host.require_mseal(lambda: errno.ENOSYS, proc)) == (
        "this kernel has no mseal(2)",
        "boot Linux 6.10 or later",
    )


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_a_filter_that_may_hide_mseal_is_named(tmp_path: Path, error: int) -> None:
    proc = write(tmp_path, {"self/status": status(seccomp=2)})
    assert refused(lambda: host.require_mseal(lambda: error, proc)) == (
        f"mseal(2) fails with {errno.errorcode[error]}: a seccomp filter forbids it, or this "
        "kernel has none",
        "run outside the filter, or allow system call 462 in it, on Linux 6.10 or later",
    )


def test_wrong_flags_mean_that_mseal_is_there(tmp_path: Path) -> None:
    host.require_mseal(lambda: errno.EINVAL, tmp_path)


def test_missing_btf_is_refused(tmp_path: Path) -> None:
    assert refused(lambda: host.require_btf(tmp_path)) == (
        f"this kernel offers no BTF: {tmp_path}/kernel/btf/vmlinux cannot be read",
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of distributions are",
    )
    host.require_btf(write(tmp_path, {"kernel/btf/vmlinux": b"\x9f\xeb"}))


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        ("0000000000000000", "CAP_BPF and CAP_PERFMON"),
        (BPF_ALONE, "CAP_PERFMON"),
        (f"{1 << 38:016x}", "CAP_BPF"),
    ],
)
def test_a_missing_capability_is_named(tmp_path: Path, capabilities: str, missing: str) -> None:
    proc = write(tmp_path, {"self/status": status(capabilities), "self/uid_map": INITIAL})
    assert refused(lambda: host.require_privileges(proc)) == (
        f"this process lacks {missing}",
        "run it as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH",
    )


@pytest.mark.parametrize("capabilities", [ALL, BPF_AND_PERFMON, ADMIN])
def test_enough_capabilities(tmp_path: Path, capabilities: str) -> None:
    files = {"self/status": status(capabilities), "self/uid_map": INITIAL}
    host.require_privileges(write(tmp_path, files))


def test_root_of_a_user_namespace_is_refused(tmp_path: Path) -> None:
    proc = write(tmp_path, {"self/status": status(), "self/uid_map": "0 1000 1\n"})
    assert refused(lambda: host.require_privileges(proc)) == (
        "this process runs in a user namespace, where no capability allows BPF programs",
        "run it as root of the host (with containers: without user namespaces)",
    )


def test_missing_libbpf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    bpf.libbpf.cache_clear()
    assert refused(host.require_libbpf) == (
        "libbpf is missing (libbpf.so.1: cannot open shared object file)",
        "run: apt-get install libbpf1",
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[none] integrity confidentiality\n", "none"),
        ("none [integrity] confidentiality\n", "integrity"),
        (None, None),
    ],
)
def test_lockdown_that_lets_us_work(tmp_path: Path, text: str | None, mode: str | None) -> None:
    if text is not None:
        write(tmp_path, {"kernel/security/lockdown": text})
    assert host.lockdown(tmp_path, tmp_path) == mode
    host.require_no_lockdown(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("quiet lockdown=confidentiality\n", "confidentiality"),
        ("lockdown=confidentiality lockdown=integrity\n", "integrity"),
        ("notlockdown=confidentiality\n", None),
    ],
)
def test_without_securityfs_lockdown_is_what_was_asked_for(
    tmp_path: Path, words: str, mode: str | None
) -> None:
    write(tmp_path, {"cmdline": words})
    assert host.lockdown(tmp_path, tmp_path) == mode
    write(tmp_path, {"kernel/security/lockdown": "[none] integrity confidentiality\n"})
    assert host.lockdown(tmp_path, tmp_path) == "none"


MOUNTED = "30 20 0:11 / {} rw,nosuid - tracefs tracefs rw\n"


@pytest.mark.parametrize(
    ("mounted", "files", "problem"),
    [
        (True, ["events/enable"], ""),
        (True, [], f"tracefs is empty; {LOCKED_DOWN}"),
        (False, [], None),
    ],
)
def test_a_lockdown_is_no_missing_tracefs(
    tmp_path: Path, mounted: bool, files: list[str], problem: str | None
) -> None:
    tracing, mountinfo = tmp_path / "tracing", tmp_path / "mountinfo"
    tracing.mkdir()
    write(tracing, dict.fromkeys(files, "0\n"))
    mountinfo.write_text(MOUNTED.format(tracing) if mounted else MOUNTED.format("/other"))
    assert why_unreadable(tracing, mountinfo) == problem


def test_a_helper_that_lockdown_takes_away() -> None:
    refused = "refused: program of this type cannot use helper bpf_probe_read_kernel#113"
    assert with_remedy(refused) == f"{refused}; {LOCKED_DOWN}"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("", None),
        ("ENOSYS", "this kernel has no bpf(2)"),
        ("EACCES", "bpf(2) fails with EACCES: a security module forbids it"),
    ],
)
def test_bpf_without_a_filter(error: str, why: str | None) -> None:
    if why is None:
        host.require_bpf(lambda: error)
    else:
        assert refused(lambda: host.require_bpf(lambda: error))[0] == why


def test_lockdown_confidentiality_is_refused(tmp_path: Path) -> None:
    files = {"kernel/security/lockdown": "none integrity [confidentiality]\n"}
    sys_root = write(tmp_path, files)
    assert refused(lambda: host.require_no_lockdown(sys_root)) == (
        "the kernel is locked down (confidentiality), so BPF programs may not read its memory",
        "boot with lockdown=integrity, or without lockdown",
    )


def test_require_gives_the_first_reason(tmp_path: Path) -> None:
    files = {"self/status": status("0"), "self/uid_map": INITIAL}
    proc = write(tmp_path / "proc", files)
    assert refused(lambda: host.require(proc, tmp_path))[0].startswith("this kernel offers no BTF")
    write(tmp_path, {"kernel/btf/vmlinux": b""})
    assert refused(lambda: host.require(proc, tmp_path))[0].startswith("this process lacks")


DYNAMIC = "Linux version 6.12.0 (x@y) #1 SMP PREEMPT_DYNAMIC Thu Jan  1 00:00:00 UTC 1970\n"
STATIC = "Linux version 6.12.0 (x@y) #1 SMP Thu Jan  1 00:00:00 UTC 1970\n"
REAL_TIME = "Linux version 6.12.0 (x@y) #1 SMP PREEMPT_RT Thu Jan  1 00:00:00 UTC 1970\n"
CONFIG = b"# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT_VOLUNTARY=y\nCONFIG_PREEMPT_DYNAMIC=y\n"
DEBUGFS = "sys/kernel/debug/sched/preempt"


@pytest.mark.parametrize(
    ("files", "model", "skips", "source"),
    [
        ({DEBUGFS: "none voluntary (full) lazy\n"}, "full", True, DEBUGFS),
        ({DEBUGFS: "(none) voluntary full\n", "proc/version": DYNAMIC}, "none", False, DEBUGFS),
        ({"proc/version": REAL_TIME}, "rt", True, "proc/version"),
        (
            {"proc/version": DYNAMIC, "proc/cmdline": "quiet preempt=lazy root=/dev/vda\n"},
            "lazy",
            True,
            "proc/cmdline",
        ),
        (
            {
                "proc/version": DYNAMIC,
                "proc/cmdline": "preempt=full\n",
                "proc/config.gz": gzip.compress(CONFIG),
            },
            "full",
            True,
            "proc/cmdline",
        ),
        (
            {
                "proc/version": STATIC,
                "proc/cmdline": "preempt=full\n",
                "proc/config.gz": gzip.compress(CONFIG),
            },
            "voluntary",
            False,
            "proc/config.gz",
        ),
        (
            {"proc/sys/kernel/osrelease": "6.12.0\n", "boot/config-6.12.0": CONFIG},
            "voluntary",
            False,
            "boot/config-6.12.0",
        ),
        ({"proc/config.gz": b"no gzip", "proc/version": DYNAMIC}, "unknown", None, ""),
        ({"proc/version": DYNAMIC, "proc/cmdline": "preempt=bogus\n"}, "unknown", None, ""),
        ({}, "unknown", None, ""),
    ],
)
def test_preemption_model(
    tmp_path: Path, files: dict[str, str | bytes], model: str, skips: bool | None, source: str
) -> None:
    write(tmp_path, files)
    found = host.preemption(tmp_path / "proc", tmp_path / "sys", tmp_path / "boot")
    assert found == host.Preemption(model, skips, str(tmp_path / source) if source else "")


def test_facts_are_those_of_proc(tmp_path: Path) -> None:
    proc = write(
        tmp_path,
        {
            "sys/kernel/random/boot_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427\n",
            "sys/kernel/osrelease": "6.18.44-generic\n",
        },
    )
    name = os.uname().nodename
    boot_id = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    facts = host.host_facts(proc=proc, etc=tmp_path)
    assert facts == Host(name, boot_id, "6.18.44-generic", None)
    own = host.host_facts("i-0abc", proc, tmp_path)
    assert own == Host(name, boot_id, "6.18.44-generic", "i-0abc")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0f3c5a9b2d7e4816a1c9e0d4b5f60718\n", "0f3c5a9b2d7e4816a1c9e0d4b5f60718"),
        ("0f3c5a9b2d7e4816a1c9e0d4b5f60718", "0f3c5a9b2d7e4816a1c9e0d4b5f60718"),
        (None, None),
        ("", None),
        ("uninitialized\n", None),
        ("00000000000000000000000000000000\n", None),
        ("0F3C5A9B2D7E4816A1C9E0D4B5F60718\n", None),
        ("0f3c5a9b-2d7e-4816-a1c9-e0d4b5f60718\n", None),
        ("0f3c5a9b2d7e4816a1c9e0d4b5f60718\n" * 1000, None),
    ],
)
def test_machine_id(tmp_path: Path, text: str | None, found: str | None) -> None:
    if text is not None:
        write(tmp_path, {"machine-id": text})
    assert host.machine_id(tmp_path) == found
    assert host.host_facts(etc=tmp_path).id == found


def test_facts_of_this_host() -> None:
    assert host.host_facts().kernel_release == os.uname().release


@pytest.mark.parametrize(
    ("namespace", "initial"),
    [("pid:[4026531836]", True), ("pid:[4026532301]", False), (None, False)],
)
def test_pid_namespace(tmp_path: Path, namespace: str | None, initial: bool) -> None:
    (tmp_path / "self/ns").mkdir(parents=True)
    if namespace:
        (tmp_path / "self/ns/pid").symlink_to(namespace)
    assert host.is_initial_pid_namespace(tmp_path) is initial


def test_x32_is_tried_as_the_kernel_was_built() -> None:
    options, _ = host.kernel_configuration()
    if not options:
        pytest.skip("the kernel's configuration cannot be read")
    assert host.takes_x32_calls(options) is ("CONFIG_X86_X32_ABI" in options)
    assert host.takes_x32_calls({}) is ("CONFIG_X86_X32_ABI" in options)


def test_under_a_filter_x32_is_not_tried(tmp_path: Path) -> None:
    """Whether others can make such calls is then not known, and not known is a blind spot."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tpython3\nSeccomp:\t2\n")
    assert host.takes_x32_calls({}, tmp_path)
    assert host.takes_x32_calls({"CONFIG_X86_X32_ABI": "y"}, tmp_path)
    assert not host.takes_x32_calls({"CONFIG_X86": "y"}, tmp_path)


SYMBOLS = """\
ffffffff81000000 T _stext
ffffffff8120ed26 t __x64_sys_setitimer.cold
ffffffff8120ed27 T __x64_sys_setitimer
ffffffff812fda70 T __pfx___x64_sys_mseal
ffffffff812fda80 T __x64_sys_mseal
ffffffff812fda90 T __ia32_sys_sigaction
0000000000000000 W __x64_sys_uselib
0000000000000000 T __x64_sys_pread64
ffffffffc0001000 T __x64_sys_added\t[module]
ffffffffc0001010 T do__x64_sys_nothing
"""


def test_system_calls_of_the_kernel(tmp_path: Path) -> None:
    """All that were built, each once; also where the kernel hides addresses."""
    proc = write(tmp_path, {"kallsyms": SYMBOLS})
    assert host.system_calls(proc) == {"setitimer", "mseal", "pread64", "added"}


def test_a_kernel_may_not_list_its_system_calls(tmp_path: Path) -> None:
    assert host.system_calls(tmp_path) == frozenset()
