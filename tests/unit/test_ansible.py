"""What the Ansible role writes is what the monitor takes. `make test-deb` runs its tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from monitor.configuration.config import load
from monitor.version import VERSION

ROLE = Path(__file__).parents[2] / "systemd/ansible/roles/seal_monitor"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text("utf-8"))
HASH = "$2y$10$mBJGQ9BAdBMbrBohL9i7Ne539YnOEM1zZbYnQ4MEWXvTVi.K6kXsi"


def rendered(name: str, **values: object) -> str:
    """A template, by the filters that Ansible has."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["to_json"] = json.dumps
    return environment.get_template(name).render({**DEFAULTS, **values})


def test_its_drop_ins_are_valid(tmp_path: Path) -> None:
    directory = tmp_path / "config.d"
    directory.mkdir()
    settings = rendered("10-fleet.toml.j2", seal_monitor_listen_address="[::1]:10462")
    (directory / "10-fleet.toml").write_text(settings)
    mutes = yaml.safe_load(
        """
        - {executable: "/opt/\\"a/*", operation: munmap, until: 2030-12-31, reason: "it's"}
        - {cause: pkey, user: 1000, reason: b}
        """
    )
    (directory / "50-engine.toml").write_text(
        rendered("mutes.toml.j2", item={"key": "engine", "value": mutes})
    )
    found = load(None, {}, default=tmp_path / "config.toml")
    assert found.web.listen_address == ("::1", 10462)
    assert found.web.config_file == Path("/etc/seal-monitor/web.yml")
    first, second = found.mutes
    assert (first.executable, first.reason) == ('/opt/"a/*', "it's")
    assert first.until is not None
    assert (second.cause, second.user) == ("pkey", 1000)


def test_its_web_configuration_has_what_it_should() -> None:
    text = rendered("web.yml.j2", seal_monitor_scrape_password_hash=HASH)
    assert yaml.safe_load(text) == {
        "tls_server_config": {
            "cert_file": "/etc/ssl/certs/seal-monitor.pem",
            "key_file": "/etc/ssl/private/seal-monitor.key",
        },
        "basic_auth_users": {"prometheus": HASH},
    }


@pytest.mark.parametrize(("kernels_name", "package"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_a_host_gets_the_package_of_its_processor(kernels_name: str, package: str) -> None:
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        DEFAULTS["seal_monitor_package"]
    )
    found = template.render({**DEFAULTS, "ansible_facts": {"architecture": kernels_name}})
    assert found == f"seal-monitor_{VERSION}_{package}.deb"


@pytest.mark.parametrize("path", sorted(ROLE.parents[1].rglob("*.yml")), ids=lambda path: path.name)
def test_every_file_is_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text("utf-8"))
