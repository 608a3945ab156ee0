"""Opens the store of incidents, if the configuration asks for one; only then imports SQLite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.configuration.config import Incidents

if TYPE_CHECKING:
    from monitor.incidents.store import IncidentStore

__all__ = ["open_incidents"]

NEW_AN_HOUR = 100  # incidents of one user: a broken program makes a few


def open_incidents(
    wanted: Incidents, directory: Path | None, report: Callable[[str], None]
) -> IncidentStore | None:
    """The store, if it is wanted and `directory` can be written to.

    The store calls `report` with each problem.
    """
    if not (wanted.enabled and directory):
        return None
    if not os.access(directory, os.W_OK, effective_ids=True):
        return None
    from monitor.incidents.store import IncidentStore, Retention  # noqa: PLC0415 - SQLite: 2 MB

    retention = Retention(wanted.max_age, wanted.max_size, wanted.events_kept, NEW_AN_HOUR)
    return IncidentStore(directory, retention, report)
