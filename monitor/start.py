"""The first moments of a daemon: the programs are loaded while the rest of it is imported."""

from __future__ import annotations

import os
import signal

from monitor.attach.attached import Beginning, request
from monitor.configuration.config import Config
from monitor.kernel import privileges

__all__ = ["begin"]


def _occupy_standard_descriptors() -> None:
    """Whoever started us may have closed one: nothing else of ours may get its number.

    Writing to it stays the error that it was, and is counted as one of the sink's.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)


def begin(config: Config) -> Beginning:
    """Load the programs, by children. Call it once, before anything is opened; close what it
    returns.
    """
    _occupy_standard_descriptors()
    # The configuration was read just now. Not SIG_IGN, which children would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    privileges.disinherit()
    return Beginning(request(config))
