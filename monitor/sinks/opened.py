"""The sinks that a configuration asks for, opened."""

from __future__ import annotations

import os

from monitor.configuration.config import Config, ConfigError
from monitor.sinks import journal, outputs

__all__ = ["open_sinks"]


def open_sinks(config: Config) -> list[outputs.Sink]:
    """The sinks that the configuration asks for. Raises ConfigError."""
    form, is_terminal = config.output.format, os.isatty(1)
    to_journal = form == "auto" and journal.has_standard_output()
    opened: list[outputs.Sink] = []
    if form == "pretty" or (form == "auto" and is_terminal):
        opened.append(outputs.pretty(colours=is_terminal))
    elif form != "none" and not to_journal:
        opened.append(outputs.json_lines())
    try:
        if config.output.events_file is not None:
            opened.append(
                outputs.json_file(config.output.events_file, config.output.events_file_max_size)
            )
    except OSError as error:
        raise ConfigError(str(error)) from error
    try:
        if config.output.journal or to_journal:
            opened.append(journal.JournalSink())
    except OSError as error:
        raise ConfigError(f"output.journal: {error}") from error
    return opened
