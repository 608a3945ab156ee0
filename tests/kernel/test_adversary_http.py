"""A real Prometheus scrapes a real daemon beside clients of an ordinary user that want to shut it
out, at its own address and at others.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import prometheus
import pytest
from attackers import by_nobody, http_clients
from test_daemon import READY_SECONDS, Running

JOBS = 4  # each scrapes five times, and is patient for as long as the next scrape is away
SCRAPES = 5
SECONDS = 5
SAME = "127.0.0.1"
OTHERS = ",".join(f"127.0.0.{number}" for number in range(2, 42))
PASSWORD = "correct horse"
HASHED = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
USERS = f"basic_auth_users:\n  prometheus: {HASHED}\n"
TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@contextlib.contextmanager
def beset(url: str, clients: str, folder: Path) -> Iterator[None]:
    """Until the block ends; each kind of client must have got through."""
    log = folder / "clients"
    with log.open("wb") as output:
        process = by_nobody(
            http_clients(url, clients), stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        time.sleep(1)
        yield
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
    words = log.read_text().split()
    print(f" [{' '.join(words)}]", end="")
    assert words[::2] == sorted(set(clients.split()[::3])), log.read_text()
    assert all(int(count) for count in words[1::2])


def scrape_config(url: str, authority: Path) -> str:
    lines = [
        *("global:", f"  scrape_interval: {SECONDS}s", f"  scrape_timeout: {SECONDS}s"),
        "scrape_configs:",
    ]
    for job in range(JOBS):
        lines += [
            *(f"- job_name: job-{job}", f"  scheme: {url.partition(':')[0]}"),
            *("  tls_config:", f"    ca_file: {authority}"),
            *("  basic_auth:", "    username: prometheus", f"    password: {PASSWORD}"),
            *("  static_configs:", f"  - targets: ['{url.split('/')[2]}']"),
        ]
    return "\n".join(lines) + "\n"


def outcomes(server: prometheus.Prometheus) -> list[float]:
    """`up` of the first scrapes of all jobs."""
    deadline = time.monotonic() + 4 * SCRAPES * SECONDS
    while time.monotonic() < deadline:
        found = server.get("query", query="up[5m]")["result"]
        jobs = [[float(value) for _, value in series["values"]] for series in found]
        if len(jobs) == JOBS and all(len(values) >= SCRAPES for values in jobs):
            return [value for values in jobs for value in values[:SCRAPES]]
        time.sleep(0.5)
    raise AssertionError(f"too few scrapes: {jobs}")


@pytest.mark.parametrize(
    ("scheme", "users", "clients"),
    [
        ("http", "", f"loop 20 {SAME}"),
        ("http", "", f"loop 20 {OTHERS} slow 20 {SAME} slow 40 {OTHERS}"),
        ("http", USERS, f"guess 6 {SAME}"),
        ("https", USERS, f"guess 6 {SAME} slow 20 {OTHERS}"),
    ],
    ids=["loop", "loop and slow", "guess", "guess and slow, https"],  # USERS has a fresh salt
)
def test_prometheus_is_not_shut_out(
    tmp_path: Path,
    certificates: Path,
    require_bpf: None,
    *,
    scheme: str,
    users: str,
    clients: str,
) -> None:
    web = certificates / "web.yml"
    web.write_text((TLS if scheme == "https" else "") + users)
    daemon = Running(tmp_path, "", "--web.config.file", str(web))
    try:
        url = daemon.health("started", READY_SECONDS)["details"]["metrics"]
        with (
            beset(url, clients, tmp_path),
            prometheus.serving(tmp_path, scrape_config(url, certificates / "server.pem")) as server,
        ):
            found = outcomes(server)
            errors = [each["lastError"] for each in server.get("targets")["activeTargets"]]
        assert found == [1.0] * (JOBS * SCRAPES), errors
        daemon.stop()
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
