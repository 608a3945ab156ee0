from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monitor import arguments as command_line
from monitor import cli
from monitor.attach import calibrate
from monitor.configuration import config
from monitor.evidence import events
from monitor.host import facts as host
from monitor.kernel import loader
from monitor.sinks.opened import open_sinks
from monitor.version import VERSION
from monitor.web import server as web

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("run", "demo", "exec", "doctor", "check-config", "schema", "incidents", "posture"),
    "detach",
)
INCIDENTS = tuple(("incidents", verb) for verb in ("list", "show", "timeline", "report", "export"))
# Still user 0: it can run a checkout that only root may read.
WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up capabilities")


def seal_monitor(
    *arguments: str | Path, before: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "monitor", *map(str, arguments)]
    settings: dict[str, object] = {"cwd": ROOT, "capture_output": True, "text": True} | options
    return subprocess.run(command, check=False, timeout=60, **settings)  # type: ignore[call-overload,no-any-return]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- Help ----------------------------------------------------------------------------------------


def flags_and_commands() -> set[str]:
    found = set(COMMANDS)
    for command in ((), *((name,) for name in COMMANDS), *INCIDENTS):
        shown = seal_monitor(*command, "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        found |= set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", shown.stdout))
    return found


def test_the_manual_page_has_every_command_and_flag() -> None:
    page = (ROOT / "docs/seal-monitor.8").read_text("utf-8").replace("\\-", "-")
    wanted = flags_and_commands()
    assert {"--config", "--attach", "--output", "--events-file", "--version", "--json"} < wanted
    assert {"--web.listen-address", "--web.config.file"} < wanted
    missing = [name for name in wanted if not re.search(rf"^\.B\S* .*{name}\b", page, re.M)]
    assert missing == []


def test_every_command_starts_something() -> None:
    listed = re.findall(r"^    ([a-z-]+) +\S", seal_monitor("--help").stdout, re.MULTILINE)
    assert listed == list(cli._COMMANDS)


def test_help_has_examples_and_exit_codes() -> None:
    shown = seal_monitor("--help").stdout
    assert "examples:\n  seal-monitor demo " in shown
    for line in (
        "  0  done",
        "  1  it failed while running",
        "  2  wrong usage or configuration",
        "  3  this host cannot be monitored; the message says why and what to do",
    ):
        assert line in shown.splitlines()


@pytest.mark.parametrize("columns", ["", "0", "-3", "x", "²", "7", "40", "300"])
def test_help_is_as_wide_as_argparse_would_make_it(
    monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert command_line._columns() == shutil.get_terminal_size().columns


def test_version() -> None:
    shown = seal_monitor("--version")
    assert (shown.returncode, shown.stdout) == (
        0,
        f"seal-monitor {VERSION}\n",
    )


def test_help_and_schema_load_nothing_heavy() -> None:
    program = (
        "import sys; from monitor.cli import main; main(['schema'])\n"
        "heavy = {'bcc', 'yaml', 'bcrypt', 'structlog', 'prometheus_client'}\n"
        "heavy |= {'monitor.kernel.loader'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


# ---- Wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "seal-monitor: error: the following arguments are required: COMMAND"),
        (
            ("wacth",),
            "seal-monitor: error: argument COMMAND: invalid choice: 'wacth' (choose from 'run', "
            "'demo', 'exec', 'doctor', 'check-config', 'schema', 'symbolize', 'incidents', "
            "'fleet', 'posture', 'detach')",
        ),
        *(
            (words, f"seal-monitor {words[0]}: error: unrecognized arguments: {unknown}")
            for *words, unknown in (
                ("run", "--atach", "auto", "--atach auto"),
                ("run", "--json", "--json"),
                ("doctor", "--conf", "x", "--conf x"),
                ("doctor", "--output", "json", "--output json"),
                ("demo", "--events-file", "x", "--events-file x"),
                ("demo", "--web.listen-address=:1", "--web.listen-address=:1"),
                ("demo", "extra", "extra"),
                ("schema", "--json", "--json"),
                ("schema", "--attach", "auto", "--attach auto"),
            )
        ),
        *(
            (
                (flag, "run"),
                f"seal-monitor: error: {flag} stands before the command; flags come after it",
            )
            for flag in ("--attach", "--output=json", "-x", "--json")
        ),
        (
            ("run", "--config"),
            "seal-monitor run: error: argument --config: expected one argument",
        ),
        (
            ("run", "--attach", "kprobe"),
            "seal-monitor: command line: --attach: 'kprobe' is not valid; choose auto, fexit, "
            "tracepoint or raw_tracepoint",
        ),
        (
            ("run", "--output", "xml"),
            "seal-monitor: command line: --output: 'xml' is not valid; choose auto, pretty, json "
            "or none",
        ),
        (
            ("run", "--web.listen-address", "localhost"),
            "seal-monitor: command line: --web.listen-address: 'localhost' has no port from 0 to "
            "65535; write ADDR:PORT, as in 127.0.0.1:10462, [::1]:10462 or 0.0.0.0:10462",
        ),
        (
            ("run", "--config", "/nonexistent.toml"),
            "seal-monitor: cannot read '/nonexistent.toml': No such file or directory; make it a "
            "readable file or name another",
        ),
        (
            ("check-config", "/"),
            "seal-monitor: cannot read '/': Is a directory; make it a readable file or name "
            "another",
        ),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    shown = seal_monitor(*arguments)
    assert shown.stdout == ""
    assert shown.stderr.splitlines()[-1] == message
    assert shown.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ((), "seal-monitor COMMAND [FLAGS]"),
        (("--output", "json", "run"), "seal-monitor COMMAND [FLAGS]"),
        (("demo", "extra"), "seal-monitor demo [-h] [--config FILE] [--attach MODE]"),
        (("schema", "--json"), "seal-monitor schema [-h]"),
        (("incidents", "show", "--since", "7d", "x"), "seal-monitor incidents show [-h] [--json] "),
        (("incidents", "list", "--limit", "0"), "seal-monitor incidents list [FLAGS]\n"),
        (("incidents", "report"), "seal-monitor incidents report [FLAGS] [ID] -o FILE.html\n"),
        *(
            (("exec", *words), "seal-monitor exec [FLAGS] -- COMMAND [ARGUMENT...]")
            for words in (
                ("--output", "json", "--", "true"),
                ("--fail-on", "x", "--", "true"),
                ("--json", "x", "--report", "x", "--", "true"),
                (),
            )
        ),
    ],
)
def test_the_usage_is_that_of_the_command(arguments: tuple[str, ...], usage: str) -> None:
    assert seal_monitor(*arguments).stderr.startswith(f"usage: {usage}")


def test_an_events_file_that_cannot_be_opened() -> None:
    message = "events file /nonexistent/x: cannot open it: No such file or directory"
    with pytest.raises(config.ConfigError, match=f"^{message}$"):
        open_sinks(config.load(None, {"output.events_file": "/nonexistent/x"}))


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (
            "[ring]\nsiz = 4096\n",
            [":2: key 'ring.siz': there is no such key; the nearest valid one is 'ring.size'"],
        ),
        (
            "[watch]\ncompat = 1\n\n[ring]\nsize = '1M'\n",
            [
                ":2: key 'watch.compat': 1 is not a switch; write true or false",
                ":5: key 'ring.size': '1M' is not an integer; write one from 65536 to 67108864",
            ],
        ),
        (
            "attach = \n",
            [
                ":1: not valid TOML: Invalid value at column 10; write key = value, strings in "
                "quotes, switches as true or false"
            ],
        ),
        (b"# \xff\n", [":1: byte 0xff is not UTF-8; save the file as UTF-8"]),
    ],
)
@pytest.mark.parametrize("command", ["check-config", "run"])
def test_wrong_configuration(
    tmp_path: Path, command: str, content: str | bytes, messages: list[str]
) -> None:
    path = written(tmp_path / "config.toml", content)
    shown = seal_monitor(command, *(["--config"] if command == "run" else []), path)
    assert shown.stderr.splitlines() == [f"seal-monitor: {path}{text}" for text in messages]
    assert (shown.stdout, shown.returncode) == ("", 2)


@ROOT_ALONE
def test_a_configuration_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "config.toml", "")
    path.chmod(0)
    shown = seal_monitor("check-config", path, before=WITHOUT_CAPABILITIES)
    assert shown.stderr == (
        f"seal-monitor: cannot read '{path}': Permission denied; make it a readable file or name "
        "another\n"
    )
    assert shown.returncode == 2


# ---- check-config and schema ---------------------------------------------------------------------


def test_a_file_of_defaults(tmp_path: Path) -> None:
    path = written(tmp_path / "config.toml", "")
    shown = seal_monitor("check-config", path)
    assert shown.stdout == f"{path}: ok\n  nothing differs from the defaults\n"
    assert (shown.stderr, shown.returncode) == ("", 0)


def test_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path / "config.toml",
        """
        attach = "raw_tracepoint"
        [web]
        listen_address = "[::1]:9000"
        [output]
        events_file = "/var/log/events.jsonl"
        [events]
        denials = ["sealed"]
        seals = true
        [ring]
        size = 65536
        [[mute]]
        operation = "munmap"
        executable = "/opt/*"
        reason = "leaks"
        [[mute]]
        cause = "pkey"
        until = 2020-01-01
        reason = "old"
        """,
    )
    shown = seal_monitor("check-config", path)
    assert shown.stdout.splitlines() == [
        f"{path}: ok",
        f'  attach = "raw_tracepoint" (default: "auto"; {path}:2)',
        f'  web.listen_address = "[::1]:9000" (default: "127.0.0.1:10462"; {path}:4)',
        f'  output.events_file = "/var/log/events.jsonl" (default: ""; {path}:6)',
        f'  events.denials = ["sealed"] (default: ["sealed", "unverified"]; {path}:8)',
        f"  events.seals = true (default: false; {path}:9)",
        f"  ring.size = 65536 (default: 2097152; {path}:11)",
        f'  mute: "munmap /opt/*", "leaks" ({path}:12)',
        f'  expired mute: "pkey", "old" ({path}:16)',
    ]
    assert shown.returncode == 0


def test_what_is_in_force_and_from_which_file(tmp_path: Path) -> None:
    path = written(tmp_path / "config.toml", "canary.interval = 5\nevents.seals = true\n")
    (tmp_path / "config.d").mkdir()
    fleet = written(tmp_path / "config.d/10-fleet.toml", "\ncanary.interval = 30\n")
    shown = seal_monitor("check-config", path)
    assert shown.stdout.splitlines() == [
        f"{path}: ok",
        f"{fleet}: ok",
        f"  events.seals = true (default: false; {path}:2)",
        f"  canary.interval = 30 (default: 60; {fleet}:2)",
    ]


def test_the_web_configuration_is_checked_too(tmp_path: Path) -> None:
    web_file = written(tmp_path / "web.yml", "basic_auth_users:\n  ann: secret\n")
    path = written(tmp_path / "config.toml", f'[web]\nconfig_file = "{web_file}"\n')
    shown = seal_monitor("check-config", path)
    assert (shown.stdout, shown.returncode) == ("", 2)
    assert shown.stderr.startswith(f"seal-monitor: {web_file}:2: ")
    assert "secret" not in shown.stderr


def test_a_file_name_with_control_characters_is_escaped(tmp_path: Path) -> None:
    path = written(tmp_path / "a\nb\udcff.toml", "")
    shown = seal_monitor("check-config", path)
    assert shown.stdout.splitlines()[0] == f"'{tmp_path}/a\\nb\\udcff.toml': ok"


def test_schema_is_the_schema() -> None:
    shown = seal_monitor("schema")
    assert json.loads(shown.stdout) == events.schema()
    assert (shown.stderr, shown.returncode) == ("", 0)


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        shown = seal_monitor("schema", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (shown.stderr, shown.returncode) == ("", 0)


# ---- What goes wrong while running ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "lines", "code"),
    [
        (
            host.HostError("no mseal(2)", "boot another kernel"),
            ["no mseal(2)", "what to do: boot another kernel"],
            3,
        ),
        (
            loader.LoadError("cannot load: no\nmemory"),
            ["cannot load: no memory", "what to do: see what 'seal-monitor doctor' says"],
            3,
        ),
        (
            loader.WrongObjectError("x is damaged; run: make setup"),
            ["x is damaged; run: make setup"],
            3,
        ),
        (loader.LoaderDied("the loader ended with -9"), ["the loader ended with -9"], 1),
        (web.WebError("tls: no such file"), ["tls: no such file"], 2),
        (web.AddressError("cannot listen on 127.0.0.1:1"), ["cannot listen on 127.0.0.1:1"], 1),
        (
            calibrate.CalibrationError("nothing seen"),
            ["cannot calibrate: nothing seen; see what 'seal-monitor doctor' says"],
            1,
        ),
        (OSError(28, "No space left on device"), ["No space left on device"], 1),
        (OSError(13, "Permission denied", "/a"), ["/a: Permission denied"], 1),
        (OSError("cannot read /a"), ["cannot read /a"], 1),
        (ValueError("odd"), ["ValueError: odd (SEAL_MONITOR_DEBUG=1 shows where)"], 1),
        (KeyboardInterrupt(), [], 130),
    ],
)
def test_errors_are_in_plain_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    lines: list[str],
    code: int,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("monitor.host.doctor.run", fail)
    monkeypatch.delenv("SEAL_MONITOR_DEBUG", raising=False)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr() == ("", "".join(f"seal-monitor: {line}\n" for line in lines))


def test_debugging_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise ValueError("odd")

    monkeypatch.setattr("monitor.host.doctor.run", fail)
    monkeypatch.setenv("SEAL_MONITOR_DEBUG", "1")
    assert cli.main(["doctor"]) == 1
    assert "in fail\n" in capsys.readouterr().err


# ---- exec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "seal-monitor exec: error: no command"),
        (("--",), "seal-monitor exec: error: no command"),
        (
            ("--fail-on", "denial,wrong", "--", "true"),
            "exec: error: argument --fail-on: 'wrong' is not one of denial, fault and bypass; "
            "separate several by commas",
        ),
        (("--nothing", "--", "true"), "error: unrecognized arguments: --nothing"),
        (
            ("--attach", "kprobe", "--", "true"),
            "command line: --attach: 'kprobe' is not valid; choose auto, fexit, tracepoint or "
            "raw_tracepoint",
        ),
        (("--user", "no-such-user", "--", "true"), "there is no user no-such-user"),
        (
            ("--json", "/nonexistent/found.json", "--", "true"),
            "cannot write /nonexistent/found.json: No such file or directory",
        ),
        (
            ("--report", "/dev/null", "--", "true"),
            "/dev/null: not a regular file; name another, or - for standard output",
        ),
        (
            ("--json", "-", "--report", "-", "--", "true"),
            "exec: error: --json and --report go to the same place",
        ),
    ],
)
def test_exec_fails_with_a_code_of_its_own(arguments: tuple[str, ...], message: str) -> None:
    """Few commands end with this code."""
    shown = seal_monitor("exec", *arguments)
    assert shown.stderr.splitlines()[-1].endswith(message)
    assert (shown.stdout, shown.returncode) == ("", 125)


@ROOT_ALONE
def test_exec_without_privileges() -> None:
    shown = seal_monitor("exec", "--", "true", before=WITHOUT_CAPABILITIES)
    assert shown.stderr.startswith("seal-monitor: this process lacks CAP_BPF and CAP_PERFMON\n")
    assert shown.returncode == 125


@pytest.mark.parametrize("separator", [("--",), ()])
def test_what_follows_the_command_is_its_own(separator: tuple[str, ...]) -> None:
    words = ["make", "--fail-on", "x", "--", "--json", "f"]
    parsed = command_line.parse(["exec", "--user", "nobody", *separator, *words])
    assert parsed.words == [*separator, *words]
    assert (parsed.user, parsed.fail_on, parsed.json) == ("nobody", (), None)


@ROOT_ALONE
@pytest.mark.parametrize("command", ["run", "demo"])
def test_without_privileges(command: str) -> None:
    shown = seal_monitor(command, before=WITHOUT_CAPABILITIES)
    assert shown.stderr.splitlines() == [
        "seal-monitor: this process lacks CAP_BPF and CAP_PERFMON",
        "seal-monitor: what to do: run it as root, or with CAP_BPF, CAP_PERFMON and "
        "CAP_DAC_READ_SEARCH",
    ]
    assert (shown.stdout, shown.returncode) == ("", 3)
