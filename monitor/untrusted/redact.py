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
    r"|(?:key|(?<!by)pass|auth|signature)s?$|^sig$"
    r"|(?:^|[-_.])(?:key|pass|auth|cred)s?(?:[-_.]|$)|(?:^|[-_])pw$",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"""["']*[=:]["']*""")
_TOKEN = re.compile(r"(https?://)[^\s/:@]+@", re.IGNORECASE)
# The part before the secret in user:secret@host. Without a scheme, a text that begins with "/" is
# not a secret (host:/path@2), and some names are not users.
_USER = re.compile(
    r"://[^\s/:@]*:"
    r"|(?:^|(?<=[\s=\"'(,;]))(?!(?:mailto|sips?|xmpp|npm):)[^\s:@=\"'(,;]+:(?!/|$)",
    re.IGNORECASE,
)
_IMAGE_DIGEST = re.compile(r"@sha\d+:")  # registry:5000/image:tag@sha256:...
# Options for a password, by program: in other programs they mean something else (-p is often a
# port). `login` is a command of docker and others.
_OPTIONS = {
    program: re.compile(options)
    for programs, options in (
        ("mysql mysqladmin mysqldump mariadb mariadb-admin mariadb-dump sshpass", r"-(?!-)\w*?p"),
        ("mongo mongosh mongodump mongoexport mongoimport mongorestore", r"-(?!-)\w*?p"),
        ("login rdesktop", r"-(?!-)\w*?p"),
        ("7z 7za 7zr rar unrar", r"-h?p"),
        ("zip unzip sqlcmd osql tsql bcp ipmitool", r"-(?!-)\w*?P"),
        ("openssl", r"-[kK]$"),
        (
            "xfreerdp xfreerdp3 wlfreerdp wlfreerdp3 sdl-freerdp sdl-freerdp3",
            r"(?:/|--?)(?:g?p|pth)(?::|$)|/gateway:(?:.*?,)?p:",
        ),
        ("ldapadd ldapmodify ldapsearch", r"-(?!-)\w*?w"),
        ("redis-cli", r"-(?!-)\w*?a"),
        ("curl", r"-(?!-)\w*?[uU]|--(?:proxy-)?user=?"),
        ("smbclient", r"-(?!-)\w*?U|--user=?"),
    )
    for program in programs.split()
}
_NO_OPTIONS = re.compile(r"(?!)")


def _redact_word(word: str, options: re.Pattern[str]) -> tuple[str, bool]:
    """The word as it may be shown, and whether the next word is a secret."""
    if option := options.match(word):
        if option[0] == word:
            return word, True
        return option[0] + REDACTED, _redact_word(word, _NO_OPTIONS)[1]  # it may be "-password"
    for name in _WORD.finditer(word):
        if not _SENSITIVE.search(name[0]):
            continue
        separator = _SEPARATOR.match(word, name.end())
        end = separator.end() if separator else name.end()
        if end == len(word):
            announces = not word[: name.start()].strip("\"'{,/")
            return _redact_user_information(word), announces or separator is not None
        if separator:
            # The name may be inside the secret of user:secret@.
            at = "@" if "@" in word[end:] else ""
            shown = _redact_user_information(word[:end] + at).removesuffix(at)
            return shown + REDACTED, False
    return _redact_user_information(word), False


def _redact_user_information(text: str) -> str:
    """The text without tokens in URLs, and without all between the first user and the last "@"."""
    text = _TOKEN.sub(rf"\1{REDACTED}@", text)
    end = text.rfind("@")
    if _IMAGE_DIGEST.match(text, end):
        end = text.rfind("@", 0, end)
    found = _USER.search(text, 0, end) if end > 0 else None
    return text if found is None else text[: found.end()] + REDACTED + text[end:]


def _redact(words: Sequence[str], is_program: bool) -> tuple[list[str], bool]:
    shown: list[str] = []
    hide, options = False, _NO_OPTIONS
    for word in words:
        inner = word.split()
        if hide:
            # "--password --token x": x is hidden, whichever of the two options takes no value.
            shown.append(REDACTED)
            hide = _redact_word(word, options)[1]
        elif len(inner) > 1:
            # A script for a shell, a header, a rewritten title: quoting is unknown, so nothing
            # after the first secret is shown.
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

    It hides: the rest of an argument after a name like password, token, secret, key or auth and
    `=` or `:`; the argument after one that is only such a name; the secret of user:secret@ and the
    user information of URLs; and options for a password of a few common programs. When in doubt, it
    hides.
    """
    return _redact(argv, is_program=True)[0]
