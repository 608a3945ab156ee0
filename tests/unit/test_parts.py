"""A library's modules without its package, in a fresh interpreter each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = {
    "__init__.py": "from whole.part import NAME\nSTATE = 'whole'\n",
    "part.py": "import whole\nfrom .other import NAME\n",
    "other.py": "NAME = 'other'\n",
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "whole").mkdir()
    for name, text in LIBRARY.items():
        (tmp_path / "whole" / name).write_text(text)
    return tmp_path


def python(code: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom monitor.parts import parts_of, without\n{code}"],
        env={"PYTHONPATH": f"{path}:{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr.splitlines()[-1]


PARTS = "with parts_of('whole'):\n from whole.part import NAME, whole\n"
LEFT = "sorted(name for name in sys.modules if name.startswith('whole'))"


def test_the_package_is_not_run(library: Path) -> None:
    code = f"{PARTS}print(NAME, hasattr(whole, 'STATE'), {LEFT})"
    assert python(code, library) == "other False []\n"


def test_whoever_imports_it_later_gets_it_whole(library: Path) -> None:
    code = f"{PARTS}import whole\nprint(whole.STATE, whole.part.whole is whole)"
    assert python(code, library) == "whole True\n"


def test_a_package_that_is_there_is_taken(library: Path) -> None:
    code = f"import whole as before\n{PARTS}print(whole is before, {LEFT})"
    assert python(code, library) == "True ['whole', 'whole.other', 'whole.part']\n"


def test_nothing_is_left_of_one_that_fails(library: Path) -> None:
    (library / "whole/other.py").write_text("raise OSError('broken')\n")
    failing = "with contextlib.suppress(OSError), parts_of('whole'):\n import whole.part\n"
    code = f"import contextlib\n{failing}print({LEFT})"
    assert python(code, library) == "[]\n"


def test_one_that_is_not_installed(tmp_path: Path) -> None:
    assert python(PARTS, tmp_path) == "ModuleNotFoundError: No module named 'whole'"


OPTIONAL = """\
try:
 import extra
except ImportError:
 extra = None
"""
LESS = "with without('extra', 'user'):\n import user\n"


@pytest.fixture
def optional(tmp_path: Path) -> Path:
    (tmp_path / "user.py").write_text(OPTIONAL)
    (tmp_path / "extra.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"{LESS}print(user.extra, 'extra' in sys.modules)", "None False\n"),
        (f"{LESS}import user, extra\nprint(user.extra is extra)", "True\n"),
        (f"import extra\n{LESS}print(user.extra is extra)", "True\n"),
        (f"import user as before\n{LESS}print(user is before, user.extra is None)", "True False\n"),
    ],
    ids=["without", "whole elsewhere", "what it does without is there", "it is there itself"],
)
def test_a_module_does_without_another(optional: Path, code: str, said: str) -> None:
    assert python(code, optional) == said


def test_a_collector_without_tls_takes_no_memory_for_it(tmp_path: Path) -> None:
    make = (
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "from monitor.configuration.config import parse\nfrom monitor.sinks.otlp import OtlpSink\n"
        "otlp = replace(parse('', '').otlp, endpoint='{}://127.0.0.1:1')\n"
        f"OtlpSink(otlp, Path({str(tmp_path)!r}))\n"
        "print('ssl' in sys.modules)\n"
        "import http.client\nprint(hasattr(http.client, 'HTTPSConnection'))"
    )
    assert python(make.format("http"), tmp_path) == "False\nTrue\n"
    assert python(make.format("https"), tmp_path) == "True\nTrue\n"
