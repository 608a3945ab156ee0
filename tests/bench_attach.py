"""Which calls are measured, and what is attached meanwhile: empty programs, or seal-monitor's."""

from __future__ import annotations

from monitor import abi, loader
from monitor.abi import Cause, Verdict
from monitor.probes import PROBES

__all__ = ["CALLS", "CannotAttach", "attach_empty", "limit", "require_mode"]

# By their name in tests/assets/bench.c, how they are called in the report.
CALLS = {
    "getppid": "getppid",
    "mprotect": "mprotect",
    "munmap+mmap": "munmap+mmap",
    "madvise": "madvise",
    "denied": "mprotect denied",
    "page fault": "page fault",
    "SIGSEGV": "handled SIGSEGV",
}


class CannotAttach(Exception):
    """This kernel does not allow it, and why."""


def _empty_programs(*_: object) -> str:
    """For every program that the tables name one that does nothing, and the maps beside them."""
    hooks = [hook for probe in PROBES for hook in probe.hooks]
    tails = loader._TAILS.values()
    programs = {part.program for hook in hooks for part in (hook, *hook.also)}
    programs |= {program for _, targets, _ in tails for program in targets}
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"BPF_ARRAY({name}, u64, 1);" for name in loader._MAPS),
            *(f"BPF_PROG_ARRAY({name}, {len(targets)});" for name, targets, _ in tails),
            *(f"int {name}(void *context) {{ return 0; }}" for name in sorted(programs)),
        )
    )


def require_mode(loaded: loader.Loaded, mode: str) -> None:
    """Raises CannotAttach unless the probe of mprotect is attached in this mode."""
    (probe,) = (probe for probe in loaded.probes if probe.probe == "mprotect")
    if not probe.attached:
        raise CannotAttach(probe.error)
    if probe.mode != mode:
        raise CannotAttach(f"attached by {probe.mode} instead")


def attach_empty(mode: str) -> loader.Loaded:
    """Programs that do nothing at the hooks of this mode. Raises CannotAttach, LoadError."""
    real = loader._program_text
    loader._program_text = _empty_programs  # type: ignore[assignment]
    try:
        loaded = loader.load(loader.LoadRequest(attach=mode))
    finally:
        loader._program_text = real
    try:
        require_mode(loaded, mode)
    except CannotAttach:
        loaded.close()
        raise
    return loaded


def limit(kernel: abi.Config, name: str) -> None:
    """Set what becomes of events: `filtered`, `held_back` but for one a second, `unlimited`."""
    is_filtered = name == "filtered"
    interval = 10**9 if name == "held_back" else 0
    kernel.emit_verdicts = 0 if is_filtered else (1 << len(Verdict)) - 1
    kernel.emit_causes = 0 if is_filtered else (1 << len(Cause)) - 1
    kernel.event_interval_ns = kernel.host_interval_ns = interval
    kernel.event_burst_ns = kernel.host_burst_ns = 0
