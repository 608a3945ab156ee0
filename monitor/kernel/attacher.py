"""The child's side of the loader: attaches each program that this kernel accepts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitor.kernel import bpf, compiler, layouts, object, privileges, tracefs
from monitor.kernel.arch import THIS
from monitor.kernel.btf import KIND_FUNC, Btf, LayoutError
from monitor.kernel.loaded import (
    KEPT_MAPS,
    NOTHING_EXISTS,
    AttachedProbe,
    Existing,
    LoadError,
    LoadRequest,
    Made,
    WrongObjectError,
)
from monitor.kernel.operations import OPERATIONS
from monitor.kernel.privileges import with_remedy
from monitor.kernel.probes import PROBES, Hook, Probe, candidates
from monitor.kernel.programs import Kernel, Programs, function_of, missing, parts
from monitor.kernel.slots import Slot, attach, key_of

__all__ = ["load_and_attach", "look_at_kernel", "why_fexit_refused"]

_FEXIT_TRIAL = THIS.native_function("mseal")
_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit


def load_and_attach(
    request: LoadRequest, diagnostics: int, existing: Existing = NOTHING_EXISTS
) -> tuple[dict[str, Any], list[int]]:
    """What is attached, as an answer for the parent, and its descriptors. Raises LoadError.

    With maps that are `existing` the programs only wait: Loaded.fill() has the hooks run them.

    `diagnostics`: the file that standard error goes to.
    """
    try:
        return _load_and_attach(request, diagnostics, existing)
    except object.ObjectError as error:
        raise WrongObjectError(str(error)) from error
    except (LayoutError, bpf.LibraryError) as error:
        raise LoadError(str(error)) from error


def _load_and_attach(
    request: LoadRequest, diagnostics: int, existing: Existing
) -> tuple[dict[str, Any], list[int]]:
    mounted = tracefs.ensure()
    privileges.keep(privileges.for_loading())  # before it reads what others wrote
    wanted = [(probe, candidates(probe, request.attach, request.switches)) for probe in PROBES]
    path = request.path or compiler.OBJECT
    compiled, found = _object(path, diagnostics)
    kernel = look_at_kernel()
    impossible = _impossible(request, wanted, kernel, compiled)
    first = _first_choices(wanted, impossible)
    if mounted.problem and any(hook.mode == "tracepoint" for hook in first):
        raise LoadError(mounted.problem)
    programs = Programs(request, compiled, kernel, existing.maps)
    programs.load_all(first)
    attacher = _Attacher(request, programs, mounted, impossible, existing)
    attacher.attach_all(wanted)
    notes = []
    if not found:
        notes.append(
            f"no compiled programs at {path}: compiled them for this start; "
            "run: make setup, in a checkout"
        )
    return attacher.answer(_made(compiled, found, kernel), notes)


def _object(path: Path, diagnostics: int) -> tuple[object.Object, Path | None]:
    """The programs, and the file that they come from; None when they were compiled now."""
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
        raise LoadError(with_remedy(problem)) from error


def _made(compiled: object.Object, path: Path | None, kernel: Kernel) -> Made:
    marks = zip(layouts.MARKS, kernel.values, strict=True)
    absent = dict.fromkeys(
        layouts.describe(mark)
        for mark, value in marks
        if value is None and mark != layouts.OPERATION
    )
    built = path.stat().st_mtime if path else time.time()
    where = str(path) if path else ""
    return Made(where, compiled.digest, built, compiled.compiler, tuple(absent))


def look_at_kernel() -> Kernel:
    """Raises LayoutError."""
    with Btf() as btf:
        refused = why_fexit_refused(btf)
        return Kernel(layouts.values(btf), layouts.functions(btf), refused)


def why_fexit_refused(btf: Btf) -> str:
    """Why fexit programs cannot be loaded; empty when they can.

    Found out by loading one: a kernel may have every feature that they need and still refuse them.
    """
    function = btf.find(_FEXIT_TRIAL, KIND_FUNC)
    if function is None:
        return f"this kernel's BTF has no function {_FEXIT_TRIAL}"
    try:
        os.close(bpf.load_program(bpf.TRACING, "fexit_trial", _RETURN_ZERO, function))
    except OSError as error:
        return f"fexit programs are refused ({error.strerror})"
    return ""


def _impossible(
    request: LoadRequest,
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]],
    kernel: Kernel,
    compiled: object.Object,
) -> dict[Hook, str]:
    """Hooks that cannot work, and why: known before anything is loaded."""
    found = {}
    for hook in {hook for _, hooks in wanted for hook in hooks}:
        both = parts(hook)
        functions = [part.target for part in both if part.target not in kernel.functions]
        silent = [part.target for part in both if part.target in request.without]
        absent = {number for part in both for number in missing(part, compiled, kernel)}
        if hook.mode == "fexit" and kernel.fexit_refused:
            found[hook] = kernel.fexit_refused
        elif hook.mode == "fexit" and functions:
            found[hook] = (
                f"this kernel's BTF has no function {functions[-1]} of the form that is known"
            )
        elif silent:
            found[hook] = f"a refusal made to try {silent[-1]} was not seen there"
        elif absent:
            names = sorted(layouts.describe(layouts.MARKS[number]) for number in absent)
            found[hook] = f"this kernel's BTF has no {', '.join(names)}"
    return found


def _first_choices(
    wanted: Iterable[tuple[Probe, tuple[Hook, ...]]], impossible: Mapping[Hook, str]
) -> list[Hook]:
    """The hooks that are attached if the kernel accepts the first possible one of every probe."""
    possible = ([hook for hook in hooks if hook not in impossible] for _, hooks in wanted)
    return [part for hooks in possible if hooks for part in parts(hooks[0])]


class _Attacher:
    """Attaches each probe by the first of its hooks that the kernel accepts."""

    def __init__(
        self,
        request: LoadRequest,
        programs: Programs,
        mounted: tracefs.Tracefs,
        impossible: Mapping[Hook, str],
        existing: Existing,
    ) -> None:
        self._existing = existing
        self._waiting: list[int] = []
        self._request = request
        self._source = programs
        self._tracefs = mounted
        self._impossible = impossible
        self._slots: dict[Hook, Slot] = {}
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
        attached = [self._hooks.get(probe.carrier)] if probe.carrier else self._slots
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
                errors.append(with_remedy(f"cannot attach to {hook.target}: {error.strerror}"))
                continue
            self._add(probe, hook, *errors[:1])
            return
        switches = {hook.switch for hook in probe.hooks} - {""}
        if switches and not switches & self._request.switches:
            return  # nobody asked for it, so its absence is no problem
        problem = "; ".join(dict.fromkeys(errors))
        self._rows.append(AttachedProbe(probe.name, hooks[-1].mode, hooks[-1].target, problem, -1))

    def _add(self, probe: Probe, hook: Hook, fallback: str = "") -> None:
        self._hooks[probe.name] = hook
        program, *also = (self._slots[part].stub for part in (hook, *hook.also))
        row = AttachedProbe(probe.name, hook.mode, hook.target, "", program, fallback, tuple(also))
        self._rows.append(row)

    def _attach(self, hook: Hook) -> None:
        for part in parts(hook):
            if part not in self._slots:
                program = self._source.load(part)
                self._slots[part] = self._slot(part, program)

    def _slot(self, hook: Hook, program: int) -> Slot:
        function = function_of(hook, self._source.kernel)
        if not self._existing.maps:
            return attach(hook, program, function)
        found = self._existing.slots.get(key_of(hook)) or attach(hook, None, function)
        self._waiting.append(program)
        return found

    def answer(self, made: Made, notes: list[str]) -> tuple[dict[str, Any], list[int]]:
        attached = [row for row in self._rows if row.attached]
        if not attached:
            raise LoadError(with_remedy("; ".join(dict.fromkeys(row.error for row in self._rows))))
        maps = {name: self._source.maps[name] for name in KEPT_MAPS} | self._source.arrays()
        slots = self._slots.values()
        of_slots = [each for slot in slots for each in slot[1:]]
        descriptors = [*maps.values(), *of_slots, *self._waiting]
        index = {descriptor: position for position, descriptor in enumerate(descriptors)}
        index[-1] = -1
        if self._tracefs.note and any(hook.mode == "tracepoint" for hook in self._slots):
            notes.append(self._tracefs.note)
        answer = {
            "maps": {name: index[descriptor] for name, descriptor in maps.items()},
            "slots": [[slot.key, *(index[each] for each in slot[1:])] for slot in slots],
            "waiting": [index[each] for each in self._waiting],
            "probes": [
                [*row[:4], index[row.program], row.fallback, [index[each] for each in row.also]]
                for row in self._rows
            ],
            "made": made,
            "notes": notes,
        }
        return answer, descriptors
