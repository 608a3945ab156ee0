"""Who is served next, and who gives way: places are shared fairly by source.

A source is an address, or the network of 64 bits that one owner of IPv6 addresses has.
"""

from __future__ import annotations

import select
import socket
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = ["Client", "Queue", "pick_slow", "source_of"]

FAIR_SECONDS = 0.05  # to send a request, before another may take the place
PATIENT_SECONDS = 0.2  # the same, if the other's source has as many places
BUSY = 10  # times as long, if the client has done its part and this host is too busy to go on

_V4_MAPPED = bytes(10) + b"\xff\xff"


def source_of(address: str) -> str:
    """The source of a client's address."""
    if ":" not in address:
        return address
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    if packed.startswith(_V4_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"


@dataclass(eq=False)
class Client:
    """`awaits`: what its connection waits for, as `poll` has it; 0 while the response is made.

    `since`: when it came, when it got its place, or when its response was made, whichever is the
    last; of the monotonic clock.
    """

    connection: socket.socket
    source: str
    since: float
    awaits: int = select.POLLIN
    gives_way: bool = False


class Queue:
    """Clients that wait for a place, at most `limit`, the oldest first.

    `knows` returns whether a client of this source has shown a right password.
    """

    def __init__(self, limit: int, knows: Callable[[str], bool]) -> None:
        self._limit = limit
        self._knows = knows
        self._waiting: dict[int, Client] = {}  # by descriptor
        self._poll = select.poll()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, client: Client) -> Client | None:
        """The client that has to go if there are too many: of the source that has the most, the
        oldest that has sent nothing yet, else the newest.
        """
        descriptor = client.connection.fileno()
        self._waiting[descriptor] = client
        self._poll.register(descriptor, select.POLLIN)
        if len(self._waiting) <= self._limit:
            return None
        (source, _), *_ = Counter(each.source for each in self._waiting.values()).most_common(1)
        theirs = [each for each in self._waiting.values() if each.source == source]
        sent = self._sent()
        return self._remove(next((each for each in theirs if each not in sent), theirs[-1]))

    def take(self, served: Collection[Client]) -> Client | None:
        """The client that is next: one that has sent something, of a source that is known, of the
        one that has the fewest places among those served.
        """
        if not self._waiting:
            return None
        return self._remove(self._next(served))

    def overdue(self, before: float) -> list[Client]:
        """Removes the clients that came before this time."""
        found = [each for each in self._waiting.values() if each.since < before]
        return [self._remove(each) for each in found]

    def clear(self) -> list[Client]:
        return self.overdue(float("inf"))

    def source_next(self, served: Collection[Client]) -> str:
        """The source of the client that `take` would return; there must be one."""
        return self._next(served).source

    def _next(self, served: Collection[Client]) -> Client:
        places = Counter(each.source for each in served)
        sent = self._sent()

        def rank(client: Client) -> tuple[bool, bool, int]:
            return client not in sent, not self._knows(client.source), places[client.source]

        return min(self._waiting.values(), key=rank)

    def _sent(self) -> set[Client]:
        return {self._waiting[descriptor] for descriptor, _ in self._poll.poll(0)}

    def _remove(self, client: Client) -> Client:
        descriptor = client.connection.fileno()
        self._poll.unregister(descriptor)
        return self._waiting.pop(descriptor)


def _is_ready(client: Client) -> bool:
    descriptor = client.connection.fileno()
    if descriptor < 0:  # it is ending
        return True
    poll = select.poll()
    poll.register(descriptor, client.awaits)
    return bool(poll.poll(0))


def pick_slow(served: Collection[Client], newcomer: str, now: float) -> Client | None:
    """The client that gives way to one of the source `newcomer`; None while there is none.

    It waits for its client, had a fair time, and is the oldest of the source that has the most
    places. A source with fewer places than the newcomer's keeps them.
    """
    places = Counter(each.source for each in served)

    def may_go(client: Client) -> bool:
        more = places[client.source] - places[newcomer]
        if not client.awaits or client.gives_way or more < 0:
            return False
        fair = FAIR_SECONDS if more > 0 or client.source == newcomer else PATIENT_SECONDS
        held = now - client.since
        return held >= fair * BUSY or (held >= fair and not _is_ready(client))

    slow = filter(may_go, served)
    return max(slow, key=lambda each: (places[each.source], -each.since), default=None)
