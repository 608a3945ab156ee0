"""Loads the BPF programs in a child that verifies, attaches, hands the descriptors over and exits.

The programs come compiled, as an object (object.py); where there is none, the child compiles them
with bcc. The daemon never holds the memory that the child needs. A descriptor keeps its program
attached after the child is gone. When the daemon ends, for whatever reason, all are detached.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import traceback
from typing import Any

from monitor.kernel.loaded import (
    NOTHING_EXISTS,
    AttachedProbe,
    Existing,
    Loaded,
    LoaderDied,
    LoadError,
    LoadRequest,
    Made,
    WrongObjectError,
)
from monitor.kernel.slots import Slot
from monitor.kernel.syscalls import end_with

__all__ = [
    "AttachedProbe",
    "LoadError",
    "LoadRequest",
    "Loaded",
    "LoaderDied",
    "Loading",
    "Made",
    "WrongObjectError",
    "load",
]

_MESSAGE_SIZE = 1 << 16
_DESCRIPTORS_MAX = 200
_ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
LOAD_SECONDS = 60  # a start takes 0.2 s, 10 s without an object: after this long it hangs


class Loading:
    """A child that loads and attaches. Call finish() for its result, or close() to end it.

    Make it before the process starts any thread: it forks.
    """

    def __init__(self, request: LoadRequest, existing: Existing = NOTHING_EXISTS) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._diagnostics = os.fdopen(os.memfd_create("loader"), "w+b")
        with theirs:
            self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_SIZE)
            daemon = os.getpid()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            try:
                self._child = os.fork()
                if not self._child:
                    _leave_signals_to(daemon, before)
                    _child(request, existing, theirs, self._diagnostics.fileno(), daemon)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def finish(self) -> Loaded:
        """What is loaded. Raises LoadError when nothing can be attached; `Loaded.probes` names
        single probes that could not be attached.
        """
        try:
            self._ours.settimeout(LOAD_SECONDS)
            message, descriptors, _, _ = socket.recv_fds(
                self._ours, _MESSAGE_SIZE, _DESCRIPTORS_MAX
            )
            for descriptor in descriptors:  # recv_fds ignores its flags
                os.set_inheritable(descriptor, False)
            if not message:
                raise LoaderDied(self._last_words())
        except TimeoutError:
            raise LoaderDied(f"loading and attaching took longer than {LOAD_SECONDS} s") from None
        finally:
            self.close()
        answer = json.loads(message)
        if "error" in answer:
            kind = WrongObjectError if answer["is_object"] else LoadError
            raise kind(answer["error"])
        return _loaded(answer, descriptors)

    def close(self) -> None:
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
        self._ours.close()
        self._diagnostics.close()

    def _last_words(self) -> str:
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        self._diagnostics.seek(0)
        output = self._diagnostics.read().decode(errors="replace").strip()
        return (
            f"the loader ended with status {os.waitstatus_to_exitcode(status)} "
            f"and said: {output[-2000:] or 'nothing'}"
        )


def load(request: LoadRequest) -> Loaded:
    """Load and attach in a child, and wait for it. Raises LoadError."""
    return Loading(request).finish()


def _loaded(answer: dict[str, Any], descriptors: list[int]) -> Loaded:
    return Loaded(
        maps={name: descriptors[index] for name, index in answer["maps"].items()},
        probes=[
            AttachedProbe(
                *(probe, mode, target, error),
                descriptors[index] if index >= 0 else -1,
                fallback,
                tuple(descriptors[each] for each in also),
            )
            for probe, mode, target, error, index, fallback, also in answer["probes"]
        ],
        slots=[Slot(key, *(descriptors[each] for each in rest)) for key, *rest in answer["slots"]],
        made=_made_of(answer["made"]),
        waiting=[descriptors[index] for index in answer["waiting"]],
        notes=answer["notes"],
    )


def _made_of(row: list[Any]) -> Made:
    path, digest, built, made_by, absent = row
    return Made(path, digest, built, made_by, tuple(absent))


def _keep_only(*descriptors: int) -> None:
    """Close all others but the standard ones: one of them may hold a lock of the parent's, which
    would outlive the parent in this process (flock(2)).
    """
    kept = sorted((2, *descriptors))
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)


def _leave_signals_to(daemon: int, mask: set[int | signal.Signals]) -> None:
    """Runs in the child. What is sent to a whole service or to a foreground job ends the parent,
    which must not see that its child has ended before it: the kernel ends the child with it.
    """
    end_with(daemon)
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _child(
    request: LoadRequest,
    existing: Existing,
    parent: socket.socket,
    diagnostics: int,
    daemon: int,
) -> None:
    """Runs in the child and does not return: no exit handler of the parent's may run here."""
    status = 1
    try:
        _keep_only(parent.fileno(), diagnostics, *existing.descriptors)
        os.dup2(diagnostics, 1)
        os.dup2(diagnostics, 2)
        from monitor.kernel import attacher  # noqa: PLC0415 - only in the child

        answer, descriptors = attacher.load_and_attach(request, diagnostics, existing)
        socket.send_fds(parent, [json.dumps(answer).encode()], descriptors)
        status = 0
    except LoadError as error:
        is_object = isinstance(error, WrongObjectError)
        parent.send(json.dumps({"error": str(error), "is_object": is_object}).encode())
    except BaseException:  # whatever it is, the parent reports it
        os.write(diagnostics, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)
