"""What a call costs in instructions, exactly: a guest whose clock counts what it executes.

QEMU with -icount advances the time-stamp counter by one for each instruction. With one CPU and
addresses that are not random, the least of many calls, which no interrupt met, is the same in
every run. instructions.json keeps these figures; the matrix fails when one has grown.

    instructions.py                   boot, count, compare with the file
    instructions.py --write           boot, count, write the file and its part of docs/cost.md
    instructions.py [--write] arm64   the same of another processor, in its own file
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from bench_attach import CALLS, CannotAttach, attach_empty, limit, require_mode  # noqa: E402

from monitor.attach.attached import Attached  # noqa: E402
from monitor.kernel.abi import Counters, Kind, Outcome, Verdict  # noqa: E402
from monitor.kernel.loader import LoadError, LoadRequest  # noqa: E402
from monitor.kernel.operations import OPERATIONS  # noqa: E402

__all__ = ["FILE", "FILES", "choose", "compare", "count", "kept", "problems"]

FILE = Path(__file__).with_suffix(".json")
FILES = {"amd64": FILE, "arm64": FILE.with_name("instructions_arm64.json")}
PAGE = TESTS.parent / "docs/cost.md"
MODES = ("tracepoint", "raw_tracepoint", "fexit")
# What becomes of the event of a refusal, and how a row is called for it.
LIMITS = {"filtered": "", "held_back": ", event held back", "unlimited": ", with its event"}
OUTCOMES = {
    "filtered": Outcome.FILTERED,
    "held_back": Outcome.SUPPRESSED,
    "unlimited": Outcome.SUBMITTED,
}
NOTHING = "nothing"
# Mappings that a denied call goes through, the last one sealed; how these are called in the report.
RANGES = {"16": "of 16 mappings", "256": "of 256 mappings"}
MEASURED = CALLS | RANGES
REFUSED = ("denied", *RANGES)
MPROTECT = [operation.name for operation in OPERATIONS].index("mprotect")
CALLS_EACH = 400
RING_SIZE = 1 << 22  # it has room for the events of all of them
GROWTH = 0.05
SLACK = 20  # instructions, of what seal-monitor adds to an empty program on another kernel
NOISE = {"amd64": 0, "arm64": 60}  # instructions, by which rows of the same work differ
QEMU = ("-icount", "shift=0,sleep=off", "-smp", "1")
# Its counter counts nanoseconds, one for each instruction, rather than 16 of them.
QEMU_ARM64 = (*QEMU, "-cpu", "neoverse-n1,cntfrq=1000000000")
KERNEL = "nokaslr"
SECONDS = 900  # a guest takes 90 on a machine at rest
MARK = "instructions: "
SERIES = "6.12"  # where there is no file yet

Figures = dict[str, dict[str, int]]  # by row and call
Counted = dict[str, Any]  # what the file holds


# ---- Inside the guest ----------------------------------------------------------------------------


def _measured(program: Path) -> dict[str, int]:
    """Of each call the instructions; ranges in a process of their own, whose tree is deeper."""
    figures: dict[str, int] = {}
    for counts in ((), RANGES):
        command = [program, "instructions", str(CALLS_EACH), *counts]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        answer = json.loads(output)
        expected = (CALLS_EACH * len(RANGES), 0) if counts else (CALLS_EACH, CALLS_EACH)
        if (answer["denied"], answer["faults"]) != expected:
            raise RuntimeError(f"{expected} refusals and faults were asked for: {answer}")
        figures |= {call: round(ns[0]) for call, ns in answer["ns"].items()}
    return {call: figures[call] for call in MEASURED}


def _with_empty(program: Path, mode: str) -> dict[str, int]:
    loaded = attach_empty(mode)
    try:
        return _measured(program)
    finally:
        loaded.close()


def _with_monitor(program: Path, mode: str) -> Iterator[tuple[str, dict[str, int]]]:
    with Attached(LoadRequest(attach=mode, ring_size=RING_SIZE)) as attached:
        require_mode(attached.loaded, mode)
        attached.calibrate()
        for name, suffix in LIMITS.items():
            limit(attached.state.config, name)
            before = attached.state.counters()
            figures = _measured(program)
            after = attached.state.counters()
            _require_counts(before, after, name)
            while attached.ring.used_bytes:
                attached.ring.drain()
            yield f"seal-monitor, {mode}{suffix}", figures


def _require_counts(before: Counters, after: Counters, name: str) -> None:
    """The figures are those of calls that were proved and whose events went where they should."""
    proved = after.denials[MPROTECT][Verdict.SEALED] - before.denials[MPROTECT][Verdict.SEALED]
    outcome = OUTCOMES[name]
    events = after.events[Kind.DENIAL][outcome] - before.events[Kind.DENIAL][outcome]
    made = CALLS_EACH * len(REFUSED)
    # The first one of a second is not held back; all of them take less than ten.
    if proved != made or events < made - (name == "held_back") * 10 * len(REFUSED):
        raise RuntimeError(f"{made} refusals: {proved} proved, {events} events {name}")


def inside(program: Path) -> dict[str, Any]:
    """All figures of this machine, which is a guest with a counting clock."""
    figures: Figures = {NOTHING: _measured(program)}
    absent: dict[str, str] = {}
    for mode in MODES:
        try:
            figures[f"empty programs, {mode}"] = _with_empty(program, mode)
            figures.update(_with_monitor(program, mode))
        except (CannotAttach, LoadError) as error:
            absent[mode] = str(error)
    again = _measured(program)
    if again != figures[NOTHING]:
        raise RuntimeError(f"not exact: {figures[NOTHING]}, and at the end {again}")
    return {"kernel": os.uname().release, "instructions": figures, "absent": absent}


# ---- Outside of it -------------------------------------------------------------------------------


def kept(architecture: str = "amd64") -> Counted:
    """The figures of the file."""
    content: Counted = json.loads(FILES[architecture].read_text("utf-8"))
    return content


def choose(release: str, offered: Sequence[tuple[str, Path]]) -> Path:
    """The image of this release, else of the first one offered in the same series.

    Raises LookupError.
    """
    series = release.split(".")[:2]
    images = dict(offered)
    for other, image in offered:
        if other.split(".")[:2] == series:
            return images.get(release, image)
    raise LookupError(f"no kernel of the series {'.'.join(series)} among {sorted(images)}")


def count(kernel: Path, initramfs: Path, architecture: str = "amd64") -> Counted:
    """Boot and count. Raises GuestError, and RuntimeError for figures that are not exact."""
    from guest import BUILT_ASSETS, boot  # noqa: PLC0415 - not in the guest

    command = f"python tests/vm/{Path(__file__).name} --inside {BUILT_ASSETS}/bench"
    result = boot(
        kernel,
        initramfs,
        command,
        append=KERNEL,
        qemu=QEMU if architecture == "amd64" else QEMU_ARM64,
        seconds=SECONDS,
        architecture=architecture,
    )
    lines = [line for line in result.output.splitlines() if line.startswith(MARK)]
    if result.exit_code or not lines:
        raise RuntimeError(f"the guest ended with {result.exit_code}:\n{result.output}")
    counted: Counted = json.loads(lines[0].removeprefix(MARK))
    return counted


def _empty(row: str) -> str:
    """The row of the empty programs at the same hooks, for one of seal-monitor; else none."""
    program, _, mode = row.partition(", ")
    return f"empty programs, {mode.partition(',')[0]}" if program == "seal-monitor" else ""


def compare(before: Counted, after: Counted, noise: int = 0) -> list[str]:
    """What has grown by more than `noise` instructions, a line each.

    On the same kernel every figure is compared, on another what seal-monitor adds to the empty
    programs at the same hooks.
    """
    same = before["kernel"] == after["kernel"]
    old, new = before["instructions"], after["instructions"]
    found = []
    for row, figures in old.items():
        if row not in new:
            reasons = "; ".join(f"{mode}: {why}" for mode, why in after["absent"].items())
            found.append(f"{row}: not counted any more ({reasons})")
            continue
        base = _empty(row)
        if not same and not base:
            continue
        for call in figures:
            was, now, slack = figures[call], new[row][call], noise
            if not same:
                was, now, slack = was - old[base][call], now - new[base][call], SLACK + noise
            if now > was + max(GROWTH * was, slack):
                what = "instructions" if same else "instructions more than the empty program"
                found.append(f"{row}, {call}: {now} {what} instead of {was}")
    return found


def problems(kernel: Path, initramfs: Path, architecture: str = "amd64") -> list[str]:
    """Boots, counts and compares with the file: what has grown, a line each. Raises as count()."""
    counted = count(kernel, initramfs, architecture)
    return compare(kept(architecture), counted, NOISE[architecture])


def _text(counted: Counted) -> str:
    """The file: a line for each row."""
    rows = counted["instructions"].items()
    lines = ",\n".join(f"    {json.dumps(row)}: {json.dumps(figures)}" for row, figures in rows)
    return (
        f'{{\n  "kernel": {json.dumps(counted["kernel"])},\n'
        f'  "calls": {json.dumps(MEASURED)},\n'
        f'  "instructions": {{\n{lines}\n  }}\n}}\n'
    )


def _show(counted: Counted) -> None:
    rows = counted["instructions"]
    width = max(map(len, rows))
    print(f"Instructions a call, Linux {counted['kernel']}\n")
    print(" " * width, *(f"{name:>15}" for name in MEASURED.values()))
    for row, figures in rows.items():
        print(row.ljust(width), *(f"{figures[call]:15,}" for call in MEASURED))
    for mode, why in counted["absent"].items():
        print(f"{mode}: not counted: {why}")


def _write(counted: Counted, architecture: str) -> None:
    from bench_page import instructions_section  # noqa: PLC0415 - not in the guest
    from bench_report import replaced  # noqa: PLC0415

    FILES[architecture].write_text(_text(counted), "utf-8")
    if PAGE.exists():
        section = instructions_section(kept(architecture), architecture)
        PAGE.write_text(replaced(PAGE.read_text("utf-8"), section), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the figures, too")
    parser.add_argument("architecture", nargs="?", default="amd64", choices=FILES)
    parser.add_argument("--inside", type=Path, metavar="BENCH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(MARK + json.dumps(inside(arguments.inside)))
        return 0
    from guest import build  # noqa: PLC0415 - not in the guest
    from kernels import FLAVOUR, LINES, OTHERS, kernels  # noqa: PLC0415

    architecture = arguments.architecture
    lines = {FLAVOUR: LINES} | OTHERS
    flavour = f"cloud-{architecture}"
    found = kernels(lines[flavour], flavour=flavour)
    offered = [(kernel.release, Path(kernel.image)) for kernel in found if kernel.release]
    release = kept(architecture)["kernel"] if FILES[architecture].exists() else SERIES
    with tempfile.TemporaryDirectory(prefix="seal-monitor-guest-") as name:
        initramfs = build(Path(name), architecture=architecture)
        counted = count(choose(release, offered), initramfs, architecture)
    _show(counted)
    if arguments.write:
        _write(counted, architecture)
        return 0
    grown = compare(kept(architecture), counted, NOISE[architecture])
    for problem in grown:
        print(f"GROWN: {problem}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
