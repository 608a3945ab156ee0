"""What commands import; tests/kernel/test_imports_kernel.py sees a daemon to its end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from imports import COMMAND, HEAVY, OF_INCIDENTS, culprits

CONFIGURATION = Path(__file__).parents[2] / "docs/config.example.toml"


def imported(tmp_path: Path, *command: str) -> dict[str, list[str]]:
    file = tmp_path / "imports.json"
    subprocess.run(
        [*COMMAND, str(file), *command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL
    )
    found: dict[str, list[str]] = json.loads(file.read_text())
    return found


def test_a_daemon_imports_nothing_heavy(tmp_path: Path) -> None:
    found = imported(tmp_path)
    assert culprits(found, HEAVY | OF_INCIDENTS) == []
    assert {"monitor.daemon", "monitor.kernel.ring", "logging"} <= found.keys()


@pytest.mark.parametrize(
    "command", [("--version",), ("check-config", str(CONFIGURATION)), ("--help",)]
)
def test_small_commands_import_no_daemon(tmp_path: Path, command: tuple[str, ...]) -> None:
    daemons = {"monitor.daemon", "monitor.kernel.loader", "subprocess", "socket", "shutil"}
    found = imported(tmp_path, *command)
    assert culprits(found, HEAVY | OF_INCIDENTS | daemons) == []
    assert "monitor.cli" in found


def test_who_imported_it_is_reported(tmp_path: Path) -> None:
    found = imported(tmp_path, "--version")
    (line,) = culprits(found, ["tomllib", "ssl"])
    places = [place.rpartition(":")[0] for place in line.split(", by ")]
    assert places[0] == "tomllib, imported by monitor.configuration.config"
    assert places[1:] == ["monitor.arguments", "monitor.cli", "__main__", "__main__"]
