"""Who keeps the set for the next life: the directory `state.pin` names in a bpffs, or systemd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from monitor.keep.handed import Handed
from monitor.keep.store import Store

__all__ = ["Choice", "Keeper", "choose"]


class Keeper(Protocol):
    """`name`: as messages have it. `until`: what it keeps after a stop goes on until then.
    `is_there`: whether it can be trusted with the set.
    """

    name: str
    until: str

    @property
    def is_there(self) -> bool: ...

    @property
    def outlives_stop(self) -> bool:
        """Whether what it keeps goes on when the monitor is stopped, until it lets that go."""

    def memory(self, size: int) -> int:
        """A descriptor of memory that it can keep. Raises OSError."""

    def keep(self, groups: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Have it keep descriptors, by name, in this order. Raises OSError."""

    def forget(self, names: Iterable[str]) -> None:
        """Have it let go of all with these names. Raises OSError."""

    def stop(self) -> None:
        """The monitor ends for good: let go of all that nobody else lets go. Raises OSError."""


class Choice(NamedTuple):
    """`given`: what the keeper has of an earlier life. `notes` are for the event `started`."""

    keeper: Keeper
    given: Handed
    notes: list[str]


def choose(pin: Path | None, handed: Handed, *, outlives_stop: bool = False) -> Choice:
    """`pin`: the directory, or None; with `outlives_stop` it keeps the set when the monitor is
    stopped, too. `handed`: what systemd has handed over.
    """
    store = Store()
    if pin is None:
        return Choice(store, handed, [])
    from monitor.keep.pins import PinError, Pins  # noqa: PLC0415 - only where it is wanted

    try:
        pins = Pins(pin, outlives_stop=outlives_stop)
    except PinError as error:
        return Choice(store, handed, [f"state.pin is not used: {error}"])
    notes = []
    if handed.descriptors:
        names = list(handed.descriptors)
        handed.close()
        notes.append("what systemd had kept is let go: state.pin is used now")
        try:
            store.forget(names)
        except OSError as error:
            notes.append(f"systemd was not reached ({error.strerror or error})")
    return Choice(pins, pins.given(), notes)
