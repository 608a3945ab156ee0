"""Commands whose reader has gone, whose terminal is not UTF-8, and that are interrupted early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MONITOR = (sys.executable, "-m", "monitor")
EXAMPLE = str(ROOT / "docs/config.example.toml")
NOWHERE = ("--database", "/nowhere/incidents.db")


@contextmanager
def without_a_reader() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words,
        cwd=ROOT,
        check=False,
        text=True,
        timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
    )
    return done


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--help",), 0),
        (("run", "--help"), 0),
        (("--version",), 0),
        (("schema",), 0),
        (("posture",), 0),
        (("posture", "--json"), 0),
        (("check-config", EXAMPLE), 0),
        (("incidents", "list", *NOWHERE), 1),
        (("symbolize", EXAMPLE), 0),  # lines that are no events
        (("nonsense",), 2),
        (("exec",), 125),
    ],
)
def test_a_reader_that_has_gone_is_no_error(words: tuple[str, ...], code: int) -> None:
    with without_a_reader() as pipe:
        done = run(*MONITOR, *words, stdout=pipe)
        assert "Traceback" not in done.stderr
        assert "Broken" not in done.stderr
        assert "Exception" not in done.stderr
        assert done.returncode == code
        both = run(*MONITOR, *words, stdout=pipe, stderr=pipe)
        assert both.returncode == code
        assert run(*MONITOR, *words, stderr=pipe).returncode in (code, 1)


def test_doctor_has_its_verdict_without_a_reader() -> None:
    with without_a_reader() as pipe:
        done = run("unshare", "--user", *MONITOR, "doctor", stdout=pipe)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_another_encoding_gets_replacements(tmp_path: Path, encoding: str) -> None:
    program = shutil.copy(
        "/usr/bin/sleep", tmp_path / "sl\N{LATIN SMALL LETTER E WITH ACUTE}\u20ac"
    )
    with subprocess.Popen([program, "60"]) as process:
        try:
            while "sleep" in os.readlink(f"/proc/{process.pid}/exe"):  # before the exec
                pass
            environment = {**os.environ, "PYTHONIOENCODING": encoding}
            done = subprocess.run(
                [*MONITOR, "posture", "--pid", str(process.pid)],
                cwd=ROOT,
                check=False,
                capture_output=True,
                env=environment,
            )
        finally:
            process.kill()
    shown = {"ascii": b"sl??", "latin-1": b"sl\xe9?", "utf-8": b"sl\xc3\xa9\xe2\x82\xac"}
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown[encoding] in done.stdout


INTERRUPTED_AT = """
import os, signal, sys
part = sys.argv.pop(1)
class At:
    def find_spec(self, name, path=None, target=None):
        if name == part:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
from monitor.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("part", ["monitor.cli", "argparse", "monitor.configuration.config"])
def test_an_interrupt_during_the_imports_is_silent(part: str) -> None:
    done = run(sys.executable, "-c", INTERRUPTED_AT, part, "posture")
    assert (done.returncode, done.stdout, done.stderr) == (-2, "", "")


def test_who_ignores_interrupts_goes_on_to() -> None:
    script = 'trap "" INT; exec "$@"'
    code = "import signal, monitor.__main__; print(signal.getsignal(signal.SIGINT).name)"
    done = run("sh", "-c", script, "sh", sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == ("SIG_IGN\n", "")
