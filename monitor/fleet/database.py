"""The database of the centre by its URL: ClickHouse over its HTTP interface, or PostgreSQL.

A database, or what answers in its place, may be slow or hostile: every question has a deadline, and
of an answer only so much is read.
"""

from __future__ import annotations

import urllib.parse

from monitor.configuration.config import ConfigError
from monitor.fleet.answer import Database
from monitor.untrusted.printable import printable

__all__ = ["opened"]


def opened(url: str, password: str | None, on_command_line: bool) -> Database:
    """Nothing is sent yet. A password in a URL on the command line is refused: `ps` shows it.

    Raises ConfigError, CentreError.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port, given = parts.port, parts.password
    except ValueError as error:
        raise ConfigError(f"command line: --from: {printable(str(error))}") from None
    if given is not None and on_command_line:
        raise ConfigError(
            "command line: --from: everybody on this host can read the password of this URL with "
            "ps; change it, and put it in a file for --password-file or in the environment as "
            "SEAL_MONITOR_FLEET_PASSWORD"
        )
    if password is None and given is not None:
        password = urllib.parse.unquote(given)
    match parts.scheme:
        case "http" | "https":
            from monitor.fleet.clickhouse import ClickHouse  # noqa: PLC0415 - one of the two

            if not parts.hostname:
                raise ConfigError(_unknown(parts.scheme))
            user = urllib.parse.unquote(parts.username or "default")
            is_tls = parts.scheme == "https"
            place = (parts.hostname, port or (8443 if is_tls else 8123), parts.path or "/")
            return ClickHouse(place, user=user, password=password or "", tls=is_tls)
        case "postgresql" | "postgres":
            from monitor.fleet.postgresql import PostgreSQL  # noqa: PLC0415

            return PostgreSQL(_without_password(url, parts), password)
    raise ConfigError(_unknown(parts.scheme))


def _without_password(url: str, parts: urllib.parse.SplitResult) -> str:
    if parts.password is None:
        return url
    user, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}@{place}").geturl()


def _unknown(scheme: str) -> str:
    what = printable(scheme) or "an empty text"
    return (
        f"command line: --from: {what} is no scheme of such a database; write "
        "https://USER@HOST:8443/ or http://USER@HOST:8123/ for ClickHouse, or "
        "postgresql://USER@HOST/DATABASE for PostgreSQL"
    )
