"""`make report-picture`: draws docs/report.png, the upper part of an incident's page.

The incident is the one that README.md and docs/events.md show, with the names of its functions and
a snapshot of its process, so that the picture is the same wherever it is drawn.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import drawn
from browser import Browser, browser

from monitor.evidence.fingerprint import fingerprint
from monitor.incidents.search import Filter, Incidents
from monitor.incidents.store import IncidentStore, Retention, nanoseconds, snapshot_data
from monitor.report.cases import gather
from monitor.report.page import page
from monitor.sinks.outputs import encode

__all__ = ["PICTURE", "incident_page"]

ROOT = Path(__file__).parents[1]
PICTURE = "docs/report.png"
WIDTH = 1000
PROGRAM = "/srv/images/bin/image-worker"
SYMBOLS = {
    ("image-worker", 0x11B8): "fill_row+0x28",
    ("image-worker", 0x1212): "replace_handler+0x42",
    ("image-worker", 0x1253): "apply_settings+0x13",
    ("image-worker", 0x12FE): "main+0xa9",
    ("image-worker", 0x133B): "main+0xe6",
    ("image-worker", 0x1391): "main+0x13c",
    ("libc.so.6", 0x2724A): "__libc_start_call_main+0x7a",
}
# Start, end, permissions, offset in the program; None: in no file.
MAPPINGS = (
    (0x55EB7720F000, 0x55EB77210000, "r--p", 0x0),
    (0x55EB77210000, 0x55EB77211000, "r-xp", 0x1000),
    (0x55EB77211000, 0x55EB77212000, "r--p", 0x2000),
    (0x55EB77212000, 0x55EB77215000, "rw-p", 0x2000),
    (0x55EB77215000, 0x55EB77217000, "r--p", 0x5000),
    (0x55EB77217000, 0x55EB77218000, "rw-p", 0x7000),
    (0x55EB7833A000, 0x55EB7835B000, "rw-p", None),
)
SEALED = 0x55EB77215000

Json = dict[str, Any]


def _example(kind: str) -> Json:
    """The event that docs/events.md shows of this kind, with names in its stack."""
    text = (ROOT / "docs/events.md").read_text("utf-8")
    found = (json.loads(block.partition("```")[0]) for block in text.split("```json\n")[1:])
    event: Json = next(each for each in found if each["kind"] == kind)
    for frame in event["stack"]:
        frame["symbol"] = SYMBOLS.get((frame["module"], frame["offset"]))
    return event


def _mapping(start: int, end: int, permissions: str, offset: int | None) -> Json:
    file = {"path": PROGRAM, "device": "254:0", "inode": 1474587, "offset": offset}
    return {
        **{"start": f"{start:#x}", "end": f"{end:#x}", "permissions": permissions},
        **{"file": None if offset is None else file, "name": "[heap]" if offset is None else None},
        **{"sealed": start == SEALED, "guard": False, "rss_kib": 4},
    }


def _snapshot(denial: Mapping[str, Any]) -> Json:
    return {
        **{"time": denial["time"], "event": denial["id"], "pid": denial["process"]["pid"]},
        "start": denial["process"]["start"],
        "memory_map": [_mapping(*each) for each in MAPPINGS],
        "memory_map_complete": True,
    }


def incident_page() -> bytes:
    """The page of the example's denial: the same bytes each time."""
    seal, denial, fault = map(_example, ("seal", "denial", "fault"))
    taken_ns = nanoseconds(denial["time"])
    with tempfile.TemporaryDirectory() as folder:
        store = IncidentStore(
            *(Path(folder), Retention(age=30, size=1 << 26, events=20), print),
            lambda: taken_ns,
        )
        store.write_all([store.render(event) for event in (seal, denial, fault)])
        snapshot = encode(_snapshot(denial))
        store.write(snapshot_data(fingerprint(denial).id, taken_ns, snapshot))
        store.close()
        with Incidents(store.path) as incidents:
            return page(gather(incidents, incidents.search(Filter(kinds=("denial",)), 1)))


def draw(tab: Browser, html: Path) -> bytes:
    """A PNG of the page down to the end of the second card."""
    tab.open(html, WIDTH)
    script = f"document.querySelectorAll('.card')[{drawn.REPORT_CARDS - 1}]"
    bottom = tab.evaluate(f"{script}.getBoundingClientRect().bottom + scrollY")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": round(bottom) + 20, "scale": 1}
    shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    return base64.b64decode(shot["data"])


def main() -> None:
    made = incident_page()
    with tempfile.TemporaryDirectory() as folder, browser() as tab:
        html = Path(folder, "page.html")
        html.write_bytes(made)
        picture = draw(tab, html)
        if problems := tab.messages():
            sys.exit(f"the page has errors: {problems}")
    shrink = ("pngquant", "--strip", "--speed=1", "-")
    picture = subprocess.run(shrink, input=picture, capture_output=True, check=True).stdout
    (ROOT / PICTURE).write_bytes(picture)
    drawn.record(PICTURE, drawn.report(made))
    print(f"{PICTURE}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
