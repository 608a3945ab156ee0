"""The words for a violation."""

from __future__ import annotations

from typing import Any

import pytest
from test_fingerprint import EVENTS, changed

from monitor.evidence.assessment import BYPASSES, DENIALS, FAULTS, Row
from monitor.kernel.operations import OPERATIONS
from monitor.report import story
from monitor.report.story import Extent

Event = dict[str, Any]
PAGE = 4096
START = 0x55EB77215000


def denial(operation: str, arguments: dict[str, Any], **fields: Any) -> Event:
    return EVENTS["denial"] | {"operation": operation, "arguments": arguments, **fields}


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        ("mprotect", {"addr": "0x1000", "size": 1, "prot": "rw-"}, Extent(0x1000, 0x2000)),
        ("mprotect", {"addr": "0x1000", "size": 4096, "prot": "rw-"}, Extent(0x1000, 0x2000)),
        ("munmap", {"addr": "0x1000", "length": 4097}, Extent(0x1000, 0x3000)),
        ("munmap", {"addr": "0x1000", "length": 0}, None),
        ("munmap", {"addr": "0xfffffffffffff000", "length": 1 << 63}, Extent(2**64 - PAGE, 2**64)),
        ("madvise", {"addr": "0x0", "length": 10 << 30}, Extent(0, 10 << 30)),
        ("shmdt", {"shmaddr": "0x1000"}, None),
        ("process_madvise", {"pidfd": 3, "iovec": "0x7ff", "n": 2}, None),
        ("other", {"system_call": 209}, None),
        ("mprotect", {"addr": "far", "size": 1}, None),
        ("mprotect", {"addr": "0x1000", "size": "1"}, None),
        ("mprotect", None, None),
    ],
)
def test_the_range_asked_for(operation: str, arguments: Any, expected: Extent | None) -> None:
    assert story.asked(denial(operation, arguments)) == expected


def test_the_range_of_mremap_is_that_of_its_role() -> None:
    arguments = {"old_address": "0x1000", "old_size": 4096, "new_size": 8192, "flags": []}
    arguments |= {"new_address": "0x9000"}
    event = denial("mremap", arguments, role="source")
    assert story.asked(event) == (0x1000, 0x2000)
    assert story.asked(event | {"role": "destination"}) == (0x9000, 0xB000)


def test_one_address() -> None:
    assert story.found_at(EVENTS["fault"]) == 0x7F4D2E419000
    assert story.found_at(denial("brk", {"addr": "0x5000"})) == 0x5000
    assert story.found_at(EVENTS["denial"]) is None
    assert story.found_at(EVENTS["health"]) is None


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        (
            "mprotect",
            {"addr": "0x1000", "size": 8192, "prot": "rw-+growsdown"},
            "mprotect(addr = 0x1000, size = 8192, prot = PROT_READ | PROT_WRITE | PROT_GROWSDOWN)",
        ),
        (
            "mmap",
            {"addr": "0x1000", "length": 1, "prot": "---", "flags": ["MAP_PRIVATE", "MAP_FIXED"]},
            "mmap(addr = 0x1000, length = 1, prot = PROT_NONE, flags = MAP_PRIVATE | MAP_FIXED)",
        ),
        ("mremap", {"flags": []}, "mremap(flags = 0)"),
        ("other", {"system_call": 209}, "system call 209"),
        ("munmap", None, "munmap(…)"),
    ],
)
def test_the_call(operation: str, arguments: Any, expected: str) -> None:
    assert story.call(denial(operation, arguments)) == expected


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        (
            "mprotect",
            {"addr": "0x1000", "size": 8192, "prot": "rwx"},
            "It would have made 8 KiB at 0x1000 readable, writable and executable.",
        ),
        (
            "pkey_mprotect",
            {"addr": "0x1000", "size": 8192, "prot": "---", "pkey": 1},
            "It would have made 8 KiB at 0x1000 inaccessible.",
        ),
        (
            "munmap",
            {"addr": "0x1000", "length": 10 << 30},
            "It would have unmapped 10 GiB at 0x1000, and left the place free for other memory.",
        ),
        (
            "madvise",
            {"addr": "0x1000", "length": 4096, "advice": "MADV_DONTNEED"},
            "It would have thrown away the contents of 4 KiB at 0x1000: anonymous memory would "
            "read as zeros.",
        ),
        ("brk", {"addr": "0x1000"}, "It would have given the end of the heap at 0x1000 back."),
        ("process_madvise", {"advice": "7"}, "It would have applied the advice to the memory."),
        ("other", {"system_call": 209}, None),
    ],
)
def test_what_it_would_have_done(operation: str, arguments: Any, expected: str | None) -> None:
    assert story.would(denial(operation, arguments)) == expected


def test_every_operation_has_its_words() -> None:
    for operation in OPERATIONS:
        event = denial(operation.name, {})
        assert (story.would(event) is None) == (operation.name == "other")


def test_what_it_probably_is() -> None:
    assert story.assessment(EVENTS["denial"]) == (
        "Looks like an attack: read-only data was to become writable.",
        "Tables of function addresses and constants are sealed so that nobody can change them; "
        "making them writable is the first step.",
    )
    rows: tuple[Row[Any], ...] = (*DENIALS, *FAULTS, *BYPASSES)
    for row in rows:
        words, why = story.assessment({"assessment": {"name": row.name}}) or ("", "")
        assert words.endswith(
            ": {}.".format(row.what.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}"))
        )
        assert why
        assert not set("\"'") & set(words + why)
    for other in ({"name": "new"}, {"name": None}, "attack", None):
        assert story.assessment({"assessment": other}) is None


def test_the_result_of_the_call() -> None:
    assert story.result(EVENTS["denial"]) == "-1, errno EPERM (operation not permitted)"
    hidden = denial("shmdt", {}, hidden=True)
    assert story.result(hidden) == "0, as if it had been done: the refusal is hidden"


def test_what_became_of_the_process() -> None:
    refused, fault = EVENTS["denial"], EVENTS["fault"]
    assert story.ending(fault) == "Killed by SIGSEGV: it had no handler."
    assert "it went on" in str(story.ending(refused))
    handled = fault | {"disposition": "handler"}
    assert "it went on" in str(story.ending(refused, [handled]))
    assert str(story.ending(refused, [handled, fault])).endswith(
        "this one was killed by SIGSEGV later, at a guard region."
    )
    assert story.ending(EVENTS["health"]) is None


def test_how_it_is_known() -> None:
    assert str(story.proof(EVENTS["denial"])).startswith("Proved in the kernel: this seal alone")
    doubtful = EVENTS["denial"] | {"verdict": "unverified", "reason": "seccomp"}
    assert "a seccomp filter that may refuse" in str(story.proof(doubtful))
    assert story.proof(EVENTS["denial"] | {"verdict": "not_sealed"}) == (
        "Refused, but not by a seal."
    )
    assert str(story.proof(changed("fault", "inferred", True))).startswith("Inferred from what")


def test_no_word_is_escaped() -> None:
    """Straight quotes in our own sentences would come out as \\x27."""
    for kind in EVENTS.values():
        for text in (
            story.would(kind),
            story.what(kind),
            story.proof(kind),
            story.ending(kind),
        ):
            assert text is None or not set("\"'") & set(text)
