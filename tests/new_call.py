"""What the modules make of a made-up call that has nothing but its row in the table.

Prints one JSON object. It runs as a process of its own, because each module reads the table once.
"""

from __future__ import annotations

import json

import jsonschema

from monitor.kernel import operations
from monitor.kernel.operations import Operation

MUNMAP = next(row for row in operations.OPERATIONS if row.name == "munmap")
ROW = Operation(
    "made_up",
    MUNMAP.arguments,
    "tried to make up",
    "made {it} up",
    range=MUNMAP.range,
    number=1000,
    number_32=1001,
)


def main() -> None:
    operations.OPERATIONS = (*operations.OPERATIONS, ROW)
    # Only now: they read the table when they are imported.
    from monitor.evidence import classify, events  # noqa: PLC0415
    from monitor.kernel import abi, layouts, probes, reviewed_calls  # noqa: PLC0415
    from monitor.report import story  # noqa: PLC0415

    process = events.Process(7, 7, 1, 7, "worker", None, None, None, None, None, None, None)
    workload = events.Workload(None, None, None, "/")
    host = events.Host("web-1", "1b4e28ba-2fa1-4d2e-883f-0016d3cca427", "7.9")
    time = "2025-01-02T03:04:05.000000006Z"
    origin = events.Origin("1b4e28ba-00000000000003e8-00000001", time, 1, host, process, workload)
    record = abi.Record(
        kind=abi.Kind.DENIAL,
        operation=len(operations.OPERATIONS) - 1,
        pid=7,
        executable=b"worker",
        arguments=(0x1000, 8192),
        address=0x1000,
        length=8192,
        mapping=abi.Mapping(start=0x1000, end=0x3000, flags=1 | 1 << 42),
    )
    denial = classify.classify(record, origin, sealed_mask=1 << 42)
    event = json.loads(json.dumps(events.to_dict(denial)))
    schema = jsonschema.Draft202012Validator(events.schema())
    (probe,) = (each for each in probes.PROBES if each.name == "made_up")
    found = {
        "hooks": [[hook.mode, hook.target, hook.template or hook.program] for hook in probe.hooks],
        "marks": [mark for mark in layouts.MARKS if "made_up" in mark],
        "reviewed": reviewed_calls.REVIEWED["made_up"].effect.value,
        "counted": len(abi.Counters().partial_updates) - len(operations.OPERATIONS),
        "operation": event["operation"],
        "arguments": event["arguments"],
        "summary": event["summary"],
        "call": story.call(event),
        "asked": story.asked(event),
        "would": story.would(event),
        "valid": schema.is_valid(event),
        "valid_by_another_name": schema.is_valid(event | {"operation": "munmap"}),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
