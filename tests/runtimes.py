"""Loads of real runtimes, which handle faults of their own all day: a JVM, node and Chromium."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["LOADS", "compile_java"]

# Faults that a virtual machine takes all day: null checks, and a stack that is used up.
_JAVA = """
public class Handled {
    static int deeper(int n) { return n < 0 ? 0 : 1 + deeper(n + 1); }

    public static void main(String[] arguments) {
        long end = System.nanoTime() + Long.parseLong(arguments[0]) * 1_000_000_000L, taken = 0;
        String nothing = null;
        while (System.nanoTime() < end) {
            try { deeper(1); } catch (StackOverflowError error) { taken++; }
            for (int i = 0; i < 10_000; i++)
                try { nothing.length(); } catch (NullPointerException error) { taken++; }
        }
        System.out.println(taken);
        System.exit(taken > 10_000 ? 0 : 1);
    }
}
"""

# Out of the bounds of its memory: V8 lets a guard page find out.
_WASM = """
const bytes = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0,
  5, 3, 1, 0, 1, 7, 5, 1, 1, 102, 0, 0, 10, 9, 1, 7, 0, 32, 0, 40, 2, 0, 11]);
const load = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.f;
let traps = 0;
for (const end = Date.now() + SECONDS * 1000; Date.now() < end;)
  for (let i = 0; i < 1000; i++) try { load(1 << 30); } catch { traps++; }
console.log(traps);
process.exit(traps > 1000 ? 0 : 1);
""".replace("\n", " ")

_PAGE = """
<canvas id=c></canvas><script>
for (let i = 0; i < 1e7; i++) Math.sin(i);
new WebAssembly.Memory({initial: 1});
document.getElementById("c").getContext("webgl");
</script>
""".replace("\n", " ")

# Commands of a shell; SECONDS is how long the load lasts. Java's class is in the directory /root.
LOADS: dict[str, str] = {
    "java": "java -cp /root Handled SECONDS",
    "node": f"node -e '{_WASM}'",
    "chromium": (
        "end=$(($(date +%s) + SECONDS)); while [ $(date +%s) -lt $end ]; do"
        " chromium-headless-shell --no-sandbox --timeout=5000 --dump-dom"
        f" 'data:text/html,{_PAGE}' >/dev/null 2>&1; done"
    ),
}


def compile_java(directory: Path) -> None:
    """Put the class of the load into a directory. Raises FileNotFoundError without javac."""
    source = directory / "Handled.java"
    source.write_text(_JAVA)
    command = ["javac", "--release", "17", "-d", str(directory), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
