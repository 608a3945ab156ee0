"""Section tls_server_config of the web config file: a TLS context, and which clients it admits."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

from monitor.untrusted.printable import joined
from monitor.web.errors import WebError
from monitor.web.server import Tls
from monitor.web.yaml_values import Mistakes, boolean, known, string, strings

__all__ = ["SUITES", "tls_server"]

_SECTION = "tls_server_config"
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
# Go's other policies ask for a certificate without verifying it, which Python's ssl cannot do.
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# Go's names of the suites that it does not call insecure, and OpenSSL's names. Suites of TLS 1.3
# are always offered, as in Go.
SUITES = {
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}

# Key, and the valid values; () for any.
_STRINGS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("cert", "key", "client_ca", "cert_file", "key_file", "client_ca_file"), ()),
    "client_auth_type": tuple(_CLIENT_AUTH),
    "min_version": tuple(_VERSIONS),
    "max_version": tuple(_VERSIONS),
}
_LISTS: Mapping[str, tuple[str, ...]] = {
    "client_allowed_sans": (),
    "cipher_suites": tuple(SUITES),
    "curve_preferences": tuple(_CURVES),
}
_SERVER_PREFERS = "prefer_server_cipher_suites"
_KEYS = (*_STRINGS, *_LISTS, _SERVER_PREFERS)

Read = Callable[[str], bytes]


class _Section:
    """The values of the section, and mistakes at their lines."""

    def __init__(self, node: yaml.Node, mistakes: Mistakes) -> None:
        self._node = node
        self._mistakes = mistakes
        self._nodes = nodes = known(node, _SECTION, _KEYS, mistakes)
        self.texts: dict[str, str] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        for key, valid in _STRINGS.items():
            if key in nodes:
                self.texts[key] = string(nodes[key], f"{_SECTION}.{key}", mistakes)
                self._check(key, valid, tuple(filter(None, (self.texts[key],))))
        for key, valid in _LISTS.items():
            if key in nodes:
                self.lists[key] = strings(nodes[key], f"{_SECTION}.{key}", mistakes)
                self._check(key, valid, self.lists[key])
        self.server_prefers = _SERVER_PREFERS not in nodes or boolean(
            nodes[_SERVER_PREFERS], f"{_SECTION}.{_SERVER_PREFERS}", mistakes
        )

    def _check(self, key: str, valid: tuple[str, ...], values: tuple[str, ...]) -> None:
        for value in values:
            if valid and value not in valid:
                text = f"{joined(value)!r} is not supported; choose {' or '.join(valid)}"
                self.mistake(key, text)

    def mistake(self, key: str, text: str) -> None:
        self._mistakes.add(self._nodes.get(key, self._node), f"{_SECTION}.{key}", text)

    def check(self) -> None:
        """Check the keys against each other. Raises WebError with all mistakes so far."""
        texts = self.texts
        for name in ("cert", "key"):
            if not (texts.get(name) or texts.get(f"{name}_file")):
                self.mistake(f"{name}_file", "it is missing; TLS needs cert_file and key_file")
        for name in ("cert", "key", "client_ca"):
            if texts.get(name) and texts.get(f"{name}_file"):
                self.mistake(name, f"{name}_file is there as well; leave one")
        policy = texts.get("client_auth_type") or "NoClientCert"
        has_authority = bool(texts.get("client_ca") or texts.get("client_ca_file"))
        if policy in _CLIENT_AUTH and (policy != "NoClientCert") != has_authority:
            text = "it goes with client_auth_type: RequireAndVerifyClientCert"
            self.mistake("client_ca_file", f"{text}; write both or neither")
        if self.lists.get("client_allowed_sans") and policy != "RequireAndVerifyClientCert":
            text = "it needs client_auth_type: RequireAndVerifyClientCert"
            self.mistake("client_allowed_sans", text)
        if texts.get("min_version") == "TLS13" and texts.get("max_version") == "TLS12":
            self.mistake("max_version", "it is lower than min_version")
        if len(self.lists.get("curve_preferences", ())) > 1:
            self.mistake("curve_preferences", "only one can be set here; leave one or none")
        self._mistakes.check()


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """The path of a file that is only in memory: OpenSSL reads keys from files only."""
    handle = os.memfd_create("tls")
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _load_certificate(context: ssl.SSLContext, shown: str, certificate: bytes, key: bytes) -> None:
    with _in_memory(certificate) as certificate_file, _in_memory(key) as key_file:
        try:
            # With a password, so that OpenSSL never asks for one on the terminal.
            context.load_cert_chain(certificate_file, key_file, password="")
        except ssl.SSLError as error:
            reason = error.reason or "not a PEM certificate and its unencrypted key"
            raise _unusable(shown, reason) from None


def _load_authority(context: ssl.SSLContext, shown: str, authority: bytes) -> None:
    try:
        context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not a PEM certificate"
        raise _unusable(shown, reason) from None


def _unusable(shown: str, reason: str) -> WebError:
    return WebError(f"cannot use {shown}: {reason}; correct it or name another file")


def tls_server(node: yaml.Node, path: Path, read: Read, mistakes: Mistakes) -> Tls:
    """The TLS that the section of the file at `path` asks for.

    `read` returns the bytes of a file that the section names. Raises WebError with all mistakes so
    far, and what `read` raises.
    """
    section = _Section(node, mistakes)
    section.check()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not section.server_prefers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    texts = section.texts
    context.minimum_version = _VERSIONS[texts.get("min_version") or "TLS12"]
    context.maximum_version = _VERSIONS[texts.get("max_version") or "TLS13"]
    _set_suites(context, section)
    for curve in section.lists.get("curve_preferences", ()):
        context.set_ecdh_curve(_CURVES[curve])

    def part(name: str) -> tuple[str, bytes]:
        """How messages name the part, and its bytes: from the named file, or from this section."""
        if named := texts.get(f"{name}_file"):
            return str(path.parent / named), read(named)
        return f"{_SECTION}.{name} of {path}", texts[name].encode("utf-8", "replace")

    (certificate_shown, certificate), (key_shown, key) = part("cert"), part("key")
    _load_certificate(context, f"{certificate_shown}, {key_shown}", certificate, key)
    context.verify_mode = _CLIENT_AUTH[texts.get("client_auth_type") or "NoClientCert"]
    if context.verify_mode is not ssl.CERT_NONE:
        _load_authority(context, *part("client_ca"))
    names = frozenset(map(_normal, section.lists.get("client_allowed_sans", ())))
    return Tls(context, partial(_admits, names) if names else None)


def _set_suites(context: ssl.SSLContext, section: _Section) -> None:
    wanted = section.lists.get("cipher_suites", ())
    older = [SUITES[name] for name in wanted if SUITES[name]]
    if older:
        context.set_ciphers(":".join(older))
    elif wanted:  # only suites of TLS 1.3
        if context.maximum_version is ssl.TLSVersion.TLSv1_2:
            section.mistake("cipher_suites", "none of them is one of TLS 1.2, the max_version")
            section.check()
        context.minimum_version = ssl.TLSVersion.TLSv1_3


def _normal(name: str) -> str:
    """An address in its usual form; any other name unchanged."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _admits(names: frozenset[str], connection: ssl.SSLSocket) -> bool:
    """Whether the client's certificate has one of the names (DNS, address, e-mail or URI)."""
    certificate = connection.getpeercert() or {}
    pairs: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())  # type: ignore[assignment]
    return any(_normal(name) in names for _, name in pairs)
