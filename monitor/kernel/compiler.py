"""Compiles the BPF programs with bcc, once for every kernel. Only this module imports bcc.

    python -m monitor.kernel.compiler object FILE        the object; does nothing twice
    python -m monitor.kernel.compiler definitions        the generated C, for a reader and an editor

bcc brings LLVM, and makes the maps in the kernel while it compiles: it needs root, where the
project is built and nowhere else. It writes no CO-RE relocations: hence the marks.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.kernel import abi, layouts, object, operations

__all__ = ["CompileError", "compile_object", "definitions", "digests", "program_text"]

# A wheel carries the sources as monitor/bpf, a checkout beside the package.
SOURCES = next(
    path
    for path in (Path(__file__).parents[1] / "bpf", Path(__file__).parents[2] / "bpf")
    if path.is_dir() or path.parent.name != "monitor"
)
OBJECT = SOURCES / "seal_monitor.object"
# Some are set anew when the maps are made (loader.py): a checkout of any host has the same object.
_SIZES = {
    "PAGE_SIZE": 4096,
    "WORKLOADS_MAX": 1024,
    "BUCKETS_MAX": 4096,
    "HANDLED_FAULTS_MAX": 1024,
    "SEALERS_MAX": 4096,
}
# bpf as target makes inline assembly compile; v3 has compare-and-exchange. Where clang protects the
# control flow by default, as Debian 13's does, it refuses a target that has nothing of the kind.
_FLAGS = (
    *("--target=bpf", "-mcpu=v3", "-fcf-protection=none"),
    *("-D__x86_64__", "-g0", "-Wno-unused"),
)
# clang says which it is in a program: its instructions begin with r0 = version.
_VERSION = "compiler_version"
_VERSION_TEXT = (
    f"int {_VERSION}(void *ctx)\n{{\n"
    "    return __clang_major__ * 10000 + __clang_minor__ * 100 + __clang_patchlevel__;\n}\n"
)


class CompileError(Exception):
    """What bcc could not do; the compiler's own words are on standard error."""


def _flatten(path: Path) -> str:
    """One text from a file and its local includes: bcc rewrites map accesses in no other."""

    def replace(match: re.Match[str]) -> str:
        return _flatten(path.parent / match[1])

    return re.sub(r'^#include "(.+)"$', replace, path.read_text("utf-8"), flags=re.MULTILINE)


def definitions() -> str:
    """The names that the C sources use and do not define: calls, marks and sizes."""
    return "\n".join(
        (
            "#include <linux/types.h>",
            *(f"#define {name} {value}" for name, value in _SIZES.items()),
            operations.c_definitions(),
            layouts.c_definitions(),
        )
    )


def program_text() -> str:
    """All that is compiled, as one text."""
    return definitions() + _flatten(SOURCES / "seal_monitor.bpf.c") + _VERSION_TEXT


def _sha256(*texts: str) -> str:
    return object.sha256("\0".join(texts).encode())


def digests() -> dict[str, str]:
    """Of all that an object depends on: it is stale when one of them differs."""
    headers = sorted((SOURCES / "include").rglob("*.h"))
    makers = (Path(__file__), Path(object.__file__))
    files = [path.read_text("utf-8") for path in (*headers, *makers)]
    return {
        "sources": _sha256(program_text(), *_FLAGS, *files),
        "marks": _sha256(*layouts.MARKS),
        "records": _sha256(*abi.description()),
    }


def _shape(descriptor: int) -> dict[str, int]:
    """What the kernel says of a map, in proc_pid_fdinfo(5)."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii")
    shape = {name: int(value) for name, value in re.findall(r"^(\w+):\t(\d+)$", text, re.M)}
    return shape | {"map_flags": int(re.findall(r"^map_flags:\t(0x\w+)$", text, re.M)[0], 16)}


def _maps(bpf: Any, library: Any) -> Iterator[tuple[int, object.Map]]:
    """Descriptor and shape of each map that bcc has made."""
    library.bpf_table_name.restype = ctypes.c_char_p
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_num_tables.argtypes = [ctypes.c_void_p]
    for number in range(library.bpf_num_tables(bpf.module)):
        descriptor = library.bpf_table_fd_id(bpf.module, number)
        name = library.bpf_table_name(bpf.module, number).decode()
        shape = _shape(descriptor)
        keys = ("map_type", "key_size", "value_size", "max_entries", "map_flags")
        yield descriptor, object.Map(name, *(shape[key] for key in keys))


def _version(instructions: bytes) -> str:
    number = int.from_bytes(instructions[4:8], "little")
    return f"clang {number // 10000}.{number // 100 % 100}.{number % 100}"


def compile_object() -> object.Object:
    """Takes some 10 s and 250 MiB. Raises CompileError."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    try:
        from bcc import BPF, lib  # noqa: PLC0415 - LLVM
    except ImportError as error:
        raise CompileError(
            f"bcc is missing ({error}); run: apt-get install python3-bpfcc, and use a virtual "
            "environment made with --system-site-packages"
        ) from error
    try:
        bpf = BPF(text=program_text(), cflags=list(_FLAGS))
    except Exception as error:  # bcc raises nothing more precise
        hint = "" if os.geteuid() == 0 else "; bcc makes the maps as it compiles: run as root"
        raise CompileError(f"cannot compile the BPF programs: {error}{hint}") from error
    found = dict(_maps(bpf, lib))
    numbers = {descriptor: number for number, descriptor in enumerate(found)}
    programs = {}
    for index in range(lib.bpf_num_functions(bpf.module)):
        name = lib.bpf_function_name(bpf.module, index).decode()
        programs[name] = object.take(name, bpf.dump_func(name), numbers)
    bpf.cleanup()
    version = _version(programs.pop(_VERSION).instructions)
    made = object.Object(version, digests(), tuple(found.values()), programs)
    return object.parse(object.serialize(made))


def _update(path: Path) -> None:
    """Compile, unless the file is what would come of it."""
    try:
        object.read(path, digests())
    except (FileNotFoundError, object.ObjectError):
        print("compiling the BPF programs", file=sys.stderr)
        try:
            data = object.serialize(compile_object())
        except CompileError as error:
            sys.exit(str(error))
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(data)
        new.replace(path)


def main(arguments: list[str]) -> None:
    if arguments == ["definitions"]:
        sys.stdout.write(definitions())
    elif len(arguments) == 2 and arguments[0] == "object":
        _update(Path(arguments[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
