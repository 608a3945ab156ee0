"""What a caller asks the loader for, and what it gets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from monitor.kernel.probes import OPTIONAL
from monitor.kernel.slots import Slot

__all__ = [
    "KEPT_MAPS",
    "NOTHING_EXISTS",
    "AttachedProbe",
    "Existing",
    "LoadError",
    "LoadRequest",
    "Loaded",
    "LoaderDied",
    "Made",
    "WrongObjectError",
    "possible_cpus",
]


# The maps that daemon and programs share, and that go on when the programs are replaced.
KEPT_MAPS = (
    "ring",
    "counters",
    "config",
    "workloads",
    "workload_quotas",
    "buckets",
    "shared_buckets",
    "shares",
    "watched_cgroup",
    "announced_cgroups",
)


class LoadError(Exception):
    """The programs cannot run on this host: what failed, and the way out."""


class WrongObjectError(LoadError):
    """The compiled programs are damaged, or not those of this version: why, and the way out."""


class LoaderDied(LoadError):
    """Whether the programs can run is unknown: the child was killed, failed, or was too slow."""


@dataclass(frozen=True)
class LoadRequest:
    attach: str = "auto"
    switches: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()  # targets not to attach to
    ring_size: int = 1 << 21
    workloads_max: int = 1024
    buckets_max: int = 4096
    path: Path | None = None  # of the object; None: the one that setup or the package installed


@dataclass(frozen=True)
class Existing:
    """What an earlier life left attached. Its maps go on, and its hooks get other programs."""

    maps: Mapping[str, int]
    slots: Mapping[str, Slot]  # by their keys

    @property
    def descriptors(self) -> list[int]:
        slots = self.slots.values()
        return [*self.maps.values(), *(each for slot in slots for each in slot[1:])]


NOTHING_EXISTS = Existing({}, {})


class AttachedProbe(NamedTuple):
    """A probe, and the hook that it is attached by, or the hook that was tried last.

    `error` is empty when it is attached. `fallback`: why it is not attached by its first hook.
    """

    probe: str
    mode: str
    target: str
    error: str
    program: int  # descriptor of its stub, -1 when it is not attached
    fallback: str = ""
    also: tuple[int, ...] = ()  # descriptors of what is attached with it

    @property
    def programs(self) -> tuple[int, ...]:
        """Descriptors of all that the probe consists of."""
        return (self.program, *self.also) if self.attached else ()

    @property
    def attached(self) -> bool:
        return not self.error

    @property
    def lost(self) -> bool:
        """Whether the monitor needs it and it is not attached."""
        return bool(self.error) and self.probe not in OPTIONAL


class Made(NamedTuple):
    """Where the programs came from.

    `path`: of the object, empty when they were compiled for this start. `built`: when it was
    written, seconds since the epoch. `absent`: the members and functions that this kernel lacks.
    """

    path: str
    digest: str
    built: float
    compiler: str
    absent: tuple[str, ...]


_NOTHING = Made("", "", 0.0, "", ())


@dataclass
class Loaded:
    """Descriptors of the maps and of what keeps the programs attached.

    `waiting`: those of the programs that are to go into the slots, in their order; empty when they
    are there.
    """

    maps: dict[str, int]
    probes: list[AttachedProbe]
    slots: list[Slot]
    notes: list[str] = field(default_factory=list)
    made: Made = _NOTHING
    waiting: list[int] = field(default_factory=list)

    def fill(self) -> None:
        """From now on the hooks run the waiting programs. Raises OSError; it can be repeated."""
        for slot, program in zip(self.slots, self.waiting, strict=False):
            slot.fill(program)
        for program in self.waiting:
            os.close(program)
        self.waiting.clear()

    @property
    def links(self) -> list[int]:
        return [slot.link for slot in self.slots]

    def detach(self) -> None:
        """Detach the programs. Once this returns, none runs; the maps can still be read."""
        for slot in self.slots:
            os.close(slot.link)
            os.close(slot.array)
        self.slots.clear()

    def close(self) -> None:
        self.detach()
        programs = {number for probe in self.probes for number in probe.programs}
        for descriptor in {*self.maps.values(), *programs, *self.waiting}:
            os.close(descriptor)
        self.maps.clear()
        self.probes.clear()
        self.waiting.clear()


def possible_cpus() -> int:
    """Number of CPUs that may ever come online: the size of everything kept per CPU."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(re.split("[-,]", text.strip())[-1]) + 1
