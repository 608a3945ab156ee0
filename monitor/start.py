"""The first moments of a daemon: the programs are loaded while the rest of it is imported."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass, field

from monitor.attach.attached import Beginning, Replacing, Resumed, request
from monitor.configuration.config import Config
from monitor.keep import handed, record
from monitor.keep.handed import Handed
from monitor.keep.keeper import Keeper, choose
from monitor.keep.ledger import Ledger
from monitor.kernel import privileges
from monitor.kernel.bpf import LibraryError
from monitor.kernel.loaded import LoadRequest

__all__ = ["Start", "begin"]


@dataclass
class Start:
    """`programs`: being loaded, or those of an earlier life. `notes`: why what was kept of that
    life is not used, and what cannot be kept; for the event `started`. `generation`: of what is
    kept from now on. `leftovers`: descriptors by name of an earlier life, which go on until others
    are attached.
    """

    programs: Beginning | Replacing | Resumed
    ledger: Ledger
    wanted: LoadRequest
    keeper: Keeper
    notes: list[str]
    generation: int = 1
    leftovers: Handed = field(default_factory=lambda: Handed({}))

    def forget(self, names: Collection[str] = ()) -> None:
        """Have the keeper let go of these, and of the leftovers."""
        wanted = {*names, *self.leftovers.descriptors}
        self.leftovers.close()
        if not (wanted and self.keeper.is_there):
            return
        try:
            self.keeper.forget(wanted)
        except OSError as error:
            why = error.strerror or error
            self.notes.append(f"{self.keeper.name} does not let go of what it had ({why})")

    def let_go(self) -> None:
        """The monitor ends for good: nothing stays attached but what is for the next start all the
        same. Raises OSError.
        """
        self.keeper.stop()

    def close(self) -> None:
        self.programs.close()
        self.leftovers.close()


def _occupy_standard_descriptors() -> None:
    """Fill closed descriptors among 0, 1 and 2, so that no file opened later gets such a number.

    Writing to one still fails, and counts as an error of the sink.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)


def begin(config: Config) -> Start:
    """Take over the programs of an earlier life, or begin to load them, in children. Call it once,
    before anything is opened; close what it returns.
    """
    given = handed.take()
    _occupy_standard_descriptors()
    # A request to read the configuration again is ignored: it was read just now. Not by SIG_IGN,
    # which children would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    privileges.disinherit()
    wanted = request(config)
    keeper, given, notes = choose(
        config.state.pin, given, outlives_stop=config.state.pin_on_stop == "keep"
    )
    problem, generation = given.problem, 1
    if not keeper.outlives_stop:
        _stop_with_signals(keeper)
    if given.descriptors or problem:
        generation = record.generation_after(given.descriptors)
        found = _checked(given, wanted)
        if isinstance(found, record.Found):
            programs = Replacing(found, wanted) if found.changed else Resumed(found)
            leftovers = Handed(found.leftovers)
            return Start(programs, found.ledger, wanted, keeper, notes, generation, leftovers)
        problem = found
    if problem:
        notes.append(f"what {keeper.name} had kept is let go: {problem}")
    ledger = Ledger()
    if keeper.is_there:
        try:
            ledger = Ledger.shared(keeper.memory)
        except OSError as error:
            notes.append(f"{keeper.name} cannot keep counts: {error.strerror or error}")
    return Start(Beginning(wanted), ledger, wanted, keeper, notes, generation, given)


def _stop_with_signals(keeper: Keeper) -> None:
    """Until the daemon takes over these signals, they end the process and leave nothing."""

    def end(number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # there is nobody to report to
            keeper.stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _checked(given: Handed, wanted: LoadRequest) -> record.Found | str:
    """The set, or why it is not used."""
    if given.problem:
        return given.problem
    from monitor.kernel.compiler import OBJECT  # noqa: PLC0415 - seldom needed here

    try:
        return record.check(given.descriptors, wanted, wanted.path or OBJECT)
    except (LibraryError, record.SetError) as error:
        return str(error)
