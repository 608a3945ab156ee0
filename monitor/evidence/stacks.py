"""Frames of a user stack from the kernel's record.

Addresses and build ids come from the process's memory; the kernel reports a module's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor.evidence.events import Frame
from monitor.kernel import abi
from monitor.untrusted.printable import printable

__all__ = ["frames", "place"]


def frames(stack: abi.Stack) -> tuple[Frame, ...]:
    """The frames, innermost first, without symbols. Raises ValueError for a corrupt stack."""
    if stack.depth > abi.STACK_FRAMES or stack.module_count > abi.STACK_MODULES:
        raise ValueError(f"a stack of {stack.depth} frames and {stack.module_count} modules")
    used = zip(stack.addresses[: stack.depth], stack.modules, strict=False)
    modules = stack.module[: stack.module_count]
    return tuple(_frame(address, index, modules) for address, index in used)


def _frame(address: int, index: int, modules: list[abi.Module]) -> Frame:
    shown = f"0x{address:x}"
    if index >= len(modules):  # NO_MODULE
        return Frame(shown, None, None, None, None)
    module = modules[index]
    size = module.build_id_size
    if size > abi.BUILD_ID_SIZE:
        raise ValueError(f"a build id of {size} bytes")
    return Frame(
        address=shown,
        module=printable(module.file) or None,
        build_id=bytes(module.build_id[:size]).hex() or None,
        offset=(address - module.base) & 2**64 - 1,
        symbol=None,
    )


def place(frame: Mapping[str, Any]) -> str:
    """Where the code of an event's frame is, for a person: in its file, else in memory."""
    if frame["module"] and frame["offset"] is not None:
        return f"{frame['module']}+0x{frame['offset']:x}"
    return str(frame["address"])
