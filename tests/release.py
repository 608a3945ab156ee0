"""`make release-check`: what must hold before a version is tagged. Each failure says what to do.

Exits with 1 when something does not hold. Writes nothing but the packages, to build/.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

__all__ = ["CHECKS", "main"]

ROOT = Path(__file__).parents[1]
# Generated pages, links, commands and names in the pages, pictures, the installed version.
PAGE_TESTS = (
    "tests/unit/test_completions.py",
    "tests/unit/test_dashboards.py::test_the_files_are_current",
    "tests/unit/test_docs.py",
    "tests/unit/test_drawn.py",
    "tests/unit/test_metrics_page.py",
    "tests/unit/test_version.py",
)
ARCHITECTURES = ("amd64", "arm64")  # as systemd/debian/control has them
LEFT_OVER = r"^(<{7}|>{7}) |\b(TODO|FIXME|XXX)\b|BEGIN [A-Z ]*PRIVATE KEY|/home/[a-z]"
NOT_SEARCHED = (":!tests/release.py", ":!tests/unit/test_release.py")  # they name what is searched
_HEADING = re.compile(r"^## \[(.+?)\](?: - (.+))?$", re.MULTILINE)


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Both outputs in one."""
    return subprocess.run(
        command,
        cwd=root,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _version(root: Path) -> str:
    text = (root / "monitor/version.py").read_text("utf-8")
    return str(re.findall(r'^VERSION = "(.+)"$', text, re.MULTILINE)[0])


def _is_date(text: str) -> bool:
    try:
        return str(date.fromisoformat(text)) == text
    except ValueError:
        return False


def _changelog(root: Path) -> list[tuple[str, str, str]]:
    """Of each heading: version, date, and the text below it."""
    parts = _HEADING.split((root / "CHANGELOG.md").read_text("utf-8"))[1:]
    rows = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [(version, day or "", text.strip()) for version, day, text in rows]


# ---- Checks: each returns what is wrong and the way out, or nothing ------------------------------


def changelog_version(root: Path) -> str:
    version = _version(root)
    released = [row for row in _changelog(root) if row[0] != "Unreleased"]
    if not released:
        return f"CHANGELOG.md has no version yet; write: ## [{version}] - YYYY-MM-DD"
    newest, day, _ = released[0]
    if newest != version:
        return (
            f"CHANGELOG.md's newest version is {newest}, and monitor/version.py's is {version}; "
            "make them equal"
        )
    if not _is_date(day):
        return f'the heading of {version} has the date "{day}"; write: ## [{version}] - YYYY-MM-DD'
    return ""


def changelog_unreleased(root: Path) -> str:
    first, _, text = _changelog(root)[0]
    if first != "Unreleased":
        return "CHANGELOG.md does not begin with ## [Unreleased]; put an empty one above"
    if "- " in text:
        return f"CHANGELOG.md lists unreleased changes; move them below ## [{_version(root)}]"
    return ""


def readme_package(root: Path) -> str:
    named = set(re.findall(r"seal-monitor_([^_\s]+)_\S+\.deb", (root / "README.md").read_text()))
    wrong = sorted(named - {_version(root)})
    return (
        f"README.md names the package of {wrong[0]}; name that of {_version(root)}" if wrong else ""
    )


def clean_tree(root: Path) -> str:
    found = _run(root, "git", "status", "--porcelain").stdout.splitlines()
    if not found:
        return ""
    return f"not committed: {', '.join(line[3:] for line in found[:5])}; commit or remove"


def free_tag(root: Path) -> str:
    tag = f"v{_version(root)}"
    if not _run(root, "git", "tag", "--list", tag).stdout:
        return ""
    return f"the tag {tag} exists; raise VERSION in monitor/version.py"


def nothing_left_over(root: Path) -> str:
    """Marks of a merge, notes to come back to a place, keys, and directories of one machine."""
    found = _run(root, "git", "grep", "-nIE", LEFT_OVER, "--", ".", *NOT_SEARCHED).stdout
    lines = found.splitlines()
    return f"{lines[0][:200]}; finish or remove it" if lines else ""


def pages(root: Path, tests: Sequence[str] = PAGE_TESTS) -> str:
    done = _run(root, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    if not done.returncode:
        return ""
    failed = re.findall(r"^(?:FAILED|ERROR) (.+)$", done.stdout, re.MULTILINE) or [done.stdout]
    return f"{failed[0]}; run it: it says what to do (make docs, make report-picture)"


def _packages(root: Path) -> dict[str, Path]:
    """By the processors that they are for."""
    return {
        each: root / f"build/seal-monitor_{_version(root)}_{each}.deb" for each in ARCHITECTURES
    }


def packages(root: Path) -> str:
    see = "see systemd/debian/build-package"
    for architecture, path in _packages(root).items():
        done = _run(root, "systemd/debian/build-package", "build", "", architecture)
        if done.returncode:
            return f"{done.stdout[-2000:]}\nmake deb ARCH={architecture} fails with this; repair it"
        if not path.exists():
            return f"make deb ARCH={architecture} has not made {path.name}; {see}"
        found = _run(root, "dpkg-deb", "--field", str(path), "Version", "Architecture").stdout
        version, of = re.findall(r": (.+)", found)
        if (version, of) != (_version(root), architecture):
            return f"{path.name} says that it is version {version} for {of}; {see}"
    return ""


def lintian(root: Path, command: str = "lintian") -> str:
    """Of the packages that were built last."""
    paths = _packages(root).values()
    if missing := [path.name for path in paths if not path.exists()]:
        return f"there is no {missing[0]} to look at; run: make release-check again"
    words = ("--fail-on=error,warning", "--allow-root", *map(str, paths))
    try:
        done = _run(root, command, *words)
    except FileNotFoundError:
        return f"{command} is missing; run: apt-get install lintian"
    return f"{done.stdout.strip()}\nsee lintian-explain-tags" if done.returncode else ""


CHECKS: dict[str, Callable[[Path], str]] = {
    "the changelog has the version, with a date": changelog_version,
    "nothing is unreleased": changelog_unreleased,
    "README.md names the package": readme_package,
    "everything is committed": clean_tree,
    "the tag is free": free_tag,
    "nothing is left over": nothing_left_over,
    "pages and pictures are current": pages,
    "the packages build": packages,
    "lintian finds no fault": lintian,
}


def main(root: Path = ROOT) -> int:
    problems = 0
    for name, check in CHECKS.items():
        problem = check(root)
        problems += bool(problem)
        print(f"FAILED  {name}: {problem}" if problem else f"ok      {name}", flush=True)
    version = _version(root)
    if problems:
        print(f"{version} cannot be tagged: {problems} of {len(CHECKS)} checks failed")
        return 1
    print(f"{version} can be tagged; run: git tag -a v{version} -m 'seal-monitor {version}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
