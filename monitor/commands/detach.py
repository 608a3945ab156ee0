"""The command that ends what a monitor that was stopped has left attached."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from monitor.keep import pins
from monitor.streams import say, show
from monitor.untrusted.printable import one_line
from monitor.untrusted.terminal import visible

__all__ = ["run"]


def run(directory: Path) -> int:
    """Remove all that is pinned in `directory`; 0, or 1 when a monitor uses it or it cannot be
    used. Raises OSError.
    """
    name = visible(directory)
    if not os.path.lexists(directory):
        show(f"{name} is not there: nothing is attached by it")
        return 0
    try:
        kept = pins.look(directory)
        if kept.is_used:
            say(f"seal-monitor: a monitor uses {name}; stop it first")
            return 1
        count = pins.Pins(directory).remove()
    except pins.PinError as error:
        say(f"seal-monitor: {one_line(str(error))}")
        return 1
    if not count:
        show(f"{name} is empty: nothing is attached by it")
        return 0
    last = ""
    if kept.unread_seconds is not None:
        last = f", last read {timedelta(seconds=int(kept.unread_seconds))} ago"
    show(f"{count} maps, programs and links are let go{last}: nothing is attached by {name}")
    return 0
