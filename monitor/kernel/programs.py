"""The maps and programs of an object, made and loaded as they are needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from monitor.kernel import bpf, layouts, object
from monitor.kernel.abi import Bank
from monitor.kernel.loaded import LoadError, LoadRequest, possible_cpus
from monitor.kernel.privileges import with_remedy
from monitor.kernel.probes import Hook
from monitor.kernel.slots import TYPES

__all__ = ["Kernel", "Programs", "function_of", "missing", "parts"]

# For each program array its type and programs, in the order of enum tail. The kernel empties an
# array when its last descriptor is closed.
_TAILS = {
    "tracepoint_tails": (bpf.TRACEPOINT, ("denied", "changed")),
    "raw_tails": (bpf.RAW_TRACEPOINT, ("raw_denied", "raw_changed")),
}


class Kernel(NamedTuple):
    """The running kernel. `fexit_refused`: why it takes no fexit programs; empty when it does."""

    values: list[int | None]  # of the marks
    functions: dict[str, int]  # BTF ids
    fexit_refused: str


def parts(hook: Hook) -> tuple[Hook, ...]:
    """All that must be attached for a hook, in this order."""
    return (*hook.also, hook)


def function_of(hook: Hook, kernel: Kernel) -> int:
    """BTF id of the function that an fexit hook is at; 0 for the others."""
    return kernel.functions[hook.target] if hook.mode == "fexit" else 0


def missing(hook: Hook, compiled: object.Object, kernel: Kernel) -> set[int]:
    """Marks that the hook's programs need and this kernel has no value for."""
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


class Programs:
    """Maps of the sizes asked for, and the programs of an object, loaded as they are needed."""

    def __init__(
        self,
        request: LoadRequest,
        compiled: object.Object,
        kernel: Kernel,
        existing: Mapping[str, int] | None = None,
    ) -> None:
        """`existing`: maps by name that are used as they are."""
        self._compiled = compiled
        self.kernel = kernel
        self._loaded: dict[str, int | OSError] = {}
        entries = {
            "ring": request.ring_size,
            "counters": possible_cpus() * len(Bank),
            "buckets": request.buckets_max,
        }
        self.maps: dict[str, int] = {}
        for each in compiled.maps:
            if existing and each.name in existing:
                self.maps[each.name] = existing[each.name]
                continue
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
                raise LoadError(with_remedy(problem)) from error
        self._descriptors = list(self.maps.values())

    def load_all(self, hooks: Iterable[Hook]) -> None:
        """Load what is likely to be attached, on all CPUs at once. load() raises the errors."""
        jobs = {job[1]: job for hook in hooks for job in self._jobs(hook)}
        waiting = sorted(jobs.values(), key=lambda job: len(job[2].instructions))

        def work() -> None:
            while waiting:
                try:
                    job = waiting.pop()  # the longest that is left
                except IndexError:  # another thread took the last one
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

    def logs(
        self, hook: Hook, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, str, OSError | None]]:
        """For the hook's programs with a wanted name: name, verifier's log, why it is refused."""
        for kind, name, program, function, operation in self._jobs(hook):
            if not wanted(name):
                continue
            values = _with_operation(self.kernel.values, operation)
            instructions = program.patched(self._descriptors, values)
            yield name, *bpf.verifier_log(kind, name, instructions, function)

    def arrays(self) -> dict[str, int]:
        """The program arrays that a loaded program may call into."""
        return {
            name: self.maps[name]
            for name, (_, tails) in _TAILS.items()
            if any(isinstance(self._loaded.get(tail), int) for tail in tails)
        }

    def _jobs(self, hook: Hook) -> Iterator[tuple[int, str, object.Program, int, int]]:
        """Arguments of _load() for the programs that the hook's program calls, then for itself."""
        program = self._compiled.programs[hook.template or hook.program]
        for number in sorted(program.maps()):
            kind, tails = _TAILS.get(self._compiled.maps[number].name, (0, ()))
            for tail in tails:
                yield kind, tail, self._compiled.programs[tail], 0, -1
        function = function_of(hook, self.kernel)
        yield TYPES[hook.mode], hook.program, program, function, hook.operation

    def _load(
        self, kind: int, name: str, program: object.Program, function: int, operation: int
    ) -> None:
        if name in self._loaded:
            return
        values = _with_operation(self.kernel.values, operation)
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
