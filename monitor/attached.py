"""The programs, attached and calibrated: what daemon and doctor hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

from monitor import calibrate, loader
from monitor.config import Config
from monitor.counters import KernelState
from monitor.operations import OPERATIONS
from monitor.ring import Ring

__all__ = ["Attached", "request"]

_MIN_ADDRESS = Path("/proc/sys/vm/mmap_min_addr")


def request(config: Config) -> loader.LoadRequest:
    """What to load for this configuration."""
    switches = {"watch.compat": config.watch.compat, "watch.io_uring": config.watch.io_uring}
    return loader.LoadRequest(
        attach=config.attach,
        switches=frozenset(name for name, is_on in switches.items() if is_on),
        ring_size=config.ring.size,
        workloads_max=config.workloads.maximum,
    )


class Attached:
    """Use as a context manager: leaving it detaches everything. Raises LoadError.

    Nothing is reported before calibrate() has found the seal bit.
    """

    def __init__(self, wanted: loader.LoadRequest) -> None:
        with contextlib.ExitStack() as cleanup:
            # It starts while the programs compile.
            self._trying = cleanup.enter_context(calibrate.start())
            cleanup.callback(self._trying.kill)
            self.loaded = loader.load(wanted)
            cleanup.callback(self.loaded.close)
            self.state = KernelState(self.loaded)
            cleanup.callback(self.state.close)
            self.ring = Ring(self.loaded.maps["ring"], wanted.ring_size)
            cleanup.callback(self.ring.close)
            kernel = self.state.config
            kernel.mmap_min_addr = int(_MIN_ADDRESS.read_text("ascii"))
            # The raw tracepoint reports what no tracepoint does, and nothing twice.
            raw = {p.probe for p in self.loaded.probes if p.attached and p.target == "sys_exit"}
            kernel.raw_mseal = "mseal" in raw
            kernel.raw_operations = sum(
                1 << index for index, operation in enumerate(OPERATIONS) if operation.name in raw
            )
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def calibrate(self) -> calibrate.Findings:
        """Find out what this kernel does.

        Raises CalibrationError, and LoadError when the probe that it needs is not attached.
        """
        for probe in self.loaded.probes:
            if probe.probe == "mseal" and not probe.attached:
                raise loader.LoadError(f"probe mseal is not attached: {probe.error}")
        return calibrate.calibrate(self._trying, self.state.config, self.ring)
