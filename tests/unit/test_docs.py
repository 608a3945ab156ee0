"""What the pages say is so: examples, commands, flags, links, names. (The metrics page and the
manual page have their tests with the code that they describe.)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from monitor import cli
from monitor.configuration import config
from monitor.configuration.keys import KEYS
from monitor.evidence import events
from monitor.evidence.assessment import BYPASSES, DENIALS, FAULTS
from monitor.kernel.abi import Cause, Disposition, Method, Reason, Verdict
from monitor.kernel.sight import ALWAYS, BLIND_SPOTS
from monitor.metrics.table import METRICS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
EVENTS = (ROOT / "docs/events.md").read_text("utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
SCHEMA = events.schema()
KINDS = [reference["$ref"].rpartition("/")[2] for reference in SCHEMA["oneOf"]]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(text: str, header: str) -> list[list[str]]:
    """Cells of the rows below the header line that begins so."""
    rows = text[text.index(header) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


# ---- Examples ------------------------------------------------------------------------------------


EXAMPLES = {event["kind"]: event for event in map(json.loads, blocks(EVENTS, "json"))}


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_examples_are_events(event: dict[str, Any]) -> None:
    jsonschema.validate(event, SCHEMA)
    assert event["id"].split("-")[:2] == [
        event["host"]["boot_id"][:8],
        f"{event['time_boot_ns']:016x}",
    ]


def test_every_kind_has_its_example() -> None:
    assert [event["kind"] for event in map(json.loads, blocks(EVENTS, "json"))] == KINDS
    assert re.findall(r"^## (\w+)$", EVENTS, re.MULTILINE) == KINDS


def test_every_health_event_is_named() -> None:
    section = EVENTS.partition("## health")[2].partition("```")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) - {"event", "details", "blind_seconds"} == set(
        events.HEALTH_SEVERITY
    )


def test_the_view_shows_the_example() -> None:
    """The live view at the top, the JSON below it and the whole event are of one denial."""
    (shortened,) = map(json.loads, blocks(README, "json"))
    event = EXAMPLES["denial"]
    assert is_part(shortened, event)
    view = " ".join(README.partition("\n## ")[0].split())
    assert event["summary"] in view
    (caller,) = (frame for frame in event["stack"] if frame["address"] == event["caller"])
    assert f"caller {caller['module']}+{caller['offset']:#x}" in view


def is_part(part: object, whole: object) -> bool:
    """Whether the object has nothing but members of the other, with the same values."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and is_part(part[name], whole[name]) for name in part)
    return part == whole


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "toml")])
def test_configuration(page: str) -> None:
    for text in blocks(PAGES[page], "toml"):
        config.parse(text, page)


def test_the_readme_shows_a_mute_and_a_collector() -> None:
    mute, collector = blocks(README, "toml")
    assert config.parse(mute, "README.md").mutes[0].operation == "munmap"
    assert set(tomllib.loads(mute)) == {"events", "mute"}
    assert config.parse(collector, "README.md").otlp.endpoint == "https://collector.example:4318"
    assert set(tomllib.loads(collector)) == {"otlp"}


# ---- Names ---------------------------------------------------------------------------------------


def help_of(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "monitor", *command, "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_commands_and_flags() -> None:
    commands = set(re.findall(r"^    ([a-z-]+) +\S", help_of(), re.MULTILINE))
    own = {"run", "demo", "exec", "doctor", "check-config", "schema", "symbolize"}
    assert own | {"incidents", "fleet", "posture", "detach"} == commands
    shown = [row[0].split()[1] for row in table(README, "| Command |")]
    assert set(shown) == commands
    asked = (
        (),
        ("run",),
        ("exec",),
        ("doctor",),
        ("symbolize",),
        ("incidents", "list"),
        ("posture",),
    )
    pages = "".join(help_of(*command) for command in asked)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", pages))
    for page, text in PAGES.items():
        used = set(re.findall(r"`seal-monitor ([a-z][a-z-]*)", text))
        assert used <= commands, page
    named = set(re.findall(r"`(--[a-z.-]+)", README))
    assert named <= flags
    assert {key.flag for key in KEYS if key.flag} <= named


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page, text in PAGES.items():
        named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, page
    assert {"demo", "run", "test"} <= set(re.findall(r"^    make (\w+)", README, re.MULTILINE))


def test_exit_codes() -> None:
    codes = [int(row[0]) for row in table(PAGES["docs/install.md"], "| Exit code |")]
    assert codes == [cli.DONE, cli.FAILED, cli.WRONG_USAGE, cli.UNFIT_HOST, cli.INTERRUPTED]


def test_verdicts_and_reasons() -> None:
    page = PAGES["docs/verdicts.md"]
    rows = table(page, "| Verdict |")
    assert {row[0] for row in rows} - {""} == {verdict.label for verdict in Verdict}
    reasons = {reason.label for reason in Reason if reason is not Reason.NONE}
    assert {row[1] for row in rows} - {""} == reasons
    for name in (*Cause, *Disposition):
        assert f"| `{name.label}` |" in page
    methods = {row[0] for row in table(page, "| `method` |")}
    assert methods == {method.label for method in Method}


def test_metrics() -> None:
    known = {metric.full_name: metric for metric in METRICS}
    shown = re.findall(r"^    (seal_monitor_\w+)(?:{(.*)})? [\d.]+$", README, re.MULTILINE)
    assert len(shown) >= 5
    for name, labels in shown:
        assert set(re.findall(r'(\w+)="', labels)) == set(known[name].labels)
    for page, text in PAGES.items():
        assert set(re.findall(r"`(seal_monitor_\w+)[`{]", text)) <= set(known), page


# ---- Links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    missing = []
    for target in links(PAGES[page]):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            missing.append(target)
    assert missing == []


def links(text: str) -> set[str]:
    found = set(re.findall(r"\]\(([^)]+)\)", text)) | set(re.findall(r'<img src="([^"]+)"', text))
    return {target for target in found if not target.startswith("http")}


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_names_of_blind_spots() -> None:
    page = (ROOT / "docs/limits.md").read_text("utf-8")
    named = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert tuple(name for name in named if name != "name") == BLIND_SPOTS
    listed = page.partition("the same everywhere:")[2].partition(". All")[0]
    assert tuple(re.findall(r"`([^`]+)`", listed)) == ALWAYS


def test_the_readme_leads_everywhere() -> None:
    linked = links(README)
    pages = {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*") if path.is_file()}
    assert pages | {"LICENSE", "bpf/LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"} <= linked


def test_the_table_of_assessments() -> None:
    rows = re.findall(
        r"^\| `\w+` \| (?:attack|bug|leak|unknown|handled) \| .*$", EVENTS, re.MULTILINE
    )
    assert rows == [
        f"| `{name}` | {likely} | {what} | {reasoning} |"
        for name, likely, what, reasoning in (
            *((row.name, row.likely, row.what, row.reasoning) for row in DENIALS),
            *((row.name, row.likely, row.what, row.reasoning) for row in FAULTS),
            *((row.name, row.likely, row.what, row.reasoning) for row in BYPASSES),
        )
    ]
