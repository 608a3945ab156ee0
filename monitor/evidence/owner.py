"""Whose an event is, where room is shared out between those who make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from monitor.evidence.cgroups import top_workload
from monitor.untrusted.printable import printable

__all__ = ["NOBODY", "Owner", "owner_of"]

_LIMIT = 256


class Owner(NamedTuple):
    """Who makes violations: the outermost workload (cgroups.py) and the uid there.

    All users of one workload are one as well: of a user namespace, he may be any of thousands.
    """

    workload: str
    user: str

    @property
    def words(self) -> str:
        return f"user {self.user or 'unknown'} in {self.workload or 'no known workload'}"


NOBODY = Owner("", "")  # of the monitor's own events, and of those without a process


def owner_of(event: Mapping[str, Any]) -> Owner:
    """`event` as in the schema."""
    uid = (event.get("process") or {}).get("uid")
    path = (event.get("workload") or {}).get("cgroup")
    workload = top_workload(path) if isinstance(path, str) else ""
    user = str(uid) if isinstance(uid, int) else ""
    return Owner(printable(workload, _LIMIT), user)
