"""Sentences and facts of a report: who did what, and what happened. Pure functions of a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monitor.evidence.doubts import doubt, named
from monitor.evidence.memory_map import DELETED
from monitor.incidents.search import Event
from monitor.report import story
from monitor.report.cases import Case
from monitor.report.story import extent, value
from monitor.report.text import SECOND_NS, Fact, flat, frame_at, moment, range_of, span, text
from monitor.sizes import rounded

__all__ = ["lead", "other_facts", "what_facts", "who_facts"]


# ---- Who -----------------------------------------------------------------------------------------


def _user(event: Event) -> str:
    name, uid = text(event, "process", "user_name"), text(event, "process", "uid")
    return f"{name} (uid {uid})" if name and uid else name or (f"uid {uid}" if uid else "")


def _workload(event: Event) -> str:
    parts = (
        ("unit", text(event, "workload", "unit")),
        ("pod", text(event, "workload", "pod_uid")),
        ("container", text(event, "workload", "container_id")),
    )
    known = [f"{name} {text}" for name, text in parts if text]
    return ", ".join(known) or text(event, "workload", "cgroup").removesuffix("/")


def _program(event: Event) -> str:
    path = text(event, "process", "executable")
    name = path.removesuffix(DELETED).rpartition("/")[2]
    return name or text(event, "process", "name") or "a process"


def _who(event: Event) -> str:
    pid, user = text(event, "process", "pid"), text(event, "process", "user_name")
    unit = text(event, "workload", "unit")
    words = [_program(event), f"(pid {pid})" if pid else "", f"of {unit}" if unit else ""]
    return " ".join(filter(None, words)) + (f", run by {user}," if user else "")


def _parents(case: Case, snapshot: Mapping[str, Any] | None) -> str:
    chain = value(snapshot, "parents")
    if isinstance(chain, list) and chain:
        return " ← ".join(
            f"{text(each, 'executable') or text(each, 'name')} (pid {text(each, 'pid')})"
            for each in chain
        )
    parent = text(case.event, "process", "parent_pid")
    return f"pid {parent}" if parent else ""


def who_facts(case: Case, snapshot: Mapping[str, Any] | None) -> Iterator[Fact]:
    event = case.event
    if not isinstance(event.get("process"), Mapping):
        return
    tid, pid = text(event, "process", "tid"), text(event, "process", "pid")
    thread = f", thread {tid}" if tid and tid != pid else ""
    inner = text(event, "process", "vpid")
    within = f", {inner} in its own namespace" if inner and inner != pid else ""
    started = text(event, "process", "start")[:19].replace("T", " ")
    yield Fact(
        "Process",
        f"{text(event, 'process', 'name')}, pid {pid}{thread}{within}"
        + (f", started {started} UTC" if started else ""),
    )
    path, mark = text(event, "process", "executable"), doubt(event["process"])
    yield Fact("Program", "", path, mark if path else "")
    yield Fact("Runs", "", text(event, "process", "program", "path"))
    yield Fact("Command line", "", text(event, "process", "command_line"))
    yield Fact("User", _user(event))
    yield Fact("Belongs to", _workload(event))
    yield Fact("Started by", _parents(case, snapshot))
    release = text(event, "host", "kernel_release")
    yield Fact("Host", text(event, "host", "name") + (f", Linux {release}" if release else ""))


# ---- What ----------------------------------------------------------------------------------------

_ACCESS = {"read": "read from", "write": "wrote to", "execute": "tried to execute"}
_ACCESSED = {"read": "Read from", "write": "Wrote to", "execute": "Jumped to"}
_FATE = {
    "default": "and was killed by SIGSEGV",
    "handler": "and got SIGSEGV: a handler was called",
    "handler_ended": "and ended in its handler of SIGSEGV",
    "handler_failed": "and was killed by SIGSEGV: its handler could not run",
}


def _did(case: Case) -> str:
    """The first sentence."""
    event = case.event
    host = text(event, "host", "name")
    on = f"On {host}, " if host else ""
    match event.get("kind"):
        case "denial":
            operation = text(event, "operation")
            sealed = event.get("sealed")
            memory = f"sealed {_memory(sealed)}" if sealed else "memory"
            outcome = {
                "sealed": "was refused",
                "unverified": "was refused, perhaps by a seal",
            }.get(text(event, "verdict"), "was refused, but not by a seal")
            hidden = ", which the call did not report" if event.get("hidden") else ""
            deed = f"called {operation} on {memory} and {outcome}{hidden}"
        case "fault":
            access = _ACCESS.get(text(event, "access"), "touched")
            hit = story.hit(event)
            fate = _FATE.get(text(event, "disposition"), "")
            deed = f"{access} {hit} {fate}"
        case "seal":
            about = story.asked(event)
            length = f"{rounded(about.end - about.start)} of " if about else ""
            deed = f"sealed {length}{_memory(event.get('mapping'))} for the rest of its life"
        case "bypass":
            of = "" if _is_own(event) else f" of {_target(event)}"
            deed = f"changed sealed {_memory(event.get('sealed'))}{of} {story.method(event)}"
        case "suppression":
            name = text(event, "process", "name")
            by = f" of {name} (pid {text(event, 'process', 'pid')})" if name else ""
            return (
                f"{on}{text(event, 'of')}s{by} were counted while the rate limit held back "
                "their events: none is kept."
            )
        case _:
            return case.incident.summary
    return f"{on}{_who(event)} {deed}."


def _memory(mapping: object) -> str:
    """The mapping in words, without the directory of its file."""
    name = story.place(mapping).rpartition("/")[2]
    return name if name == story.ANONYMOUS else f"memory ({name})"


def _is_own(event: Event) -> bool:
    """Whether a bypass changed memory of the process itself."""
    return text(event, "target", "pid") in ("", text(event, "process", "pid"))


def _target(event: Event) -> str:
    return f"{text(event, 'target', 'name')} (pid {text(event, 'target', 'pid')})"


def _is_untouched(event: Event) -> bool:
    """Whether it is known that the call changed nothing: process_madvise may have more ranges."""
    return event.get("verdict") == "sealed" and event.get("operation") != "process_madvise"


def lead(case: Case, later: Sequence[Event]) -> list[str]:
    """The story in a few sentences, a paragraph each."""
    event, incident = case.event, case.incident
    deed = story.would(event) or ""
    part = story.changed(event)
    if event.get("kind") == "bypass":
        length = (
            f"{rounded(part.end - part.start)} at {part.start:#x} were changed. " if part else ""
        )
        deed = f"{length}Nothing refused it: a seal protects the mapping, not its bytes."
    elif part:
        deed += (
            f" The {rounded(part.end - part.start)} before the seal were changed all the same, "
            "before the kernel came to the seal."
        )
    elif _is_untouched(event):
        deed += " Nothing was changed."
    probably = story.assessment(event)
    after = story.ending(event, later) if event.get("kind") == "denial" else None
    sentences = [
        _did(case),
        deed.strip(),
        probably[0] if probably else "",
        after if after and "killed" in after else "",
    ]
    if incident.count > 1:
        times = f"{incident.count:,} times" if incident.count > 2 else "twice"
        sentences.append(f"It has happened {times}, {span(incident.last_ns - incident.first_ns)}.")
    return [sentence for sentence in sentences if sentence]


def _mapping_text(mapping: object) -> tuple[str, str]:
    """The mapping in words, and its range and permissions."""
    where = extent(mapping)
    path, offset = value(mapping, "file", "path"), value(mapping, "file", "offset")
    kind = story.place(mapping)
    if isinstance(path, str) and isinstance(offset, int):
        kind = f"{kind}, from offset {offset:#x}"
    length = f" ({rounded(where.end - where.start)})" if where else ""
    span = range_of(where) if where else f"{text(mapping, 'start')}-{text(mapping, 'end')}"
    return kind, f"{span} {text(mapping, 'permissions')}{length}"


def _sealed_when(case: Case) -> str:
    """When the mapping that refused the call was sealed, and by which code."""
    sealed = extent(case.event.get("sealed") or case.event.get("mapping"))
    if sealed is None:
        return ""
    for event, _ in reversed(case.timeline):
        where = story.asked(event) if event.get("kind") == "seal" else None
        if where and where.start < sealed.end and sealed.start < where.end:
            began, then = text(event, "process", "start"), moment(event)
            after = ""
            if then is not None and (start := moment({"time": began})) is not None:
                after = f", {(then - start) / SECOND_NS:.3f} s after its start"
            frame = frame_at(event, text(event, "caller"))
            by = f", by {frame.function or frame.place}" if frame else ""
            return f"Sealed at {text(event, 'time')[:23].replace('T', ' ')} UTC{after}{by}."
    return (
        "No event says when it was sealed: that takes events.seals, or it was sealed before the "
        "monitor ran, by the kernel, or in the process that this one was forked from."
    )


def what_facts(case: Case) -> Iterator[Fact]:
    """What `lead` does not say."""
    event = case.event
    kind = event.get("kind")
    if kind == "denial":
        yield Fact("Asked for", "", story.call(event))
        yield Fact("Result", story.result(event))
        yield _by_whom("Called by", event, text(event, "caller"))
        if event.get("sealed"):
            what, where = _mapping_text(event["sealed"])
            yield Fact("The seal", what, where, _sealed_when(case))
        yield Fact("How it is known", story.proof(event) or "", "", _verdict(event))
        part = story.changed(event)
        if part or not _is_untouched(event):
            yield Fact(
                "Changed before the refusal",
                "This part stays changed although the call failed." if part else "Not known.",
                range_of(part) if part else "",
            )
        if event.get("compat"):
            yield Fact("Caller", "A 32-bit program, or a 32-bit call of a 64-bit one.")
    elif kind == "fault":
        label = _ACCESSED.get(text(event, "access"), "Accessed")
        yield Fact(label, story.what(event) or "", text(event, "address"))
        yield _by_access(event)
        mapping = event.get("mapping")
        if mapping:
            what, where = _mapping_text(mapping)
            note = _sealed_when(case) if value(mapping, "sealed") is True else ""
            yield Fact("What lies there", what, where, note)
        else:
            yield Fact("What lies there", "Nothing is mapped at this address.")
        yield Fact("How it is known", story.proof(event) or "")
    elif kind == "bypass":
        part = story.changed(event)
        yield Fact("Changed", "", range_of(part) if part else "")
        if not _is_own(event) and text(event, "target", "executable"):
            yield Fact("Whose memory", "", named(event["target"]))
        yield _by_whom("Called by", event, text(event, "caller"))
        seal_is, where = _mapping_text(event.get("sealed"))
        yield Fact("The seal", seal_is, where, _sealed_when(case) if _is_own(event) else "")
    elif kind == "seal":
        about = story.asked(event)
        what, where = _mapping_text(event.get("mapping"))
        yield Fact("Sealed", what, range_of(about) if about else where)
    elif kind == "health":
        yield Fact("Message", text(event, "message"))
        yield Fact(
            "Blind for",
            f"{text(event, 'blind_seconds')} s" if text(event, "blind_seconds") else "",
        )
    if kind == "fault" and event.get("disposition") != "default":
        yield Fact("What became of the process", story.ending(event) or "")


def _by_whom(label: str, event: Event, address: str) -> Fact:
    """The fact that names the code at an address of the stack."""
    frame = frame_at(event, address)
    if frame is None:
        return Fact(label, "")
    if frame.in_no_file:
        return Fact(label, "", frame.place, "Code in no file: of a JIT, or put there by somebody.")
    return Fact(label, "", frame.function or frame.place, frame.place if frame.function else "")


def _by_access(event: Event) -> Fact:
    """The code behind an access. Of a jump into non-executable memory it is the enclosing frame,
    which shows where the jump came from.
    """
    if event.get("access") != "execute":
        return _by_whom("By", event, text(event, "instruction_pointer"))
    stack = event.get("stack")
    frame = stack[1] if isinstance(stack, list) and len(stack) > 1 else None
    return _by_whom("From", event, text(frame, "address"))


def _verdict(event: Event) -> str:
    reason = text(event, "reason")
    return f"verdict {text(event, 'verdict')}" + (f", reason {reason}" if reason else "")


# Fields that are shown elsewhere on the page: of every kind, and by kind.
_SHOWN = {"schema", "id", "time", "time_boot_ns", "kind", "severity", "summary", "host", "process"}
_SHOWN |= {"fingerprint", "workload", "assessment"}
_SHOWN |= {"stack", "stack_complete", "instruction_pointer", "caller"}
_SHOWN_BY_KIND: Mapping[str, set[str]] = {
    "denial": {
        *("operation", "arguments", "verdict", "reason", "role", "sealed", "partial_update"),
        *("hidden", "compat"),
    },
    "fault": {
        *("cause", "inferred", "access", "address", "mapping", "disposition", "signal_code"),
    },
    "bypass": {"method", "target", "changed", "sealed", "compat"},
    "seal": {"start", "length", "mapping"},
    "suppression": {"of", "operation", "cause", "method", "caller", "count", "first", "last"},
    "health": {"event", "message", "blind_seconds"},
}


def other_facts(event: Event) -> Iterator[Fact]:
    """Fields that this version does not know."""
    shown = _SHOWN | _SHOWN_BY_KIND.get(str(event.get("kind")), set())
    for name, given in event.items():
        if name not in shown and given is not None:
            yield Fact(str(name).replace("_", " ").capitalize(), flat(given))
