"""The table of watched operations: every call that a seal can refuse.

A new operation is a row here and a provoker. The BPF programs are compiled against
`c_definitions()`, so C and Python cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "MSEAL_NUMBER",
    "OPERATIONS",
    "Decoded",
    "Operation",
    "c_definitions",
    "decode_arguments",
]

Decoded = str | int | list[str]

MSEAL_NUMBER = 462

# Values of the x86-64 and i386 user-space API (include/uapi); the same on both.
_PROT = ((1, "r"), (2, "w"), (4, "x"))
_PROT_EXTRA = {0x01000000: "growsdown", 0x02000000: "growsup", 0x8: "sem"}
_MAP_FLAGS = {
    0x01: "MAP_SHARED",
    0x02: "MAP_PRIVATE",
    0x10: "MAP_FIXED",
    0x20: "MAP_ANONYMOUS",
    0x40: "MAP_32BIT",
    0x100: "MAP_GROWSDOWN",
    0x800: "MAP_DENYWRITE",
    0x1000: "MAP_EXECUTABLE",
    0x2000: "MAP_LOCKED",
    0x4000: "MAP_NORESERVE",
    0x8000: "MAP_POPULATE",
    0x10000: "MAP_NONBLOCK",
    0x20000: "MAP_STACK",
    0x40000: "MAP_HUGETLB",
    0x80000: "MAP_SYNC",
    0x100000: "MAP_FIXED_NOREPLACE",
}
_MREMAP_FLAGS = {1: "MREMAP_MAYMOVE", 2: "MREMAP_FIXED", 4: "MREMAP_DONTUNMAP"}
_SHM_FLAGS = {
    0o10000: "SHM_RDONLY",
    0o20000: "SHM_RND",
    0o40000: "SHM_REMAP",
    0o100000: "SHM_EXEC",
}
_ADVICE = {
    0: "MADV_NORMAL",
    1: "MADV_RANDOM",
    2: "MADV_SEQUENTIAL",
    3: "MADV_WILLNEED",
    4: "MADV_DONTNEED",
    8: "MADV_FREE",
    9: "MADV_REMOVE",
    10: "MADV_DONTFORK",
    11: "MADV_DOFORK",
    12: "MADV_MERGEABLE",
    13: "MADV_UNMERGEABLE",
    14: "MADV_HUGEPAGE",
    15: "MADV_NOHUGEPAGE",
    16: "MADV_DONTDUMP",
    17: "MADV_DODUMP",
    18: "MADV_WIPEONFORK",
    19: "MADV_KEEPONFORK",
    20: "MADV_COLD",
    21: "MADV_PAGEOUT",
    22: "MADV_POPULATE_READ",
    23: "MADV_POPULATE_WRITE",
    24: "MADV_DONTNEED_LOCKED",
    25: "MADV_COLLAPSE",
    100: "MADV_HWPOISON",
    101: "MADV_SOFT_OFFLINE",
    102: "MADV_GUARD_INSTALL",
    103: "MADV_GUARD_REMOVE",
}


def _address(value: int) -> str:
    return f"0x{value:x}"


def _size(value: int) -> int:
    return value


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _prot(value: int) -> str:
    text = "".join(letter if value & bit else "-" for bit, letter in _PROT)
    extra = [name for bit, name in _PROT_EXTRA.items() if value & bit]
    return "+".join([text, *extra])


def _advice(value: int) -> str:
    value &= 0xFFFFFFFF
    return _ADVICE.get(value, str(value))


def _flags(names: Mapping[int, str]) -> Callable[[int], list[str]]:
    def decode(value: int) -> list[str]:
        known = [name for bit, name in names.items() if value & bit]
        rest = value & ~sum(names)
        return [*known, f"0x{rest:x}"] if rest else known

    return decode


_MAPPING_FLAGS = _flags(_MAP_FLAGS)


@dataclass(frozen=True)
class Operation:
    """A watched call. `arguments` are named as in its man page, each with its decoder.

    `number` and `number_32` are the x86-64 and i386 system-call numbers; `None` where there is
    no system call of its own to watch.
    """

    name: str
    number: int | None
    number_32: int | None
    arguments: tuple[tuple[str, Callable[[int], Decoded]], ...]

    @property
    def constant(self) -> str:
        """The operation's enumerator in C."""
        return f"OP_{self.name.upper()}"


_RANGE = (("addr", _address), ("length", _size))

OPERATIONS: tuple[Operation, ...] = (
    Operation("mprotect", 10, 125, (("addr", _address), ("size", _size), ("prot", _prot))),
    Operation(
        "pkey_mprotect",
        329,
        380,
        (("addr", _address), ("size", _size), ("prot", _prot), ("pkey", _signed)),
    ),
    Operation("munmap", 11, 91, _RANGE),
    Operation(
        "mremap",
        25,
        163,
        (
            ("old_address", _address),
            ("old_size", _size),
            ("new_size", _size),
            ("flags", _flags(_MREMAP_FLAGS)),
            ("new_address", _address),
        ),
    ),
    Operation(
        "mmap",
        9,
        192,
        (
            *_RANGE,
            ("prot", _prot),
            ("flags", _MAPPING_FLAGS),
            ("fd", _signed),
            ("offset", _size),
        ),
    ),
    Operation("madvise", 28, 219, (*_RANGE, ("advice", _advice))),
    Operation(
        "process_madvise",
        440,
        440,
        (
            ("pidfd", _signed),
            ("iovec", _address),
            ("n", _size),
            ("advice", _advice),
            ("flags", _size),
        ),
    ),
    Operation(
        "shmat",
        30,
        397,
        (("shmid", _signed), ("shmaddr", _address), ("shmflg", _flags(_SHM_FLAGS))),
    ),
    Operation("shmdt", 67, 398, (("shmaddr", _address),)),
    Operation("brk", 12, 45, (("addr", _address),)),
    Operation(
        "remap_file_pages",
        216,
        257,
        (
            ("addr", _address),
            ("size", _size),
            ("prot", _prot),
            ("pgoff", _size),
            ("flags", _MAPPING_FLAGS),
        ),
    ),
    Operation("io_uring_madvise", None, None, (*_RANGE, ("advice", _advice))),
    # Any other call in which the kernel came to unmap or re-protect sealed memory.
    Operation("other", None, None, (("system_call", _size),)),
)


def decode_arguments(operation: Operation, values: Sequence[int]) -> dict[str, Decoded]:
    """The call's arguments by their man-page names, decoded for a person."""
    pairs = zip(operation.arguments, values, strict=False)  # six words, often fewer arguments
    return {name: decode(value) for (name, decode), value in pairs}


def _number_switch(function: str, numbers: Sequence[tuple[int, str]]) -> str:
    cases = "\n".join(f"    case {number}: return {constant};" for number, constant in numbers)
    return (
        f"static __always_inline u32 {function}(u64 number)\n{{\n    switch (number) {{\n"
        f"{cases}\n    }}\n    return OPERATIONS;\n}}\n"
    )


def c_definitions() -> str:
    """C source with the operations' enumerators and the mappings from system-call numbers."""
    names = ", ".join(operation.constant for operation in OPERATIONS)
    native = [(op.number, op.constant) for op in OPERATIONS if op.number is not None]
    compat = [(op.number_32, op.constant) for op in OPERATIONS if op.number_32 is not None]
    return "\n".join(
        (
            f"enum operation {{ {names}, OPERATIONS }};",
            f"#define NR_MSEAL {MSEAL_NUMBER}",
            _number_switch("operation_of", native),
            _number_switch("operation_of_32", compat),
        )
    )
