"""fexit programs: BPF trampolines at the return of the kernel's own functions, through libbpf.

bcc compiles them, but would attach all of them at once or none.
"""

from __future__ import annotations

import ctypes
import os

from monitor.kernel.layouts import KIND_FUNC, Btf

__all__ = ["attach", "load", "why_refused"]

_TRIAL = "__x64_sys_mseal"
_PROG_TYPE_TRACING, _TRACE_FEXIT = 26, 25
_RETURN_ZERO = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_LOG_SIZE = 1 << 16


class _LoadOptions(ctypes.Structure):
    """The start of libbpf's struct bpf_prog_load_opts, which tells its size itself."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    ]


def load(function: int, name: str, instructions: bytes) -> int:
    """Descriptor of a program for the return of the function with this BTF id.

    Raises OSError, with the verifier's last line.
    """
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions),
        expected_attach_type=_TRACE_FEXIT,
        attach_btf_id=function,
        log_size=_LOG_SIZE,
        log_buf=ctypes.cast(log, ctypes.c_char_p),
    )
    descriptor: int = library.bpf_prog_load(
        _PROG_TYPE_TRACING,
        name[:15].encode(),
        b"GPL",
        instructions,
        ctypes.c_size_t(len(instructions) // 8),
        ctypes.byref(options),
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        lines = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
        # The very last lines are the verifier's statistics.
        said = next((line for line in reversed(lines) if not line.startswith("processed ")), "")
        raise OSError(number, os.strerror(number) + (f": {said}" if said else ""))
    return descriptor


def attach(program: int) -> int:
    """Descriptor that keeps the program attached. Raises OSError."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    descriptor: int = library.bpf_raw_tracepoint_open(None, program)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def why_refused(btf: Btf) -> str:
    """Why fexit programs cannot be loaded; empty when they can.

    Learnt by loading one: what lists features gets it wrong, as a kernel may have all that they
    need and still refuse them.
    """
    function = btf.find(_TRIAL, KIND_FUNC)
    if function is None:
        return f"this kernel's BTF has no function {_TRIAL}"
    try:
        os.close(load(function, "fexit_trial", _RETURN_ZERO))
    except OSError as error:
        return f"fexit programs are refused ({error.strerror})"
    return ""
