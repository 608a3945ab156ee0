"""Which seal-monitor this is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["revision", "version"]

_ROOT = Path(__file__).parent.parent
_LENGTH = 12

# It is here because importlib.metadata would take 0.8 MiB to find it. pyproject.toml reads it from
# here.
VERSION = "0.1.0"


def version() -> str:
    """This distribution's version."""
    return VERSION


def revision(root: Path = _ROOT) -> str:
    """The commit of a checkout, abbreviated; empty where this is not a checkout."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text("ascii").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head[:_LENGTH]
        if (git / name).is_file():
            return (git / name).read_text("ascii").strip()[:_LENGTH]
        packed = (git / "packed-refs").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    found = (line.split()[0] for line in packed if line.endswith(f" {name}"))
    return next(found, "")[:_LENGTH]
