"""Tests inside a guest: run by matrix.py, the last line that it prints is JSON with the results.

inside.py shared MODE[,MODE]     the kernel tests that share programs, in these attach modes
inside.py port MODE[,MODE]       of them those whose result may differ by the processor
inside.py own                    those of fexit that load programs of their own
inside.py preempt MODE[,MODE]    what a kernel with full preemption skips
inside.py replaced               programs by fexit that others take the place of
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
os.environ |= {"SEAL_MONITOR_REQUIRE_BPF": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
os.environ.setdefault("SEAL_MONITOR_STORM_SECONDS", "2")

import pytest  # noqa: E402

from monitor.provoke import table as provoke  # noqa: E402

KERNEL_TESTS = HERE.parent / "kernel"
ALLOWED = HERE / "allowed_skips.toml"
OPTIONS = ("-q", "--color=no", "-p", "no:cacheprovider", "--durations=15")
PROGRAMS = "harness"  # the fixture: loaded once a mode, which takes 20 s here
NO_MODE = "-"
WITHOUT_PROGRAMS = "test_system_calls_kernel.py"
PACKAGE = "package.py"
# What may differ by the processor: by registers, pages, addresses, calls and signals.
PORTED = (
    HERE / "arm64.py",
    *(
        KERNEL_TESTS / f"test_{name}.py"
        for name in (
            *("denials", "faults", "bypasses", "not_seals", "stacks_kernel", "stack_overflow"),
            *("adversary_forge", "build_ids", "edges", "endings", "seals", "system_calls_kernel"),
            "system_mappings",
        )
    ),
)
# The same on a larger scale.
TOO_LONG = (
    "*::test_as_smaps_has_it[[]*-5000-[23]]",
    "*::test_limit_is_exact[[]*-20000]",
    *(f"*::test_denials[[]*-{case}]" for case in ("1-1-10007", "8-1-1259", "1-2-5003")),
    "*::test_handled_faults[[]*-8-1]",
    "*::test_a_runtime_under_load_makes_no_event[[]*",
)


# ---- Which tests ---------------------------------------------------------------------------------


def _shares_programs(item: Any) -> bool:
    if any(fnmatch.fnmatchcase(item.nodeid, pattern) for pattern in TOO_LONG):
        return False
    return PROGRAMS in item.fixturenames or item.path.name == WITHOUT_PROGRAMS


def _is_ported(item: Any) -> bool:
    return item.path.name == PACKAGE or _shares_programs(item)


def _needs_fexit(item: Any) -> bool:
    """What loads its own is left to machines where that takes one second, if those can load it."""
    return "require_fexit" in item.fixturenames


def _any(_: Any) -> bool:
    return True


def _sharing_files() -> tuple[Path, ...]:
    """The others import much that takes its time here."""
    named = (f"{PROGRAMS}: Harness", "system_calls()")
    files = sorted(KERNEL_TESTS.glob("test_*.py"))
    return tuple(path for path in files if any(word in path.read_text("utf-8") for word in named))


class Selection(NamedTuple):
    files: tuple[Path, ...]
    wants: Callable[[Any], bool]


SELECTIONS = {
    "shared": Selection((HERE / "facts.py", *_sharing_files()), _shares_programs),
    "port": Selection((HERE / "facts.py", HERE / PACKAGE, *PORTED), _is_ported),
    "own": Selection((KERNEL_TESTS / "test_attach.py",), _needs_fexit),
    "preempt": Selection((HERE / "preempt.py",), _any),
    "replaced": Selection((HERE / "replaced.py", KERNEL_TESTS / "test_slots_kernel.py"), _any),
    "storm": Selection((KERNEL_TESTS / "test_turmoil.py",), _any),
}


def allow_skips(release: str) -> None:
    """Put this kernel's allowed skips in the place of the host's."""
    lines = []
    for entry in tomllib.loads(ALLOWED.read_text("utf-8"))["skip"]:
        if any(fnmatch.fnmatchcase(release, wanted) for wanted in entry["releases"]):
            lines.append("[[skip]]")
            lines += [f"{key} = {json.dumps(entry[key])}" for key in ("test", "reason", "why")]
    (HERE.parent / "allowed_skips.toml").write_text("\n".join(lines), "utf-8")


# ---- What came of them ---------------------------------------------------------------------------


@dataclass
class Mode:
    """Results of one attach mode. `properties`: what tests have recorded."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # with their reasons
    seconds: float = 0.0
    properties: dict[str, Any] = field(default_factory=dict)
    never_made: list[str] = field(default_factory=list)


class Reporter:
    """A pytest plugin: selects tests, and keeps what came of them by attach mode."""

    def __init__(self, modes: Sequence[str], wants: Callable[[Any], bool]) -> None:
        self.modes = {mode: Mode() for mode in (*modes, NO_MODE)}
        self._wants = wants
        self._mode: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        named = {mode: set[str]() for mode in self.modes}
        kept: list[Any] = []
        left_out: list[Any] = []
        for item in items:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            mode = self._mode[item.nodeid] = parameters.get(PROGRAMS, NO_MODE)
            if mode in self.modes and self._wants(item):
                kept.append(item)
                named[mode].add(str(parameters.get("name")))
            else:
                left_out.append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)
        provocations = {p.name for p in provoke.PROVOCATIONS if p.kind != "seal"}
        for mode, found in self.modes.items():
            found.never_made = sorted(provocations - named[mode])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = self.modes[self._mode[report.nodeid]]
        found.seconds += report.duration
        if report.when == "call":
            found.properties |= dict(report.user_properties)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            found.skipped.append((report.nodeid, str(reason).removeprefix("Skipped: ")))
        elif report.failed:
            found.failed.append(f"{report.nodeid} ({report.when})")
        elif report.when == "call":
            found.passed += 1


def main(selection: str, modes: Sequence[str]) -> int:
    """Run; prints the results. 0 when all was well."""
    allow_skips(os.uname().release)
    files, wants = SELECTIONS[selection]
    reporter = Reporter(modes, wants)
    code = pytest.main([*OPTIONS, *map(str, files)], plugins=[reporter])
    found = {mode: asdict(each) for mode, each in reporter.modes.items()}
    print(json.dumps({"code": int(code), "modes": found}))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [mode for word in sys.argv[2:] for mode in word.split(",")]))
