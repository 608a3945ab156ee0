"""Which calls are measured, and what is attached meanwhile: empty programs, or seal-monitor's."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from monitor.kernel import abi, bpf, compiler, loader, object
from monitor.kernel.abi import Cause, Verdict
from monitor.kernel.btf import KIND_FUNC, Btf
from monitor.kernel.slots import Slot

__all__ = ["CALLS", "CannotAttach", "attach_empty", "limit", "require_mode"]

# Name in tests/assets/bench.c -> name in the report.
CALLS = {
    "getppid": "getppid",
    "mprotect": "mprotect",
    "munmap+mmap": "munmap+mmap",
    "madvise": "madvise",
    "denied": "mprotect denied",
    "page fault": "page fault",
    "SIGSEGV": "handled SIGSEGV",
}


_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit


class CannotAttach(Exception):
    """This kernel does not allow it, and why."""


def _empty_object() -> object.Object:
    """The maps, and programs of the same names that do nothing."""
    made = object.read(compiler.OBJECT, compiler.digests())
    empty = {name: object.Program(name, _RETURN_ZERO, b"") for name in made.programs}
    return dataclasses.replace(made, programs=empty)


def require_mode(loaded: loader.Loaded, mode: str) -> None:
    """Raises CannotAttach unless the probe of mprotect is attached in this mode."""
    (probe,) = (probe for probe in loaded.probes if probe.probe == "mprotect")
    if not probe.attached:
        raise CannotAttach(probe.error)
    if probe.mode != mode:
        raise CannotAttach(f"attached by {probe.mode} instead")


def attach_empty(mode: str) -> loader.Loaded:
    """Programs that do nothing at the hooks of this mode. Raises CannotAttach, LoadError."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(object.serialize(_empty_object()))
        file.flush()
        loaded = loader.load(loader.LoadRequest(attach=mode, path=Path(file.name)))
    try:
        require_mode(loaded, mode)
        loaded.slots[:] = list(map(_directly, loaded.slots))
    except CannotAttach:
        loaded.close()
        raise
    return loaded


def _directly(slot: Slot) -> Slot:
    """The same hook with nothing between it and a program: what any program costs."""
    mode, target, name = slot.key.split()
    os.close(slot.link)
    if mode == "fexit":
        with Btf() as btf:
            function = btf.find(target, KIND_FUNC) or 0
        program = bpf.load_program(bpf.TRACING, name, _RETURN_ZERO, function)
        link = bpf.attach_fexit(program)
    elif mode == "tracepoint":
        program = bpf.load_program(bpf.TRACEPOINT, name, _RETURN_ZERO)
        link = bpf.attach_tracepoint(target, program)
    else:
        program = bpf.load_program(bpf.RAW_TRACEPOINT, name, _RETURN_ZERO)
        link = bpf.attach_raw_tracepoint(target, program)
    os.close(program)
    return slot._replace(link=link)


def limit(kernel: abi.Config, name: str) -> None:
    """Set what becomes of events: `filtered`, `held_back` (one a second passes) or `unlimited`."""
    is_filtered = name == "filtered"
    interval = 10**9 if name == "held_back" else 0
    kernel.emit_verdicts = 0 if is_filtered else (1 << len(Verdict)) - 1
    kernel.emit_causes = kernel.emit_handled = 0 if is_filtered else (1 << len(Cause)) - 1
    kernel.event_interval_ns = kernel.host_interval_ns = interval
    kernel.event_burst_ns = kernel.host_burst_ns = 0
