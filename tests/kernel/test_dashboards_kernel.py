"""From a real violation to the numbers of a dashboard: daemon, Prometheus, queries."""

from __future__ import annotations

import json
import time
from pathlib import Path

import yaml
from panels import PANELS, interpolated
from prometheus import Prometheus, serving
from test_alerts_kernel import until
from test_daemon import READY_SECONDS, Start, start

from monitor.provoke import table as provoke

__all__ = ["start"]

RULES = Path(__file__).parents[2] / "dashboards/rules"
NUMBERS = {
    name.removeprefix("overview.json: "): panel
    for name, panel in PANELS.items()
    if name.startswith("overview.json") and panel["type"] == "stat"
}


def numbers(prometheus: Prometheus) -> dict[str, str]:
    """What the overview shows: the number, or the name in its place; "none" without any."""
    shown: dict[str, str] = {}
    for title, panel in NUMBERS.items():
        (target,) = panel["targets"]
        found = prometheus.instant(interpolated(target["expr"]), time.time())
        if not found:
            shown[title] = "none"
        elif panel["options"]["textMode"] == "name":
            shown[title] = "{part} of {whole}".format(**found[0]["metric"])
        else:
            shown[title] = found[0]["value"][1]
    return shown


def test_a_violation_is_on_the_overview(start: Start, tmp_path: Path) -> None:
    daemon = start()
    url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
    target = url.removeprefix("http://").removesuffix("/metrics")
    document = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "scrape_configs": [{"job_name": "seal-monitor", "static_configs": [{"targets": [target]}]}],
    }
    with serving(tmp_path, yaml.safe_dump(document)) as prometheus:
        until(lambda: numbers(prometheus)["Hosts up"] == "1 of 1", "it is not scraped")
        until(lambda: numbers(prometheus)["Partial updates"] != "none", "no rule has looked at it")
        quiet = numbers(prometheus)
        assert quiet["Hosts that see"] == "1 of 1"
        assert {title: quiet[title] for title in ("Critical denials", "Partial updates")} == {
            "Critical denials": "0",
            "Partial updates": "0",
        }
        (denied,) = map(json.loads, provoke.run("mprotect").communicate()[0].splitlines())
        event = daemon.wait_for(
            lambda event: event["kind"] == "denial" and event["process"]["pid"] == denied["pid"]
        )
        until(lambda: numbers(prometheus)["Refused by a seal"] == "1", "it is not counted")
        loud = numbers(prometheus)
    assert event["severity"] == "critical"
    assert (loud["Critical denials"], loud["Warnings"]) == ("1", quiet["Warnings"])
    assert (loud["Critical bypasses"], loud["Not judged"]) == ("0", quiet["Not judged"])
    daemon.stop()
