"""The table of watched operations: every call that a seal can refuse.

A new operation is a row here, its numbers in arch.py and a provoker. The BPF programs are compiled
against `c_definitions()`, so C and Python cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from monitor.kernel.arch import THIS, Processor

__all__ = [
    "OPERATIONS",
    "Decoded",
    "Operation",
    "c_definitions",
    "decode_arguments",
    "operations_of",
]

Decoded = str | int | list[str]

# Values of the user-space API (include/uapi).
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

    `range`: the arguments that give the range asked for: address and length, or only the address
    where the kernel knows the length; empty where no argument does. `odd`: proof.h has a special
    case for the range. `wanted`: what the process did, as words before a range; {fields} are
    decoded arguments. `would`: what the call would have done to {it} without the seal, where that
    does not depend on its arguments. `hides_refusal`: it may be refused and return no error (brk
    returns the old break, shmdt 0, process_madvise the bytes done), so its successes are checked,
    too. `partial`: the call that calibration tries (attach/calibrate.py) to find out whether a
    refusal of this one may leave the part before the seal changed. `number` and `number_32`: of
    the system call, native and for 32-bit callers; None where it has no number.
    """

    name: str
    arguments: tuple[tuple[str, Callable[[int], Decoded]], ...]
    wanted: str
    would: str = ""
    range: tuple[str, ...] = ()
    odd: bool = False
    hides_refusal: bool = False
    partial: str = ""
    number: int | None = None
    number_32: int | None = None

    @property
    def constant(self) -> str:
        """The operation's enumerator in C."""
        return f"OP_{self.name.upper()}"

    @property
    def is_plain(self) -> bool:
        """Whether the range is the first two arguments: proof.h needs no case for it."""
        first = tuple(name for name, _ in self.arguments[:2])
        return len(self.range) == 2 and self.range == first and not self.odd


_RANGE = (("addr", _address), ("length", _size))
_RANGE_AND_PROTECTION = (("addr", _address), ("size", _size), ("prot", _prot))

_ROWS: tuple[Operation, ...] = (
    Operation(
        "mprotect",
        _RANGE_AND_PROTECTION,
        "asked for {prot} on",
        range=("addr", "size"),
        partial="mprotect",
    ),
    Operation(
        "pkey_mprotect",
        (*_RANGE_AND_PROTECTION, ("pkey", _signed)),
        "asked for {prot} with key {pkey} on",
        range=("addr", "size"),
        partial="mprotect",
    ),
    Operation(
        "munmap",
        _RANGE,
        "tried to unmap",
        "unmapped {it}, and left the place free for other memory",
        range=("addr", "length"),
    ),
    Operation(
        "mremap",
        (
            ("old_address", _address),
            ("old_size", _size),
            ("new_size", _size),
            ("flags", _flags(_MREMAP_FLAGS)),
            ("new_address", _address),
        ),
        "tried to move or resize",
        partial="mremap",
    ),
    Operation(
        "mmap",
        (
            *_RANGE,
            ("prot", _prot),
            ("flags", _MAPPING_FLAGS),
            ("fd", _signed),
            ("offset", _size),
        ),
        "tried to map over",
        "put a new mapping in place of {it}",
        range=("addr", "length"),
        odd=True,
    ),
    Operation(
        "madvise",
        (*_RANGE, ("advice", _advice)),
        "advised {advice} on",
        range=("addr", "length"),
        odd=True,
        partial="madvise",
    ),
    Operation(
        "process_madvise",
        (
            ("pidfd", _signed),
            ("iovec", _address),
            ("n", _size),
            ("advice", _advice),
            ("flags", _size),
        ),
        "advised {advice} on",
        hides_refusal=True,
        partial="madvise",
    ),
    Operation(
        "shmat",
        (("shmid", _signed), ("shmaddr", _address), ("shmflg", _flags(_SHM_FLAGS))),
        "tried to attach shared memory over",
        "put shared memory in place of {it}",
        range=("shmaddr",),
    ),
    Operation(
        "shmdt",
        (("shmaddr", _address),),
        "tried to detach shared memory at",
        "unmapped {it}",
        range=("shmaddr",),
        hides_refusal=True,
    ),
    Operation(
        "brk",
        (("addr", _address),),
        "tried to give back heap memory at",
        "given {it} back",
        range=("addr",),
        hides_refusal=True,
    ),
    Operation(
        "remap_file_pages",
        (*_RANGE_AND_PROTECTION, ("pgoff", _size), ("flags", _MAPPING_FLAGS)),
        "tried to remap pages of",
        "shown other pages of the file in place of {it}",
        range=("addr", "size"),
        odd=True,
    ),
    Operation(
        "io_uring_madvise",
        (*_RANGE, ("advice", _advice)),
        "advised {advice} on",
        range=("addr", "length"),
        odd=True,
        partial="madvise",
    ),
    # Any other call in which the kernel came to unmap or re-protect sealed memory.
    Operation(
        "other",
        (("system_call", _size),),
        "in system call {system_call} tried to change",
    ),
)


def operations_of(processor: Processor) -> tuple[Operation, ...]:
    """The table, with the numbers of this processor."""
    native, compat = processor.numbers, processor.compat_numbers
    return tuple(
        replace(row, number=native.get(row.name), number_32=compat.get(row.name)) for row in _ROWS
    )


OPERATIONS = operations_of(THIS)


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


def _cases(operations: Iterable[Operation]) -> str:
    return ": ".join(f"case {operation.constant}" for operation in operations)


def c_definitions(operations: Sequence[Operation] = OPERATIONS, processor: Processor = THIS) -> str:
    """C source: enumerators, numbers of calls and what they mean, and properties of calls as cases.

    proof.h has cases for the ranges that are not plain; clang refuses it where an operation has
    neither.
    """
    names = ", ".join(operation.constant for operation in operations)
    native = [(op.number, op.constant) for op in operations if op.number is not None]
    compat = [(op.number_32, op.constant) for op in operations if op.number_32 is not None]
    partial = {
        like: _cases(each for each in operations if each.partial == like)
        for like in ("mprotect", "madvise", "mremap")
    }
    # Comparisons, not a switch: the verifier knows the operation, and drops those that are false.
    # In this order, from the last to the first, clang makes two instructions fewer.
    hidden = [op.constant for op in reversed(operations) if op.hides_refusal]
    hiding = " || ".join(f"(operation) == {constant}" for constant in hidden)
    return "\n".join(
        (
            f"enum operation {{ {names}, OPERATIONS }};",
            f"#define NR_MSEAL {processor.numbers['mseal']}",
            f"#define NR_PTRACE {processor.numbers['ptrace']}",
            f"#define NR_PTRACE_32 {processor.compat_numbers['ptrace']}",
            f"#define PLAIN_RANGES {_cases(each for each in operations if each.is_plain)}",
            f"#define HIDES_REFUSAL(operation) ({hiding})",
            *(f"#define PARTIAL_LIKE_{like.upper()} {cases}" for like, cases in partial.items()),
            _number_switch("operation_of", native),
            _number_switch("operation_of_32", compat),
        )
    )
