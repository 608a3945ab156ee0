"""The first moments of a daemon: the programs are loaded while the rest of it is imported."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from monitor.attach.attached import Beginning, Resumed, request
from monitor.configuration.config import Config
from monitor.keep import handed, record
from monitor.keep.ledger import Ledger
from monitor.keep.store import Store
from monitor.kernel import privileges
from monitor.kernel.bpf import LibraryError
from monitor.kernel.loaded import LoadRequest

__all__ = ["Start", "begin"]


@dataclass
class Start:
    """`programs`: being loaded, or those of an earlier life. `let_go`: why what was kept of that
    life is not used; empty where nothing was.
    """

    programs: Beginning | Resumed
    ledger: Ledger
    wanted: LoadRequest
    store: Store
    let_go: str = ""

    def close(self) -> None:
        self.programs.close()


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
    wanted, store = request(config), Store()
    problem = given.problem
    if given.descriptors:
        from monitor.kernel.compiler import OBJECT  # noqa: PLC0415 - seldom needed here

        try:
            found = record.check(given.descriptors, wanted, wanted.path or OBJECT)
            return Start(Resumed(found), found.ledger, wanted, store)
        except (LibraryError, record.SetError) as error:
            problem = str(error)
        names = list(given.descriptors)
        given.close()
        problem += _forgotten(store, names)
    ledger = Ledger.shared() if store.is_there else Ledger()
    return Start(Beginning(wanted), ledger, wanted, store, problem)


def _forgotten(store: Store, names: list[str]) -> str:
    """Have the manager close what it has kept; empty when it does."""
    if not store.is_there:
        return ""
    try:
        store.forget({*names, *record.NAMES})
    except OSError as error:
        return f"; systemd was not reached ({error.strerror or error})"
    return ""
