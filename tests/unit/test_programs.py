"""Programs of the last violations, whose names alerts have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monitor.evidence.events import Process
from monitor.evidence.programs import KEPT_SECONDS, Programs, program
from monitor.evidence.workloads import OTHER

NGINX = Process(
    *(7, 7, 1, 7, "worker", "/usr/sbin/nginx", None, None, 33, 33, "www-data", "www-data"),
    files="host",
    executable_owner=0,
)


def test_a_program_is_the_host_s_own_file() -> None:
    assert program(NGINX) == "nginx"
    assert program(replace(NGINX, executable="/usr/sbin/nginx (deleted)")) == "nginx"


@pytest.mark.parametrize(
    "process",
    [
        None,
        replace(NGINX, files="namespace"),
        replace(NGINX, files=None),
        replace(NGINX, executable_owner=1000),
        replace(NGINX, executable_owner=None),
        replace(NGINX, executable=None),
        replace(NGINX, executable="/usr/bin/call 0123 now"),
        replace(NGINX, executable='/usr/bin/a"b'),
        replace(NGINX, executable="/usr/bin/n\u0261inx"),
        replace(NGINX, executable="/usr/bin/" + "a" * 65),
    ],
)
def test_any_other_program_has_no_name(process: Process | None) -> None:
    assert program(process) == OTHER


def named(number: int) -> Process:
    return replace(NGINX, executable=f"/usr/bin/p{number}")


def test_the_last_four_of_a_workload_and_kind() -> None:
    now = iter(range(100))
    programs = Programs(lambda: next(now))
    for number in (0, 1, 2, 3, 0, 4):
        programs.add("web.service", "denial", named(number))
    programs.add("web.service", "fault", named(9))
    programs.add("db.service", "denial", None)
    assert programs.times() == {
        ("web.service", "denial", "p2"): 2,
        ("web.service", "denial", "p3"): 3,
        ("web.service", "denial", "p0"): 4,
        ("web.service", "denial", "p4"): 5,
        ("web.service", "fault", "p9"): 6,
        ("db.service", "denial", OTHER): 7,
    }


def test_an_hour_later_it_is_gone() -> None:
    now = [1000.0]
    programs = Programs(lambda: now[0])
    programs.add("web.service", "denial", NGINX)
    now[0] += KEPT_SECONDS - 1
    assert programs.times() == {("web.service", "denial", "nginx"): 1000.0}
    now[0] += 1
    assert programs.times() == {}


def test_a_workload_that_is_forgotten_has_none() -> None:
    programs = Programs(lambda: 7.0)
    for kind in ("denial", "fault"):
        programs.add("web.service", kind, NGINX)
    programs.add("db.service", "denial", NGINX)
    programs.forget("web.service")
    assert programs.times() == {("db.service", "denial", "nginx"): 7.0}
