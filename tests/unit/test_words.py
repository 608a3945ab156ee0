"""The check of words: what it finds, and what it lets pass."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import words

SCRIPT = Path(words.__file__)

BAD = """\
/* What the kernel tells of it is counted
 * anew, for want
 * of a better way. Whence? */
def tell_bypass(told_events, TOLD, hasTold): ToldEvents()
for want of telling
"""
GOOD = """\
An intellect foretells what a Teller retold: a wanted one.
{"told": 1, "events": 1}
his words are told anew  # words: ignore
"""


def run(root: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SCRIPT, root], check=False, capture_output=True, text=True, timeout=30
    )
    return done.returncode, done.stdout


def test_each_word_is_listed_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/bad.h").write_text(BAD)
    (tmp_path / "good.py").write_text(GOOD)
    told = "told; write: reported, said, shown; of two things: distinguished"
    assert run(tmp_path) == (
        1,
        f"""\
src/bad.h:1: tells; write: reports, says, shows
src/bad.h:2: anew; write: again, new
src/bad.h:2: for want of; write: without, because there is no
src/bad.h:3: whence; write: where from
src/bad.h:4: tell; write: report, say, show; of two things: distinguish
src/bad.h:4: {told}
src/bad.h:4: {told}
src/bad.h:4: {told}
src/bad.h:4: {told}
src/bad.h:5: for want of; write: without, because there is no
src/bad.h:5: telling; write: reporting, saying, showing
words to replace: 11
""",
    )


def test_a_good_tree_passes(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "CHANGELOG.md").write_text(BAD)
    assert run(tmp_path) == (0, "words: none\n")


@pytest.mark.parametrize("name", ["picture.png", ".venv/a.py", "build/a.h", "a/__pycache__/b.py"])
def test_what_is_no_source_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"\xfftold\n" if name.endswith("png") else b"told\n")
    assert run(tmp_path) == (0, "words: none\n")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_of_a_git_tree_only_tracked_files_are_read(tmp_path: Path) -> None:
    for name in ("tracked", "deleted", "untracked"):
        (tmp_path / name).write_text("anew\n")
    for arguments in (("init", "-q"), ("add", "tracked", "deleted")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    (tmp_path / "deleted").unlink()
    assert words.files(tmp_path) == ["deleted", "tracked"]
    assert [name for name, _ in words.texts(tmp_path)] == ["tracked"]
