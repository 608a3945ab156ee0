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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monitor.kernel import layouts, operations, privileges, trampolines
from monitor.kernel.probes import OPTIONAL, PROBES, Hook, Probe, candidates

__all__ = [
    "AttachedProbe",
    "LoadError",
    "LoadRequest",
    "Loaded",
    "LoaderDied",
    "load",
    "possible_cpus",
]

# A wheel carries the sources as monitor/bpf, a checkout beside the package.
_SOURCES = next(
    path
    for path in (Path(__file__).parents[1] / "bpf", Path(__file__).parents[2] / "bpf")
    if path.is_dir() or path.parent.name != "monitor"
)
_MAPS = (
    "ring",
    "counters",
    "config",
    "workloads",
    "buckets",
    "shared_buckets",
    "watched_cgroup",
)
# By feature: array, programs in the order of enum tail, and their mode. A program array forgets its
# programs when its last descriptor is closed.
_TAILS = {
    "WITH_EXITS": ("tracepoint_tails", ("denied", "changed"), "tracepoint"),
    "WITH_RAW_EXITS": ("raw_tails", ("raw_denied", "raw_changed"), "raw_tracepoint"),
}
_TRACING = Path("/sys/kernel/tracing")
_MESSAGE_SIZE = 1 << 16
_DESCRIPTORS_MAX = 200
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
BUCKETS_MAX = 4096
LOAD_SECONDS = 300  # far beyond the slowest machine, an emulated one: a hang
HANDLED_FAULTS_MAX = 1024
SEALERS_MAX = 4096


class LoadError(Exception):
    """The programs cannot run on this host: what failed, and the way out."""


class LoaderDied(LoadError):
    """Whether they can is not known: the child was killed, failed, or was too slow."""


@dataclass(frozen=True)
class LoadRequest:
    attach: str = "auto"
    switches: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()  # targets not to attach to
    ring_size: int = 1 << 21
    workloads_max: int = 1024


class AttachedProbe(NamedTuple):
    """`mode` is the hook's, or the one tried last; `error` is empty when it is attached.

    `fallback`: why it is not attached by the first of its hooks.
    """

    probe: str
    mode: str
    target: str
    error: str
    program: int  # descriptor, -1 when it is not attached
    fallback: str = ""
    also: tuple[int, ...] = ()  # descriptors of what is attached with it

    @property
    def programs(self) -> tuple[int, ...]:
        """Descriptors of all that the probe consists of."""
        return (self.program, *self.also) if self.attached else ()

    @property
    def attached(self) -> bool:
        return not self.error

    @property
    def lost(self) -> bool:
        """Whether it is missing without being one that the monitor is ready without."""
        return bool(self.error) and self.probe not in OPTIONAL


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
        programs = {number for probe in self.probes for number in probe.programs}
        for descriptor in {*self.maps.values(), *programs}:
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
            raise LoaderDied(f"compiling and attaching took longer than {LOAD_SECONDS} s") from None
        for descriptor in descriptors:  # recv_fds has no say in it: it drops its flags
            os.set_inheritable(descriptor, False)
        _, status = os.waitpid(child, 0)
        if not message:
            diagnostics.seek(0)
            output = diagnostics.read().decode(errors="replace").strip()
            raise LoaderDied(
                f"the loader ended with status {os.waitstatus_to_exitcode(status)} "
                f"and said: {output[-2000:] or 'nothing'}"
            )
    answer = json.loads(message)
    if "error" in answer:
        raise LoadError(answer["error"])
    return Loaded(
        maps={name: descriptors[index] for name, index in answer["maps"].items()},
        probes=[
            AttachedProbe(
                *(probe, mode, target, error),
                descriptors[index] if index >= 0 else -1,
                fallback,
                tuple(descriptors[each] for each in also),
            )
            for probe, mode, target, error, index, fallback, also in answer["probes"]
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
    tracefs = _ensure_tracefs()
    privileges.keep(privileges.for_loading())  # before LLVM and what it reads
    wanted = [(probe, candidates(probe, request.attach, request.switches)) for probe in PROBES]
    kernel = _look_at_kernel()
    impossible = _impossible(request, wanted, kernel)
    features = _first_features(wanted, impossible)
    while True:
        if "WITH_EXITS" in features and tracefs.problem:
            raise LoadError(tracefs.problem)
        loader = _Loader(request, kernel, features, impossible, diagnostics)
        loader.attach_all(wanted)
        if loader.lacking <= features:
            return loader.answer([tracefs.note] if "WITH_EXITS" in features else [])
        # A hook was refused, and the program of the next one to try was not compiled.
        loader.discard()
        features |= loader.lacking


class _Kernel(NamedTuple):
    """What must be known of the running kernel. `fexit_refused`: why it takes no such programs."""

    offsets: str
    functions: dict[str, int]  # BTF ids
    fexit_refused: str


def _look_at_kernel() -> _Kernel:
    with layouts.Btf() as btf:
        refused = trampolines.why_refused(btf)
        return _Kernel(layouts.c_definitions(btf), layouts.functions(btf), refused)


def _impossible(
    request: LoadRequest,
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]],
    kernel: _Kernel,
) -> dict[Hook, str]:
    """Hooks that need not be tried, and why: known before anything is compiled."""
    found = {}
    for hook in {hook for _, hooks in wanted for hook in hooks}:
        parts = (hook, *hook.also)
        absent = [part.target for part in parts if part.target not in kernel.functions]
        silent = [part.target for part in parts if part.target in request.without]
        if hook.mode == "fexit" and kernel.fexit_refused:
            found[hook] = kernel.fexit_refused
        elif hook.mode == "fexit" and absent:
            found[hook] = f"this kernel's BTF has no function {absent[0]} of the form that is known"
        elif silent:
            found[hook] = f"a refusal made to try {silent[0]} was not seen there"
    return found


def _first_features(
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]], impossible: Mapping[Hook, str]
) -> set[str]:
    """What to compile when the first possible hook of every probe is accepted."""
    possible = ([hook for hook in hooks if hook not in impossible] for _, hooks in wanted)
    return {hooks[0].feature for hooks in possible if hooks} - {""}


class _Tracefs(NamedTuple):
    """`problem`: why tracepoints can't be attached, and the way out; empty when they can."""

    note: str = ""
    problem: str = ""


def _ensure_tracefs() -> _Tracefs:
    """Tracepoints are attached by numbers that tracefs tells: mount it where nobody else sees.

    That needs CAP_SYS_ADMIN.
    """
    try:
        (_TRACING / "events").stat()
    except FileNotFoundError:
        return _mount_tracefs()
    except PermissionError as error:
        return _Tracefs(problem=_with_remedy(f"cannot read tracefs ({error.strerror})"))
    return _Tracefs()


def _mount_tracefs() -> _Tracefs:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        (libc.unshare, (_CLONE_NEWNS,)),
        (libc.mount, (b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)),
        (libc.mount, (b"tracefs", bytes(_TRACING), b"tracefs", 0, None)),
    )
    for call, arguments in steps:
        if call(*arguments):
            reason = os.strerror(ctypes.get_errno())
            return _Tracefs(
                problem=f"tracefs is not mounted and mounting it failed ({reason}); "
                f"run: mount -t tracefs tracefs {_TRACING}"
            )
    return _Tracefs(note="tracefs was not mounted: used a private mount while loading")


def _flatten(path: Path) -> str:
    """One text from a file and its local includes: bcc rewrites map accesses in no other."""

    def replace(match: re.Match[str]) -> str:
        return _flatten(path.parent / match[1])

    return re.sub(r'^#include "(.+)"$', replace, path.read_text("utf-8"), flags=re.MULTILINE)


def _program_text(request: LoadRequest, offsets: str, features: Iterable[str]) -> str:
    numbers = {
        "PAGE_SIZE": os.sysconf("SC_PAGE_SIZE"),
        "POSSIBLE_CPUS": possible_cpus(),
        "RING_PAGES": request.ring_size // os.sysconf("SC_PAGE_SIZE"),
        "WORKLOADS_MAX": request.workloads_max,
        "BUCKETS_MAX": BUCKETS_MAX,
        "HANDLED_FAULTS_MAX": HANDLED_FAULTS_MAX,
        "SEALERS_MAX": SEALERS_MAX,
        **dict.fromkeys(features, 1),
    }
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"#define {name} {value}" for name, value in numbers.items()),
            operations.c_definitions(),
            offsets,
            _flatten(_SOURCES / "seal_monitor.bpf.c"),
        )
    )


_REMEDY = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"


def _with_remedy(problem: str) -> str:
    is_denied = "not permitted" in problem or "ermission denied" in problem
    return problem + _REMEDY if is_denied and not problem.endswith(_REMEDY) else problem


# bpf as target makes inline assembly compile; v3 has compare-and-exchange. Where clang protects the
# control flow by default, as Debian 13's does, it refuses a target that has nothing of the kind.
_COMPILER_FLAGS = (
    *("--target=bpf", "-mcpu=v3", "-fcf-protection=none"),
    *("-D__x86_64__", "-g0", "-Wno-unused"),
)


class _Loader:
    """One compilation and what is attached of it."""

    def __init__(
        self,
        request: LoadRequest,
        kernel: _Kernel,
        features: set[str],
        impossible: Mapping[Hook, str],
        diagnostics: int,
    ) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(_SOURCES)
        try:
            from bcc import BPF  # noqa: PLC0415 - LLVM, in this process alone
        except ImportError as error:
            raise LoadError(
                f"bcc is missing ({error}); run: apt-get install python3-bpfcc, and use a virtual "
                "environment made with --system-site-packages"
            ) from error
        self._request = request
        self._functions = kernel.functions
        self._features = features
        self._impossible = impossible
        self._diagnostics = diagnostics
        self._types = {"tracepoint": BPF.TRACEPOINT, "raw_tracepoint": BPF.RAW_TRACEPOINT}
        self._links: list[int] = []  # of fexit programs; bcc keeps the others
        self._programs: dict[Hook, int] = {}
        self._hooks: dict[str, Hook] = {}  # of the attached probes
        self._rows: list[AttachedProbe] = []
        self.lacking: set[str] = set()
        try:
            self._bpf = BPF(
                text=_program_text(request, kernel.offsets, features),
                cflags=list(_COMPILER_FLAGS),
            )
            for feature in features & _TAILS.keys():
                self._set_tails(*_TAILS[feature])
        except Exception as error:  # bcc raises nothing more precise
            raise LoadError(self._explain("load the BPF programs", error)) from error

    def _set_tails(self, array: str, programs: tuple[str, ...], mode: str) -> None:
        for index, program in enumerate(programs):
            function = self._bpf.load_func(program, self._types[mode])
            self._bpf[array][ctypes.c_int(index)] = ctypes.c_int(function.fd)

    def _explain(self, what: str, error: Exception) -> str:
        """What went wrong, with the last line that bcc or the kernel wrote about it."""
        size = os.fstat(self._diagnostics).st_size
        output = os.pread(self._diagnostics, size, 0).decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()]
        text = f"cannot {what}: {error}" + (f" ({lines[-1].strip()})" if lines else "")
        return _with_remedy(text)

    def attach_all(self, wanted: list[tuple[Probe, tuple[Hook, ...]]]) -> None:
        for probe, hooks in wanted:
            carrier = self._carrier(probe)
            if carrier:
                self._add(probe, carrier)
            elif hooks:
                self._attach_first(probe, hooks)
            elif probe.optional:
                hook = (*probe.hooks, *probe.comes_with)[0]
                problem = "nothing that this attach mode has can see it"
                self._rows.append(AttachedProbe(probe.name, hook.mode, hook.target, problem, -1))

    def _carrier(self, probe: Probe) -> Hook | None:
        """An attached hook that does the probe's work already."""
        attached = [self._hooks.get(probe.carrier)] if probe.carrier else self._programs
        for hook in probe.comes_with:
            if hook in attached:
                return hook
        if probe.name == "compat":
            names = [operation.name for operation in operations.OPERATIONS if operation.number]
            hooks = [self._hooks.get(name) for name in names]
            if all(hook and hook.sees_compat for hook in hooks):
                return hooks[0]
        return None

    def _attach_first(self, probe: Probe, hooks: tuple[Hook, ...]) -> None:
        errors = []
        for hook in hooks:
            if hook in self._impossible:
                errors.append(self._impossible[hook])
                continue
            if hook.feature and hook.feature not in self._features:
                self.lacking.add(hook.feature)
                continue
            try:
                self._attach(hook)
            except Exception as error:  # bcc raises nothing more precise
                errors.append(self._explain(f"attach to {hook.target}", error))
                continue
            self._add(probe, hook, *errors[:1])
            return
        switches = {hook.switch for hook in probe.hooks} - {""}
        if switches and not switches & self._request.switches:
            return  # it would have been welcome, nobody asked for it
        problem = "; ".join(dict.fromkeys(errors)) or f"{probe.name} waits for a second compilation"
        self._rows.append(AttachedProbe(probe.name, hooks[-1].mode, hooks[-1].target, problem, -1))

    def _add(self, probe: Probe, hook: Hook, fallback: str = "") -> None:
        self._hooks[probe.name] = hook
        program, *also = (self._programs[part] for part in (hook, *hook.also))
        row = AttachedProbe(probe.name, hook.mode, hook.target, "", program, fallback, tuple(also))
        self._rows.append(row)

    def _attach(self, hook: Hook) -> None:
        for part in (*hook.also, hook):
            if part not in self._programs:
                self._programs[part] = self._attach_part(part)

    def _attach_part(self, hook: Hook) -> int:
        """Descriptor of the program."""
        if hook.mode == "fexit":
            instructions = self._bpf.dump_func(hook.program)
            function = self._functions[hook.target]
            program = trampolines.load(function, hook.program, instructions)
            self._links.append(trampolines.attach(program))
            return program
        descriptor: int = self._bpf.load_func(hook.program, self._types[hook.mode]).fd
        if hook.mode == "tracepoint":
            self._bpf.attach_tracepoint(tp=hook.target, fn_name=hook.program)
        else:
            self._bpf.attach_raw_tracepoint(tp=hook.target, fn_name=hook.program)
        return descriptor

    def discard(self) -> None:
        for descriptor in self._links:
            os.close(descriptor)
        for hook, program in self._programs.items():
            if hook.mode == "fexit":
                os.close(program)
        self._bpf.cleanup()

    def answer(self, notes: list[str]) -> tuple[dict[str, Any], list[int]]:
        attached = [row for row in self._rows if row.attached]
        if not attached:
            raise LoadError(_with_remedy("; ".join(dict.fromkeys(row.error for row in self._rows))))
        arrays = [_TAILS[feature][0] for feature in sorted(self._features & _TAILS.keys())]
        maps = {name: self._bpf[name].map_fd for name in (*_MAPS, *arrays)}
        links = [
            *self._links,
            *self._bpf.tracepoint_fds.values(),
            *self._bpf.raw_tracepoint_fds.values(),
        ]
        descriptors = list(dict.fromkeys([*maps.values(), *links, *self._programs.values()]))
        index = {descriptor: position for position, descriptor in enumerate(descriptors)}
        index[-1] = -1
        answer = {
            "maps": {name: index[descriptor] for name, descriptor in maps.items()},
            "links": [index[descriptor] for descriptor in links],
            "probes": [
                [*row[:4], index[row.program], row.fallback, [index[each] for each in row.also]]
                for row in self._rows
            ],
            "notes": [note for note in notes if note],
        }
        return answer, descriptors
