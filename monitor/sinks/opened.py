"""The sinks that a configuration asks for, opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.configuration.config import Config, ConfigError, Otlp
from monitor.sinks import journal, outputs

if TYPE_CHECKING:
    from monitor.sinks.otlp import OtlpSink

__all__ = ["open_otlp", "open_sinks"]


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


def open_otlp(wanted: Otlp, directory: Path | None) -> OtlpSink | None:
    """The sink for a collector, if one is wanted; `directory`: the state directory, for its spool.
    Raises ConfigError.
    """
    if not wanted.endpoint:
        return None
    if directory is None:
        raise ConfigError(
            "otlp.endpoint: there is no state directory for what waits for the collector; name one "
            "as state.directory"
        )
    from monitor.sinks.otlp import OtlpSink  # noqa: PLC0415 - http.client, TLS

    return OtlpSink(wanted, directory)
