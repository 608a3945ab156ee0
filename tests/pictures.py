"""`make pictures`: draws the dashboards with Grafana's own front end.

Grafana's server is in no Debian package, but its front end is on npm. It draws each dashboard
with the data of a hundred hosts, from a real Prometheus, in a headless Chromium. The layout, the
variables, the queries' life, field configuration, transformations and components are Grafana's; the
panel plug-ins around the components are ours (dashboards/pictures), and so is the data source,
because they are not on npm. Annotations are not drawn.

Also makes dashboards/pictures/grafana.schema.json of @grafana/schema's types, for tests/unit.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import drawn
import postgresql_page
from browser import Browser, browser
from centre import Centre, clickhouse, postgresql
from fleet import MINUTE, exposition
from fleet_events import Fleet
from prometheus import backfilled

ROOT = Path(__file__).parents[1]
DASHBOARDS = ROOT / "dashboards"
SOURCES = DASHBOARDS / "pictures"
SCHEMA = SOURCES / "grafana.schema.json"
SCREENSHOTS = DASHBOARDS / "screenshots"
WORKSHOP = ROOT / ".venv/pictures"
SITE = WORKSHOP / "dist"

HOSTS, MINUTES = 100, 360
DAY = 86_400
EVENTS = 20_000  # of a fleet, in the dashboard of incidents
INCIDENTS = {
    "clickhouse": "fleet/incidents-clickhouse",
    "postgresql": "fleet/incidents-postgresql",
}
CHOSEN: dict[str, dict[str, str]] = {
    "overview": {},
    "host": {"var-instance": "web-001.example:10462"},
    "health": {},
}
GRID_ROW, HEAD, NARROW_HEAD = 38, 160, 300  # pixels
NARROW = 768  # below it, Grafana has one panel in a line
LIMIT = 180_000  # bytes of a picture
SECONDS = 120.0  # for all queries of a dashboard


class View(NamedTuple):
    """How a dashboard is looked at; `suffix` is that of the picture's name."""

    suffix: str
    width: int
    theme: str


WIDE = View("", 1400, "light")
DARK = View("-dark", 1400, "dark")
VIEWS = (WIDE, DARK, View("-narrow", 390, "light"), View("-narrow-dark", 390, "dark"))
# What is committed: what the pages show.
KEPT = {
    *(("overview", WIDE), ("overview", DARK), ("host", WIDE), ("health", WIDE)),
    *((name, WIDE) for name in INCIDENTS.values()),
}


def run(*command: object) -> None:
    """Run npm; leave out what it says about its settings. Raises CalledProcessError."""
    subprocess.run([str(word) for word in command], cwd=WORKSHOP, check=True)


def install() -> None:
    """Install npm's packages, half a gigabyte: once for each package.json."""
    WORKSHOP.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCES / "package.json").read_text("utf-8")
    done = WORKSHOP / "package.json"
    is_current = done.exists() and done.read_text("utf-8") == wanted
    for path in SOURCES.iterdir():
        shutil.copy(path, WORKSHOP)
    if not is_current or not (WORKSHOP / "node_modules/.ready").exists():
        # Grafana's packages name versions of others that contradict each other.
        flags = ("--legacy-peer-deps", "--ignore-scripts", "--no-package-lock", "--no-audit")
        run("npm", "install", "--no-fund", "--loglevel=error", *flags)
        (WORKSHOP / "node_modules/.ready").touch()


def shorter(value: Any) -> Any:
    """A schema without its descriptions."""
    if isinstance(value, dict):
        return {
            key: shorter(each)
            for key, each in value.items()
            if not (key in ("description", "default") and not isinstance(each, dict))
        }
    return [shorter(each) for each in value] if isinstance(value, list) else value


def write_schema() -> None:
    made = WORKSHOP / "schema.json"
    run(
        *("npx", "ts-json-schema-generator", "--path", "schema.ts", "--tsconfig", "tsconfig.json"),
        *("--type", "Dashboard", "--no-type-check", "--out", made),
    )
    schema = shorter(json.loads(made.read_text("utf-8")))
    definitions = schema.pop("definitions")
    lines = [
        f"{json.dumps(name)}: {json.dumps(body, separators=(',', ':'))}"
        for name, body in sorted(definitions.items())
    ]
    head = json.dumps(schema)[:-1]
    SCHEMA.write_text(f'{head}, "definitions": {{\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# A title is there before what is below it: a second longer than the last query.
_STATE = """JSON.stringify({
    text: document.body?.innerText ?? "",
    empty: document.querySelectorAll("[data-empty]").length,
    links: [...document.querySelectorAll("a[href*='/d/']")].map((link) => link.href),
    busy: performance.now() - Math.max(0, ...performance.getEntriesByType("resource").map(
        (entry) => entry.responseEnd)) < 3000,
})"""


def pixels(document: Mapping[str, Any], view: View) -> int:
    """The height of the whole dashboard."""
    places: list[dict[str, int]] = [panel["gridPos"] for panel in document["panels"]]
    if view.width < NARROW:
        return NARROW_HEAD + GRID_ROW * sum(place["h"] for place in places)
    return HEAD + GRID_ROW * max(place["y"] + place["h"] for place in places)


def draw(tab: Browser, page: str, name: str, view: View, picture: Path) -> list[str]:
    """Returns what is wrong with the picture. `page` is the URL of the dashboard."""
    document = json.loads((SITE / f"dashboards/{name}.json").read_text("utf-8"))
    titles = [panel["title"] for panel in document["panels"]]
    size = {"width": view.width, "height": pixels(document, view), "deviceScaleFactor": 1}
    tab.call("Emulation.setDeviceMetricsOverride", **size, mobile=False)
    tab.seen.clear()
    tab.call("Page.navigate", url=page)
    deadline = time.monotonic() + SECONDS
    while True:
        state = json.loads(tab.evaluate(_STATE))
        missing = [title for title in titles if title not in state["text"]]
        if (not missing and not state["busy"]) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    # Browser.screenshot() would change the page's height, and the panels would be drawn again.
    shot = tab.call("Page.captureScreenshot", format="png")
    picture.write_bytes(base64.b64decode(shot["data"]))
    shrink = ("pngquant", "--force", "--strip", "--speed=1", "--output", picture, "--", picture)
    subprocess.run(shrink, check=True)
    problems = [f"no panel {title!r}" for title in missing]
    if state["busy"]:
        problems.append(f"still loading after {SECONDS:.0f} s")
    if broken := state["text"].count("An unexpected error happened"):
        problems.append(f"{broken} panels broken")
    empty = state["empty"]
    if empty and "var-instance" not in page:  # on a single host not everything happens
        problems.append(f"{empty} panels without data")
    problems += [f"unfilled link {link}" for link in state["links"] if "${" in link]
    problems += [message[:500] for message in tab.messages() if "exceptionThrown" in message]
    if (size_now := picture.stat().st_size) > LIMIT:
        problems.append(f"{size_now:,} bytes")
    return problems


def _loaded(centre: Centre, fleet: Fleet) -> dict[str, object]:
    """The incident and the host to look at."""
    centre.load(line for line, _ in fleet.lines())
    ((host, *_),) = centre.rows(
        "SELECT host FROM seal_monitor.events GROUP BY host ORDER BY count(*) DESC, host LIMIT 1"
    )
    return {"var-fingerprint": fleet.spreading, "var-host": host}


@contextmanager
def filled(folder: Path) -> Iterator[dict[str, dict[str, object]]]:
    """The parameters of each dashboard: where its data are, of which time, and what is chosen."""
    end = int(time.time()) // MINUTE * MINUTE
    start = end - MINUTES * MINUTE
    rules = DASHBOARDS / "rules/recording.yml"
    fleet = Fleet(EVENTS, datetime.fromtimestamp(end, UTC))
    samples = exposition(HOSTS, MINUTES, end)
    with (
        backfilled(folder, samples, rules, start, end) as prometheus,
        clickhouse() as columns,
        postgresql() as rows,
        postgresql_page.serving(rows) as page,
    ):
        metrics = {"prometheus": prometheus.url, "from": start * 1000, "to": (end - MINUTE) * 1000}
        shown: dict[str, dict[str, object]] = {
            name: metrics | chosen for name, chosen in CHOSEN.items()
        }
        day = {"from": (end - DAY) * 1000, "to": end * 1000}
        centres: tuple[tuple[str, Centre, str], ...] = (
            ("clickhouse", columns, columns.url),
            ("postgresql", rows, page),
        )
        for name, centre, url in centres:
            chosen = _loaded(centre, fleet)
            shown[INCIDENTS[name]] = {name: url, **day, **chosen}
        yield shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="replace the pictures in the checkout")
    parser.add_argument("--all", action="store_true", help="draw also dark and narrow ones")
    parser.add_argument("--only", default="", metavar="WORD", help="those with this in their name")
    arguments = parser.parse_args()
    install()
    write_schema()
    run("npx", "vite", "build")
    shutil.copytree(DASHBOARDS, SITE / "dashboards", dirs_exist_ok=True)
    icons = WORKSHOP / "node_modules/@grafana/ui/dist/public/img"
    shutil.copytree(icons, SITE / "public/build/img", dirs_exist_ok=True)

    loose = WORKSHOP / "screenshots"
    loose.mkdir(exist_ok=True)
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        filled(Path(folder)) as sources,
        served(SITE) as url,
        browser() as tab,
    ):
        for (name, shown), view in itertools.product(sources.items(), VIEWS):
            is_kept = (name, view) in KEPT
            if arguments.only not in name or not (is_kept or arguments.all):
                continue
            folder_of_it = SCREENSHOTS if is_kept and arguments.keep else loose
            picture = folder_of_it / f"{Path(name).name}{view.suffix}.png"
            asked = {"dashboard": name, "theme": view.theme, **shown}
            page = f"{url}/?{urllib.parse.urlencode(asked)}"
            problems = draw(tab, page, name, view, picture)
            print(f"{picture}: {'; '.join(problems) or 'every panel is drawn'}", flush=True)
            wrong |= bool(problems)
            if is_kept and arguments.keep and not problems:
                document = json.loads((SITE / f"dashboards/{name}.json").read_text("utf-8"))
                drawn.record(str(picture.relative_to(ROOT)), drawn.dashboard(document))
    return wrong


if __name__ == "__main__":
    os.environ["PATH"] = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    sys.exit(main())
