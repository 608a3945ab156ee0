"""The first moments of a daemon: the programs are loaded while the rest of it is imported."""

from __future__ import annotations

import os
import signal

from monitor.attach.attached import Beginning, request
from monitor.configuration.config import Config
from monitor.kernel import privileges

__all__ = ["begin"]


def _occupy_standard_descriptors() -> None:
    """Fill closed descriptors among 0, 1 and 2, so that no file opened later gets such a number.

    Writing to one still fails, and counts as an error of the sink.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)


def begin(config: Config) -> Beginning:
    """Begin to load the programs, in children. Call it once, before anything is opened; close what
    it returns.
    """
    _occupy_standard_descriptors()
    # A request to read the configuration again is ignored: it was read just now. Not by SIG_IGN,
    # which children would inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)
    privileges.disinherit()
    return Beginning(request(config))
