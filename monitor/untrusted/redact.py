"""Command lines without the secrets in them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

__all__ = ["REDACTED", "CommandLine", "redact"]

CommandLine = Literal["redacted", "full", "off"]

REDACTED = "[redacted]"

_WORD = re.compile(r"[\w.-]+")
_SENSITIVE = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|cookie|bearer|authorization"
    r"|(?:key|(?<!by)pass|auth)s?$|(?:^|[-_.])(?:key|pass|auth|cred)s?(?:[-_.]|$)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"""["']*[=:]["']*""")
_USER_INFORMATION = re.compile(r"(://[^\s/:@]*:)\S*@|(https?://)[^\s/:@]+@", re.IGNORECASE)
# Options for a password that only mean one in these programs (-p is a port to many others).
_OPTIONS = {
    program: re.compile(options)
    for programs, options in (
        ("mysql mysqladmin mysqldump mariadb mariadb-admin mariadb-dump sshpass", r"-(?!-)\w*?p"),
        ("ldapadd ldapmodify ldapsearch", r"-(?!-)\w*?w"),
        ("redis-cli", r"-(?!-)\w*?a"),
        ("curl", r"-(?!-)\w*?[uU]|--(?:proxy-)?user=?"),
        ("smbclient", r"-(?!-)\w*?U|--user=?"),
    )
    for program in programs.split()
}
_NO_OPTIONS = re.compile(r"(?!)")


def _redact_word(word: str, options: re.Pattern[str]) -> tuple[str, bool]:
    """The word as it may be shown, and whether it announces that the next one is a secret."""
    if option := options.match(word):
        return (word, True) if option[0] == word else (option[0] + REDACTED, False)
    for name in _WORD.finditer(word):
        if not _SENSITIVE.search(name[0]):
            continue
        separator = _SEPARATOR.match(word, name.end())
        end = separator.end() if separator else name.end()
        if end == len(word):
            announces = not word[: name.start()].strip("\"'{,/")
            return _redact_user_information(word), announces or separator is not None
        if separator:
            return _redact_user_information(word[:end]) + REDACTED, False
    return _redact_user_information(word), False


def _redact_user_information(text: str) -> str:
    return _USER_INFORMATION.sub(lambda found: f"{found[1] or found[2]}{REDACTED}@", text)


def _redact(words: Sequence[str], is_program: bool) -> tuple[list[str], bool]:
    shown: list[str] = []
    hide, options = False, _NO_OPTIONS
    for word in words:
        inner = word.split()
        if hide:
            # "--password --token x": whichever of the two takes no value, x stays hidden.
            shown.append(REDACTED)
            hide = _redact_word(word, options)[1]
        elif len(inner) > 1:
            # A script for a shell, a header, a rewritten title: quoting is unknown, so nothing
            # behind the first secret is shown.
            parts, hide = _redact(inner, is_program=False)
            first = next(
                (i for i, (a, b) in enumerate(zip(inner, parts, strict=True)) if a != b), None
            )
            shown.append(word if first is None else " ".join(parts[: first + 1]))
        else:
            options = _OPTIONS.get(os.path.basename(word), options)
            text, hide = _redact_word(word, options)
            shown.append(text)
            hide = hide and not (is_program and len(shown) == 1)
    return shown, hide


def redact(argv: Sequence[str]) -> list[str]:
    """`argv` with what may be a secret replaced by `[redacted]`; the same number of arguments.

    Hidden are: the rest of an argument behind a name like password, token, secret, key, auth and
    `=` or `:`; the argument after one that is nothing but such a name; user information in URLs;
    and the options for a password of a few common programs. Rather too much than too little.
    """
    return _redact(argv, is_program=True)[0]
