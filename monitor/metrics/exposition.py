"""Writes metrics in the two formats that a scrape may ask for, with prometheus_client's model.

The library's package, and its writer of the text format, import HTTP servers, clients and TLS, and
its writer of OpenMetrics takes three times as long. So only parts of it are imported, and both are
written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from monitor.metrics.negotiation import Preference, preferences
from monitor.parts import parts_of

with parts_of("prometheus_client"):
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.metrics_core import Metric as Family
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
    "openmetrics",
    "text",
]

_number: Callable[[float], str] = floatToGoString
_SUFFIXES = {"counter": "_total", "gauge": "", "histogram": ""}  # of a family's name


def _documentation(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _label_value(text: str) -> str:
    return _documentation(text).replace('"', r"\"")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = [f'{name}="{_label_value(labels[name])}"' for name in sorted(labels)]
    return f"{{{','.join(pairs)}}}"


def _lines(
    registry: CollectorRegistry, suffixes: Mapping[str, str], documentation: Callable[[str], str]
) -> list[str]:
    lines = []
    for family in registry.collect():
        name = family.name + suffixes.get(family.type, "")
        lines.append(f"# HELP {name} {documentation(family.documentation)}\n")
        lines.append(f"# TYPE {name} {family.type}\n")
        lines += [
            f"{sample.name}{_labels(sample.labels)} {_number(sample.value)}\n"
            for sample in family.samples
        ]
    return lines


def text(registry: CollectorRegistry) -> bytes:
    """The registry's counters, gauges and histograms in the text format, version 0.0.4."""
    return "".join(_lines(registry, _SUFFIXES, _documentation)).encode()


def openmetrics(registry: CollectorRegistry) -> bytes:
    """The same in OpenMetrics, version 1.0.0."""
    return "".join((*_lines(registry, {}, _label_value), "# EOF\n")).encode()


class Format(NamedTuple):
    encode: Callable[[CollectorRegistry], bytes]
    content_type: str


class _Offer(NamedTuple):
    kind: str
    version: str
    encode: Callable[[CollectorRegistry], bytes]

    def match(self, asked: Preference) -> int:
        """How exactly it is what a client asked for; 0: it is not."""
        if asked.value == self.kind:
            version = asked.parameters.get("version", "")
            return {self.version: 4, "": 3}.get(version, 0)
        return {f"{self.kind.partition('/')[0]}/*": 2, "*/*": 1, "*": 1}.get(asked.value, 0)


_OFFERS = (  # what we would rather send comes first
    _Offer("text/plain", "0.0.4", text),
    _Offer("application/openmetrics-text", "1.0.0", openmetrics),
    _Offer("text/plain", "1.0.0", text),
)


def choose_format(accept: str) -> Format:
    """The format that an Accept header prefers, else the text format 0.0.4.

    What asks for a format most exactly has its quality. Among equals, first is what was asked for
    more exactly, then what was asked for earlier. Two ways to escape names are accepted: our names
    are the same in both.
    """
    asked = list(preferences(accept))
    best, chosen, escaping = (0.0, 0, 0), _OFFERS[0], ""
    for offer in _OFFERS:
        exact, index = max(
            ((offer.match(item), -i) for i, item in enumerate(asked)), default=(0, 0)
        )
        if not exact:
            continue
        parameters, quality = asked[-index].parameters, asked[-index].quality
        if quality > 0 and (quality, exact, index) > best:
            best, chosen = (quality, exact, index), offer
            escaping = parameters.get("escaping", "underscores") if exact == 4 else ""
    content_type = f"{chosen.kind}; version={chosen.version}; charset=utf-8"
    if escaping and chosen is not _OFFERS[0]:
        known = escaping == "allow-utf-8"
        content_type += f"; escaping={escaping if known else 'underscores'}"
    return Format(chosen.encode, content_type)
