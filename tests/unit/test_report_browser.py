"""The page in a real browser: nothing fetched, nothing logged, readable by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, Browser, browser, program
from test_cases import SNAPSHOT, a_day
from test_report import HOSTILE, cases_with, refused

from monitor.cases import gather
from monitor.incident_search import Filter, Incidents
from monitor.report import page

PHONE, DESK = 390, 1200
AA = 4.5  # WCAG 2.1, 1.4.3: contrast of text

OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"
# Elements that reach beyond the window, unless something around them scrolls.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(each =>
    !each.closest('.scroll > *, .definitions') &&
    each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.outerHTML.slice(0, 200))
"""
# Texts of drawings that reach beyond their drawing or into a line above or below.
CROWDED = """
[...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(
        each => [each.textContent, each.getBoundingClientRect()]);
    return boxes.filter(([text, box], index) =>
        box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1 ||
        boxes.slice(index + 1).some(([_, other]) =>
            box.left < other.right && other.left < box.right &&
            box.top + 2 < other.bottom && other.top + 2 < box.bottom)).map(([text]) => text);
})
"""
# The lowest contrast of a text with what is behind it, and that text.
CONTRAST = """
(() => {
    const channels = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = rgb => rgb.slice(0, 3).map(c => c / 255).map(
        c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    ).reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
    const behind = each => {
        for (; each; each = each.parentElement) {
            const colour = channels(getComputedStyle(each).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let worst = [21, ''];
    while (walker.nextNode()) {
        const each = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || each.closest('title, desc')) continue;
        const style = getComputedStyle(each);
        const colour = channels(each.closest('svg') ? style.fill : style.color);
        const [a, b] = [luminance(colour), luminance(behind(each))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < worst[0]) worst = [ratio, each.outerHTML.slice(0, 200)];
    }
    return worst;
})()
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if program() is None:
        pytest.skip(f"{PROGRAM} is not installed")
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, all of them, a denial with its snapshot, and what is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    store = a_day(tmp_path_factory.mktemp("state"))
    with Incidents(store.path) as incidents:
        kinds = ("denial", "fault", "seal", "health")
        cases = gather(incidents, incidents.search(Filter(kinds=kinds), 100))
    made = {f"{case.incident.kind} {case.incident.what}": [case] for case in cases}
    made |= {"all": cases, "none": [], "snapshot": [refused(store)]}
    made |= {
        f"hostile {number}": list(cases_with(store, text[:5000]))[:4]
        for number, text in enumerate(HOSTILE)
    }
    assert SNAPSHOT["event"] == made["snapshot"][0].event["id"]
    paths = {}
    for name, chosen in made.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_bytes(page(chosen))
    return paths


def assert_quiet(chromium: Browser, path: Path) -> None:
    assert chromium.messages() == []
    assert chromium.requests() == [path.as_uri()]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_laid_out_inside_the_window(chromium: Browser, pages: dict[str, Path], width: int) -> None:
    for name, path in pages.items():
        chromium.open(path, width)
        chromium.evaluate(OPEN_ALL)
        wide = chromium.evaluate("document.documentElement.scrollWidth")
        assert (wide, chromium.evaluate(OVERFLOWING)) == (width, []), name
        assert chromium.evaluate(CROWDED) == [], name
        assert_quiet(chromium, path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium: Browser, pages: dict[str, Path], scheme: str) -> None:
    papers = set()
    for name, path in pages.items():
        chromium.open(path, DESK, scheme)
        chromium.evaluate(OPEN_ALL)
        ratio, where = chromium.evaluate(CONTRAST)
        assert ratio >= AA, (name, where)
        papers.add(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == {{"light": "rgb(251, 250, 248)", "dark": "rgb(20, 22, 27)"}[scheme]}


def test_on_paper(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["all"], 720, "dark", media="print")
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert chromium.evaluate(CONTRAST)[0] >= AA
    assert chromium.evaluate("document.querySelector('.picture svg').clientWidth") < 400
    hidden: list[Any] = chromium.evaluate(
        "[...document.querySelectorAll('details')].map(each => getComputedStyle(each).display)"
    )
    assert set(hidden) == {"none"}


def test_the_policy_stops_a_script(chromium: Browser, pages: dict[str, Path]) -> None:
    """Even if one got in: this page has been tampered with."""
    path = pages["all"].with_name("tampered.html")
    script = b"<script>document.title = 'run'</script><img src='https://x.test/x.png' /></main>"
    path.write_bytes(pages["all"].read_bytes().replace(b"</main>", script))
    chromium.open(path, DESK)
    assert chromium.evaluate("document.title") == "7 incidents"
    assert len(chromium.messages()) == 2  # both were refused
