"""Waiting until runs of BPF programs that have begun are over."""

from __future__ import annotations

import os
from collections.abc import Callable

from monitor.kernel import bpf
from monitor.kernel.syscalls import grace_period

__all__ = ["Grace"]


class Grace:
    """Needs CAP_BPF to be made, and no capability afterwards. Raises OSError then."""

    def __init__(self, ask: Callable[[], bool] = grace_period) -> None:
        """`ask` the kernel to wait first; whether it did."""
        self._ask = ask
        self._inner = bpf.create_map(bpf.ARRAY, "grace", key=4, value=4, entries=1, flags=0)
        try:
            self._outer = bpf.create_map(
                bpf.ARRAY_OF_MAPS, "grace", key=4, value=4, entries=1, flags=0, inner=self._inner
            )
        except OSError:
            os.close(self._inner)
            raise

    def wait(self) -> None:
        """Runs of programs that began before are over, as all of them are in sections of RCU.

        Where membarrier(2) does not wait for that, an update of a map of maps does: "bpf: wait for
        running BPF programs when updating map-in-map" (1ae80cf31938). It comes second, as the
        kernel skips programs on this CPU for some instructions of it. Raises OSError.
        """
        if not self._ask():
            bpf.set_element(self._outer, 0, self._inner)

    def close(self) -> None:
        os.close(self._outer)
        os.close(self._inner)
