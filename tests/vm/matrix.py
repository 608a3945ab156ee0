"""make test-kernels: the kernel tests on several kernels, each in a guest, and a table of it.

Exits with 0 when on every kernel all went well. The table also goes to build/kernels.txt, and what
the guests printed to build/kernels/. With --again a guest where something failed is booted once
more, and what failed at first is listed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import instructions
from guest import ROOT, WITH_SYSTEMD, GuestError, Result, boot, build, build_installed
from kernels import OTHERS, Kernel, KernelError, kernels

__all__ = ["ported_jobs"]

GUESTS_AT_A_TIME = 2
GUEST_SECONDS = 1500  # it hangs, or this machine is loaded far beyond its two CPUs
MODES = ("fexit", "tracepoint")
STORM_MODES = ("tracepoint",)  # where most is looked up
STORM_SECONDS = 60
PREEMPT_MODES = (*MODES, "raw_tracepoint")
NO_MODE = "-"
# With tags of memory, and with signatures of addresses that the emulation makes quickly.
ALL_FEATURES = ("-machine", "mte=on", "-cpu", "max,pauth-impdef=on")
# QEMU before 8.1 may run what another CPU patches, as the kernel does to replace a program.
ONE_CPU = ("-smp", "1")
INSIDE = "python tests/vm/inside.py"
WARNINGS_SHOWN = 5
CANNOT_BE_MONITORED = 3
BUILD = ROOT / "build"

_WARNING = re.compile(
    r"WARNING:|BUG:|Oops|UBSAN|KASAN|general protection|Call Trace|soft lockup|hard LOCKUP|"
    r"rcu.*(?:stall|detected)|blocked for more than|Bad page|refcount_t:"
)


@dataclass
class Row:
    """A line of the table. `problems` is empty where all went well."""

    kernel: str
    mode: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seal_bit: str = ""
    partial: str = ""
    probes: str = ""
    seconds: float = 0
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Image(NamedTuple):
    """Which files a guest has."""

    architecture: str
    is_installed: bool = False

    def build(self, directory: Path) -> Path:
        if self.is_installed:
            return build_installed(directory, self.architecture)
        return build(directory, architecture=self.architecture)


@dataclass(frozen=True)
class Job:
    """A guest: what it runs, and how its result becomes rows."""

    name: str
    kernel: Kernel
    command: str
    rows: Callable[[Kernel, Result], list[Row]]
    append: str = ""
    qemu: tuple[str, ...] = ()

    @property
    def image(self) -> Image:
        return Image(self.kernel.architecture, WITH_SYSTEMD in self.append)


# ---- From results to rows ------------------------------------------------------------------------


def _warnings(result: Result) -> list[str]:
    lines = [line for line in result.console.splitlines() if _WARNING.search(line)]
    return [f"the kernel said: {line}" for line in lines[:WARNINGS_SHOWN]]


def _row(kernel: Kernel, mode: str, found: dict[str, Any]) -> Row:
    facts = found["properties"].get("facts", {})
    probes = [f"{number} {name}" for name, number in sorted(facts.get("probes", {}).items())]
    return Row(
        kernel.release,
        mode,
        found["passed"],
        len(found["failed"]),
        len(found["skipped"]),
        str(facts.get("seal_bit", "")),
        " ".join(facts.get("partial", [])) or ("none" if facts else ""),
        ", ".join(probes),
        found["seconds"],
        remarks=[f"skipped: {reason}" for reason in dict.fromkeys(r for _, r in found["skipped"])],
        problems=[f"failed: {test}" for test in found["failed"]],
    )


def _reported(result: Result) -> dict[str, Any]:
    """The results from inside.py; empty where it did not come to its end."""
    lines = result.output.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _rows(
    modes: Sequence[str], kernel: Kernel, result: Result
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """A row for each mode, and one for tests without any, each with its results."""
    report = _reported(result)
    if not report:
        end = "\n".join(result.output.splitlines()[-10:])
        return [Row(kernel.release, "", failed=1, problems=[f"no report; at the end:\n{end}"])], {}
    found: dict[str, dict[str, Any]] = report["modes"]
    others = (
        [NO_MODE] if any(found[NO_MODE][key] for key in ("passed", "failed", "skipped")) else []
    )
    rows = [_row(kernel, mode, found[mode]) for mode in (*modes, *others)]
    if not rows:
        rows = [Row(kernel.release, NO_MODE)]
    for row in rows:
        if not row.passed:
            row.problems.append("no test has passed in this mode")
    if report["code"] and not any(row.problems for row in rows):
        rows[0].problems.append(f"pytest ended with {report['code']}: see build/kernels/")
    return rows, found


def _shared(kernel: Kernel, result: Result) -> list[Row]:
    rows, found = _rows(MODES, kernel, result)
    for row in rows:
        if row.mode in MODES:
            never = found[row.mode]["never_made"]
            row.problems += [f"no test makes the provocation {name}" for name in never]
    return rows


def _ported(kernel: Kernel, result: Result) -> list[Row]:
    found = _reported(result).get("modes", {})
    return _rows([mode for mode in found if mode != NO_MODE], kernel, result)[0]


def _serviced(kernel: Kernel, result: Result) -> list[Row]:
    rows, _ = _rows((), kernel, result)
    for row in rows:
        row.mode = "package, systemd"
    return rows


def _own(kernel: Kernel, result: Result) -> list[Row]:
    rows, _ = _rows((), kernel, result)
    for row in rows:
        row.mode = "fexit, loaded again"
    return rows


def _replaced(kernel: Kernel, result: Result) -> list[Row]:
    rows, _ = _rows((), kernel, result)
    for row in rows:
        row.mode = "fexit, replaced in a storm"
    return rows


def _stormed(kernel: Kernel, result: Result) -> list[Row]:
    rows, _ = _rows(STORM_MODES, kernel, result)
    for row in rows:
        row.mode = f"{row.mode}, {STORM_SECONDS} s of storm"
    return rows


def _preempted(kernel: Kernel, result: Result) -> list[Row]:
    rows, found = _rows(PREEMPT_MODES, kernel, result)
    for row in rows:
        properties = found.get(row.mode, {}).get("properties", {})
        for name, over in (("lost", ""), ("kept", ", over a kill")):
            if figures := properties.get(name):
                words = "{lost:,} of {made:,} runs lost, {missed:,} reported".format(**figures)
                row.remarks.append(words + over)
        row.mode = f"{row.mode}, preempt=full"
    return rows


def _refused(kernel: Kernel, result: Result) -> list[Row]:
    """`seal-monitor run` where there is no mseal: one line why, one what to do, and code 3."""
    lines = result.output.splitlines()
    is_clear = 1 <= len(lines) <= 2 and "mseal" in lines[0]
    ended_well = result.exit_code == CANNOT_BE_MONITORED and is_clear
    row = Row(kernel.release, "run", int(ended_well), int(not ended_well), seconds=result.seconds)
    row.remarks = [f"exit code {result.exit_code}", *lines[:2]]
    if not ended_well:
        row.problems = [f"expected exit code {CANNOT_BE_MONITORED} and a line why: {lines}"]
    return [row]


def _demonstrated(kernel: Kernel, result: Result) -> list[Row]:
    """The whole of `seal-monitor demo`, which says how many were reported correctly."""
    said = re.search(
        r"^(\d+) violations in \S+ s, all reported correctly\.$", result.output, re.MULTILINE
    )
    passed = int(said[1]) if said and result.exit_code == 0 else 0
    row = Row(kernel.release, "demo", passed, int(not passed), seconds=result.seconds)
    if more := re.search(r"^\d+ more cannot be shown on this host", result.output, re.MULTILINE):
        row.remarks = [more[0]]
    if not passed:
        row.problems = [f"exit code {result.exit_code}, and not all reported correctly"]
    return [row]


# ---- Guests --------------------------------------------------------------------------------------


def _jobs(found: Sequence[Kernel]) -> list[Job]:
    """The longest come first."""
    booted = [kernel for kernel in found if kernel.release]
    with_mseal = [kernel for kernel in booted if kernel.has_mseal]
    without = [kernel for kernel in booted if not kernel.has_mseal]
    shared = f"{INSIDE} shared {','.join(MODES)}"
    preempt = f"{INSIDE} preempt {','.join(PREEMPT_MODES)}"
    storm = f"SEAL_MONITOR_STORM_SECONDS={STORM_SECONDS} {INSIDE} storm {','.join(STORM_MODES)}"
    oldest, newest = with_mseal[:1], with_mseal[-1:]
    # The newest can also preempt raw tracepoints. That these lose no run is asserted on the last
    # kernel that cannot.
    last_but_one = with_mseal[-2:-1]
    return [
        *(Job("tests", kernel, shared, _shared) for kernel in reversed(with_mseal)),
        *(Job("fexit", kernel, f"{INSIDE} own", _own) for kernel in newest),
        *(
            Job("replaced", kernel, f"{INSIDE} replaced", _replaced, qemu=ONE_CPU)
            for kernel in newest
        ),
        *(Job("preempt", kernel, preempt, _preempted, "preempt=full") for kernel in last_but_one),
        *(Job("storm", kernel, storm, _stormed) for kernel in (*newest, *oldest)),
        *(Job("run", kernel, "python -m monitor run", _refused) for kernel in without),
    ]


def ported_jobs(found: Sequence[Kernel]) -> list[Job]:
    """Those of another processor: each mode on one of them; the last has all features."""
    first, *others, last = found
    return [
        Job("port", first, f"{INSIDE} port {','.join(MODES)}", _ported),
        *(Job("port", kernel, f"{INSIDE} port raw_tracepoint", _ported) for kernel in others),
        Job("port", last, f"{INSIDE} port fexit", _ported, qemu=ALL_FEATURES),
        *(Job("demo", kernel, "python -m monitor demo", _demonstrated) for kernel in found),
        Job("package", last, "python3 service.py", _serviced, WITH_SYSTEMD),
    ]


def _run(job: Job, initramfs: Future[Path], logs: Path, attempts: int) -> list[Row]:
    """The rows of the last attempt."""
    at_first: list[str] = []
    for attempt in range(1, attempts + 1):
        rows = _attempt(job, initramfs, logs / f"{job.kernel.release}-{job.name}-{attempt}.txt")
        problems = [problem for row in rows for problem in row.problems]
        rows[0].remarks += [f"at first, {problem}" for problem in at_first]
        if not problems or attempt == attempts:
            break
        at_first += problems
    return rows


def _attempt(job: Job, initramfs: Future[Path], log: Path) -> list[Row]:
    began = time.monotonic()
    try:
        result = boot(
            Path(job.kernel.image),
            initramfs.result(),
            job.command,
            append=job.append,
            qemu=job.qemu,
            seconds=GUEST_SECONDS,
            architecture=job.kernel.architecture,
        )
    except GuestError as error:
        rows = [Row(job.kernel.release, job.name, failed=1, problems=[str(error)])]
    else:
        log.write_text(f"{result.output}\n---- console:\n{result.console}", "utf-8")
        rows = job.rows(job.kernel, result)
        rows[0].problems += _warnings(result)
    state = "failed" if any(row.problems for row in rows) else "passed"
    seconds = time.monotonic() - began
    print(f"{job.kernel.release} {job.name}: {state} after {seconds:.0f} s", flush=True)
    return rows


def _counted(found: Sequence[Kernel], initramfs: Future[Path], architecture: str) -> Row:
    """Whether a call takes more instructions than it did."""
    began = time.monotonic()
    offered = [
        (kernel.release, Path(kernel.image))
        for kernel in found
        if kernel.release and kernel.architecture == architecture
    ]
    release = instructions.kept(architecture)["kernel"]
    try:
        image = instructions.choose(release, offered)
        release = next(other for other, path in offered if path == image)
        problems = instructions.problems(image, initramfs.result(), architecture)
    except (GuestError, LookupError, RuntimeError) as error:
        problems = [str(error)]
    seconds = time.monotonic() - began
    row = Row(release, "instructions", int(not problems), int(bool(problems)), seconds=seconds)
    row.problems = problems
    print(f"{release} instructions: {'failed' if problems else 'passed'} after {seconds:.0f} s")
    return row


# ---- The table -----------------------------------------------------------------------------------

HEADINGS = (
    *("kernel", "mode", "passed", "failed", "skipped", "seal bit", "partial updates"),
    *("probes", "seconds"),
)


def _cells(row: Row) -> tuple[str, ...]:
    counts = (str(row.passed), str(row.failed), str(row.skipped))
    facts = (row.seal_bit, row.partial, row.probes)
    return (row.kernel, row.mode, *counts, *facts, f"{row.seconds:.0f}")


def table(rows: Iterable[Row]) -> str:
    """Columns as wide as their widest cell."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _text(found: Sequence[Kernel], rows: Sequence[Row], seconds: float) -> str:
    parts = [table(rows), ""]
    parts += [f"{kernel.line}: {kernel.note}" for kernel in found if kernel.note]
    for row in rows:
        parts += [f"{row.kernel} {row.mode}: {remark}" for remark in row.remarks]
    for row in rows:
        parts += [f"FAILED {row.kernel} {row.mode}: {problem}" for problem in row.problems]
    passed, failed, skipped = (
        sum(getattr(row, name) for row in rows) for name in ("passed", "failed", "skipped")
    )
    parts.append(f"{seconds:.0f} s in all")
    parts.append(f"{passed} passed, {failed} failed, {skipped} skipped")
    return "\n".join(parts)


def main() -> int:
    """Boot all guests; 0 when all went well, 1 when not, 2 when there is nothing to boot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="boot those that failed once more")
    parser.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        help='guests with TEXT in their name, such as "6.12 tests", "storm", "instructions"',
    )
    arguments = parser.parse_args()
    attempts = 2 if arguments.again else 1

    def is_wanted(name: str) -> bool:
        return not arguments.only or any(
            all(word in name for word in only.split()) for only in arguments.only
        )

    began = time.monotonic()
    try:
        found = kernels()
        others = [each for name, lines in OTHERS.items() for each in kernels(lines, flavour=name)]
    except KernelError as error:
        print(f"test-kernels: {error}", file=sys.stderr)
        return 2
    every = [*found, *others]
    ported = sorted(others, key=lambda kernel: (not kernel.line.startswith("6.12"), kernel.line))
    jobs = [
        job
        for job in (*_jobs(found), *ported_jobs(ported))
        if is_wanted(f"{job.kernel.release} {job.name}")
    ]
    counts = [each for each in instructions.FILES if is_wanted(f"{each} instructions")]
    if not (jobs or counts):
        print(f"test-kernels: no guest is named {' or '.join(arguments.only)}", file=sys.stderr)
        return 2
    logs = BUILD / "kernels"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        wanted = sorted({*(job.image for job in jobs), *map(Image, counts)})
        with ThreadPoolExecutor(1) as builder, ThreadPoolExecutor(GUESTS_AT_A_TIME) as pool:
            # The guests of one do not wait for the image of another.
            images = {image: builder.submit(image.build, Path(name)) for image in wanted}
            results = pool.map(lambda job: _run(job, images[job.image], logs, attempts), jobs)
            counted = [pool.submit(_counted, every, images[Image(each)], each) for each in counts]
            rows = [row for each in results for row in each]
            rows += [each.result() for each in counted]
    rows.sort(key=lambda row: [int(number) for number in re.findall(r"\d+", row.kernel)])
    text = _text(found, rows, time.monotonic() - began)
    (BUILD / "kernels.txt").write_text(f"{text}\n", "utf-8")
    print(text)
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
