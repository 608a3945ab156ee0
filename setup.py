"""Adds the compiled BPF programs to what pyproject.toml describes."""

import os
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
_OBJECT = "bpf/seal_monitor.object"


class BuildWithObject(build_py):
    """Debian's Python compiles them: it has bcc, which is in no package index."""

    def run(self) -> None:
        if not self.editable_mode:
            command = ["/usr/bin/python3", "-m", "monitor.kernel.compiler", "object", _OBJECT]
            # pip's build environment hides from every Python what Debian has installed.
            kept = {name: text for name, text in os.environ.items() if name[:6] != "PYTHON"}
            if subprocess.run(command, cwd=ROOT, env=kept, check=False).returncode:
                raise SystemExit(
                    "the BPF programs are compiled when the package is built; run: apt-get install "
                    "python3-bpfcc, and build as root"
                )
        super().run()


setup(cmdclass={"build_py": BuildWithObject})
