"""No committed picture is older than what it shows, and what cannot be seen demands no new one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawn
import pytest
from report_picture import PICTURE, incident_page

ROOT = Path(__file__).parents[2]
SCREENSHOTS = "dashboards/screenshots"
Json = dict[str, Any]


def overview() -> Json:
    found: Json = json.loads((ROOT / "dashboards/overview.json").read_text("utf-8"))
    return found


def test_every_picture_has_a_digest() -> None:
    pictures = (*(ROOT / "docs").glob("*.png"), *(ROOT / SCREENSHOTS).glob("*.png"))
    assert sorted(drawn.recorded()) == sorted(str(path.relative_to(ROOT)) for path in pictures)


@pytest.mark.parametrize("picture", sorted(path.stem for path in (ROOT / SCREENSHOTS).glob("*")))
def test_a_dashboard_is_as_drawn(picture: str) -> None:
    name = picture.removesuffix("-dark")
    (file,) = (ROOT / "dashboards").rglob(f"{name}.json")
    document = json.loads(file.read_text("utf-8"))
    old = drawn.recorded()[f"{SCREENSHOTS}/{picture}.png"]
    assert drawn.dashboard(document) == old, "look at it, and run: make pictures ARGS=--keep"


def test_the_pictures_are_small() -> None:
    """A clone of the repository brings all of them."""
    sizes = {path.name: path.stat().st_size for path in (ROOT / SCREENSHOTS).iterdir()}
    assert len(sizes) == 6
    assert max(sizes.values()) < 180_000
    assert sum(sizes.values()) < 790_000


def test_the_report_is_as_drawn() -> None:
    old = drawn.recorded()[PICTURE]
    assert drawn.report(incident_page()) == old, "look at it, and run: make report-picture"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda document: document.update(version=99), True),
        (lambda document: document["panels"][1].update(description="another"), True),
        (lambda document: document["panels"][1].update(title="another"), False),
        (lambda document: document["panels"][1]["gridPos"].update(w=1), False),
        (lambda document: document["panels"][1]["targets"][0].update(expr="up"), False),
        (lambda document: document["templating"]["list"].pop(), False),
    ],
)
def test_what_counts_of_a_dashboard(change: Callable[[Json], object], same: bool) -> None:
    changed = copy.deepcopy(overview())
    change(changed)
    assert (drawn.dashboard(changed) == drawn.dashboard(overview())) == same


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("</style>", "/* why\n it is so */</style>", True),
        ("<main>", "<main>\n", True),
        ("Who it was", "Who that was", True),  # below the edge of the picture
        ("What happened", "What has happened", False),
        ("Addresses grow", "They grow", False),  # the last words in the picture
        ("--paper: #fbfaf8", "--paper: #fff", False),
    ],
)
def test_what_counts_of_the_report(old: str, new: str, same: bool) -> None:
    page = incident_page().decode()
    assert old in page
    changed = page.replace(old, new, 1).encode()
    assert (drawn.report(changed) == drawn.report(page.encode())) == same


def test_a_digest_is_kept_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "drawn.json"
    drawn.record("b.png", "1", path)
    drawn.record("a.png", "2", path)
    drawn.record("b.png", "3", path)
    assert json.loads(path.read_text()) == {"a.png": "2", "b.png": "3"}
