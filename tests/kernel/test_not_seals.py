"""EPERM that a seal does not explain: counted, and never called a seal denial."""

from __future__ import annotations

import pytest
from harness import Harness

from monitor.kernel.abi import Kind, Reason, Verdict
from monitor.kernel.operations import OPERATIONS
from monitor.provoke import table as provoke

SIGNALS = ("raise_sigsegv", "kill_sigsegv")
OTHERS = [p.name for p in provoke.PROVOCATIONS if p.kind == "other" and p.name not in SIGNALS]


@pytest.mark.parametrize("name", OTHERS)
def test_other_refusal(harness: Harness, name: str) -> None:
    before = harness.workload()
    made = harness.provoke(name)
    facts = harness.as_seen(made.line)
    if facts is None:
        assert made.denials() == []
        assert not [cell for cell in made.counted if cell[0] == "denial"]
        assert harness.workload() == before
        return
    (record,) = made.of_kind(Kind.DENIAL)
    operation, verdict = OPERATIONS[record.operation].name, Verdict(record.verdict).label
    assert (operation, verdict) == (facts["operation"], facts["verdict"])
    assert Reason(record.reason).label == facts["reason"]
    assert verdict != "sealed"
    assert record.result == -1
    assert (record.partial_start, record.partial_end) == (0, 0)
    if verdict == "not_sealed":
        assert (record.mapping.start, record.mapping.end, record.mapping.flags) == (0, 0, 0)
    else:  # the sealed mapping that it may have been
        assert record.mapping.start == facts["sealed_start"]
        assert record.mapping.end == facts["sealed_end"]
        assert record.mapping.flags & harness.config.sealed_mask
    denials = {cell: number for cell, number in made.counted.items() if cell[0] == "denial"}
    assert denials == {("denial", operation, verdict): 1}
    assert not [cell for cell in made.counted if cell[0] == "partial_update"]
    before[verdict] += 1
    assert harness.workload() == before


def test_a_filter_on_another_call_leaves_the_proof(harness: Harness) -> None:
    made = harness.provoke("seccomp_elsewhere")
    (record,) = made.of_kind(Kind.DENIAL)
    assert (record.verdict, record.reason) == (Verdict.SEALED, Reason.NONE)
    assert made.counted["denial", "munmap", "sealed"] == 1


def test_stacked_filters(harness: Harness) -> None:
    """The first filter lets munmap pass, the second may not: the kernel asks each of the chain."""
    made = harness.python(
        """
from monitor.provoke.others import _refuse_by_filter
_refuse_by_filter("getppid")
pages = lay("SS")
call("munmap", pages.start, PAGE)
_refuse_by_filter("munmap")
_refuse_by_filter("mremap")
call("munmap", pages.start, PAGE)
call("mprotect", pages.start, PAGE, 3)
os._exit(0)  # Python would go on to unmap
"""
    )
    filtered = [] if harness.at_seal("munmap") else [("munmap", "unverified", "seccomp")]
    assert made.denials() == [
        ("munmap", "sealed", "none"),
        *filtered,
        ("mprotect", "sealed", "none"),
    ]


@pytest.mark.parametrize("operation", ["mprotect", "munmap", "madvise", "mremap"])
def test_seal_beside_the_range_explains_nothing(harness: Harness, operation: str) -> None:
    """A refusal by a filter, next to sealed pages that the call does not touch."""
    made = harness.python(
        """
from monitor.provoke.others import _refuse_by_filter
pages = lay("SwS")
_refuse_by_filter(sys.argv[1])
page = pages.start + PAGE
arguments = {"mprotect": (1,), "munmap": (), "madvise": (9,), "mremap": (2 * PAGE, 0)}
result = call(sys.argv[1], page, PAGE, *arguments[sys.argv[1]])
print(json.dumps(result), flush=True)
os._exit(0)
""",
        operation,
    )
    assert made.lines == [-1]
    # No function of the kernel is called: a filter refuses before.
    seen = [] if harness.attach == "fexit" else [(operation, "not_sealed", "none")]
    assert made.denials() == seen


# Advice on a child's memory, from a process that may look at it and is not privileged.
ELSEWHERE = """
import signal
from monitor.provoke.others import _refuse_by_filter
os.setresuid(65534, 65534, 65534)
PR_SET_DUMPABLE = 4
need("prctl", PR_SET_DUMPABLE, 1)
child = os.fork()
if not child:
    signal.pause()
pages = lay("S")
vector = (ctypes.c_uint64 * 2)(pages.start, PAGE)
pidfd = os.pidfd_open(child)
if sys.argv[2] == "filtered":
    _refuse_by_filter("process_madvise")
result = call("process_madvise", pidfd, ctypes.addressof(vector), 1, int(sys.argv[1]), 0)
print(json.dumps(result))
os.kill(child, 9)
os.waitpid(child, 0)
"""
MADV_DONTNEED, MADV_COLD = 4, 20


@pytest.mark.parametrize(
    ("advice", "filtered", "verdict", "reason"),
    [
        (MADV_COLD, "", "not_sealed", "none"),  # no CAP_SYS_NICE
        (MADV_DONTNEED, "filtered", "unverified", "other_process"),
    ],
)
def test_process_madvise_on_another_process(
    harness: Harness, advice: int, filtered: str, verdict: str, reason: str
) -> None:
    made = harness.python(ELSEWHERE, str(advice), filtered)
    assert made.lines == [-1]
    at_seal = harness.at_seal("process_madvise")
    assert made.denials() == ([] if at_seal else [("process_madvise", verdict, reason)])
