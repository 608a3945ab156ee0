"""Digests of what the committed pictures show; the targets that draw them write tests/drawn.json.

A picture is out of date when its digest differs from that of what it would show now. Only what can
be seen counts: a comment, a description, or the part of the report below the picture's edge demands
no new picture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DIGESTS", "dashboard", "record", "recorded", "report"]

DIGESTS = Path(__file__).with_suffix(".json")
REPORT_CARDS = 2  # the picture of the report ends below the second one
_NOT_DRAWN = ("description", "id", "uid", "version")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _visible(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _visible(each) for key, each in value.items() if key not in _NOT_DRAWN}
    return [_visible(each) for each in value] if isinstance(value, list) else value


def dashboard(document: Mapping[str, Any]) -> str:
    """Of the title, the variables and the panels with their queries; not of the values."""
    shown = {key: document[key] for key in ("title", "templating", "panels")}
    return _digest(json.dumps(_visible(shown), sort_keys=True))


def report(page: bytes) -> str:
    """Of the style and of all down to the end of the second card."""
    text = page.decode()
    style = text[text.index("<style>") : text.index("</style>")]
    cards = text[text.index("<main>") :].split("</section>")[:REPORT_CARDS]
    visible = re.sub(r"/\*.*?\*/|<!--.*?-->", "", style + "".join(cards), flags=re.DOTALL)
    return _digest(" ".join(visible.split()))


def recorded(digests: Path = DIGESTS) -> dict[str, str]:
    """By the picture's path in the tree."""
    found: dict[str, str] = json.loads(digests.read_text("utf-8"))
    return found


def record(picture: str, digest: str, digests: Path = DIGESTS) -> None:
    """Call it when the picture has been drawn."""
    found = (recorded(digests) if digests.exists() else {}) | {picture: digest}
    digests.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", "utf-8")
