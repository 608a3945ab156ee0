"""The formats of a scrape, next to what prometheus_client itself writes."""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
import prometheus_client.openmetrics.exposition as library_openmetrics
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_collector import Values, Waiting, registry

from monitor.kernel.abi import Counters
from monitor.metrics.exposition import (
    CollectorRegistry,
    CounterMetricFamily,
    Family,
    GaugeMetricFamily,
    HistogramMetricFamily,
    choose_format,
    openmetrics,
    text,
)
from monitor.metrics.reading import ProbeState
from monitor.metrics.table import METRICS
from monitor.metrics.tally import Tally

HOSTILE = ('"', "\\", "\n", 'a"b\\n\nc', "{}", "ü€😀", " ", "", "\x00\x1b[2J", "x" * 5000)
OPENMETRICS_FIRST = "application/openmetrics-text;version=1.0.0"
# What Prometheus 2.42 and 3.5 send.
PROMETHEUS_2 = (
    f"{OPENMETRICS_FIRST},application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    f"{OPENMETRICS_FIRST};escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def kept(families: Iterable[Family]) -> CollectorRegistry:
    """The same at every scrape."""
    found = list(families)

    class Kept:
        def collect(self) -> list[Family]:
            return found

    made = CollectorRegistry()
    made.register(Kept())
    return made


@pytest.fixture
def all_metrics() -> CollectorRegistry:
    kernel = Counters()
    kernel.sealed_bytes = 2**60 + 1
    tally = Tally(HOSTILE)
    for seconds in (0.0, 0.003, 1e-9, 1e6):
        tally.delay(seconds)
    for name in HOSTILE:
        tally.spools[name] = Waiting()
    source = Values(
        kernel,
        dict.fromkeys(HOSTILE, (1, 2**53, 10**6)),
        [ProbeState(name, "fexit", True, 7) for name in HOSTILE],
    )
    return kept(registry(source, tally).collect())


def test_text_is_the_librarys(all_metrics: CollectorRegistry) -> None:
    written = text(all_metrics)
    assert written == prometheus_client.generate_latest(all_metrics)
    kinds = [line.split() for line in written.decode().split("\n") if line.startswith("# TYPE ")]
    names = {(name, kind) for _, _, name, kind in kinds}
    assert {(metric.full_name, metric.type) for metric in METRICS} <= names
    assert ("process_resident_memory_bytes", "gauge") in names
    assert len(names) == len(METRICS) + 6


def test_openmetrics_is_the_librarys(all_metrics: CollectorRegistry) -> None:
    written = choose_format(PROMETHEUS_3).encode(all_metrics)
    assert written == library_openmetrics.generate_latest(all_metrics)  # type: ignore[no-untyped-call]
    assert written.endswith(b"# EOF\n")


NUMBERS = st.one_of(st.floats(), st.integers(-(2**70), 2**70))


@given(documentation=st.text(), value=st.text(), number=NUMBERS)
def test_any_text_and_number(documentation: str, value: str, number: float) -> None:
    counter = CounterMetricFamily("a_total", documentation, labels=("z", "b"))
    counter.add_metric((value, "x"), number)
    gauge = GaugeMetricFamily("b", documentation, value=number)
    histogram = HistogramMetricFamily("c", documentation, labels=("z",))
    histogram.add_metric((value,), [("1.0", 1), ("+Inf", 2)], number)
    shown = kept((counter, gauge, histogram))
    assert text(shown) == prometheus_client.generate_latest(shown)
    assert openmetrics(shown) == library_openmetrics.generate_latest(shown)  # type: ignore[no-untyped-call]


@given(st.text(st.characters(max_codepoint=255)) | st.text('*/;,=q.01 "xtexplain-vrso'))
def test_any_accept_header_has_a_format(accept: str) -> None:
    assert choose_format(accept).encode(CollectorRegistry()) in (b"", b"# EOF\n")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        (PROMETHEUS_2, f"{OPEN}; escaping=underscores"),
        (PROMETHEUS_3, f"{OPEN}; escaping=allow-utf-8"),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text;version=0.0.1,text/plain", PLAIN),
        (f"text/html, {OPENMETRICS_FIRST} ; escaping=dots", f"{OPEN}; escaping=underscores"),
        (
            "text/plain;version=1.0.0;escaping=allow-utf-8",
            "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
        ("application/openmetrics-text;version=x;=;;,,;", PLAIN),
        # The quality decides, not the order; 0 excludes, and so does the most exact one.
        (f"text/plain;q=0.5,{OPENMETRICS_FIRST};q=0.6", f"{OPEN}; escaping=underscores"),
        (f"text/plain;q=0.7,{OPENMETRICS_FIRST};q=0.6", PLAIN),
        (f"{OPENMETRICS_FIRST};q=0,*/*;q=0.1", PLAIN),
        ("text/*;q=0,*/*", OPEN),
        ("text/plain;q=0,application/openmetrics-text;q=0", PLAIN),
        ("application/*", OPEN),
        ("*; q=.2, text/html", PLAIN),
        ('APPLICATION/OpenMetrics-Text; Version="1.0.0"', f"{OPEN}; escaping=underscores"),
        (f"{OPENMETRICS_FIRST};q=x,text/plain", PLAIN),
        (f"{OPENMETRICS_FIRST};q=\u0661", PLAIN),
        (
            "text/plain;version=1.0.0",
            "text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
    ],
)
def test_content_type(accept: str, content_type: str) -> None:
    assert choose_format(accept).content_type == content_type
    is_open = content_type.startswith(OPEN)
    assert choose_format(accept).encode(CollectorRegistry()) == (b"# EOF\n" if is_open else b"")
