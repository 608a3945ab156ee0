"""Incidents as one HTML page that needs nothing else: no script, no other file, no network.

Values of an event get into the page only through the templates: each value passes `printable` and
is then escaped. The page is also well-formed XML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from monitor.incidents.search import Incident, Incidents
from monitor.report.cases import Case, gather
from monitor.report.picture import WIDTH
from monitor.report.private_file import write_private
from monitor.report.spread import HEIGHT as SPREAD_HEIGHT
from monitor.report.spread import WIDTH as SPREAD_WIDTH
from monitor.report.view import overview, view
from monitor.symbols.resolver import Resolver
from monitor.untrusted.printable import printable
from monitor.untrusted.terminal import counted
from monitor.version import version

__all__ = ["page", "write"]

TEXT_LIMIT = 4096
# One incident is shown with everything, of several only so much that the page opens quickly.
_RAW, _RAW_OF_MANY = 100, 1
_MAP, _MAP_OF_MANY = 4096, 24


def _safe(value: object) -> object:
    """A value as a template writes it: text loses the characters that a terminal, a log or the
    bidirectional algorithm would obey.
    """
    return printable(value, TEXT_LIMIT) if type(value) is str else value


def _verbatim(text: str) -> Markup:
    """Text that seal-monitor made, in ASCII, such as JSON: its quotes and line ends stay."""
    return escape(text.encode("ascii", "backslashreplace").decode())


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("monitor.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters["verbatim"] = _verbatim
    return found


def page(cases: Sequence[Case], title: str | None = None, *, every: int = 0) -> bytes:
    """The page about these incidents, in UTF-8; the same cases give the same bytes.

    `every`: how many incidents there are, if that is more.
    """
    environment = _environment()
    style = environment.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    is_one = len(cases) == 1
    text = environment.get_template("report.html").render(
        title=title or (cases[0].incident.title if is_one else counted(len(cases), "incident")),
        style=Markup(style),  # our own
        style_digest=digest,
        overviews=[overview(case.incident) for case in cases],
        views=[
            view(
                case,
                raw_limit=_RAW if is_one else _RAW_OF_MANY,
                map_limit=_MAP if is_one else _MAP_OF_MANY,
            )
            for case in cases
        ],
        ids={case.incident.id for case in cases},
        picture_width=WIDTH,
        spread_width=SPREAD_WIDTH,
        spread_height=SPREAD_HEIGHT,
        version=version(),
        every=f"{every:,}" if every > len(cases) else "",
    )
    return text.encode("utf-8", "backslashreplace")


def write(
    incidents: Incidents,
    chosen: Sequence[Incident],
    out: BinaryIO | Path,
    *,
    resolver: Resolver | None = None,
    title: str | None = None,
) -> None:
    """Write the page about these incidents to a stream, or to a file that only its owner may read.

    Several incidents have an overview first. Raises IncidentError, OSError.
    """
    text = page(gather(incidents, chosen, resolver), title)
    if isinstance(out, Path):
        write_private(out, text)
    else:
        out.write(text)
