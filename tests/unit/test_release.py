"""Each check of `make release-check`, on a made-up repository that passes and one that does not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import release

VERSION = "1.2.3"
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.3] - 2026-11-28

### Added

- A thing.

## [1.2.2] - 2026-10-01
"""
BUILD = """#!/bin/sh
set -e
mkdir -p "$1/tree/DEBIAN"
cat >"$1/tree/DEBIAN/control" <<END
Package: seal-monitor
Version: 1.2.3
Architecture: $3
Maintainer: a <a@b.invalid>
Description: made up
END
dpkg-deb --root-owner-group --build "$1/tree" "$1/seal-monitor_1.2.3_$3.deb"
"""
TEST = "def test_page() -> None:\n    assert 1 == 1\n"
PAGE = "tests/unit/test_page.py"


def git(root: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository that is ready for its tag."""
    write(tmp_path, "monitor/version.py", f'VERSION = "{VERSION}"\n')
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "README.md", "`apt install ./build/seal-monitor_1.2.3_$(dpkg).deb`\n")
    write(tmp_path, ".gitignore", "build/\n__pycache__/\n")
    write(tmp_path, PAGE, TEST)
    write(tmp_path, "systemd/debian/build-package", BUILD)
    (tmp_path / "systemd/debian/build-package").chmod(0o755)
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "All")
    return tmp_path


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return change


def remove_packages(root: Path) -> None:
    for path in (root / "build").glob("*.deb"):
        path.unlink()


def pages(root: Path) -> str:
    return release.pages(root, [PAGE])


CASES = [
    (
        release.changelog_version,
        replace("monitor/version.py", "1.2.3", "1.3.0"),
        "CHANGELOG.md's newest version is 1.2.3, and monitor/version.py's is 1.3.0; "
        "make them equal",
    ),
    (
        release.changelog_version,
        replace("CHANGELOG.md", " - 2026-11-28", " - 28 November"),
        'the heading of 1.2.3 has the date "28 November"; write: ## [1.2.3] - YYYY-MM-DD',
    ),
    (
        release.changelog_version,
        replace("CHANGELOG.md", " - 2026-11-28", ""),
        'the heading of 1.2.3 has the date ""; write: ## [1.2.3] - YYYY-MM-DD',
    ),
    (
        release.changelog_version,
        lambda root: write(root, "CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n"),
        "CHANGELOG.md has no version yet; write: ## [1.2.3] - YYYY-MM-DD",
    ),
    (
        release.changelog_unreleased,
        replace("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- Another thing.\n"),
        "CHANGELOG.md lists unreleased changes; move them below ## [1.2.3]",
    ),
    (
        release.changelog_unreleased,
        replace("CHANGELOG.md", "## [Unreleased]\n", ""),
        "CHANGELOG.md does not begin with ## [Unreleased]; put an empty one above",
    ),
    (
        release.readme_package,
        replace("README.md", "1.2.3", "1.2.2"),
        "README.md names the package of 1.2.2; name that of 1.2.3",
    ),
    (
        release.clean_tree,
        lambda root: write(root, "new.py", ""),
        "not committed: new.py; commit or remove",
    ),
    (
        release.free_tag,
        lambda root: git(root, "tag", "v1.2.3"),
        "the tag v1.2.3 exists; raise VERSION in monitor/version.py",
    ),
    (
        release.nothing_left_over,
        replace("README.md", "`apt", "TODO: say more\n`apt"),
        "README.md:1:TODO: say more; finish or remove it",
    ),
    (
        release.nothing_left_over,
        replace("README.md", "`apt", "<<<<<<< ours\n`apt"),
        "README.md:1:<<<<<<< ours; finish or remove it",
    ),
    (
        pages,
        replace(PAGE, "1 == 1", "1 == 2, 'run: make docs'"),
        f"{PAGE}::test_page - AssertionError: run: make docs; run it: it says what to do "
        "(make docs, make report-picture)",
    ),
    (
        release.packages,
        replace("systemd/debian/build-package", "set -e", "echo no compiler; exit 1"),
        "no compiler\n\nmake deb ARCH=amd64 fails with this; repair it",
    ),
    (
        release.packages,
        replace("systemd/debian/build-package", "Version: 1.2.3", "Version: 1.2.2"),
        "seal-monitor_1.2.3_amd64.deb says that it is version 1.2.2 for amd64; "
        "see systemd/debian/build-package",
    ),
    (
        release.packages,
        replace("systemd/debian/build-package", "monitor_1.2.3_", "monitor_1.2.2_"),
        "make deb ARCH=amd64 has not made seal-monitor_1.2.3_amd64.deb; "
        "see systemd/debian/build-package",
    ),
    (
        release.packages,
        replace("systemd/debian/build-package", "Architecture: $3", "Architecture: amd64"),
        "seal-monitor_1.2.3_arm64.deb says that it is version 1.2.3 for amd64; "
        "see systemd/debian/build-package",
    ),
]


@pytest.mark.parametrize(("check", "change", "expected"), CASES)
def test_a_check(
    root: Path, check: Callable[[Path], str], change: Callable[[Path], None], expected: str
) -> None:
    assert check(root) == ""
    if (root / "build").exists():
        remove_packages(root)
    change(root)
    assert check(root) == expected


def test_lintian(root: Path) -> None:
    missing = "seal-monitor_1.2.3_amd64.deb to look at; run: make release-check again"
    assert release.lintian(root, "true") == f"there is no {missing}"
    assert release.packages(root) == ""
    assert release.lintian(root, "true") == ""
    assert release.lintian(root, "false") == "\nsee lintian-explain-tags"
    missing = "no-such-lintian is missing; run: apt-get install lintian"
    assert release.lintian(root, "no-such-lintian") == missing


def test_all_checks(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(release, "CHECKS", {"one": release.free_tag, "two": release.clean_tree})
    assert release.main(root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      one",
        "ok      two",
        "1.2.3 can be tagged; run: git tag -a v1.2.3 -m 'seal-monitor 1.2.3'",
    ]
    git(root, "tag", "v1.2.3")
    assert release.main(root) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAILED  one: the tag v1.2.3 exists; raise VERSION in monitor/version.py",
        "ok      two",
        "1.2.3 cannot be tagged: 1 of 2 checks failed",
    ]


def test_every_check_has_its_case() -> None:
    tested = {check for check, _, _ in CASES} - {pages} | {release.pages, release.lintian}
    assert tested == set(release.CHECKS.values())


def test_the_changelog_has_our_version() -> None:
    assert release.changelog_version(release.ROOT) == ""


def test_a_package_for_every_processor() -> None:
    control = (release.ROOT / "systemd/debian/control").read_text("utf-8")
    assert f"\nArchitecture: {' '.join(release.ARCHITECTURES)}\n" in control
