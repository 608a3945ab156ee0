"""What each colour means, in all panels: one colour has one meaning, and red is for critical alone.

A panel takes its colours from here, by the names of its series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COLORS", "CRITICAL", "LITERAL", "NOTHING", "WARNING", "Meaning", "of_label", "of_name"]

CRITICAL, WARNING, NOTHING = "red", "orange", "#8e8e8e"
LITERAL = ""  # a legend without a label


@dataclass(frozen=True)
class Meaning:
    """`names` are the values of each label, and the legends without one, that have the colour."""

    text: str
    names: Mapping[str, tuple[str, ...]]


COLORS: Mapping[str, Meaning] = {
    CRITICAL: Meaning(
        "critical: a person is needed now",
        {
            "severity": ("critical",),
            "worst": ("2",),  # a severity by its rank
            "trouble": (
                "does not answer",
                "was never ready",
                "its canary is overdue",
                "a probe is not attached",
            ),
            LITERAL: ("partial updates", "failed canaries"),
        },
    ),
    WARNING: Meaning(
        "a warning: to be looked at by day",
        {
            "severity": ("warning",),
            "worst": ("1",),
            "trouble": ("its configuration is not in force",),
        },
    ),
    "dark-orange": Meaning("lost", {"result": ("dropped",), LITERAL: ("runs missed",)}),
    "super-light-orange": Meaning(
        "lost, because something failed", {"result": ("failed", "refused")}
    ),
    "green": Meaning("as it should be", {"result": ("delivered", "complete", "taken", "accepted")}),
    "yellow": Meaning("in part, or held back by a limit", {"result": ("partial", "suppressed")}),
    NOTHING: Meaning("nothing to do", {"result": ("filtered", "gone")}),
    "#5c5c5c": Meaning("another process's, and so nothing to do", {"result": ("reused",)}),
    "blue": Meaning(
        "a quantity that is neither good nor bad; of several hosts or times the median",
        {
            "severity": ("info",),
            "worst": ("0",),
            "memory": ("executable",),
            LITERAL: ("median", "seals", "sealed bytes", "new hosts"),
        },
    ),
    "#129e93": Meaning("a second such quantity", {"memory": ("relro",)}),
    "purple": Meaning("the highest of the hosts", {LITERAL: ("highest",)}),
    "super-light-purple": Meaning("what 95 % stay below", {LITERAL: ("95 %",)}),
    "#8f6bff": Meaning("what 99 % stay below", {LITERAL: ("99 %",)}),
}


def of_label(label: str) -> dict[str, str]:
    """The colour of each value of a label."""
    return {
        name: color for color, meaning in COLORS.items() for name in meaning.names.get(label, ())
    }


def of_name(legend: str) -> str:
    """The colour of a legend without a label. Raises KeyError for one that has none."""
    return of_label(LITERAL)[legend]
