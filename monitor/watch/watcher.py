"""What the daemon and exec share: the attached programs, and all that makes events from records."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor.attach.attached import Attached, Beginning, Replacing, Resumed, configure, request
from monitor.configuration.config import Config
from monitor.evidence.attribution import Attribution
from monitor.evidence.cgroups import Cgroups
from monitor.evidence.events import Host
from monitor.evidence.identity import Identities
from monitor.evidence.reported import Reported
from monitor.evidence.severities import Severities
from monitor.evidence.suppression import IDLE_NS, Suppressions
from monitor.evidence.workloads import Workloads
from monitor.host.facts import host_name, kernel_seals
from monitor.keep.ledger import Ledger
from monitor.keep.record import RECORDS_CORRUPT
from monitor.kernel import abi
from monitor.metrics.tally import Tally
from monitor.provoke.child import nobody
from monitor.sinks.delivery import Delivery
from monitor.watch.backlog import Backlog
from monitor.watch.losses import Losses, Report
from monitor.watch.pipeline import Pipeline
from monitor.watch.pump import Pump

__all__ = ["Watcher"]


class Watcher:
    """Used by one thread, as a context manager: leaving it detaches everything.

    Records go from `ring` by `pump` and `pipeline` to the sinks; `state` has the counters,
    `workloads` the denials of each workload.
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        delivery: Delivery,
        tally: Tally,
        *,
        beginning: Beginning | Replacing | Resumed | None = None,
        idle_ns: int = IDLE_NS,
        take: Callable[[Sequence[abi.Record]], None] | None = None,
        has_room: Callable[[], bool] = lambda: True,
        ask_snapshot: Callable[[Mapping[str, Any], abi.Record], None] | None = None,
        report: Report | None = None,
        announce: Callable[[int], None] = nobody,
        is_prompt: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        """`beginning` and `announce` are for Attached.
        `idle_ns` is for Suppressions, `take` and `has_room` for Pump, `ask_snapshot` for Pipeline.
        `report` gets what was lost or cannot be read; None: it becomes a health event.
        `ledger`: where it counts; one of an earlier life goes on, with the programs of `beginning`.
        `is_prompt`: where records are read too late, fewer of a flood may wait before others'.

        Raises LoadError, CalibrationError.
        """
        with contextlib.ExitStack() as cleanup:
            attached = cleanup.enter_context(Attached(request(config), beginning, announce, ledger))
            self.findings = attached.calibrate()
            self.attached = attached
            self.loaded, self.state, self.ring = attached.loaded, attached.state, attached.ring
            # Only now: a record made before would be taken for one of the calibration's.
            configure(self.state.config, config)
            cgroups = Cgroups()
            self.workloads = Workloads(
                self.state, cgroups, maximum=config.workloads.maximum, ledger=ledger
            )
            self.severities = Severities(cgroups, config.workloads.maximum, ledger=ledger)
            attribution = Attribution(Identities(command_line=config.events.command_line), cgroups)
            reported = Reported()
            self.pipeline = Pipeline(
                host,
                self.state.config.sealed_mask,
                attribution=attribution,
                delivery=delivery,
                tally=tally,
                severities=self.severities,
                mutes=config.mutes,
                reported=reported,
                ask_snapshot=ask_snapshot,
                host_name=host_name,
                kernel_seals=kernel_seals(),
            )
            self._tally = tally
            self._ledger = ledger
            self._report = report or self.pipeline.health
            losses = Losses(self.loaded, self.state, self._report, ledger=ledger)
            self.missed_before = losses.missed_before
            self.pump = Pump(
                self.ring,
                self.pipeline,
                Suppressions(
                    self.state, idle_ns, cgroups.subtree, ledger, severity=reported.severity
                ),
                losses,
                take=take,
                corrupt=self._count_corrupt,
                merged=self._count_merged,
                trouble=functools.partial(self._report, "probe_degraded"),
                has_room=has_room,
                backlog=Backlog(self.state.config, self.ring.size) if is_prompt else None,
            )
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def reconfigure(self, config: Config) -> None:
        """Apply what may change while the programs run."""
        configure(self.state.config, config)
        self.pipeline.reconfigure(config)

    def _count_corrupt(self, entries: int) -> None:
        self._tally.decode_error(entries)
        if self._ledger:
            self._ledger.doubt(RECORDS_CORRUPT, True)
        self._report("records_corrupt", f"{entries} entries of the ring were no records")

    def _count_merged(self, records: int) -> None:
        """Their faults become events by other records, which have more to say."""
        self._tally.judged("fault", records)
        self._tally.event("fault", "filtered", records)
