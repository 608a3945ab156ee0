"""Loads the BPF programs in a child that verifies, attaches, hands the descriptors over and exits.

The programs come compiled, as an object (object.py); only where there is none the child compiles
it, with bcc. What the child needs the daemon never holds. A descriptor keeps its program attached
after the child is gone; the daemon's exit, however it comes, detaches everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monitor.kernel import bpf, compiler, layouts, object, privileges
from monitor.kernel.abi import Bank
from monitor.kernel.arch import native_function
from monitor.kernel.btf import KIND_FUNC, Btf, LayoutError
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.probes import OPTIONAL, PROBES, Hook, Probe, candidates

__all__ = [
    "AttachedProbe",
    "LoadError",
    "LoadRequest",
    "Loaded",
    "LoaderDied",
    "Loading",
    "Made",
    "load",
    "possible_cpus",
    "why_fexit_refused",
]

_MAPS = (
    "ring",
    "counters",
    "config",
    "workloads",
    "buckets",
    "shared_buckets",
    "watched_cgroup",
)
# By program array: its programs in the order of enum tail. An array forgets its programs when its
# last descriptor is closed.
_TAILS = {
    "tracepoint_tails": (bpf.TRACEPOINT, ("denied", "changed")),
    "raw_tails": (bpf.RAW_TRACEPOINT, ("raw_denied", "raw_changed")),
}
_TYPES = {
    "fexit": bpf.TRACING,
    "tracepoint": bpf.TRACEPOINT,
    "raw_tracepoint": bpf.RAW_TRACEPOINT,
}
_TRACING = Path("/sys/kernel/tracing")
_MESSAGE_SIZE = 1 << 16
_DESCRIPTORS_MAX = 200
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_FEXIT_TRIAL = native_function("mseal")
_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
LOAD_SECONDS = 60  # a start takes 0.2 s, 10 s without an object: it hangs


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
    buckets_max: int = 4096
    path: Path = compiler.OBJECT  # of the object


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


class Made(NamedTuple):
    """Where the programs came from.

    `path`: of the object, empty when they were compiled for this start. `built`: when it was
    written, seconds since the epoch. `absent`: what this kernel lacks of what a mark stands for.
    """

    path: str
    digest: str
    built: float
    compiler: str
    absent: tuple[str, ...]


_NOTHING = Made("", "", 0.0, "", ())


@dataclass
class Loaded:
    """Descriptors of the maps and of what keeps the programs attached."""

    maps: dict[str, int]
    probes: list[AttachedProbe]
    links: list[int]
    notes: list[str] = field(default_factory=list)
    made: Made = _NOTHING

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


class Loading:
    """A child that loads and attaches. It is ended where nobody waits for what it has done.

    Begin before the process starts any thread: it forks.
    """

    def __init__(self, request: LoadRequest) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._diagnostics = os.fdopen(os.memfd_create("loader"), "w+b")
        with theirs:
            self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
            self._child = os.fork()
            if not self._child:
                _child(request, theirs, self._diagnostics.fileno())

    def finish(self) -> Loaded:
        """What is loaded. Raises LoadError when nothing can be attached; single probes that could
        not be are named in `Loaded.probes`.
        """
        try:
            self._ours.settimeout(LOAD_SECONDS)
            message, descriptors, _, _ = socket.recv_fds(
                self._ours, _MESSAGE_SIZE, _DESCRIPTORS_MAX
            )
            for descriptor in descriptors:  # recv_fds has no say in it: it drops its flags
                os.set_inheritable(descriptor, False)
            if not message:
                raise LoaderDied(self._last_words())
        except TimeoutError:
            raise LoaderDied(f"loading and attaching took longer than {LOAD_SECONDS} s") from None
        finally:
            self.close()
        answer = json.loads(message)
        if "error" in answer:
            raise LoadError(answer["error"])
        return _loaded(answer, descriptors)

    def close(self) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
        self._ours.close()
        self._diagnostics.close()

    def _last_words(self) -> str:
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        self._diagnostics.seek(0)
        output = self._diagnostics.read().decode(errors="replace").strip()
        return (
            f"the loader ended with status {os.waitstatus_to_exitcode(status)} "
            f"and said: {output[-2000:] or 'nothing'}"
        )


def load(request: LoadRequest) -> Loaded:
    """Verify and attach, as Loading does, and wait for it."""
    return Loading(request).finish()


def _loaded(answer: dict[str, Any], descriptors: list[int]) -> Loaded:
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
        made=_made_of(answer["made"]),
        notes=answer["notes"],
    )


def _made_of(row: list[Any]) -> Made:
    path, digest, built, made_by, absent = row
    return Made(path, digest, built, made_by, tuple(absent))


def _child(request: LoadRequest, parent: socket.socket, diagnostics: int) -> None:
    """Runs in the child and does not return: no exit handler of the parent's may run here."""
    status = 1
    try:
        os.dup2(diagnostics, 1)
        os.dup2(diagnostics, 2)
        answer, descriptors = _load_and_attach(request, diagnostics)
        socket.send_fds(parent, [json.dumps(answer).encode()], descriptors)
        status = 0
    except (LoadError, LayoutError, object.ObjectError, bpf.LibraryError) as error:
        parent.send(json.dumps({"error": str(error)}).encode())
    except BaseException:  # whatever it is, the parent reports it
        os.write(diagnostics, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _load_and_attach(request: LoadRequest, diagnostics: int) -> tuple[dict[str, Any], list[int]]:
    tracefs = _ensure_tracefs()
    privileges.keep(privileges.for_loading())  # before anything that was not written here is read
    wanted = [(probe, candidates(probe, request.attach, request.switches)) for probe in PROBES]
    compiled, path = _object(request.path, diagnostics)
    kernel = _look_at_kernel()
    impossible = _impossible(request, wanted, kernel, compiled)
    first = _first_choices(wanted, impossible)
    if tracefs.problem and any(hook.mode == "tracepoint" for hook in first):
        raise LoadError(tracefs.problem)
    programs = _Programs(request, compiled, kernel)
    programs.load_all(first)
    attacher = _Attacher(request, programs, tracefs, impossible)
    attacher.attach_all(wanted)
    return attacher.answer(_made(compiled, path, kernel))


def _object(path: Path, diagnostics: int) -> tuple[object.Object, Path | None]:
    """The programs, and the file that they come from."""
    try:
        return object.read(path, compiler.digests()), path
    except FileNotFoundError:
        pass
    try:
        return compiler.compile_object(), None
    except compiler.CompileError as error:
        size = os.fstat(diagnostics).st_size
        output = os.pread(diagnostics, size, 0).decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()]
        said = f" ({lines[-1].strip()})" if lines else ""
        problem = f"there are no compiled programs at {path}, and {error}{said}"
        raise LoadError(_with_remedy(problem)) from error


def _made(compiled: object.Object, path: Path | None, kernel: _Kernel) -> Made:
    marks = zip(layouts.MARKS, kernel.values, strict=True)
    absent = dict.fromkeys(
        layouts.describe(mark)
        for mark, value in marks
        if value is None and mark != layouts.OPERATION
    )
    built = path.stat().st_mtime if path else time.time()
    where = str(path) if path else ""
    return Made(where, compiled.digest, built, compiled.compiler, tuple(absent))


class _Kernel(NamedTuple):
    """What must be known of the running kernel. `fexit_refused`: why it takes no such programs."""

    values: list[int | None]  # of the marks
    functions: dict[str, int]  # BTF ids
    fexit_refused: str


def _look_at_kernel() -> _Kernel:
    with Btf() as btf:
        refused = why_fexit_refused(btf)
        return _Kernel(layouts.values(btf), layouts.functions(btf), refused)


def why_fexit_refused(btf: Btf) -> str:
    """Why fexit programs cannot be loaded; empty when they can.

    Learnt by loading one: what lists features gets it wrong, as a kernel may have all that they
    need and still refuse them.
    """
    function = btf.find(_FEXIT_TRIAL, KIND_FUNC)
    if function is None:
        return f"this kernel's BTF has no function {_FEXIT_TRIAL}"
    try:
        os.close(bpf.load_program(bpf.TRACING, "fexit_trial", _RETURN_ZERO, function))
    except OSError as error:
        return f"fexit programs are refused ({error.strerror})"
    return ""


def _parts(hook: Hook) -> tuple[Hook, ...]:
    """What must be attached for a hook, in this order."""
    return (*hook.also, hook)


def _impossible(
    request: LoadRequest,
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]],
    kernel: _Kernel,
    compiled: object.Object,
) -> dict[Hook, str]:
    """Hooks that need not be tried, and why: known before anything is loaded."""
    found = {}
    for hook in {hook for _, hooks in wanted for hook in hooks}:
        parts = _parts(hook)
        functions = [part.target for part in parts if part.target not in kernel.functions]
        silent = [part.target for part in parts if part.target in request.without]
        missing = {number for part in parts for number in _missing(part, compiled, kernel)}
        if hook.mode == "fexit" and kernel.fexit_refused:
            found[hook] = kernel.fexit_refused
        elif hook.mode == "fexit" and functions:
            found[hook] = (
                f"this kernel's BTF has no function {functions[-1]} of the form that is known"
            )
        elif silent:
            found[hook] = f"a refusal made to try {silent[-1]} was not seen there"
        elif missing:
            names = sorted(layouts.describe(layouts.MARKS[number]) for number in missing)
            found[hook] = f"this kernel's BTF has no {', '.join(names)}"
    return found


def _first_choices(
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]], impossible: Mapping[Hook, str]
) -> list[Hook]:
    """What is loaded when the first possible hook of every probe is accepted."""
    possible = ([hook for hook in hooks if hook not in impossible] for _, hooks in wanted)
    return [part for hooks in possible if hooks for part in _parts(hooks[0])]


def _missing(hook: Hook, compiled: object.Object, kernel: _Kernel) -> set[int]:
    """Marks of the hook's programs that this kernel has no value for."""
    program = compiled.programs[hook.template or hook.program]
    tails = [
        compiled.programs[tail]
        for number in program.maps()
        for tail in _TAILS.get(compiled.maps[number].name, (0, ()))[1]
    ]
    values = _with_operation(kernel.values, 0)
    return {number for each in (program, *tails) for number in each.missing(values)}


def _with_operation(values: Sequence[int | None], operation: int) -> list[int | None]:
    """The marks' values in a program that is loaded for this operation."""
    found = list(values)
    found[layouts.MARKS.index(layouts.OPERATION)] = operation
    return found


class _Tracefs(NamedTuple):
    """`problem`: why tracepoints can't be attached, and the way out; empty when they can."""

    note: str = ""
    problem: str = ""


def _ensure_tracefs() -> _Tracefs:
    """Tracepoints are attached by numbers that tracefs lists: mount it where nobody else sees.

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


_REMEDY = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH"


def _with_remedy(problem: str) -> str:
    is_denied = "not permitted" in problem or "ermission denied" in problem
    return problem + _REMEDY if is_denied and not problem.endswith(_REMEDY) else problem


class _Programs:
    """Maps of the sizes asked for, and the programs of an object, loaded as they are needed."""

    def __init__(self, request: LoadRequest, compiled: object.Object, kernel: _Kernel) -> None:
        self._compiled = compiled
        self._kernel = kernel
        self._loaded: dict[str, int | OSError] = {}
        entries = {
            "ring": request.ring_size,
            "counters": possible_cpus() * len(Bank),
            "workloads": request.workloads_max,
            "buckets": request.buckets_max,
        }
        self.maps: dict[str, int] = {}
        for each in compiled.maps:
            count = entries.get(each.name, each.entries)
            try:
                self.maps[each.name] = bpf.create_map(
                    each.kind,
                    each.name,
                    key=each.key_size,
                    value=each.value_size,
                    entries=count,
                    flags=each.flags,
                )
            except OSError as error:
                problem = f"cannot load the BPF programs: map {each.name}: {error.strerror}"
                raise LoadError(_with_remedy(problem)) from error
        self._descriptors = list(self.maps.values())

    def load_all(self, hooks: Iterable[Hook]) -> None:
        """Verify what is likely to be attached, on all CPUs at once. Errors come from load()."""
        jobs = {job[1]: job for hook in hooks for job in self._jobs(hook)}
        waiting = sorted(jobs.values(), key=lambda job: len(job[2].instructions))

        def work() -> None:
            while waiting:
                try:
                    job = waiting.pop()  # the longest of those that are left
                except IndexError:  # another thread was faster
                    return
                self._load(*job)

        threads = [threading.Thread(target=work) for _ in range(len(os.sched_getaffinity(0)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def load(self, hook: Hook) -> int:
        """Descriptor of the hook's program. Raises OSError with what the verifier said."""
        descriptor = -1
        for job in self._jobs(hook):
            self._load(*job)
            found = self._loaded[job[1]]
            if isinstance(found, OSError):
                raise found
            descriptor = found
        return descriptor

    def arrays(self) -> dict[str, int]:
        """The program arrays that a loaded program may call into."""
        return {
            name: self.maps[name]
            for name, (_, tails) in _TAILS.items()
            if any(isinstance(self._loaded.get(tail), int) for tail in tails)
        }

    def _jobs(self, hook: Hook) -> Iterator[tuple[int, str, object.Program, int, int]]:
        """Arguments of _load() for what the hook's program calls, then for itself."""
        program = self._compiled.programs[hook.template or hook.program]
        for number in sorted(program.maps()):
            kind, tails = _TAILS.get(self._compiled.maps[number].name, (0, ()))
            for tail in tails:
                yield kind, tail, self._compiled.programs[tail], 0, -1
        function = self._kernel.functions[hook.target] if hook.mode == "fexit" else 0
        yield _TYPES[hook.mode], hook.program, program, function, hook.operation

    def _load(
        self, kind: int, name: str, program: object.Program, function: int, operation: int
    ) -> None:
        if name in self._loaded:
            return
        values = _with_operation(self._kernel.values, operation)
        try:
            instructions = program.patched(self._descriptors, values)
            found = bpf.load_program(kind, name, instructions, function)
            for array, (_, tails) in _TAILS.items():
                if name in tails:
                    bpf.set_element(self.maps[array], tails.index(name), found)
        except OSError as error:
            self._loaded[name] = error
            return
        self._loaded[name] = found


class _Attacher:
    """Attaches each probe by the first of its hooks that the kernel takes."""

    def __init__(
        self,
        request: LoadRequest,
        programs: _Programs,
        tracefs: _Tracefs,
        impossible: Mapping[Hook, str],
    ) -> None:
        self._request = request
        self._source = programs
        self._tracefs = tracefs
        self._impossible = impossible
        self._links: list[int] = []
        self._programs: dict[Hook, int] = {}
        self._hooks: dict[str, Hook] = {}  # of the attached probes
        self._rows: list[AttachedProbe] = []

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
            names = [operation.name for operation in OPERATIONS if operation.number] + ["mseal"]
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
            if hook.mode == "tracepoint" and self._tracefs.problem:
                raise LoadError(self._tracefs.problem)
            try:
                self._attach(hook)
            except OSError as error:
                errors.append(_with_remedy(f"cannot attach to {hook.target}: {error.strerror}"))
                continue
            self._add(probe, hook, *errors[:1])
            return
        switches = {hook.switch for hook in probe.hooks} - {""}
        if switches and not switches & self._request.switches:
            return  # it would have been welcome, nobody asked for it
        problem = "; ".join(dict.fromkeys(errors))
        self._rows.append(AttachedProbe(probe.name, hooks[-1].mode, hooks[-1].target, problem, -1))

    def _add(self, probe: Probe, hook: Hook, fallback: str = "") -> None:
        self._hooks[probe.name] = hook
        program, *also = (self._programs[part] for part in (hook, *hook.also))
        row = AttachedProbe(probe.name, hook.mode, hook.target, "", program, fallback, tuple(also))
        self._rows.append(row)

    def _attach(self, hook: Hook) -> None:
        for part in _parts(hook):
            if part not in self._programs:
                program = self._source.load(part)
                self._links.append(_attach(part, program))
                self._programs[part] = program

    def answer(self, made: Made) -> tuple[dict[str, Any], list[int]]:
        attached = [row for row in self._rows if row.attached]
        if not attached:
            raise LoadError(_with_remedy("; ".join(dict.fromkeys(row.error for row in self._rows))))
        maps = {name: self._source.maps[name] for name in _MAPS} | self._source.arrays()
        descriptors = list(dict.fromkeys([*maps.values(), *self._links, *self._programs.values()]))
        index = {descriptor: position for position, descriptor in enumerate(descriptors)}
        index[-1] = -1
        is_by_tracepoint = any(hook.mode == "tracepoint" for hook in self._programs)
        notes = [self._tracefs.note] if is_by_tracepoint and self._tracefs.note else []
        if not made.path:
            notes.append(
                f"no compiled programs at {self._request.path}: compiled them for this start; "
                "run: make setup, in a checkout"
            )
        answer = {
            "maps": {name: index[descriptor] for name, descriptor in maps.items()},
            "links": [index[descriptor] for descriptor in self._links],
            "probes": [
                [*row[:4], index[row.program], row.fallback, [index[each] for each in row.also]]
                for row in self._rows
            ],
            "made": made,
            "notes": notes,
        }
        return answer, descriptors


def _attach(hook: Hook, program: int) -> int:
    """Descriptor that keeps the program attached."""
    if hook.mode == "fexit":
        return bpf.attach_fexit(program)
    if hook.mode == "tracepoint":
        return bpf.attach_tracepoint(hook.target, program)
    return bpf.attach_raw_tracepoint(hook.target, program)
