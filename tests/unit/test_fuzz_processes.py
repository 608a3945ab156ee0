"""Whatever a process calls itself, whatever /proc says of it: bounded, escaped, never a crash."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_records import HOSTILE_BYTES, fuzzed

from monitor.evidence.cgroups import Cgroups, cgroup_mount, parse_cgroup_path, workload_name
from monitor.evidence.identity import TEXT_LIMIT, TICK_NS, Identities
from monitor.untrusted.printable import printable
from monitor.untrusted.redact import REDACTED, redact

PID = 42
START = 1234 * TICK_NS
BYTES = st.sampled_from(HOSTILE_BYTES) | st.binary(max_size=300)
MODES: st.SearchStrategy[Literal["redacted", "full", "off"]] = st.sampled_from(
    ["redacted", "full", "off"]
)


def is_shown(text: str | None, limit: int) -> bool:
    return text is None or (text.isprintable() and len(text) <= limit)


# ---- /proc/PID -----------------------------------------------------------------------------------

FIELDS = [b"S", *[b"0"] * 18, b"1234", *[b"0"] * 30]


def stat_line(name: bytes, fields: Sequence[bytes]) -> bytes:
    return b"42 (" + name + b") " + b" ".join(fields) + b"\n"


NUMBERS = st.integers(-(2**65), 2**65).map(lambda number: str(number).encode())
STATS = st.one_of(
    st.builds(stat_line, BYTES, st.just(FIELDS)),
    st.builds(stat_line, BYTES, st.lists(NUMBERS | BYTES, max_size=40)),
    st.integers(0, 120).map(lambda size: stat_line(b"app", FIELDS)[:size]),
    BYTES,
)
LINKS = st.one_of(
    st.just(b"/usr/bin/app"),
    st.just(b"/" + b"d/" * 2000),
    st.binary(min_size=1, max_size=300).filter(lambda path: b"\0" not in path),
)


@fuzzed
@given(st.none() | STATS, st.none() | BYTES, st.none() | LINKS, BYTES, MODES)
@example(stat_line(b") S 1 (", FIELDS), b"a\0" * 5000, b"/x", b"x", "redacted")
@example(stat_line(b"app", FIELDS), b"--token\0" * 600, b"/x", b"", "redacted")
def test_any_process_is_identified_or_not(
    stat: bytes | None,
    command_line: bytes | None,
    executable: bytes | None,
    base_name: bytes,
    mode: Literal["redacted", "full", "off"],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        proc = Path(folder)
        directory = proc / str(PID)
        directory.mkdir()
        for name, content in (("stat", stat), ("cmdline", command_line)):
            if content is not None:
                (directory / name).write_bytes(content)
        if executable is not None:
            os.symlink(executable, os.fsencode(directory / "exe"))
        try:
            found = Identities(proc, mode).lookup(PID, START, uid=0, base_name=base_name)
        except OSError:  # what the pipeline counts as partial
            return
        assert found.result in ("complete", "partial", "gone", "reused")
        assert is_shown(found.executable, TEXT_LIMIT)
        assert is_shown(found.command_line, TEXT_LIMIT)
        assert found.command_line is None or mode != "off"
        if found.result in ("gone", "reused"):
            assert (found.executable, found.command_line) == (None, None)


# ---- Command lines and names ---------------------------------------------------------------------

WORDS = st.text(max_size=40) | st.sampled_from(
    [
        *("--password", "-p", "token=", "key:", "curl", "-u", "http://a:b@c", "://", "mysql", "-"),
        *(
            "'secret'=",
            '"auth":"',
            "a b c",
            "PASSWORD=x y",
            "bearer x",
            "\0",
            "=",
            "@",
            "pass" * 999,
        ),
    ]
)


@fuzzed
@given(st.lists(WORDS, max_size=40))
def test_any_arguments_stay_as_many(argv: list[str]) -> None:
    shown = redact(argv)
    assert len(shown) == len(argv)
    for word, text in zip(argv, shown, strict=True):
        assert text == word or REDACTED in text
    assert shown == redact(list(argv))


@fuzzed
@given(
    st.binary(max_size=3000) | st.text(st.characters(exclude_categories=[]), max_size=900),
    st.integers(1, 700),
)
def test_anything_printed_is_safe(raw: bytes | str, limit: int) -> None:
    text = printable(raw, limit)
    assert is_shown(text, limit)
    assert not re.search("[\"'\x00-\x1f\x7f]", text)
    text.encode("utf-8")
    assert printable(text, limit) == text


# ---- Control groups ------------------------------------------------------------------------------

PARTS = st.text(max_size=30) | st.sampled_from(
    [
        *("system.slice", "user.slice", "user@1000.service", "init.scope", "app.service", "..", ""),
        *("kubepods.slice", "kubepods-burstable-pod" + "a" * 32 + ".slice", "pod" + "0" * 32),
        *("cri-containerd-" + "f" * 64 + ".scope", "f" * 64, "x" * 250, "a:b", "session-1.scope"),
    ]
)
PATHS = st.lists(PARTS, max_size=8).map("/".join)


@fuzzed
@given(PATHS)
def test_any_cgroup_has_facts_and_a_name(path: str) -> None:
    facts = parse_cgroup_path(path)
    assert facts.cgroup == path
    assert facts.unit is None or facts.unit in path.split("/")
    assert facts.container_id is None or re.fullmatch("[0-9a-f]{64}", facts.container_id)
    assert facts.pod_uid is None or re.fullmatch("[0-9a-f-]{32,36}", facts.pod_uid)
    name = workload_name(path)
    assert is_shown(name, 200)
    assert name or not printable(path)


@fuzzed
@given(st.integers(-(2**70), 2**70))
def test_any_cgroup_number_has_a_name(number: int) -> None:
    assert is_shown(workload_name(number), 200)


MOUNT_LINES = st.one_of(
    BYTES,
    st.builds(
        lambda *fields: b" ".join(fields),
        *[BYTES] * 4,
        st.sampled_from([b"/sys/fs/cgroup", b"/a\\040b", b"\\777", b"\\", b""]) | BYTES,
        BYTES,
        st.sampled_from([b"-", b"- -", b"", b"shared:1 -"]),
        st.sampled_from([b"cgroup2", b"cgroup", b"ext4", b""]),
        BYTES,
    ),
)


@fuzzed
@given(st.lists(MOUNT_LINES, max_size=5), st.sampled_from([b"\n", b"\n\n", b"\r"]))
@example([b"30 29 0:26 / /sys/fs/cgroup rw - cgroup2 none rw"], b"\n")
def test_any_mount_table_has_a_cgroup_mount_or_none(lines: list[bytes], end: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "self").mkdir()
        (Path(folder) / "self/mountinfo").write_bytes(end.join(lines))
        found = cgroup_mount(Path(folder))
        assert found is None or isinstance(found, Path)


@fuzzed
@given(BYTES | st.sampled_from([b"0::/\n", b"0::/../..\n", b"0::" + b"/x" * 3000, b"0::/a\0b"]))
def test_any_process_has_a_workload_or_none(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / str(PID)).mkdir()
        (root / str(PID) / "cgroup").write_bytes(content)
        workload = Cgroups(proc=root, root=root).workload(2**63, PID)
        assert workload.cgroup is None
