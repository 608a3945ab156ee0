"""The programs, attached and calibrated: what daemon and doctor hold."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monitor.attach import calibrate, trial
from monitor.attach.calibrate import Findings
from monitor.configuration.config import Config
from monitor.evidence.cgroups import cgroup_mount
from monitor.keep.identify import map_fields, map_id
from monitor.keep.ledger import Ledger
from monitor.keep.record import HOOKS_BLIND, Facts, Found, unread_by
from monitor.kernel import abi, loader
from monitor.kernel.abi import ANNOUNCED_CGROUPS, ANNOUNCED_PROCESSES
from monitor.kernel.announced import Marks
from monitor.kernel.arch import THIS
from monitor.kernel.counters import KernelState
from monitor.kernel.grace import Grace
from monitor.kernel.loaded import KEPT_MAPS, Existing
from monitor.kernel.probes import AT_SEAL, reporters
from monitor.kernel.ring import Ring
from monitor.kernel.slots import target_of
from monitor.provoke.child import nobody

__all__ = [
    "Attached",
    "Beginning",
    "Replacing",
    "Resumed",
    "configure",
    "limit_workloads",
    "request",
]

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
    kernel.workloads_max = maximum
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
            self.found.close()


class Replacing:
    """Programs that an earlier life attached, and others that are loaded to take their place.

    Begin before the process starts any thread: it forks.
    """

    def __init__(self, found: Found, wanted: loader.LoadRequest) -> None:
        self.found = found
        self.wanted = replace(wanted, without=found.facts.blind)
        loaded = found.loaded
        others = {"ring"} if found.ring_size != wanted.ring_size else set()
        maps = {name: loaded.maps[name] for name in KEPT_MAPS if name not in others}
        slots = {slot.key: slot for slot in loaded.slots}
        self._loading = loader.Loading(self.wanted, Existing(maps, slots))
        self._loaded: loader.Loaded | None = None

    def finish(self) -> loader.Loaded:
        """The others, once they are loaded. Raises LoadError."""
        if self._loaded is None:
            self._loaded = self._loading.finish()
        return self._loaded

    def close(self) -> None:
        self._loading.close()
        self.found.close()
        if self._loaded:
            self._loaded.close()


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
        beginning: Beginning | Replacing | Resumed | None = None,
        announce: Callable[[int], None] = nobody,
        ledger: Ledger | None = None,
    ) -> None:
        """`beginning`: the load of what is `wanted`, when it has begun already. `announce` is
        called with the pid of each process that is about to try something. `ledger`: where it is
        counted what was taken from the ring.
        """
        self._wanted = wanted
        self._announce = announce
        self._ledger = ledger
        self._taken = ledger.words("taken") if ledger else None
        self._facts: Facts | None = None
        self._replaced: Found | None = None
        if isinstance(beginning, Resumed):
            found = beginning.take()
            self._go_on(found, found.loaded)
            found.close_unread()
        elif isinstance(beginning, Replacing):
            self._wanted = beginning.wanted
            self._replaced = beginning.found
            self._go_on(beginning.found, beginning.finish())
        else:
            self._finish(beginning or Beginning(wanted))

    def _go_on(self, found: Found, loaded: loader.Loaded) -> None:
        """With the maps of an earlier life."""
        self._facts = found.facts
        with contextlib.ExitStack() as cleanup:
            self._map(cleanup, loaded, found)
            limit_workloads(self.state.config, self._wanted.workloads_max)
            # Trials that ended, or lost their connection, with the monitor that they asked.
            self.state.config.canary_pid = 0
            marks = Marks(self.state.config, found.loaded.maps["announced_cgroups"])
            for place in range(ANNOUNCED_PROCESSES + ANNOUNCED_CGROUPS):
                marks.free(place)
            self._cleanup = cleanup.pop_all()

    def _map(
        self, cleanup: contextlib.ExitStack, loaded: loader.Loaded, found: Found | None = None
    ) -> None:
        self.loaded = loaded
        cleanup.callback(self.loaded.close)
        self._grace = Grace()
        cleanup.callback(self._grace.close)
        self.state = KernelState(self.loaded, self._grace.wait)
        cleanup.callback(self.state.close)
        self.ring = self._ring(found)
        cleanup.callback(self.ring.close)

    def _ring(self, found: Found | None) -> Ring:
        """That of the programs, and before it what is not yet read of those of an earlier life."""
        unread = unread_by(self.loaded, found)
        self._unread = [each.name for each in unread]
        older = [self._opened(os.dup(each.descriptor)) for each in unread]
        ring = self._opened(self.loaded.maps["ring"], older)
        if not found:
            ring.begin()
        return ring

    def _opened(self, descriptor: int, older: Sequence[Ring] = ()) -> Ring:
        size = map_fields(descriptor)["max_entries"]
        return Ring(
            descriptor,
            size,
            self._taken,
            number=map_id(descriptor),
            older=older,
            wait=self._grace.wait,
        )

    def read_out(self) -> list[str]:
        """Names by which rings are kept that were read to their end since this was asked last."""
        count = len(self._unread) - len(self.ring.older)
        names, self._unread = self._unread[:count], self._unread[count:]
        return names

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
            self._say_who_reports()
            self._cleanup = cleanup.pop_all()

    def _say_who_reports(self) -> None:
        """Which of the attached programs report which calls."""
        kernel = self.state.config
        kernel.pid_namespace = _PID_NAMESPACE.stat().st_ino
        targets = {p.probe: p.target for p in self.loaded.probes if p.attached}
        by_hook = reporters(targets.items())
        kernel.function_operations = by_hook.functions
        kernel.raw_operations, kernel.compat_operations = by_hook.raw, by_hook.compat
        kernel.raw_mseal = targets.get("mseal") == "sys_exit"
        kernel.compat_mseal = targets.get("mseal") != THIS.compat_function("mseal")
        kernel.raw_pokes = targets.get("ptrace_poke") == "sys_exit"
        kernel.compat_pokes = targets.get("ptrace_poke") != "access_remote_vm"

    @property
    def facts(self) -> Facts | None:
        """What an earlier life has found out; None when this one did."""
        return self._facts

    @property
    def without(self) -> frozenset[str]:
        """Functions that do not see what they must."""
        return self._wanted.without

    def hand_over(self) -> float:
        """Have the programs of an earlier life replaced, each at once; nothing before is touched.

        Returns for how many seconds hooks that only one of the two has may both have reported a
        call that was under way, or neither; 0.0 when they have the same. Raises OSError, after
        which it can be done again by the next life, and CalibrationError.
        """
        if not self._replaced:
            return 0.0
        before = {slot.key: slot for slot in self._replaced.loaded.slots}
        now = {slot.key for slot in self.loaded.slots}
        began = time.monotonic()
        self.loaded.fill()
        self._say_who_reports()
        for key in before.keys() - now:
            before[key].empty()
        seconds = time.monotonic() - began if before.keys() != now else 0.0
        self._grace.wait()  # programs of the earlier life have ended
        self._replaced.close()
        self._replaced = None
        if self._has_new_functions(before, now) and self._blind_targets():
            if self._ledger:
                self._ledger.doubt(HOOKS_BLIND, True)
            raise calibrate.CalibrationError("a function that was not tried before sees no refusal")
        return seconds

    @staticmethod
    def _has_new_functions(before: Iterable[str], now: Iterable[str]) -> bool:
        return any(target_of(key) in AT_SEAL for key in set(now).difference(before))

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
        if self._facts:
            return Findings(self._facts.guard_regions, self._facts.partial_updates)
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
