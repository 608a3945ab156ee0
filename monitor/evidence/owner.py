"""Whose an event is, where room is shared out between those who make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from monitor.evidence.cgroups import top_workload
from monitor.evidence.waiting import SUB_USERS, user_group
from monitor.untrusted.printable import printable

__all__ = ["NOBODY", "Owner", "owner_of"]

_LIMIT = 256
_SUB_USERS = str(SUB_USERS)


class Owner(NamedTuple):
    """Who makes violations: the outermost workload (cgroups.py) and the uid there.

    `user` is a uid in words; one for all from SUB_USERS on, of which one person has thousands in a
    user namespace.
    """

    workload: str
    user: str

    @property
    def words(self) -> str:
        user = f"users from {self.user} on" if self.user == _SUB_USERS else f"user {self.user}"
        return f"{user if self.user else 'user unknown'} in {self.workload or 'no known workload'}"


NOBODY = Owner("", "")  # of the monitor's own events, and of those without a process


def owner_of(event: Mapping[str, Any]) -> Owner:
    """`event` as in the schema."""
    uid = (event.get("process") or {}).get("uid")
    path = (event.get("workload") or {}).get("cgroup")
    workload = top_workload(path) if isinstance(path, str) else ""
    user = str(user_group(uid)) if isinstance(uid, int) else ""
    return Owner(printable(workload, _LIMIT), user)
