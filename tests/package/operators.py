"""What a new operator does: the commands of the pages, and then a day's work, shortened."""

from __future__ import annotations

import re
from pathlib import Path

from runtimes import LOADS

__all__ = [
    "ATTACK",
    "MOVE_VDSO",
    "PACKAGES",
    "RECEIVER",
    "WORK",
    "blocks",
    "indented",
]

DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = (
    *("prometheus", "prometheus-alertmanager"),
    *("default-jre-headless", "nodejs", "gdb", "curl", "chromium-headless-shell"),
)
VIOLATE = "env PYTHONPATH=/usr/lib/seal-monitor python3 -m monitor.provoke.table"

# Writes down what Alertmanager sends, a line each: where to, and the message.
RECEIVER = """
import http.server, json

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/root/messages.jsonl", "a") as file:
            file.write(json.dumps([self.path, body]) + "\\n")
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Receiver).serve_forever()
"""

# As CRIU does when it restores a process. Where the kernel seals the vdso, it is refused.
MOVE_VDSO = """
#define _GNU_SOURCE
#include <sys/auxv.h>
#include <sys/mman.h>

int main(void)
{
    void *vdso = (void *)getauxval(AT_SYSINFO_EHDR);
    void *place = mmap(0, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    mremap(vdso, 8192, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    return 0;
}
"""

# Commands of a shell, by name; SECONDS is how long a load lasts. /root has the programs.
WORK: dict[str, str] = {
    "doctor": "seal-monitor doctor",
    "demo": "seal-monitor demo",
    "exec": f"seal-monitor exec -- {VIOLATE} mprotect munmap",
    **LOADS,
    "gdb": "gdb -q -batch -ex 'break work' -ex run -ex 'break work' -ex continue -ex kill"
    " /root/sealed_code",
    "checkpoint": "/root/move_vdso",
}
ATTACK = f"{VIOLATE} mprotect"


def _section(page: str, heading: str) -> str:
    """What is below a heading, up to the next of the same or a higher level."""
    text = (DOCS / page).read_text("utf-8")
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S
    )
    assert found, f"{page} has no section {heading}"
    return found[1]


def blocks(page: str, heading: str, language: str = "sh") -> list[str]:
    """The blocks of code of a section."""
    return re.findall(rf"^```{language}\n(.*?)^```$", _section(page, heading), re.M | re.S)


def indented(page: str, heading: str) -> list[str]:
    """The commands of an indented block, without what is said beside them."""
    lines = re.findall(r"^    (\S.*)$", _section(page, heading), re.M)
    return [re.split(r"\s{2,}", line)[0] for line in lines]
