"""Writes metrics in the two formats that a scrape may ask for, with prometheus_client's model.

The library's package, and its writer of the text format, import HTTP servers, clients and TLS. So
only parts of it are imported, and the text format is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from monitor.parts import parts_of

with parts_of("prometheus_client"):
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.openmetrics.exposition import generate_latest as _openmetrics
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import CollectorRegistry
    from prometheus_client.utils import floatToGoString

__all__ = [
    "CollectorRegistry",
    "CounterMetricFamily",
    "Family",
    "Format",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
    "ProcessCollector",
    "choose_format",
    "text",
]

_number: Callable[[float], str] = floatToGoString
_SUFFIXES = {"counter": "_total", "gauge": "", "histogram": ""}  # of a family's name


def _documentation(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _label_value(text: str) -> str:
    return _documentation(text).replace('"', r"\"")


def text(registry: CollectorRegistry) -> bytes:
    """The registry's counters, gauges and histograms in the text format, version 0.0.4."""
    lines = []
    for family in registry.collect():
        name = family.name + _SUFFIXES[family.type]
        lines.append(f"# HELP {name} {_documentation(family.documentation)}\n")
        lines.append(f"# TYPE {name} {family.type}\n")
        for sample in family.samples:
            pairs = [f'{key}="{_label_value(sample.labels[key])}"' for key in sorted(sample.labels)]
            labels = f"{{{','.join(pairs)}}}" if pairs else ""
            lines.append(f"{sample.name}{labels} {_number(sample.value)}\n")
    return "".join(lines).encode()


class Format(NamedTuple):
    encode: Callable[[CollectorRegistry], bytes]
    content_type: str


_ASKED = {  # kind and version
    ("application/openmetrics-text", ""): _openmetrics,
    ("application/openmetrics-text", "1.0.0"): _openmetrics,
    ("text/plain", "1.0.0"): text,
}


def choose_format(accept: str) -> Format:
    """The first format of an Accept header that is known here, else the text format 0.0.4.

    Two ways to escape names are accepted: our names are the same in both.
    """
    for asked in accept.split(","):
        kind, *rest = (part.strip() for part in asked.split(";"))
        parameters = dict(part.split("=", 1) for part in rest if "=" in part)
        version = parameters.get("version", "")
        if encode := _ASKED.get((kind, version)):
            content_type = f"{kind}; version=1.0.0; charset=utf-8"
            if version:
                allowed = parameters.get("escaping") == "allow-utf-8"
                content_type += f"; escaping={'allow-utf-8' if allowed else 'underscores'}"
            return Format(encode, content_type)
    return Format(text, "text/plain; version=0.0.4; charset=utf-8")
