"""A configuration that was read again: which keys change, and which are refused.

`Key.reloads` says which keys can change while the daemon runs. The others keep the value that they
had at the start, and the reload names them as refused.
"""

from __future__ import annotations

import time
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

from monitor.configuration.config import Config
from monitor.configuration.keys import KEYS, Key
from monitor.metrics.tally import Tally

__all__ = ["InForce", "Merged", "merge"]


class Merged(NamedTuple):
    """`config` is what the daemon runs with from now on; `changed` and `refused` are names of keys.

    If a key is refused, the reload was not successful: a part of the file takes effect only after a
    restart. A metric of 1 would hide that.
    """

    config: Config
    changed: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def message(self) -> str:
        changed = ", ".join(self.changed) or "nothing"
        text = f"the configuration was read again and changed {changed}"
        if self.refused:
            text += f"; refused until a restart: {', '.join(self.refused)}"
        return text

    @property
    def details(self) -> dict[str, object]:
        return {"changed": list(self.changed), "refused": list(self.refused)}


class InForce:
    """Whether every configuration that was read is in force, for the metrics of the last reload."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._not_in_force: set[str] = set()

    def has_read(self, what: str, is_in_force: bool) -> None:
        """The configuration named `what` was read just now."""
        if is_in_force:
            self._not_in_force.discard(what)
        else:
            self._not_in_force.add(what)
        self._tally.reload(not self._not_in_force, time.time())


def merge(running: Config, asked: Config) -> Merged:
    """The configuration to continue with, after `asked` was read while `running` is in force."""
    config = asked
    changed, refused = [], []
    differing = [
        (key, before, after)
        for key in KEYS
        if (before := attrgetter(key.name)(running)) != (after := attrgetter(key.name)(asked))
    ]
    # Where the collector stays, so do its credentials: without them it would refuse for good.
    stays = {
        key.path[0]
        for key, before, after in differing
        if key.switches and bool(before) != bool(after)
    }
    for key, before, _ in differing:
        if key.reloads and key.path[0] not in stays:
            changed.append(key.name)
        else:
            refused.append(key.name)
            config = _with_value(config, key, before)
    if asked.mutes != running.mutes:
        changed.append("mute")
    return Merged(config, tuple(changed), tuple(refused))


def _with_value(config: Config, key: Key, value: object) -> Config:
    *section, name = key.path
    if section:
        changed: dict[str, Any] = {name: value}
        value, name = replace(getattr(config, section[0]), **changed), section[0]
    whole: dict[str, Any] = {name: value}
    return replace(config, **whole)
