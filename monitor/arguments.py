"""The parser of commands and flags, and the help that it prints."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from monitor.configuration.config import DEFAULT_PATH
from monitor.configuration.keys import KEYS
from monitor.version import version

__all__ = ["parse"]

_EXEC_FAILED = 125  # as of env(1) and others that run a command

_VALUES = {
    "attach": "MODE",
    "web.listen_address": "ADDR:PORT",
    "web.config_file": "FILE",
    "output.format": "FORMAT",
    "output.events_file": "FILE",
}
_DESCRIPTION = """\
Watches every attempt to change memory that mseal(2) has sealed, and every fault on a guard page or
a protection: counts them in the kernel, proves what they were, and reports who made them.
"""
_EPILOG = """\
'seal-monitor COMMAND --help' lists the flags of a command.

examples:
  seal-monitor demo                   see what the monitor says of real violations
  seal-monitor doctor                 see what it can do on this host
  seal-monitor run --output json --events-file /var/log/seal-monitor/events.jsonl
  seal-monitor incidents list --since 7d
  seal-monitor fleet list --since 24h --from https://analyst@clickhouse.example:8443/
  seal-monitor posture --by executable
  seal-monitor exec --fail-on denial,fault -- make test
  seal-monitor check-config

exit codes:
  0  done
  1  it failed while running
  2  wrong usage or configuration
  3  this host cannot be monitored; the message says why and what to do
  130  interrupted before it was watching

exit codes of exec: that of the command, 128+N when signal N ended it; 4 for --fail-on;
  125 exec itself failed, 126 the command cannot be executed, 127 it was not found

SEAL_MONITOR_DEBUG=1 in the environment shows where an error was raised.
"""


def _columns() -> int:
    """The width of the terminal, without shutil, which would import libraries for archives."""
    given = os.environ.get("COLUMNS", "")[:5]
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class _Formatter(argparse.HelpFormatter):
    """Knows the width: argparse makes one for each flag, and would import shutil for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"width": _columns() - 2} | options)


class Parser(argparse.ArgumentParser):
    """`wrong_usage` is the exit code for a mistake on the command line.

    The parsed arguments have it as `parser`: a mistake that is found later shows the usage of the
    same command.
    """

    wrong_usage = 2

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Formatter} | options)
        self.set_defaults(parser=self)

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(self.wrong_usage, f"{self.prog}: error: {message}\n")


class _Help(_Formatter, argparse.RawDescriptionHelpFormatter):
    """Corrects argparse, which leaves two columns too few for the names of commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._action_max_length = 18


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"seal-monitor {version()}")
        parser.exit()


def _parser() -> Parser:
    parser = Parser(
        prog="seal-monitor",
        usage="seal-monitor COMMAND [FLAGS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version of the program and exit"
    )
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="seal-monitor", dest="command", required=True
    )

    def add(name: str, text: str) -> Parser:
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        command.set_defaults(failure=None)
        return command

    run = add("run", "watch in the foreground until SIGTERM or SIGINT")
    demo = add("demo", "provoke one of each violation and show the report of it")
    _add_exec(add("exec", "run a command and report the violations of it and its children"))
    doctor = add("doctor", "show what this host can and can't do, and the remedy")
    for command, keys in (
        (run, [key.name for key in KEYS if key.flag]),
        (demo, ["attach"]),
        (doctor, ["attach"]),
    ):
        _add_config(command, f"configuration (default: {DEFAULT_PATH}, if it is there)")
        _add_keys(command, keys)
    doctor.add_argument("--json", action="store_true", help="print a JSON object")
    check = add("check-config", "list every mistake in a configuration")
    check.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        help=f"the file to check, with its drop-ins (default: {DEFAULT_PATH})",
    )
    schema = add("schema", "print the JSON Schema of the events, or convert events")
    converted = schema.add_mutually_exclusive_group()
    for name, what in (
        ("opentelemetry", "OpenTelemetry requests (OTLP in JSON)"),
        ("ecs", "documents of the Elastic Common Schema"),
        ("ocsf", "events of OCSF"),
    ):
        converted.add_argument(
            f"--{name}",
            dest="format",
            action="store_const",
            const=name,
            help=f"convert events from standard input, a line each, to {what}",
        )
    symbolize = add("symbolize", "name the functions in the stacks of events")
    symbolize.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="JSON lines (default: standard input)"
    )
    symbolize.add_argument(
        "--search",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="another directory to look for programs in; may be given again",
    )
    symbolize.add_argument("--verbose", action="store_true", help="say why a name is missing")
    _add_incidents(add("incidents", "show what was kept of violations, grouped"))
    _add_fleet(add("fleet", "show the incidents of all hosts, from one database"))
    _add_posture(add("posture", "show which processes have sealed memory, and how much"))
    detach = add("detach", "end what a stopped monitor has left attached, by its pins")
    _add_config(detach, "the daemon's configuration, which names the directory as state.pin")
    detach.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", help="the directory (default: state.pin)"
    )
    return parser


def _add_config(parser: Parser, text: str) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)


def _add_keys(parser: Parser, names: Sequence[str]) -> None:
    """Add flags for these keys of the configuration; a flag that is not given sets nothing."""
    for key in KEYS:
        if key.flag and key.name in names:
            text = key.description + (f" Default: {key.default}" if key.default else "")
            parser.add_argument(
                key.flag,
                dest=key.name,
                metavar=_VALUES[key.name],
                default=argparse.SUPPRESS,
                help=text,
            )


def _add_posture(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--by",
        choices=("process", "executable", "workload"),
        default="process",
        help="what a line stands for (default: process)",
    )
    shown.add_argument(
        "--pid", type=_positive, metavar="PID", help="one process, with its sealed mappings"
    )
    parser.add_argument("--all", action="store_true", help="also what has sealed nothing")


def _add_exec(parser: Parser) -> None:
    parser.wrong_usage = _EXEC_FAILED
    parser.set_defaults(failure=_EXEC_FAILED)
    parser.usage = "seal-monitor exec [FLAGS] -- COMMAND [ARGUMENT...]"
    parser.description = (
        "Run a command and report the violations of it and its children, and of nobody else, on "
        "standard error: each place as it is met, with its stack, and all in a table at the end. "
        "The exit code is that of the command."
    )
    parser.add_argument(
        "--fail-on",
        type=_kinds,
        metavar="KINDS",
        default=(),
        help="exit code 4 if there was one of these: denial, fault, bypass; several: denial,fault",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write all that was found to FILE, as JSON; - for standard output",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write it to FILE as a page of HTML, if there is anything; - for standard output",
    )
    parser.add_argument(
        "--user", metavar="NAME", help="run the command as NAME (default: $SUDO_USER, if it is set)"
    )
    _add_keys(parser, ["attach"])
    parser.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(kinds) - {"denial", "fault", "bypass"}:
        raise argparse.ArgumentTypeError(
            f"{min(unknown)[:20]!r} is not one of denial, fault and bypass; separate several by "
            "commas"
        )
    return kinds


def _verbs(parser: Parser, common: Parser) -> Callable[..., Parser]:
    """Adds a command below that of `parser`: its name, what it does, and its other parents."""
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)

    def add(name: str, text: str, *parents: Parser) -> Parser:
        return verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            parents=[*parents, common],
            allow_abbrev=False,
        )

    return add


def _add_incidents(parser: Parser) -> None:
    common = Parser(add_help=False, allow_abbrev=False)
    _add_config(common, "the daemon's configuration, which may name a state directory")
    common.add_argument(
        "--database", type=Path, metavar="FILE", help="another database, as of another host"
    )
    add = _verbs(parser, common)
    printed = Parser(add_help=False, allow_abbrev=False)
    printed.add_argument("--json", action="store_true", help="print JSON")
    filters = _incident_filters()
    found = add("list", "list incidents, the worst first", filters, printed)
    found.usage = "seal-monitor incidents list [FLAGS]"
    show = add("show", "print the story of one incident", printed)
    show.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    timeline = add("timeline", "show what one process did, in order", printed)
    timeline.add_argument("pid", metavar="PID", type=_positive)
    timeline.add_argument(
        "start", metavar="START", nargs="?", help="when it started, if several had this pid"
    )
    report = add("report", "make a page of one incident, or of those that match", filters)
    report.usage = "seal-monitor incidents report [FLAGS] [ID] -o FILE.html"
    report.add_argument(
        "id",
        metavar="ID",
        nargs="?",
        help="its id, or the beginning of it; without: all that match",
    )
    export = add("export", "pack all about one incident, for somebody else")
    export.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    backup = add("backup", "copy the whole database, even while a daemon writes to it")
    for verb, file in ((report, "FILE.html"), (export, "FILE.tar.gz"), (backup, "FILE.db")):
        verb.add_argument(
            *("-o", "--output-file"),
            metavar=file,
            required=True,
            help="the file to make, readable only by its owner; - for standard output",
        )


def _add_fleet(parser: Parser) -> None:
    common = Parser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--from",
        dest="url",
        metavar="URL",
        help="https://USER@HOST:8443/ of ClickHouse, or postgresql://USER@HOST/DATABASE, without a "
        "password (default: SEAL_MONITOR_FLEET in the environment)",
    )
    common.add_argument(
        "--password-file",
        metavar="FILE",
        type=Path,
        help="has the password in its first line (default: SEAL_MONITOR_FLEET_PASSWORD in the "
        "environment, and for PostgreSQL ~/.pgpass)",
    )
    add = _verbs(parser, common)
    printed = Parser(add_help=False, allow_abbrev=False)
    printed.add_argument("--json", action="store_true", help="print JSON")
    filters = _incident_filters()
    add("list", "list incidents of all hosts, the worst first", filters, printed)
    show = add("show", "print the story of one incident", printed)
    hosts = add("hosts", "list the hosts of an incident, the first one first", printed)
    for verb in (show, hosts):
        verb.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    timeline = add("timeline", "list what one host reported, in order", printed)
    timeline.add_argument("host", metavar="HOST", help="its name, as events have it")
    timeline.add_argument("--since", metavar="TIME", help="from then on, as for list")
    timeline.add_argument("--until", metavar="TIME", help="until then")
    for verb in (hosts, timeline):
        verb.add_argument(
            "--limit", type=_positive, default=1000, metavar="N", help="at most N (default: 1000)"
        )
    report = add("report", "make a page of one incident, or of those that match", filters)
    report.add_argument("id", metavar="ID", nargs="?", help="its id; without: all that match")
    report.add_argument(
        *("-o", "--output-file"),
        metavar="FILE.html",
        required=True,
        help="the file to make, readable only by its owner; - for standard output",
    )


def _incident_filters() -> Parser:
    """The filters of list and report."""
    listing = Parser(add_help=False, allow_abbrev=False)
    for flag, metavar, text in (
        (
            "--since",
            "TIME",
            "seen since then: a date or time in UTC, or how long ago: 24h, 7d",
        ),
        ("--until", "TIME", "seen before then"),
        ("--operation", "GLOB", "operation of denials, cause of faults, method of bypasses"),
        ("--executable", "GLOB", "with a slash its path, else its base name"),
        ("--workload", "GLOB", "unit, pod/UID, container/ID or cgroup"),
        ("--host", "GLOB", "name of a host"),
        ("--verdict", "VERDICT", "that some of its denials had"),
    ):
        listing.add_argument(flag, metavar=metavar, help=text)
    listing.add_argument(
        "--likely",
        choices=("attack", "bug", "leak", "unknown", "handled"),
        help="what some of them may be",
    )
    listing.add_argument(
        "--severity", choices=("info", "warning", "critical"), help="at least so severe"
    )
    kinds = ("violation", "denial", "fault", "bypass", "seal", "health", "all")
    listing.add_argument(
        "--kind",
        choices=kinds,
        default="violation",
        help="default: violation, that is denials, faults and bypasses",
    )
    listing.add_argument(
        "--sort",
        choices=("worst", "last", "count"),
        help="what comes first: the most severe, the last seen or the most frequent (default: "
        "worst; with --json last)",
    )
    listing.add_argument(
        "--limit", type=_positive, default=50, metavar="N", help="at most N (default: 50)"
    )
    return listing


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:12]) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number from 1 to 2147483647")
    return int(text[:12])


def parse(words: list[str]) -> argparse.Namespace:
    """The parsed command line: the name of its `command`, the `parser` of that command, the exit
    code of any `failure` of it (None: as the error has it), and what each flag sets.

    Of the parser only the command's part is kept: that saves half a MiB in a daemon. Raises
    SystemExit for wrong usage and --help.
    """
    parser = _parser()
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        # Otherwise argparse would take its value for the command.
        parser.error(f"{words[0]} stands before the command; flags come after it")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments
