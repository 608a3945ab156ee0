from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from monitor.version import revision, version

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        ({"HEAD": f"{COMMIT}\n"}, "0123456789ab"),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": f"{COMMIT}\n"}, "0123456789ab"),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "packed-refs": f"# pack-refs with: peeled\n{COMMIT} refs/heads/main\n",
            },
            "0123456789ab",
        ),
        ({"HEAD": "ref: refs/heads/main\n", "packed-refs": f"{COMMIT} refs/heads/x\n"}, ""),
        ({"HEAD": "ref: refs/heads/unborn\n"}, ""),
    ],
)
def test_revision(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        path = tmp_path / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert revision(tmp_path) == expected


def test_version_is_that_of_the_installed_distribution() -> None:
    assert version() == metadata.version("seal-monitor")
