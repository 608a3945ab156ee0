"""The completion for bash offers what the program takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from monitor import cli

FILE = Path(__file__).parents[2] / "docs/completions/seal-monitor.bash"
SCRIPT = """
source "$1"; shift
COMP_WORDS=(seal-monitor "$@"); COMP_CWORD=$#
_seal_monitor
printf '%s\\n' "${COMPREPLY[@]}"
"""
COMMANDS = (
    *("run", "demo", "exec", "doctor", "check-config", "schema", "symbolize", "posture"),
    "detach",
    *("incidents list", "incidents show", "incidents timeline"),
    *("incidents report", "incidents export", "incidents backup"),
    *("fleet list", "fleet show", "fleet hosts", "fleet timeline", "fleet report"),
)


def offered(*words: str) -> set[str]:
    """What it offers for the last word, which may be there in part."""
    command = ["bash", "-c", SCRIPT, "bash", str(FILE), *words]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert shown.stderr == ""
    return set(shown.stdout.split())


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, *command.split())
    flags = set(re.findall(r"^  (?:-\w(?: \S+)?, )?(--[a-z][a-z.-]*)", text, re.MULTILINE))
    assert "--help" in flags
    assert offered(*command.split(), "-") == flags


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    listed = set(re.findall(r"^    ([a-z-]+) +\S", help_of(capsys), re.MULTILINE))
    assert offered("") == listed == {command.split()[0] for command in COMMANDS}
    for command in ("incidents", "fleet"):
        verbs = {each.split()[1] for each in COMMANDS if each.startswith(f"{command} ")}
        assert offered(command, "") == verbs
    assert offered("inc") == {"incidents"}
    assert offered("--") == {"--help", "--version"}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("run", "--attach", ""), {"auto", "fexit", "tracepoint", "raw_tracepoint"}),
        (("run", "--output", "p"), {"pretty"}),
        (("incidents", "list", "--likely", ""), {"attack", "bug", "leak", "unknown", "handled"}),
        (("posture", "--by", "ex"), {"executable"}),
        (("exec", "--user", "nobod"), {"nobody"}),
    ],
)
def test_values(words: tuple[str, ...], values: set[str]) -> None:
    assert offered(*words) == values


def test_the_command_of_exec_and_files(tmp_path: Path) -> None:
    assert "true" in offered("exec", "--", "tru")
    (tmp_path / "config.toml").touch()
    assert offered("run", "--config", f"{tmp_path}/conf") == {f"{tmp_path}/config.toml"}
