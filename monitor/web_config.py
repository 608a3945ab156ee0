"""The web config file: TLS and basic auth, in the format of the Prometheus exporter toolkit."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import yaml

from monitor.printable import printable
from monitor.web import WebConfig, WebError, one_line

__all__ = ["load_web_config"]

_FILE_LIMIT = 256 * 1024  # bytes of a web config file
_SECTIONS = ("tls_server_config", "basic_auth_users")
_TLS_KEYS = ("cert_file", "key_file", "min_version", "client_auth_type", "client_ca_file")
_MIN_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# The cost is bounded: a check has to fit into the time of a request.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}")


class _Mistakes:
    """Collects what is wrong with a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts: list[str] = []

    def add(self, node: yaml.Node, key: str, text: str) -> None:
        line = node.start_mark.line + 1
        self._texts.append(f"{self._path}:{line}: key {one_line(key)!r}: {text}")

    def check(self) -> None:
        if self._texts:
            raise WebError("\n".join(self._texts))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _entries(
    node: yaml.Node, name: str, mistakes: _Mistakes
) -> Iterator[tuple[str, str, yaml.Node, yaml.Node]]:
    """Name, dotted name, key node and value node of each entry of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        mistakes.add(node, name, "it is no mapping; write its keys indented beneath it")
        return
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            mistakes.add(key, name, "a key beneath it is no string; write NAME: VALUE")
            continue
        dotted = f"{name}.{key.value}" if name else key.value
        if key.value in seen:
            mistakes.add(key, dotted, "it is there twice; leave one")
        seen.add(key.value)
        yield key.value, dotted, key, value


def _known(
    node: yaml.Node, name: str, valid: tuple[str, ...], mistakes: _Mistakes
) -> Iterator[tuple[str, str, yaml.Node]]:
    for key, dotted, key_node, value in _entries(node, name, mistakes):
        if key in valid:
            yield key, dotted, value
        else:
            import difflib  # noqa: PLC0415 - for mistakes alone

            nearest = difflib.get_close_matches(key[:100], valid, n=1, cutoff=0.0)[0]
            text = f"it is not supported; the nearest that is: {nearest!r}"
            mistakes.add(key_node, dotted, text)


def _string(node: yaml.Node, name: str, mistakes: _Mistakes) -> str:
    if (
        isinstance(node, yaml.ScalarNode)
        and node.tag == "tag:yaml.org,2002:str"
        and "\0" not in node.value
    ):
        return str(node.value)
    mistakes.add(node, name, "its value is no string; write it in quotes")
    return ""


def _users(node: yaml.Node, mistakes: _Mistakes) -> dict[str, bytes]:
    users = {}
    for name, dotted, key, value in _entries(node, "basic_auth_users", mistakes):
        hashed = _string(value, dotted, mistakes)
        if ":" in name:
            mistakes.add(key, dotted, "a user name cannot hold a colon; choose another")
        elif not _valid_hash(hashed):
            text = "not a bcrypt hash of cost 4 to 15; make one with: htpasswd -nBC 10 NAME"
            mistakes.add(value, dotted, text)
        users[name] = hashed.encode()
    return users


def _valid_hash(hashed: str) -> bool:
    if not _BCRYPT.fullmatch(hashed):
        return False
    try:  # the salt, at the lowest cost
        bcrypt.hashpw(b"", b"$2b$04$" + hashed[7:29].encode())
    except ValueError:
        return False
    return True


def _tls(node: yaml.Node, folder: Path, mistakes: _Mistakes) -> ssl.SSLContext | None:
    name = "tls_server_config"
    nodes = {key: value for key, _, value in _known(node, name, _TLS_KEYS, mistakes)}
    values = {key: _string(value, f"{name}.{key}", mistakes) for key, value in nodes.items()}
    for key, valid in (("min_version", _MIN_VERSIONS), ("client_auth_type", _CLIENT_AUTH)):
        if values.get(key) and values[key] not in valid:
            text = f"{one_line(values[key])!r} is not supported; choose {' or '.join(valid)}"
            mistakes.add(nodes[key], f"{name}.{key}", text)
    for key in ("cert_file", "key_file"):
        if not values.get(key):
            mistakes.add(node, f"{name}.{key}", "it is missing; TLS needs cert_file and key_file")
    verify = values.get("client_auth_type") == "RequireAndVerifyClientCert"
    if verify != bool(values.get("client_ca_file")):
        text = "it goes with client_auth_type: RequireAndVerifyClientCert; write both or neither"
        mistakes.add(node, f"{name}.client_ca_file", text)
    mistakes.check()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = _MIN_VERSIONS[values.get("min_version") or "TLS12"]
    authority = folder / values["client_ca_file"] if verify else None
    _load(context, folder / values["cert_file"], folder / values["key_file"], authority)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path, authority: Path | None) -> None:
    """Raises OSError, with the file's name where it is known."""
    for file in (certificate, key, authority):
        if file is not None:
            try:
                file.open("rb").close()  # ssl's own errors name no file
            except ValueError:  # a NUL, or what has no encoding
                raise OSError(errno.EINVAL, "not the name of a file", str(file)) from None
    try:
        context.load_cert_chain(certificate, key, password="")  # never asks on the terminal
    except ssl.SSLError as error:
        reason = "not a PEM certificate and its unencrypted key"
        raise OSError(error.errno, error.reason or reason, f"{certificate}, {key}") from None
    if authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(authority)
        except ssl.SSLError as error:
            reason = error.reason or "no PEM certificate"
            raise OSError(error.errno, reason, str(authority)) from None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT:
        raise WebError(f"{path}: larger than {_FILE_LIMIT} bytes; is it the right file?")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WebError(f"{path}: not UTF-8; save the file as UTF-8") from None


def _compose(text: str, path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise WebError(f"{place}: not valid YAML: {one_line(error.problem)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WebError(f"{path}: not valid YAML: {one_line(error)}") from None


def load_web_config(path: Path) -> WebConfig:
    """What the file at `path` asks for; file names in it are relative to its directory.

    Certificates and keys are read at once. Raises WebError with all mistakes in the file, or with
    the reason why it or a file that it names cannot be used.
    """
    try:
        root = _compose(_read(path), path)
        if root is None or _is_null(root):
            return WebConfig()
        mistakes = _Mistakes(path)
        known = _known(root, "", _SECTIONS, mistakes)
        sections = {key: node for key, _, node in known if not _is_null(node)}
        users = sections.get("basic_auth_users")
        tls = sections.get("tls_server_config")
        config = WebConfig(
            users=_users(users, mistakes) if users else {},
            tls=_tls(tls, path.parent, mistakes) if tls else None,
        )
        mistakes.check()
    except OSError as error:
        name = printable(str(error.filename))
        problem = f"cannot use {name}: {error.strerror}; correct it or name another file"
        raise WebError(problem) from None
    return config
