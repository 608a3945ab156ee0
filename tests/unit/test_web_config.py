from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import bcrypt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.web.server import WebError
from monitor.web.tls import SUITES
from monitor.web.web_config import RateLimit, WebConfig, digest_of, load_web_config

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()


def web_config(folder: Path, text: str) -> WebConfig:
    file = folder / "web.yml"
    file.write_text(text)
    return load_web_config(file)


TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "basic_auth_users:\ntls_server_config:\n"]
)
def test_empty_web_config(tmp_path: Path, text: str) -> None:
    assert web_config(tmp_path, text) == WebConfig(tls=None, users={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "tls_config: {}",
            [
                "{}:1: key 'tls_config': it is not supported; "
                "the nearest that is: 'tls_server_config'"
            ],
        ),
        (
            TLS + "  min_versoin: TLS12\n",
            [
                "{}:4: key 'tls_server_config.min_versoin': it is not supported; "
                "the nearest that is: 'min_version'"
            ],
        ),
        (
            TLS + "  min_version: TLS10\n  client_auth_type: RequestClientCert\n",
            [
                "{}:4: key 'tls_server_config.min_version': 'TLS10' is not supported; "
                "choose TLS12 or TLS13",
                "{}:5: key 'tls_server_config.client_auth_type': 'RequestClientCert' is not "
                "supported; choose NoClientCert or VerifyClientCertIfGiven or "
                "RequireAndVerifyClientCert",
            ],
        ),
        (
            "tls_server_config:\n  cert_file: 7\n",
            [
                "{}:2: key 'tls_server_config.cert_file': its value is not a string; "
                "write it in quotes",
                "{}:2: key 'tls_server_config.cert_file': it is missing; "
                "TLS needs cert_file and key_file",
                "{}:2: key 'tls_server_config.key_file': it is missing; "
                "TLS needs cert_file and key_file",
            ],
        ),
        (
            TLS + "  client_ca_file: client.pem\n",
            [
                "{}:4: key 'tls_server_config.client_ca_file': it goes with client_auth_type: "
                "RequireAndVerifyClientCert; write both or neither"
            ],
        ),
        (
            f"basic_auth_users:\n  a: secret\n  a: {HASH}\n  'b:c': {HASH}\n",
            [
                "{}:2: key 'basic_auth_users.a': not a bcrypt hash of cost 4 to 15; "
                "make one with: htpasswd -nBC 10 NAME",
                "{}:3: key 'basic_auth_users.a': it is there twice; leave one",
                "{}:4: key 'basic_auth_users.b:c': a user name cannot hold a colon; choose another",
            ],
        ),
        (
            f"basic_auth_users:\n  a: {HASH.replace('$04$', '$31$')}\n",
            [
                "{}:2: key 'basic_auth_users.a': not a bcrypt hash of cost 4 to 15; "
                "make one with: htpasswd -nBC 10 NAME"
            ],
        ),
        (
            "basic_auth_users: [a]",
            [
                "{}:1: key 'basic_auth_users': it is not a mapping; "
                "write its keys indented beneath it"
            ],
        ),
        (
            TLS
            + "  max_version: TLS12\n  min_version: TLS13\n  client_allowed_sans: [a]\n"
            + "  curve_preferences:\n  - CurveP256\n  - X25519\n  cert: inline\n",
            [
                "{}:4: key 'tls_server_config.max_version': it is lower than min_version",
                "{}:6: key 'tls_server_config.client_allowed_sans': it needs client_auth_type: "
                "RequireAndVerifyClientCert",
                "{}:8: key 'tls_server_config.curve_preferences': 'X25519' is not supported; "
                "choose CurveP256 or CurveP384 or CurveP521",
                "{}:8: key 'tls_server_config.curve_preferences': only one can be set here; leave "
                "one or none",
                "{}:10: key 'tls_server_config.cert': cert_file is there as well; leave one",
            ],
        ),
        (
            TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n  prefer_server_cipher_suites: 1\n",
            [
                "{}:4: key 'tls_server_config.cipher_suites': 'TLS_RSA_WITH_RC4_128_SHA' is not "
                "supported; choose TLS_AES_128_GCM_SHA256 or ",
                "{}:5: key 'tls_server_config.prefer_server_cipher_suites': it is neither true nor "
                "false",
            ],
        ),
        (
            TLS + "  cipher_suites: ['']\n",
            ["{}:4: key 'tls_server_config.cipher_suites': '' is not supported; choose TLS_AES_"],
        ),
        (
            TLS + "  cipher_suites: TLS_AES_128_GCM_SHA256\n",
            [
                "{}:4: key 'tls_server_config.cipher_suites': it is not a list; "
                "write an item a line, each after '- '"
            ],
        ),
        (
            "http_server_config:\n  http2: maybe\n  headers:\n    X-Frame-Options: allow\n"
            '    Server: x\n    Content-Security-Policy: "a\\nb"\n',
            [
                "{}:2: key 'http_server_config.http2': it is neither true nor false",
                "{}:4: key 'http_server_config.headers.X-Frame-Options': 'allow' is not supported; "
                "choose deny or sameorigin",
                "{}:5: key 'http_server_config.headers.Server': it is not supported; ",
                "{}:6: key 'http_server_config.headers.Content-Security-Policy': a header is one "
                "line of printable ASCII",
            ],
        ),
        (
            "rate_limit:\n  interval: 1\n",
            ["{}:2: key 'rate_limit.interval': not a duration, such as 1s or 500ms"],
        ),
        (
            "rate_limit:\n  interval: 1s\n",
            ["{}:2: key 'rate_limit.burst': it is missing or 0: no request would be answered"],
        ),
        ("rate_limit: {burst: -1}\n", ["{}:1: key 'rate_limit.burst': not a number of requests"]),
        ("a: [", ["{}:1: not valid YAML: expected the node content, but found '<stream end>'"]),
        ("a: \x01", ["{}: not valid YAML: unacceptable character #x0001: special characters"]),
        ("[" * 5000, ["{}: not valid YAML: maximum recursion depth exceeded"]),
    ],
)
def test_web_config_mistakes(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(WebError) as caught:
        web_config(tmp_path, text)
    beginnings = [line.replace("{}", str(tmp_path / "web.yml"), 1) for line in expected]
    lines = str(caught.value).splitlines()
    assert len(lines) == len(beginnings)
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line[: len(beginning)] == beginning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval: 1s\n  burst: 20", RateLimit(1.0, 20)),
        ("interval: 1m0.5s\n  burst: 1", RateLimit(60.5, 1)),
        ("interval: 250ms\n  burst: 3", RateLimit(0.25, 3)),
        ("interval: 0\n  burst: 3", None),
        ("burst: 3", None),
    ],
)
def test_rate_limit(tmp_path: Path, text: str, expected: RateLimit | None) -> None:
    assert web_config(tmp_path, f"rate_limit:\n  {text}\n").rate_limit == expected


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("", True),
        (f"basic_auth_users:\n  a: {HASH}\n", True),
        ("basic_auth_users:\n  a: secret\n", False),
        (TLS, True),
        (
            TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.pem\n",
            True,
        ),
        (TLS + "  client_ca_file: client.pem\n", False),
        (TLS + "  min_version: TLS12\n  max_version: TLS13\n", True),
        (TLS + "  min_version: TLS9\n", False),
        (TLS + "  prefer_server_cipher_suites: false\n  curve_preferences: [CurveP521]\n", True),
        (TLS + "  curve_preferences: [CurveP1]\n", False),
        *((f"{TLS}  cipher_suites: [{name}]\n", True) for name in SUITES),
        (TLS + "  cipher_suites: [TLS_NONE]\n", False),
        (TLS + "  unknown: 1\n", False),
        ("tls_server_config:\n  cert_file: server.pem\n", False),
        ("tls_server_config:\n  cert_file: server.pem\n  key_file: client.key\n", False),
        (TLS + "http_server_config:\n  http2: false\n", True),
        ("http_server_config:\n  headers:\n    X-Frame-Options: sameorigin\n", True),
        ("http_server_config:\n  headers:\n    X-Frame-Options: allow\n", False),
        ("http_server_config:\n  headers:\n    Server: x\n", False),
    ],
)
def test_the_toolkit_says_the_same_of_a_file(certificates: Path, text: str, is_right: bool) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    try:
        web_config(certificates, text)
    except WebError:
        found = False
    else:
        found = True
    command = [promtool, "check", "web-config", str(certificates / "web.yml")]
    accepted = subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0
    assert (found, accepted) == (is_right, is_right)


def test_headers(tmp_path: Path) -> None:
    text = "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n"
    text += "    X-Content-Type-Options: ''\n    Strict-Transport-Security: max-age=7\n"
    found = web_config(tmp_path, text).headers
    assert found == {"X-Frame-Options": "deny", "Strict-Transport-Security": "max-age=7"}


def test_all_files_that_were_read_are_known(certificates: Path) -> None:
    text = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.pem\n"
    files = web_config(certificates, TLS + text).files
    names = {path.relative_to(certificates).as_posix() for path in files}
    assert names == {"web.yml", "server.pem", "server.key", "client.pem"}
    assert all(digest_of(path) == digest for path, digest in files.items())


@pytest.mark.parametrize(
    ("cert", "key", "more", "expected"),
    [
        ("none.pem", "server.key", "", "cannot use {}/none.pem: No such file or directory; "),
        ("server.pem", "none.key", "", "cannot use {}/none.key: No such file or directory; "),
        (
            "server.pem",
            "client.key",
            "",
            "cannot use {}/server.pem, {}/client.key: KEY_VALUES_MISMATCH; ",
        ),
        ("server.pem", "encrypted.key", "", "cannot use {}/server.pem, {}/encrypted.key: "),
        ("web.yml", "server.key", "", "cannot use {}/web.yml, {}/server.key: "),
        (
            "server.pem",
            "server.key",
            "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: web.yml\n",
            "cannot use {}/web.yml: ",
        ),
    ],
)
def test_certificates_that_cannot_be_used(
    certificates: Path, cert: str, key: str, more: str, expected: str
) -> None:
    text = f"tls_server_config:\n  cert_file: {cert}\n  key_file: {key}\n{more}"
    with pytest.raises(WebError) as caught:
        web_config(certificates, text)
    message = str(caught.value)
    assert message.startswith(expected.replace("{}", str(certificates)))
    assert message.endswith("; correct it or name another file")
    assert "\n" not in message


def test_unreadable_web_config(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    with pytest.raises(WebError, match=r"cannot use .*/web\.yml: No such file or directory; "):
        load_web_config(file)
    with pytest.raises(WebError, match=r"cannot use .*: Is a directory; "):
        load_web_config(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WebError, match=r"cannot use .*/fifo: not a regular file; "):
        load_web_config(tmp_path / "fifo")
    file.write_bytes(b"\xff")
    with pytest.raises(WebError, match=r"web\.yml: not UTF-8; save the file as UTF-8"):
        load_web_config(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_any_file_is_a_web_config_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "web.yml"
    file.write_bytes(data)
    try:
        load_web_config(file)
    except WebError as error:
        lines = str(error).split("\n")
    else:
        lines = []
    assert all(str(file) in line and line.isprintable() for line in lines)
