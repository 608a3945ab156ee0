"""Loads the BPF programs in a child that compiles, attaches, hands the descriptors over and exits.

bcc brings LLVM: 125 MB that the daemon never maps. A descriptor keeps its program attached after
the child is gone; the daemon's exit, however it comes, detaches everything. Only this module
imports bcc.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monitor import layouts, operations
from monitor.probes import PROBES, Hook, Probe, candidates

__all__ = ["AttachedProbe", "LoadError", "LoadRequest", "Loaded", "load", "possible_cpus"]

# A wheel carries the sources as monitor/bpf, a checkout beside the package.
_SOURCES = next(
    path
    for path in (Path(__file__).parent / "bpf", Path(__file__).parent.parent / "bpf")
    if path.is_dir() or path.parent.name != "monitor"
)
_MAPS = (
    "ring",
    "counters",
    "config",
    "workloads",
    "buckets",
    "shared_buckets",
    # A program array forgets its programs when its last descriptor is closed.
    "tracepoint_tails",
    "raw_tails",
)
_TRACING = Path("/sys/kernel/tracing")
_MESSAGE_SIZE = 1 << 16
_DESCRIPTORS_MAX = 200
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
BUCKETS_MAX = 4096
LOAD_SECONDS = 120  # far beyond the slowest machine: a hang
HANDLED_FAULTS_MAX = 1024


class LoadError(Exception):
    """The programs cannot run on this host: what failed, and the way out."""


@dataclass(frozen=True)
class LoadRequest:
    attach: str = "auto"
    switches: frozenset[str] = frozenset()
    ring_size: int = 1 << 20
    workloads_max: int = 1024


class AttachedProbe(NamedTuple):
    """`mode` is the hook's, or the one tried last; `error` is empty when it is attached."""

    probe: str
    mode: str
    target: str
    error: str
    program: int  # descriptor, -1 when it is not attached

    @property
    def attached(self) -> bool:
        return not self.error


@dataclass
class Loaded:
    """Descriptors of the maps and of what keeps the programs attached."""

    maps: dict[str, int]
    probes: list[AttachedProbe]
    links: list[int]
    notes: list[str] = field(default_factory=list)

    def detach(self) -> None:
        """Nothing runs any more when this returns; the maps stay readable."""
        for descriptor in self.links:
            os.close(descriptor)
        self.links.clear()

    def close(self) -> None:
        self.detach()
        for descriptor in {*self.maps.values(), *(probe.program for probe in self.probes)}:
            if descriptor >= 0:
                os.close(descriptor)
        self.maps.clear()
        self.probes.clear()


def possible_cpus() -> int:
    """Number of CPUs that may ever come online: the size of everything kept per CPU."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(re.split("[-,]", text.strip())[-1]) + 1


def load(request: LoadRequest) -> Loaded:
    """Compile and attach. Call before the process starts any thread: it forks.

    Raises LoadError when nothing can be attached; single probes that could not be are told in
    `Loaded.probes`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryFile() as diagnostics:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
        child = os.fork()
        if not child:
            _child(request, theirs, diagnostics.fileno())
        theirs.close()
        ours.settimeout(LOAD_SECONDS)
        try:
            message, descriptors, _, _ = socket.recv_fds(ours, _MESSAGE_SIZE, _DESCRIPTORS_MAX)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise LoadError(f"compiling and attaching took longer than {LOAD_SECONDS} s") from None
        for descriptor in descriptors:  # recv_fds has no say in it: it drops its flags
            os.set_inheritable(descriptor, False)
        _, status = os.waitpid(child, 0)
        if not message:
            diagnostics.seek(0)
            output = diagnostics.read().decode(errors="replace").strip()
            raise LoadError(
                f"the loader ended with status {os.waitstatus_to_exitcode(status)} "
                f"and said: {output[-2000:] or 'nothing'}"
            )
    answer = json.loads(message)
    if "error" in answer:
        raise LoadError(answer["error"])
    return Loaded(
        maps={name: descriptors[index] for name, index in answer["maps"].items()},
        probes=[
            AttachedProbe(probe, mode, target, error, descriptors[index] if index >= 0 else -1)
            for probe, mode, target, error, index in answer["probes"]
        ],
        links=[descriptors[index] for index in answer["links"]],
        notes=answer["notes"],
    )


def _child(request: LoadRequest, parent: socket.socket, diagnostics: int) -> None:
    """Runs in the child and does not return: no exit handler of the parent's may run here."""
    status = 1
    try:
        os.dup2(diagnostics, 1)
        os.dup2(diagnostics, 2)
        answer, descriptors = _load_and_attach(request, diagnostics)
        socket.send_fds(parent, [json.dumps(answer).encode()], descriptors)
        status = 0
    except (LoadError, layouts.LayoutError) as error:
        parent.send(json.dumps({"error": str(error)}).encode())
    except BaseException:  # whatever it is, the parent tells it
        os.write(diagnostics, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _load_and_attach(request: LoadRequest, diagnostics: int) -> tuple[dict[str, Any], list[int]]:
    wanted = [(probe, candidates(probe, request.attach)) for probe in PROBES]
    notes = []
    if any(hook.mode == "tracepoint" for _, hooks in wanted for hook in hooks):
        notes += _ensure_tracefs()
    features = {"WITH_IO_URING"} if "watch.io_uring" in request.switches else set()
    if request.attach == "raw_tracepoint" or "watch.compat" in request.switches:
        features.add("WITH_RAW_EXITS")
    loader = _Loader(request, features, diagnostics)
    loader.attach_all(wanted)
    if loader.lacks_raw_exits:
        # A tracepoint was refused. The raw tracepoint can stand in for it, but was not compiled.
        loader.discard()
        loader = _Loader(request, features | {"WITH_RAW_EXITS"}, diagnostics)
        loader.attach_all(wanted)
    return loader.answer(notes)


def _ensure_tracefs() -> list[str]:
    """Tracepoints are attached by numbers that tracefs tells: mount it where nobody else sees."""
    if (_TRACING / "events").is_dir():
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        (libc.unshare, (_CLONE_NEWNS,)),
        (libc.mount, (b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)),
        (libc.mount, (b"tracefs", bytes(_TRACING), b"tracefs", 0, None)),
    )
    for call, arguments in steps:
        if call(*arguments):
            reason = os.strerror(ctypes.get_errno())
            raise LoadError(
                f"tracefs is not mounted and mounting it failed ({reason}); "
                f"run: mount -t tracefs tracefs {_TRACING}"
            )
    return ["tracefs was not mounted: used a private mount while loading"]


def _flatten(path: Path) -> str:
    """One text from a file and its local includes: bcc rewrites map accesses in no other."""

    def replace(match: re.Match[str]) -> str:
        return _flatten(path.parent / match[1])

    return re.sub(r'^#include "(.+)"$', replace, path.read_text("utf-8"), flags=re.MULTILINE)


def _program_text(request: LoadRequest, features: Iterable[str]) -> str:
    numbers = {
        "PAGE_SIZE": os.sysconf("SC_PAGE_SIZE"),
        "POSSIBLE_CPUS": possible_cpus(),
        "RING_PAGES": request.ring_size // os.sysconf("SC_PAGE_SIZE"),
        "WORKLOADS_MAX": request.workloads_max,
        "BUCKETS_MAX": BUCKETS_MAX,
        "HANDLED_FAULTS_MAX": HANDLED_FAULTS_MAX,
        **dict.fromkeys(features, 1),
    }
    with layouts.Btf() as btf:
        offsets = layouts.c_definitions(btf)
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"#define {name} {value}" for name, value in numbers.items()),
            operations.c_definitions(),
            offsets,
            _flatten(_SOURCES / "seal_monitor.bpf.c"),
        )
    )


class _Loader:
    """One compilation and what is attached of it."""

    def __init__(self, request: LoadRequest, features: set[str], diagnostics: int) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(_SOURCES)
        try:
            from bcc import BPF  # noqa: PLC0415 - LLVM, in this process alone
        except ImportError as error:
            raise LoadError(
                f"bcc is missing ({error}); run: apt-get install python3-bpfcc, and use a virtual "
                "environment made with --system-site-packages"
            ) from error
        self._request = request
        self._features = features
        self._diagnostics = diagnostics
        self._type = {"tracepoint": BPF.TRACEPOINT, "raw_tracepoint": BPF.RAW_TRACEPOINT}
        self._programs: dict[Hook, int] = {}
        self._rows: list[AttachedProbe] = []
        self.lacks_raw_exits = False
        try:
            self._bpf = BPF(
                text=_program_text(request, features),
                # bpf as target makes inline assembly compile; v3 has compare-and-exchange.
                cflags=["--target=bpf", "-mcpu=v3", "-D__x86_64__", "-g0", "-Wno-unused"],
            )
            self._set_tail("tracepoint_tails", "denied", "tracepoint")
            if "WITH_RAW_EXITS" in features:
                self._set_tail("raw_tails", "raw_denied", "raw_tracepoint")
        except Exception as error:  # bcc raises nothing more precise
            raise LoadError(self._explain("load the BPF programs", error)) from error

    def _set_tail(self, array: str, program: str, mode: str) -> None:
        function = self._bpf.load_func(program, self._type[mode])
        self._bpf[array][ctypes.c_int(0)] = ctypes.c_int(function.fd)

    def _explain(self, what: str, error: Exception) -> str:
        """What went wrong, with the last line that bcc or the kernel wrote about it."""
        size = os.fstat(self._diagnostics).st_size
        output = os.pread(self._diagnostics, size, 0).decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()]
        text = f"cannot {what}: {error}" + (f" ({lines[-1].strip()})" if lines else "")
        if "not permitted" in text or "ermission denied" in text:
            text += "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"
        return text

    def attach_all(self, wanted: list[tuple[Probe, tuple[Hook, ...]]]) -> None:
        for probe, hooks in wanted:
            if probe.free_with in self._programs:
                self._add(probe, probe.free_with)
            elif not probe.switch or probe.switch in self._request.switches:
                self._attach_first(probe, hooks)

    def _attach_first(self, probe: Probe, hooks: tuple[Hook, ...]) -> None:
        hook, errors = None, []
        for hook in hooks:
            if hook.program.startswith("raw_exit") and "WITH_RAW_EXITS" not in self._features:
                self.lacks_raw_exits = True
                continue
            try:
                self._attach(hook)
            except Exception as error:  # bcc raises nothing more precise
                errors.append(self._explain(f"attach to {hook.target}", error))
                continue
            self._add(probe, hook)
            return
        mode, target = (hook.mode, hook.target) if hook else (self._request.attach, "")
        problem = "; ".join(errors) or f"no hook for {probe.name} in mode {self._request.attach}"
        self._rows.append(AttachedProbe(probe.name, mode, target, problem, -1))

    def _add(self, probe: Probe, hook: Hook) -> None:
        program = self._programs[hook]
        self._rows.append(AttachedProbe(probe.name, hook.mode, hook.target, "", program))

    def _attach(self, hook: Hook) -> None:
        if hook in self._programs:
            return
        if hook.mode == "tracepoint":
            function = self._bpf.load_func(hook.program, self._type[hook.mode])
            self._bpf.attach_tracepoint(tp=hook.target, fn_name=hook.program)
        else:
            function = self._bpf.load_func(hook.program, self._type[hook.mode])
            self._bpf.attach_raw_tracepoint(tp=hook.target, fn_name=hook.program)
        self._programs[hook] = function.fd

    def discard(self) -> None:
        self._bpf.cleanup()

    def answer(self, notes: list[str]) -> tuple[dict[str, Any], list[int]]:
        attached = [row for row in self._rows if row.attached]
        if not attached:
            raise LoadError("; ".join(dict.fromkeys(row.error for row in self._rows)))
        maps = {name: self._bpf[name].map_fd for name in _MAPS}
        links = [*self._bpf.tracepoint_fds.values(), *self._bpf.raw_tracepoint_fds.values()]
        descriptors = list(dict.fromkeys([*maps.values(), *links, *self._programs.values()]))
        index = {descriptor: position for position, descriptor in enumerate(descriptors)}
        index[-1] = -1
        answer = {
            "maps": {name: index[descriptor] for name, descriptor in maps.items()},
            "links": [index[descriptor] for descriptor in links],
            "probes": [[*row[:4], index[row.program]] for row in self._rows],
            "notes": notes,
        }
        return answer, descriptors
