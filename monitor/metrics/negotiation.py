"""What a client would rather have, by its headers Accept and Accept-Encoding (RFC 9110, 12.4.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = ["Preference", "preferences", "wants_gzip"]

_QUALITY = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")


class Preference(NamedTuple):
    """`value` is in lower case; `quality` is from 0, which excludes it, to 1."""

    value: str
    parameters: Mapping[str, str]
    quality: float


def preferences(header: str) -> Iterator[Preference]:
    """What the header lists, in its order, without the items that make no sense."""
    for item in header.split(","):
        value, *rest = (part.strip() for part in item.split(";"))
        pairs = (part.partition("=") for part in rest if "=" in part)
        parameters = {
            name.strip().lower(): text.strip().removeprefix('"').removesuffix('"')
            for name, _, text in pairs
        }
        quality = parameters.pop("q", "1")
        if value and _QUALITY.fullmatch(quality):
            yield Preference(value.lower(), parameters, min(float(quality), 1.0))


def wants_gzip(accept_encoding: str) -> bool:
    """Whether a response should be compressed: gzip is acceptable, and no worse than as it is."""
    found = {item.value: item.quality for item in preferences(accept_encoding)}
    gzip = found.get("gzip", found.get("x-gzip", found.get("*", 0.0)))
    return gzip > 0 and gzip >= found.get("identity", 0.0)
