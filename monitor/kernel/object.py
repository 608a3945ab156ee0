"""The compiled programs as one file for every kernel; patched for the running one when loaded.

    seal-monitor object, format 1      a line
    SHA-256 of all that follows        32 bytes
    length of the head                 4 bytes
    head                               JSON: compiler, digests, maps, programs
    body                               for each program its instructions, then its patches

A patch says what to put into one instruction: a map's descriptor, or the running kernel's value of
a mark. monitor/kernel/layouts.py has the table of marks, bpf/kernel.h their forms.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "RING_MAP",
    "Form",
    "Map",
    "Object",
    "ObjectError",
    "Patch",
    "Program",
    "digest_in",
    "find_patches",
    "parse",
    "read",
    "serialize",
    "sha256",
    "take",
]

_MAGIC = b"seal-monitor object, format 1\n"
_DIGEST_SIZE = 32
_LENGTH = struct.Struct("<I")
_PATCH = struct.Struct("<IHH")
_INSTRUCTION = struct.Struct("<BBhi")  # operation, registers, offset, immediate
# include/uapi/linux/bpf.h and bpf_common.h
_LOAD_DOUBLE, _MOVE, _ADD, _CALL = 0x18, 0xB7, 0x07, 0x85  # LD | IMM | DW, 64-bit ALU and JMP
_LOAD_MASK, _LOAD = 0xE7, 0x61  # LDX | MEM of any size
RING_MAP = 0x5EE00000  # in place of the ring's descriptor, as in bpf/kernel.h
_MAP_DESCRIPTOR, _KFUNC = 1, 2  # source registers that have a special meaning
# bpf/kernel.h: FORM_*, and FIRST_PIVOT.
_VALUE_BASE, _ADD_BASE, _HAS_BASE, _KFUNC_BASE = 0x5EA00000, 0x5EB00000, 0x5EC00000, 0x5ED00000
_LOAD_BASE = 0x7000
_MARKS_MAX = 0x1000
_FIRST_PIVOT = 8


class ObjectError(Exception):
    """This program may not load the file: why, and the way out."""


class Form(IntEnum):
    """What a patch writes into an instruction, and where."""

    MAP = 0  # a descriptor, as the immediate
    VALUE = 1  # the mark's value, as the immediate
    ADD = 2  # the value minus FIRST_PIVOT, as the immediate
    HAS = 3  # 1 where the kernel has a value, else 0, as the immediate
    KFUNC = 4  # the value, as the function that is called
    LOAD = 5  # the value, as the offset


class Map(NamedTuple):
    """A map as bcc made it. Sizes in bytes; `kind` is of the kernel's enum bpf_map_type."""

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


class Patch(NamedTuple):
    """`at`: where the instruction begins, in bytes. `number`: of the map or the mark."""

    at: int
    form: Form
    number: int


@dataclass(frozen=True)
class Program:
    name: str
    instructions: bytes
    packed: bytes  # its patches; unpacked where the program is loaded

    def patches(self) -> Iterator[Patch]:
        for at, form, number in _PATCH.iter_unpack(self.packed):
            yield Patch(at, Form(form), number)

    def maps(self) -> set[int]:
        """Numbers of the maps that it uses."""
        return {patch.number for patch in self.patches() if patch.form == Form.MAP}

    def missing(self, values: Sequence[int | None]) -> set[int]:
        """Marks that it needs and that have no value: it uses them without asking HAS()."""
        patches = [patch for patch in self.patches() if patch.form != Form.MAP]
        asked = {patch.number for patch in patches if patch.form == Form.HAS}
        return {each.number for each in patches if values[each.number] is None} - asked

    def patched(self, descriptors: Sequence[int], values: Sequence[int | None]) -> bytes:
        """Its instructions for the running kernel."""
        text = bytearray(self.instructions)
        for at, form, number in _PATCH.iter_unpack(self.packed):
            operation, registers, offset, immediate = _INSTRUCTION.unpack_from(text, at)
            if form == Form.MAP:
                immediate = descriptors[number]
            elif form == Form.HAS:
                immediate = int(values[number] is not None)
            elif form == Form.LOAD:
                offset = values[number] or 0
            else:  # without a value: any will do, as HAS() keeps it from running
                immediate = (values[number] or 0) - (_FIRST_PIVOT if form == Form.ADD else 0)
            _INSTRUCTION.pack_into(text, at, operation, registers, offset, immediate)
        return bytes(text)


@dataclass(frozen=True)
class Object:
    """`compiler`: clang's version. `digests`: of its sources, and the processor's name, see
    compiler.digests()."""

    compiler: str
    digests: Mapping[str, str]
    maps: tuple[Map, ...]
    programs: Mapping[str, Program]
    digest: str = ""  # of the whole file


def find_patches(instructions: bytes, maps: Mapping[int, int]) -> Iterator[Patch]:
    """Every mark, and every use of a map. `maps`: the number of the map behind a descriptor.

    Raises ObjectError for an instruction that looks like a mark and is not.
    """
    at = 0
    while at < len(instructions):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(instructions, at)
        source = registers >> 4
        if operation == _LOAD_DOUBLE:
            if source == _MAP_DESCRIPTOR:
                yield Patch(at, Form.MAP, maps[immediate])
            at += 2 * _INSTRUCTION.size
            continue
        if operation & _LOAD_MASK == _LOAD and offset >= _LOAD_BASE:
            yield Patch(at, Form.LOAD, offset - _LOAD_BASE)
        elif operation == _CALL and source == _KFUNC:
            if not 0 <= immediate - _KFUNC_BASE < _MARKS_MAX:
                raise ObjectError(f"a call of {immediate:#x} is no mark of a kfunc")
            yield Patch(at, Form.KFUNC, immediate - _KFUNC_BASE)
        else:
            for base, form, its_operation in (
                (_VALUE_BASE, Form.VALUE, _MOVE),
                (_ADD_BASE, Form.ADD, _ADD),
                (_HAS_BASE, Form.HAS, _MOVE),
            ):
                if 0 <= immediate - base < _MARKS_MAX:
                    if operation != its_operation:
                        raise ObjectError(f"{immediate:#x} is a mark in operation {operation:#x}")
                    yield Patch(at, form, immediate - base)
        at += _INSTRUCTION.size


def sha256(data: bytes) -> str:
    import hashlib  # noqa: PLC0415 - OpenSSL: 4 MiB that a daemon without TLS does not need

    return hashlib.sha256(data).hexdigest()


def take(name: str, instructions: bytes, maps: Mapping[int, int]) -> Program:
    """A program as it was compiled. `maps`: the numbers of its maps, by descriptor."""
    patches = list(find_patches(instructions, maps))
    text = bytearray(instructions)
    for patch in patches:
        if patch.form == Form.MAP:  # a descriptor in the compiling process
            text[patch.at + 4 : patch.at + 8] = bytes(4)
    return Program(name, bytes(text), b"".join(_PATCH.pack(*patch) for patch in patches))


def serialize(made: Object) -> bytes:
    """The file. The same object gives the same bytes."""
    head = {
        "compiler": made.compiler,
        "digests": dict(sorted(made.digests.items())),
        "maps": made.maps,
        "programs": {
            name: (len(program.instructions), len(program.packed))
            for name, program in sorted(made.programs.items())
        },
    }
    body = b"".join(
        program.instructions + program.packed for _, program in sorted(made.programs.items())
    )
    text = json.dumps(head).encode()
    rest = _LENGTH.pack(len(text)) + text + body
    return _MAGIC + bytes.fromhex(sha256(rest)) + rest


def parse(data: bytes) -> Object:
    """The object in this file. Raises ObjectError for whatever serialize() has not written."""
    start = len(_MAGIC) + _DIGEST_SIZE
    if data[: len(_MAGIC)] != _MAGIC:
        raise ObjectError("is no object of the format that this version loads")
    rest = data[start:]
    digest = sha256(rest)
    if digest != data[len(_MAGIC) : start].hex():
        raise ObjectError("is damaged: its digest does not match")
    (length,) = _LENGTH.unpack_from(rest)
    at = _LENGTH.size + length
    head = json.loads(rest[_LENGTH.size : at])
    programs = {}
    for name, (instructions, packed) in head["programs"].items():
        middle, end = at + instructions, at + instructions + packed
        programs[name] = Program(name, rest[at:middle], rest[middle:end])
        at = end
    maps = tuple(Map(*each) for each in head["maps"])
    return Object(head["compiler"], head["digests"], maps, programs, digest)


def digest_in(head: bytes) -> str:
    """The digest of the rest, as the first bytes of a file give it; empty when it is no object."""
    start = len(_MAGIC) + _DIGEST_SIZE
    return head[len(_MAGIC) : start].hex() if head.startswith(_MAGIC) else ""


def read(path: Path, digests: Mapping[str, str]) -> Object:
    """The object in a file. `digests`: of the sources that it must be made from.

    Raises FileNotFoundError, and ObjectError for an object that is damaged, or was made from other
    sources: its marks and maps would mean something else.
    """
    remedy = "run: make setup, in a checkout, or install the package again"
    try:
        found = parse(path.read_bytes())
    except ObjectError as error:
        raise ObjectError(f"{path} {error}; {remedy}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ObjectError(f"cannot read {path} ({error.strerror})") from error
    made_for = found.digests.get("processor", "")
    if made_for and made_for != digests.get("processor", made_for):
        raise ObjectError(
            f"{path} is for {made_for}, this machine is {digests['processor']}; {remedy}"
        )
    differ = [name for name in digests if found.digests.get(name) != digests[name]]
    if differ:
        raise ObjectError(f"{path} was made from other {' and '.join(differ)}; {remedy}")
    return found
