"""Command lines without the secrets in them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

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


class _Tool(NamedTuple):
    """What a program takes secrets by, besides names that say so.

    `options`: after one of these comes a secret, in the same argument or in the next; in other
    programs they mean something else (-p is often a port). `commands`: its own words that look like
    the name of a secret and are none. `places`: after such a word, or after the program where it is
    empty, all arguments that are no option are secrets, but for so many.
    """

    options: re.Pattern[str]
    commands: re.Pattern[str]
    places: tuple[tuple[re.Pattern[str], int], ...] = ()


_NOTHING = re.compile(r"(?!)")


def _tools(
    names: str,
    options: str = "(?!)",
    commands: str = "(?!)",
    places: Mapping[str, int] | None = None,
) -> dict[str, _Tool]:
    tool = _Tool(
        re.compile(options),
        re.compile(commands),
        tuple((re.compile(word), number) for word, number in (places or {}).items()),
    )
    return dict.fromkeys(names.split(), tool)


# By base name. `login` is a command of docker and others.
_TOOLS = {
    **_tools(
        "mysql mysqladmin mysqlbinlog mysqlcheck mysqldump mysqlimport mysqlpump mysqlsh mysqlshow"
        " mysqlslap mariadb mariadb-admin mariadb-backup mariadb-binlog mariadb-check mariadb-dump"
        " mariadb-import mariadb-show sshpass",
        r"-(?!-)\w*?p",
    ),
    **_tools("mongo mongosh mongodump mongoexport mongoimport mongorestore", r"-(?!-)\w*?p"),
    **_tools("login rdesktop cqlsh rabbitmqadmin ncftp ncftpget ncftpput ncftpls", r"-(?!-)\w*?p"),
    **_tools("useradd usermod groupadd groupmod", r"-[DFMNUlmor]*p"),
    **_tools("7z 7za 7zr rar unrar", r"-h?p"),
    **_tools("zip unzip sqlcmd osql tsql bcp ipmitool", r"-(?!-)\w*?P"),
    **_tools("mosquitto_pub mosquitto_sub mosquitto_rr", r"-P|--psk(?:=|$)"),
    **_tools("mosquitto_passwd", places={"-b": 2}),
    **_tools("htpasswd", places={r"-\w*b\w*": 2, r"-\w*n\w*": 1}),
    **_tools(
        "snmpbulkget snmpbulkwalk snmpdelta snmpdf snmpget snmpgetnext snmpinform snmpnetstat"
        " snmpps snmpset snmpstatus snmptable snmptest snmptrap snmpusm snmpvacm snmpwalk",
        r"-3[kmKM]|-[cAX]",
    ),
    # USER/PASSWORD@SERVICE
    **_tools("sqlplus rman sqlldr expdp impdp", r"(?:\w+=)?[^\s/@=-][^\s/@=]*/(?=.)"),
    **_tools("lftp", r"-u|--user(?:=|$)"),
    # USER:PASSWORD, and not an address
    **_tools("etcdctl", r"-u$|--user(?:=|$)|[\w.][\w.-]*:(?!/|\d+(?:,|$))"),
    **_tools(
        "vault",
        commands=r"auth|secrets?|token",
        places={
            "capabilities|generate-root|login|lookup|rekey|renew|revoke|unseal|unwrap": 0,
            "patch|put|write": 1,
        },
    ),
    **_tools(
        "openssl",
        r"-(?:[kK]|hmac|macopt|psk|srppass)$",
        commands="passwd",
        places={"passwd": 0},
    ),
    **_tools(
        "xfreerdp xfreerdp3 wlfreerdp wlfreerdp3 sdl-freerdp sdl-freerdp3",
        r"(?:/|--?)(?:g?p|pth)(?::|$)|/gateway:(?:.*?,)?p:",
    ),
    **_tools(
        "ldapadd ldapcompare ldapdelete ldapexop ldapmodify ldapmodrdn ldapsearch ldapwhoami"
        " kadmin kadmin.local",
        r"-(?!-)\w*?w",
    ),
    **_tools("ldappasswd", r"-(?!-)\w*?[asw]"),
    **_tools("redis-cli", r"-(?!-)\w*?a"),
    **_tools("curl", r"-(?!-)\w*?[bUu]|-E|--(?:proxy-)?(?:cert|user)(?:=|$)"),
    **_tools(
        "rpcclient smbcacls smbclient smbcquotas smbget smbmap smbtree winexe wmic",
        r"-(?!-)\w*?U|--user(?:=|$)",
    ),
    **_tools(
        "net samba-tool",
        r"-(?!-)\w*?U|--user(?:=|$)",
        commands="password|setpassword",
        places={"add|create|password|setpassword|user": 1},
    ),
    **_tools(
        "rabbitmqctl",
        commands="change_password",
        places={"add_user|authenticate_user|change_password": 1},
    ),
    **_tools("wpa_passphrase", places={"": 1}),
    **_tools("ssh-keygen", r"-[NP]"),
    **_tools("dig nsupdate", r"-y"),
    **_tools("swaks", r"-ap$"),
    **_tools(
        "kubectl oc k3s",
        r"--from-literal(?:=[^=]*=|$)",
        commands=r"secrets?(?:/.*)?|token|set-credentials|auth",
    ),
    **_tools("docker podman nerdctl", commands="secret"),
    **_tools("gcloud gh az", commands=r"auth|secrets?"),
    **_tools("aws", commands="secretsmanager|[a-z]+(?:-[a-z]+)+"),
}


def _redact_word(word: str, options: Sequence[re.Pattern[str]] = ()) -> tuple[str, bool]:
    """The word as it may be shown, and whether the next word is a secret."""
    found = [match[0] for each in options if (match := each.match(word))]
    if found:
        option = min(found, key=len)
        if option == word:
            return word, True
        return option + REDACTED, _redact_word(word)[1]  # it may be "-password"
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
    hide, programs = False, _Programs()
    for word in words:
        inner = word.split()
        is_placed = programs.has_placed(word)
        if hide:
            # "--password --token x": x is hidden, whichever of the two options takes no value.
            shown.append(REDACTED)
            hide = _redact_word(word, programs.options)[1]
        elif is_placed:
            shown.append(REDACTED)
        elif len(inner) > 1:
            # A script for a shell, a header, a rewritten title: quoting is unknown, so nothing
            # after the first secret is shown.
            parts, hide = _redact(inner, is_program=False)
            first = next(
                (i for i, (a, b) in enumerate(zip(inner, parts, strict=True)) if a != b), None
            )
            shown.append(word if first is None else " ".join(parts[: first + 1]))
        else:
            text, hide = _redact_word(word, programs.options)
            shown.append(text)
            hide = hide and not (is_program and len(shown) == 1)
            hide = hide and not programs.has_command(word)
        programs.add(word)
    return shown, hide


class _Programs:
    """The programs that a command line has named so far: one may run another."""

    def __init__(self) -> None:
        self._tools: list[_Tool] = []
        self._places: list[_Places] = []
        self.options: list[re.Pattern[str]] = []

    def add(self, word: str) -> None:
        """`word` may be the path of one."""
        tool = _TOOLS.get(os.path.basename(word))
        if tool and tool not in self._tools:
            self._tools.append(tool)
            self._places.append(_Places(tool.places))
            self.options.append(tool.options)

    def has_command(self, word: str) -> bool:
        return any(tool.commands.fullmatch(word) for tool in self._tools)

    def has_placed(self, word: str) -> bool:
        """Whether the next argument is a secret by its place."""
        found = [places.has_secret(word) for places in self._places]  # each counts
        return any(found)


class _Places:
    def __init__(self, places: tuple[tuple[re.Pattern[str], int], ...]) -> None:
        self._places = places
        self._left = next((number for word, number in places if not word.pattern), None)

    def has_secret(self, word: str) -> bool:
        left = self._left
        is_option = word.startswith("-")
        if left and not is_option:
            self._left = left - 1
        for trigger, number in self._places:
            if trigger.fullmatch(word):
                self._left = min(number, number if self._left is None else self._left)
        return left == 0 and not is_option


def redact(argv: Sequence[str]) -> list[str]:
    """`argv` with what may be a secret replaced by `[redacted]`; the same number of arguments.

    It hides: the rest of an argument after a name like password, token, secret, key or auth and
    `=` or `:`; the argument after one that is only such a name; the secret of user:secret@ and the
    user information of URLs; and what some common programs take as a password by an option or by
    its place. When in doubt, it hides.
    """
    return _redact(argv, is_program=True)[0]
