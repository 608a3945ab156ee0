"""`make pictures`: draws the dashboards with Grafana's own front end.

Grafana's server is in no Debian package, but its front end is on npm. That one draws each dashboard
with the data of a hundred hosts, from a real Prometheus, in a headless Chromium. The layout, the
variables, the queries' life, field configuration, transformations and components are Grafana's; the
panel plug-ins around the components are ours (dashboards/pictures), and so is the data source,
because they are not on npm. Annotations are not drawn.

Also makes dashboards/pictures/grafana.schema.json of @grafana/schema's types, for tests/unit.
"""

from __future__ import annotations

import argparse
import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet import MINUTE, exposition
from prometheus_server import backfilled

ROOT = Path(__file__).parents[1]
DASHBOARDS = ROOT / "dashboards"
SOURCES = DASHBOARDS / "pictures"
SCHEMA = SOURCES / "grafana.schema.json"
SCREENSHOTS = DASHBOARDS / "screenshots"
WORKSHOP = ROOT / ".venv/pictures"

HOSTS, MINUTES = 100, 360
CHOSEN: dict[str, dict[str, str]] = {
    "overview": {},
    "host": {"var-instance": "web-001.example:10462"},
    "health": {},
}
WIDTH = 1400
GRID_ROW, HEAD = 38, 130  # pixels
LIMIT = 150_000  # bytes of a picture


def run(*command: object) -> None:
    """Raises CalledProcessError; what npm says of its own settings is no news."""
    subprocess.run([str(word) for word in command], cwd=WORKSHOP, check=True)


def install() -> None:
    """npm's packages, half a gigabyte, once for each package.json."""
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
    """A schema without what is there for readers."""
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


def chromium(url: str, height: int, picture: Path) -> str:
    """Draws a page into a picture; returns the page as it has become."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", f"--user-data-dir={profile}", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--window-size={WIDTH},{height}", "--force-device-scale-factor=1"),
            *("--virtual-time-budget=30000", f"--screenshot={picture}", "--dump-dom", url),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=300
        ).stdout


def draw(url: str, name: str, asked: Mapping[str, object], picture: Path) -> list[str]:
    """Returns what is wrong with the picture."""
    document = json.loads((DASHBOARDS / f"{name}.json").read_text("utf-8"))
    panels = document["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    query = urllib.parse.urlencode({"dashboard": name, **asked})
    page = chromium(f"{url}/?{query}", HEAD + GRID_ROW * bottom, picture)
    text = html.unescape(re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    problems = [
        f"no panel {panel['title']!r}" for panel in panels if f">{panel['title']}<" not in text
    ]
    problems += [
        f"{text.count(words)} times {words!r}"
        for words in ("No data", "Error", "Panel plugin not found")
        if f">{words}" in text
    ]
    size = picture.stat().st_size
    return problems if size < LIMIT else [*problems, f"{size:,} bytes"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="replace the pictures in the checkout")
    keep = parser.parse_args().keep
    install()
    write_schema()
    run("npx", "vite", "build")
    site = WORKSHOP / "dist"
    shutil.copytree(DASHBOARDS, site / "dashboards", dirs_exist_ok=True)

    end = int(time.time()) // MINUTE * MINUTE
    start = end - MINUTES * MINUTE
    rules = DASHBOARDS / "rules/recording.yml"
    pictures = SCREENSHOTS if keep else WORKSHOP / "screenshots"
    pictures.mkdir(exist_ok=True)
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        backfilled(Path(folder), exposition(HOSTS, MINUTES, end), rules, start, end) as prometheus,
        served(site) as url,
    ):
        shown = {"prometheus": prometheus.url, "from": start * 1000, "to": (end - MINUTE) * 1000}
        for name, chosen in CHOSEN.items():
            picture = pictures / f"{name}.png"
            problems = draw(url, name, {**shown, **chosen}, picture)
            print(f"{picture}: {'; '.join(problems) or 'every panel is drawn'}")
            wrong |= bool(problems)
    return wrong


if __name__ == "__main__":
    os.environ["PATH"] = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    sys.exit(main())
