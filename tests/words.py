"""Words that a stranger stumbles over, in any text of the tree, with what to write instead.

    words.py [DIRECTORY]

Prints FILE:LINE: WORD for each, and what to write; a word is also found as a part of an identifier.
The exit code is 1 when there are any. The files are those that git tracks or, in a tree without
git, all but the generated ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["files", "findings", "texts"]

ROOT = Path(__file__).parent.parent

INSTEAD = {
    "tell": "report, say, show; of two things: distinguish",
    "tells": "reports, says, shows",
    "told": "reported, said, shown; of two things: distinguished",
    "telling": "reporting, saying, showing",
    "anew": "again, new",
    "whence": "where from",
    "for want of": "without, because there is no",
}
EXEMPT = {
    "CHANGELOG.md": "what was released stays as it was written",
    "bpf/LICENSE": "the text of the GPL",
    "tests/words.py": "the table",
    "tests/unit/test_words.py": "its test",
}
# In a line with this mark anything may stand. The key of an incident's JSON is kept until 1.0.
IGNORE = "words: ignore"
KEPT = '"told"'

# Between two words of a phrase there may be the end of a line and the mark of a comment.
ALTERNATIVES = "|".join(word.replace(" ", r"[\s#*/]+") for word in INSTEAD)
# Whole words, and parts of names: tell_all, all_told, TOLD, ToldEvents, hasTold; but not intellect.
FOUND = re.compile(
    rf"(?<![A-Za-z])(?i:{ALTERNATIVES})(?![a-z])|(?<=[a-z])(?:Tells?|Told|Telling|Anew|Whence)(?![a-z])"
)

# Where git cannot list the files: what `.gitignore` names, and the directories of tools.
GENERATED = re.compile(r"\.(?!ci$|clang-format$|gitignore$).*|build|__pycache__|.*\.egg-info")


def files(root: Path) -> list[str]:
    """Paths of the files of the tree, relative to its root and sorted."""
    listed = ""
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(root), "ls-files", "-z"]
        listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    # It also lists nothing where another user owns the tree.
    return sorted(filter(None, listed.split("\0"))) or sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    for folder, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not GENERATED.fullmatch(name)]
        for name in names:
            if not GENERATED.fullmatch(name):
                yield str((Path(folder) / name).relative_to(root))


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of each file that is text."""
    for name in files(root):
        try:
            yield name, (root / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture; deleted, but not yet in git
            continue


def findings(name: str, text: str) -> list[str]:
    """A line for each of the words in a file's text."""
    found = []
    lines = text.split("\n")
    for match in FOUND.finditer(text.replace(KEPT, " " * len(KEPT))):
        number = text.count("\n", 0, match.start()) + 1
        word = " ".join(re.findall("[a-z]+", match[0].lower()))
        if IGNORE not in lines[number - 1]:
            found.append(f"{name}:{number}: {word}; write: {INSTEAD[word]}")
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    found = [
        line for name, text in texts(root) if name not in EXEMPT for line in findings(name, text)
    ]
    print("\n".join([*found, f"words to replace: {len(found)}"] if found else ["words: none"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
