from __future__ import annotations

import re
import time
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import pytest

from monitor.configuration.config import Config, parse
from monitor.configuration.keys import KEYS
from monitor.life.reload import InForce, merge
from monitor.metrics.tally import Tally

EXAMPLE = Path(__file__).parents[2] / "docs" / "config.example.toml"
DEFAULTS = parse("", "defaults")

# Another value for every key, as it would be written.
OTHERS: Mapping[str, str] = {
    "attach": '"tracepoint"',
    "web.listen_address": '"127.0.0.1:1"',
    "web.config_file": '"/etc/web.yml"',
    "web.allowed_hosts": '["monitor.example"]',
    "output.format": '"json"',
    "output.events_file": '"/tmp/events"',
    "output.events_file_max_size": "1048576",
    "output.journal": "true",
    "events.denials": "[]",
    "events.faults": "[]",
    "events.handled_faults": "[]",
    "events.seals": "true",
    "events.command_line": '"off"',
    "rate_limit.per_caller": "11",
    "rate_limit.burst": "12",
    "rate_limit.host": "13",
    "canary.interval": "14",
    "workloads.maximum": "15",
    "ring.size": "65536",
    "watch.compat": "true",
    "watch.io_uring": "true",
    "host.id": '"i-0abc"',
    "state.directory": '"/tmp"',
    "state.pin": '"/sys/fs/bpf/seal-monitor"',
    "state.pin_on_stop": '"keep"',
    "incidents.enabled": "false",
    "incidents.max_age": "16",
    "incidents.max_size": "1048576",
    "incidents.events_kept": "17",
    "incidents.snapshots": "false",
    "posture.interval": "18",
    "otlp.endpoint": '"http://127.0.0.1:4318"',
    "otlp.headers_file": '"/etc/headers"',
    "otlp.ca_file": '"/etc/ca.pem"',
    "otlp.certificate_file": '"/etc/client.pem"',
    "otlp.key_file": '"/etc/client.key"',
    "otlp.compression": '"none"',
    "otlp.timeout": "19",
    "otlp.spool_max_size": "1048576",
}
RELOADS = {key.name for key in KEYS if key.reloads and not key.switches}


def asked(*names: str) -> Config:
    """The defaults but for the keys named."""
    return parse("\n".join(f"{name} = {OTHERS[name]}" for name in names), "c.toml")


def test_nothing_changed() -> None:
    merged = merge(DEFAULTS, DEFAULTS)
    assert (merged.config, merged.changed, merged.refused) == (DEFAULTS, (), ())
    assert merged.message == "the configuration was read again and changed nothing"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_changed_or_refused_by_name(key: object) -> None:
    name = attrgetter("name")(key)
    wanted = asked(name)
    assert wanted != DEFAULTS
    merged = merge(DEFAULTS, wanted)
    if name in RELOADS:
        assert merged == (wanted, (name,), ())
    else:
        assert merged == (DEFAULTS, (), (name,))


OF_OTLP = {key.name for key in KEYS if key.path[0] == "otlp"}


def test_all_at_once() -> None:
    merged = merge(DEFAULTS, asked(*OTHERS))
    expected = RELOADS - OF_OTLP  # which goes by its endpoint
    assert set(merged.changed) == expected
    assert set(merged.refused) == set(OTHERS) - expected
    for key in KEYS:
        in_force = attrgetter(key.name)(merged.config)
        source = asked(*OTHERS) if key.name in expected else DEFAULTS
        assert in_force == attrgetter(key.name)(source), key.name


def test_to_send_or_not_takes_a_restart_but_not_to_send_elsewhere() -> None:
    there, elsewhere = (
        parse(f"otlp.endpoint = 'http://{host}'", "c.toml") for host in ("a.example", "b.example")
    )
    assert merge(there, elsewhere) == (elsewhere, ("otlp.endpoint",), ())
    assert merge(there, DEFAULTS) == (there, (), ("otlp.endpoint",))


def test_where_the_collector_stays_so_do_its_credentials() -> None:
    there = asked(*OF_OTLP)
    merged = merge(there, DEFAULTS)  # the section was taken out
    assert (merged.config, merged.changed, set(merged.refused)) == (there, (), OF_OTLP)
    assert merge(merged.config, there).refused == ()


def test_words() -> None:
    merged = merge(DEFAULTS, asked("events.seals", "ring.size", "web.listen_address"))
    assert merged.message == (
        "the configuration was read again and changed events.seals; "
        "refused until a restart: web.listen_address, ring.size"
    )
    assert merged.details == {
        "changed": ["events.seals"],
        "refused": ["web.listen_address", "ring.size"],
    }


def test_refused_stays_refused_and_what_is_taken_back_is_not() -> None:
    first = merge(DEFAULTS, asked("ring.size"))
    assert merge(first.config, asked("ring.size")).refused == ("ring.size",)
    assert merge(first.config, DEFAULTS).refused == ()


def test_mutes_change() -> None:
    wanted = parse("[[mute]]\ncause = 'pkey'\nreason = 'r'\n", "c.toml")
    assert merge(DEFAULTS, wanted) == (wanted, ("mute",), ())


def test_the_example_names_what_reloads() -> None:
    head = EXAMPLE.read_text("utf-8").partition("\n\n")[0]
    reloaded = head.partition("while it runs:")[2].partition("Any other")[0]
    named = set(re.findall(r"[a-z_]+\.[a-z_]+", reloaded))
    assert named == {name for name in RELOADS if not name.startswith("otlp.")}
    assert "all of [otlp] but" in " ".join(reloaded.replace("#", "").split())


def test_all_that_was_read_must_be_in_force() -> None:
    tally = Tally()
    in_force = InForce(tally)
    shown = []
    for what, is_in_force in (
        ("configuration", True),
        ("web configuration", False),
        ("configuration", True),  # the other one still is not
        ("configuration", False),
        ("web configuration", True),
        ("configuration", True),
    ):
        in_force.has_read(what, is_in_force)
        shown.append(tally.reload_successful)
    assert shown == [True, False, False, False, False, True]
    assert tally.reload_last_success == pytest.approx(time.time(), abs=60)
