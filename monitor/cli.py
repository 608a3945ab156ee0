"""What a command line starts, and what is said of its errors; the work is in other modules."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path

from monitor import streams
from monitor.arguments import parse
from monitor.configuration import config
from monitor.configuration.keys import KEYS
from monitor.untrusted.printable import LINE_LIMIT, joined

__all__ = ["main"]

DONE, FAILED, WRONG_USAGE, UNFIT_HOST, INTERRUPTED = 0, 1, 2, 3, 130


# ---- The commands --------------------------------------------------------------------------------


def _overrides(arguments: argparse.Namespace) -> dict[str, object]:
    given = vars(arguments)
    return {key.name: given[key.name] for key in KEYS if key.name in given}


def _load(arguments: argparse.Namespace) -> config.Config:
    return config.load(arguments.config, _overrides(arguments))


def _load_again(arguments: argparse.Namespace) -> config.Config:
    return config.load_again(arguments.config, _overrides(arguments))


def _run(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    from monitor import start  # noqa: PLC0415 - a command imports only what it needs

    with contextlib.closing(start.begin(settings)) as beginning:
        from monitor import daemon  # noqa: PLC0415 - while the programs are being loaded

        try:
            return daemon.run(settings, lambda: _load_again(arguments), beginning)
        except Exception as error:
            if _explained(error)[1] in (WRONG_USAGE, UNFIT_HOST):  # the next start fails as well
                _try(beginning.let_go)
            raise


def _try(let_go: Callable[[], None]) -> None:
    try:
        let_go()
    except OSError as error:
        streams.say(f"seal-monitor: what is attached cannot be let go: {_one_line(error)}")


def _demo(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    from monitor.commands import demo  # noqa: PLC0415

    return demo.run(settings)


def _doctor(arguments: argparse.Namespace) -> int:
    settings = _load(arguments)
    from monitor.host import doctor  # noqa: PLC0415

    return doctor.run(settings, arguments.json)


def _exec(arguments: argparse.Namespace) -> int:
    if arguments.json is not None and arguments.json == arguments.report:
        arguments.parser.error("--json and --report go to the same place")
    words = arguments.words[arguments.words[:1] == ["--"] :]
    if not words:
        arguments.parser.error("no command")
    # No configuration file: the result should not depend on the host.
    settings = config.load(Path(os.devnull), _overrides(arguments))
    from monitor.execute import command as execute_command  # noqa: PLC0415
    from monitor.execute import run as execute  # noqa: PLC0415

    options = execute.Options(
        words, arguments.user, arguments.fail_on, arguments.json, arguments.report
    )
    try:
        return execute.run(settings, options)
    except execute_command.CannotStart as error:
        streams.say(f"seal-monitor: {_one_line(error)}")
        return error.code


def _check_config(arguments: argparse.Namespace) -> int:
    placed = config.load_placed(arguments.file, {})
    if placed.config.web.config_file is not None:
        from monitor.web.web_config import load_web_config  # noqa: PLC0415

        load_web_config(placed.config.web.config_file)
    if placed.config.otlp.endpoint:
        from monitor.sinks import otlp_files  # noqa: PLC0415

        otlp_files.load(placed.config.otlp)
    for name in placed.files:
        print(f"{_shown(name)}: ok")
    for line in _differences(placed):
        print(f"  {line}")
    return DONE


def _schema(arguments: argparse.Namespace) -> int:
    if arguments.format:
        from monitor.commands import convert  # noqa: PLC0415

        return convert.run(arguments.format)
    from monitor.evidence import events  # noqa: PLC0415

    print(json.dumps(events.schema(), indent=2))
    return DONE


def _symbolize(arguments: argparse.Namespace) -> int:
    from monitor.commands import symbolize  # noqa: PLC0415

    return symbolize.run(arguments.file, arguments.search, arguments.verbose)


def _incidents(arguments: argparse.Namespace) -> int:
    from monitor.commands import incidents as incidents_cli  # noqa: PLC0415

    return incidents_cli.run(arguments, arguments.database or _database(_load(arguments)))


def _fleet(arguments: argparse.Namespace) -> int:
    from monitor.commands import fleet  # noqa: PLC0415

    return fleet.run(arguments)


def _posture(arguments: argparse.Namespace) -> int:
    from monitor.commands import posture as posture_cli  # noqa: PLC0415

    return posture_cli.run(arguments)


def _detach(arguments: argparse.Namespace) -> int:
    directory: Path | None = arguments.directory or _load(arguments).state.pin
    if directory is None:
        raise config.ConfigError("state.pin is not set; name the directory")
    from monitor.commands import detach  # noqa: PLC0415

    return detach.run(directory)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "demo": _demo,
    "exec": _exec,
    "doctor": _doctor,
    "check-config": _check_config,
    "schema": _schema,
    "symbolize": _symbolize,
    "incidents": _incidents,
    "fleet": _fleet,
    "posture": _posture,
    "detach": _detach,
}


def _database(settings: config.Config) -> Path:
    from monitor.incidents.store import FILE  # noqa: PLC0415
    from monitor.life.last_run import DEFAULT_DIRECTORY, state_directory  # noqa: PLC0415

    return (state_directory(settings.state.directory) or DEFAULT_DIRECTORY) / FILE


def _as_written(value: object) -> str:
    """A checked value as it would be written in the file."""
    match value:
        case (str(address), int(port)):
            return json.dumps(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
        case None | Path():
            return json.dumps(str(value or ""))
    return json.dumps(value)


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _differences(placed: config.Placed) -> list[str]:
    """Lines that show what the files change, and where."""
    settings, defaults = placed.config, config.parse("", "")
    lines = [
        f"{key.name} = {_as_written(value)} (default: {_as_written(usual)}; "
        f"{_shown(placed.places[key.name])})"
        for key in KEYS
        if (value := attrgetter(key.name)(settings)) != (usual := attrgetter(key.name)(defaults))
    ]
    now = datetime.now(UTC)
    for mute, place in zip(settings.mutes, placed.mute_places, strict=True):
        named = (mute.what, mute.whose)
        state = "expired mute" if mute.expired(now) else "mute"
        lines.append(
            f"{state}: {json.dumps(' '.join(filter(None, named)))}, {json.dumps(mute.reason)} "
            f"({_shown(place)})"
        )
    return lines or ["nothing differs from the defaults"]


# ---- What went wrong -----------------------------------------------------------------------------


def _report(error: Exception) -> int:
    """Print the error on standard error; returns the exit code."""
    lines, code = _explained(error)
    for line in lines:
        streams.say(f"seal-monitor: {line}")
    return code


def _explained(error: Exception) -> tuple[list[str], int]:
    """What to print of it, and the exit code."""
    # Imported here, so that help and simple commands load nothing heavy.
    from monitor.attach import calibrate  # noqa: PLC0415
    from monitor.host import facts as host  # noqa: PLC0415
    from monitor.kernel import loader  # noqa: PLC0415
    from monitor.web import errors as web  # noqa: PLC0415

    match error:
        case host.HostError():
            lines, code = [error.why, f"what to do: {error.remedy}"], UNFIT_HOST
        case web.AddressError() | loader.LoaderDied():
            lines, code = [_one_line(error)], FAILED
        case loader.WrongObjectError():
            lines, code = [_one_line(error)], UNFIT_HOST
        case loader.LoadError():
            lines = [_one_line(error), "what to do: see what 'seal-monitor doctor' says"]
            code = UNFIT_HOST
        case config.ConfigError() | web.WebError():
            lines, code = str(error).splitlines(), WRONG_USAGE
        case calibrate.CalibrationError():
            text = f"cannot calibrate: {_one_line(error)}; see what 'seal-monitor doctor' says"
            lines, code = [text], FAILED
        case OSError():
            lines, code = [_one_line(error)], FAILED
        case _:
            lines = [
                f"{type(error).__name__}: {_one_line(error)} (SEAL_MONITOR_DEBUG=1 shows where)"
            ]
            code = FAILED
    return lines, code


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return joined(text, LINE_LIMIT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; returns the exit code.

    Raises SystemExit for wrong usage and --help.
    """
    streams.prepare()
    try:
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
    except SystemExit:  # wrong usage, or --help
        with contextlib.suppress(OSError):
            streams.flush()
        streams.abandon()
        raise
    _end_by_interrupt(arguments.command != "run")
    code = None
    try:
        code = _COMMANDS[arguments.command](arguments)
        streams.flush()
    except BrokenPipeError as error:
        if streams.has_reader(1) and streams.has_reader(2):
            return _failed(arguments, error)  # it was another pipe
        # The reader has had enough.
        return int(arguments.failure or DONE) if code is None else int(code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _failed(arguments, error)
    finally:
        streams.abandon()
    return int(code)


def _failed(arguments: argparse.Namespace, error: Exception) -> int:
    if os.environ.get("SEAL_MONITOR_DEBUG") == "1":
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    code = _report(error)
    return code if arguments.failure is None else int(arguments.failure)


def _end_by_interrupt(in_order: bool) -> None:
    """What an interrupt does from now on, unless whoever started us has it ignored: it ends the
    process without a word, as SIGTERM does, or in order, as KeyboardInterrupt.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        handler = signal.default_int_handler if in_order else signal.SIG_DFL
        signal.signal(signal.SIGINT, handler)
