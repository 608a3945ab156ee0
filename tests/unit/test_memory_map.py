from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from monitor.evidence.memory_map import LINE_LIMIT, Mapping, bounded_lines, parse_smaps, take

# As Linux 6.18 and later write it; the lines in between are left out, but for a few.
TEXT = b"""\
5641081f8000-5641081f9000 r--p 00000000 fe:00 26723                      /usr/bin/app
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd mr mw me sl
5641081f9000-5641081fb000 r-xp 00001000 fe:00 26723                      /usr/bin/app (deleted)
Size:                  8 kB
Rss:                   8 kB
ProtectionKey:         0
VmFlags: rd ex mr mw me
56410a000000-56410a021000 rw-p 00000000 00:00 0                          [heap]
Rss:                 132 kB
VmFlags: rd wr mr mw me ac gu
7f0000000000-7f0000001000 ---p 00000000 00:00 0
Rss:                   0 kB
VmFlags: mr mw me sl gu
7f0000001000-7f0000003000 rw-s 00002000 00:01 1033                       /memfd:a b (deleted)
Rss:                   0 kB
VmFlags: rd wr sh mr mw me ms
7f0000003000-7f0000004000 rw-p 00000000 00:00 0                          [anon: x]
Rss:                   4 kB
VmFlags: rd wr mr mw me ac
7f0000004000-7f0000008000 rw-s 00000000 00:0f 2077                       anon_inode:[perf_event]
Rss:                  16 kB
7f0000008000-7f0000009000 r--p 00000000 103:0a 12                        /tmp/sl gu\\012VmFlags: sl
Rss:                   4 kB
VmFlags: rd mr mw me
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Rss:                   0 kB
VmFlags: ex
"""


def parsed(text: bytes, reports_guards: bool = False) -> list[Mapping]:
    return list(parse_smaps(bounded_lines(io.BytesIO(text)), reports_guards))


def test_every_kind_of_mapping() -> None:
    anonymous = (None, None, None, None)
    app = b"/usr/bin/app"
    assert [(m[:5], m[5:9], m[9:]) for m in parsed(TEXT)] == [
        (
            (0x5641081F8000, 0x5641081F9000, "r--p", True, None),
            (app, "254:0", 26723, 0),
            (None, 4),
        ),
        (
            (0x5641081F9000, 0x5641081FB000, "r-xp", False, None),
            (app + b" (deleted)", "254:0", 26723, 0x1000),
            (None, 8),
        ),
        ((0x56410A000000, 0x56410A021000, "rw-p", False, True), anonymous, (b"[heap]", 132)),
        ((0x7F0000000000, 0x7F0000001000, "---p", True, True), anonymous, (None, 0)),
        (
            (0x7F0000001000, 0x7F0000003000, "rw-s", False, None),
            (b"/memfd:a b (deleted)", "0:1", 1033, 0x2000),
            (None, 0),
        ),
        ((0x7F0000003000, 0x7F0000004000, "rw-p", False, None), anonymous, (b"[anon: x]", 4)),
        # No VmFlags: the kernel did not say.
        (
            (0x7F0000004000, 0x7F0000008000, "rw-s", None, None),
            (None, "0:15", 2077, 0),
            (b"anon_inode:[perf_event]", 16),
        ),
        (
            (0x7F0000008000, 0x7F0000009000, "r--p", False, None),
            (b"/tmp/sl gu\\012VmFlags: sl", "259:10", 12, 0),
            (None, 4),
        ),
        (
            (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, "--xp", False, None),
            anonymous,
            (b"[vsyscall]", 0),
        ),
    ]
    assert parsed(TEXT)[4].size == 0x2000


def test_no_guard_regions_only_where_the_kernel_reports_them() -> None:
    guards = [mapping.guard for mapping in parsed(TEXT, reports_guards=True)]
    assert guards == [False, False, True, True, False, False, None, False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", 0),
        (b"Rss: 4 kB\nVmFlags: sl\n", 0),  # of nothing
        (b"garbage\n\n \n\xff\xfe\n", 0),
        (b"1000-2000 r--p 0 00:00 0\nRss:\nVmFlags:\n", 1),
        (b"1000-2000 r--p 0 00:00 0\nRss: many kB\n", 1),
        (b"1000-2000 r--p 0 00:00 0", 1),  # cut off
        (b"1000-2000 r--", 0),
    ],
)
def test_odd_text(text: bytes, expected: int) -> None:
    found = parsed(text)
    assert len(found) == expected
    assert all(mapping.rss_kib is None and not mapping.sealed for mapping in found)


def test_a_long_line_is_cut_and_the_next_one_is_whole() -> None:
    head = b"1000-2000 r--p 00000000 fe:00 7  "
    text = head + b"/" + b"a" * 100_000 + b"\nVmFlags: sl\n" + b"2000-3000 r-xp 00000000 00:00 0\n"
    first, second = parsed(text)
    assert first.path == b"/" + b"a" * (LINE_LIMIT - len(head) - 1)
    assert (first.sealed, second.start, second.sealed) == (True, 0x2000, None)


def test_a_huge_map_is_read_as_far_as_it_is_taken() -> None:
    numbers = itertools.count(1)
    lines = (b"%x000-%x000 rw-p 00000000 00:00 0\n" % (n, n + 1) for n in numbers)
    taken, complete = take(parse_smaps(lines), 1000)
    assert (len(taken), complete) == (1000, False)
    assert next(numbers) == 1003  # a line more says that there are more
    assert take(iter(taken), 1000) == (taken, True)


def test_this_process_as_maps_has_it() -> None:
    def ranges(lines: list[bytes]) -> set[bytes]:
        return {line.split()[0] + b" " + line.split()[1] for line in lines}

    before = ranges(Path("/proc/self/maps").read_bytes().splitlines())
    with open("/proc/self/smaps", "rb") as file:
        mappings = list(parse_smaps(bounded_lines(file)))
    after = ranges(Path("/proc/self/maps").read_bytes().splitlines())
    found = {f"{m.start:08x}-{m.end:08x} {m.permissions}".encode() for m in mappings}
    # What did not change meanwhile is all there.
    assert before & after <= found
    assert all(mapping.sealed is not None for mapping in mappings)
    assert any(mapping.name == b"[stack]" for mapping in mappings)
