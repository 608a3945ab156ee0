"""What becomes of a configuration that was read anew: which keys change, which are refused.

`Key.reloads` says which can change while the daemon runs. The others keep the value that they have
since the start, and are refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

from monitor.configuration.config import KEYS, Config, Key

__all__ = ["Merged", "merge"]


class Merged(NamedTuple):
    """`config` is what the daemon runs with from now on; `changed` and `refused` are names of keys.

    With one refused, the reload was not successful: what the file asks for is not all in force, and
    would be after a restart. A metric of 1 would hide it until then.
    """

    config: Config
    changed: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def message(self) -> str:
        changed = ", ".join(self.changed) or "nothing"
        text = f"the configuration was read anew and changed {changed}"
        if self.refused:
            text += f"; refused until a restart: {', '.join(self.refused)}"
        return text

    @property
    def details(self) -> dict[str, object]:
        return {"changed": list(self.changed), "refused": list(self.refused)}


def merge(running: Config, asked: Config) -> Merged:
    """The configuration to go on with, when `asked` was read while `running` is in force."""
    differing = [
        key for key in KEYS if attrgetter(key.name)(running) != attrgetter(key.name)(asked)
    ]
    config = asked
    for key in differing:
        if not key.reloads:
            config = _with_value(config, key, attrgetter(key.name)(running))
    mutes = ("mute",) if asked.mutes != running.mutes else ()
    return Merged(
        config,
        (*(key.name for key in differing if key.reloads), *mutes),
        tuple(key.name for key in differing if not key.reloads),
    )


def _with_value(config: Config, key: Key, value: object) -> Config:
    *section, name = key.path
    if section:
        changed: dict[str, Any] = {name: value}
        value, name = replace(getattr(config, section[0]), **changed), section[0]
    whole: dict[str, Any] = {name: value}
    return replace(config, **whole)
