"""A fault whose handler could not run: the kernel has two records of it, which make one event.

The first says that a handler will be called. Its frame did not fit on the stack, so the kernel sent
the signal again, and the second record follows: 24 to 67 microseconds later on an idle machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitor.kernel.abi import Disposition, Kind, Record, RecordFlag

__all__ = ["SETTLE_NS", "settled_at", "without_first"]

SETTLE_NS = 1_000_000  # for the second; a thread that was preempted in between makes two events


def _thread(record: Record) -> tuple[int, int]:
    return record.pid, record.tid


def _is_fault(record: Record, disposition: Disposition) -> bool:
    return (
        record.kind == Kind.FAULT
        and record.disposition == disposition
        and not record.flags & RecordFlag.CANARY
    )


def settled_at(records: Sequence[Record]) -> int:
    """When the second record of any of these will be there, if there is one, in nanoseconds of the
    boot clock; 0 where none can come any more.
    """
    last = {_thread(record): record for record in records}
    open_ = (each.time_boot_ns for each in last.values() if _is_fault(each, Disposition.HANDLER))
    return max((time_ns + SETTLE_NS for time_ns in open_), default=0)


def without_first(records: Sequence[Record]) -> list[Record]:
    """All but those whose second one follows. Nothing of a thread's is between the two."""
    last: dict[tuple[int, int], tuple[int, Record]] = {}
    gone = set()
    for place, record in enumerate(records):
        before = last.get(_thread(record))
        if before and _is_fault(record, Disposition.HANDLER_FAILED):
            index, first = before
            if _is_fault(first, Disposition.HANDLER) and _place(first) == _place(record):
                gone.add(index)
        last[_thread(record)] = place, record
    return [record for place, record in enumerate(records) if place not in gone]


def _place(record: Record) -> tuple[int, int, int]:
    return record.instruction_pointer, record.stack_pointer, record.address
