"""The programs, attached and calibrated: what daemon and doctor hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from monitor.attach import calibrate, trial
from monitor.attach.calibrate import Findings
from monitor.configuration.config import Config
from monitor.evidence.cgroups import cgroup_mount
from monitor.keep.ledger import Ledger
from monitor.keep.record import Found
from monitor.kernel import abi, loader
from monitor.kernel.abi import ANNOUNCED_CGROUPS, ANNOUNCED_PROCESSES
from monitor.kernel.announced import Marks
from monitor.kernel.arch import THIS
from monitor.kernel.counters import KernelState
from monitor.kernel.probes import AT_SEAL, reporters
from monitor.kernel.ring import Ring
from monitor.provoke.child import nobody

__all__ = ["Attached", "Beginning", "Resumed", "configure", "limit_workloads", "request"]

SECOND_NS = 1_000_000_000
_FEW_WORKLOADS = 64  # of a subtree, which may have all of a small table
_MIN_ADDRESS = Path("/proc/sys/vm/mmap_min_addr")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def request(config: Config) -> loader.LoadRequest:
    """What to load for this configuration."""
    switches = {"watch.compat": config.watch.compat, "watch.io_uring": config.watch.io_uring}
    return loader.LoadRequest(
        attach=config.attach,
        switches=frozenset(name for name, is_on in switches.items() if is_on),
        ring_size=config.ring.size,
        workloads_max=config.workloads.maximum,
    )


def configure(kernel: abi.Config, config: Config) -> None:
    """Write into the kernel what can change while the programs run."""
    limit = config.rate_limit
    kernel.event_interval_ns = SECOND_NS // limit.per_caller
    kernel.event_burst_ns = (limit.burst - 1) * kernel.event_interval_ns
    kernel.host_interval_ns = SECOND_NS // limit.host if limit.host else 0
    kernel.host_burst_ns = (limit.host - 1) * kernel.host_interval_ns
    kernel.emit_verdicts = sum(1 << v for v in abi.Verdict if v.label in config.events.denials)
    kernel.emit_causes = sum(1 << c for c in abi.Cause if c.label in config.events.faults)
    kernel.emit_handled = sum(1 << c for c in abi.Cause if c.label in config.events.handled_faults)
    kernel.emit_seals = config.events.seals


def limit_workloads(kernel: abi.Config, maximum: int, root: Path | None = None) -> None:
    """Share the places out: a quarter for each cgroup subtree, the last quarter for services.

    `root` is the cgroup2 mount; found in /proc/self/mountinfo when it is None.
    """
    kernel.subtree_workloads = min(max(maximum // 4, _FEW_WORKLOADS), maximum)
    kernel.ordinary_workloads = maximum - maximum // 4
    root = root or cgroup_mount()
    try:
        kernel.system_slice = (root / "system.slice").stat().st_ino if root else 0
    except OSError:  # a host without systemd
        kernel.system_slice = 0


class Resumed:
    """Programs that an earlier life attached and calibrated."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self._is_taken = False

    def take(self) -> Found:
        """They belong to the caller from now on."""
        self._is_taken = True
        return self.found

    def close(self) -> None:
        if not self._is_taken:
            self._is_taken = True
            self.found.loaded.close()


class Beginning:
    """Two children at work: one loads the programs, one gets ready to try them.

    Begin before the process starts any thread: it forks.
    """

    def __init__(self, wanted: loader.LoadRequest) -> None:
        self.loading = loader.Loading(wanted)
        self.trying = calibrate.start()

    def close(self) -> None:
        self.loading.close()
        self.trying.kill()
        with self.trying:  # waits for it
            pass


class Attached:
    """Use as a context manager: leaving it detaches everything. Raises LoadError.

    The programs report nothing before calibrate() has found the seal bit.
    """

    def __init__(
        self,
        wanted: loader.LoadRequest,
        beginning: Beginning | Resumed | None = None,
        announce: Callable[[int], None] = nobody,
        ledger: Ledger | None = None,
    ) -> None:
        """`beginning`: the load of what is `wanted`, when it has begun already. `announce` is
        called with the pid of each process that is about to try something. `ledger`: where it is
        counted what was taken from the ring.
        """
        self._wanted = wanted
        self._announce = announce
        self._taken = ledger.words("taken") if ledger else None
        self._resumed: Found | None = None
        if isinstance(beginning, Resumed):
            self._resume(beginning.take())
        else:
            self._finish(beginning or Beginning(wanted))

    def _resume(self, found: Found) -> None:
        self._resumed = found
        with contextlib.ExitStack() as cleanup:
            self._map(cleanup, found.loaded)
            # Trials that ended, or lost their connection, with the monitor that they asked.
            self.state.config.canary_pid = 0
            marks = Marks(self.state.config, found.loaded.maps["announced_cgroups"])
            for place in range(ANNOUNCED_PROCESSES + ANNOUNCED_CGROUPS):
                marks.free(place)
            self._cleanup = cleanup.pop_all()

    def _map(self, cleanup: contextlib.ExitStack, loaded: loader.Loaded) -> None:
        self.loaded = loaded
        cleanup.callback(self.loaded.close)
        self.state = KernelState(self.loaded)
        cleanup.callback(self.state.close)
        self.ring = Ring(self.loaded.maps["ring"], self._wanted.ring_size, self._taken)
        cleanup.callback(self.ring.close)

    def _finish(self, beginning: Beginning) -> None:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(beginning.close)
            self._trying = beginning.trying
            self._map(cleanup, beginning.loading.finish())
            kernel = self.state.config
            kernel.hash_seed = int.from_bytes(os.urandom(8), "little")
            kernel.ordinary_ring = self.ring.size - self.ring.size // 4
            limit_workloads(kernel, self._wanted.workloads_max)
            kernel.mmap_min_addr = int(_MIN_ADDRESS.read_text("ascii"))
            kernel.pid_namespace = _PID_NAMESPACE.stat().st_ino
            targets = {p.probe: p.target for p in self.loaded.probes if p.attached}
            by_hook = reporters(targets.items())
            kernel.function_operations = by_hook.functions
            kernel.raw_operations, kernel.compat_operations = by_hook.raw, by_hook.compat
            kernel.raw_mseal = targets.get("mseal") == "sys_exit"
            kernel.compat_mseal = targets.get("mseal") != THIS.compat_function("mseal")
            kernel.raw_pokes = targets.get("ptrace_poke") == "sys_exit"
            kernel.compat_pokes = targets.get("ptrace_poke") != "access_remote_vm"
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def calibrate(self) -> Findings:
        """Find out what this kernel does.

        A probe whose hook does not see what it must is attached by its next hook. For that all is
        loaded again, and `loaded`, `state` and `ring` are new objects. Raises CalibrationError, and
        LoadError when the probe of mseal is not attached.
        """
        if self._resumed:
            return Findings(self._resumed.guard_regions, self._resumed.partial_updates)
        findings = self._calibrate()
        blind = self._blind_targets()
        if not blind:
            return findings
        self._cleanup.close()
        self._wanted = replace(self._wanted, without=self._wanted.without | blind)
        self._finish(Beginning(self._wanted))
        return self.calibrate()

    def _blind_targets(self) -> set[str]:
        """Functions that were not called when their operation was refused."""
        targets = {p.probe: p.target for p in self.loaded.probes if p.target in AT_SEAL}
        unseen = trial.unseen(self.state, self._announce) if targets else ()
        return {targets[operation] for operation in unseen if operation in targets}

    def _calibrate(self) -> Findings:
        for probe in self.loaded.probes:
            if probe.probe == "mseal" and not probe.attached:
                raise loader.LoadError(f"probe mseal is not attached: {probe.error}")
        return calibrate.calibrate(self._trying, self.state.config, self.ring, self._announce)
