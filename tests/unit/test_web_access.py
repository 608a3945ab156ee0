"""The web config file in force: what it means to a client, and what a change does."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import pytest
from prometheus_client import CollectorRegistry
from test_web import TLS, ask, basic, client_context, send

from monitor.web.access import TokenBucket, WebAccess, _unsettled_seconds
from monitor.web.server import Server, WebError, listen
from monitor.web.web_config import RateLimit

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()
RIGHT = basic("prometheus", "correct horse")
USERS = f"basic_auth_users:\n  prometheus: {HASH}\n"
VERIFY = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.pem\n"
SANS = "  client_allowed_sans: [monitor.example]\n"
REFUSED = (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)


@pytest.fixture
def folder(certificates: Path, tmp_path: Path) -> Path:
    """The certificates, in a directory where they may be changed."""
    for file in certificates.glob("*.???"):
        shutil.copy(file, tmp_path)
    return tmp_path


class Serving:
    """A server with the web configuration `text`, and the reports of its changes."""

    def __init__(self, folder: Path, text: str, settle_seconds: float = 0) -> None:
        self.file = folder / "web.yml"
        self.file.write_text(text)
        self.reports: list[str | None] = []
        access = WebAccess(self.file, self._report, retry_seconds=0, settle_seconds=settle_seconds)
        self.server: Server = listen(("127.0.0.1", 0), CollectorRegistry(), list, access)
        self.server.start()

    def _report(self, error: WebError | None) -> None:
        self.reports.append(None if error is None else str(error))

    def status(
        self, tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None
    ) -> int:
        return ask(self.server, "/-/healthy", tls=tls, headers=headers)[0]


@contextmanager
def serving(folder: Path, text: str, settle_seconds: float = 0) -> Iterator[Serving]:
    served = Serving(folder, text, settle_seconds)
    try:
        yield served
    finally:
        served.server.close()


def new_certificate(folder: Path, name: str, *names: str) -> None:
    """Another key and certificate, for the address of the tests or for `names`."""
    sans = ",".join(names or ("IP:127.0.0.1",))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={sans}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def with_certificate(folder: Path, name: str) -> ssl.SSLContext:
    context = client_context(folder)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def cipher(served: Serving, context: ssl.SSLContext) -> tuple[str, str]:
    """The suite and the version of the protocol that both agree upon."""
    with (
        socket.create_connection(served.server.address, timeout=10) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted,
    ):
        agreed = encrypted.cipher()
        assert agreed is not None
        return agreed[:2]


# ---- What a client meets -------------------------------------------------------------------------


def test_cipher_suites_in_the_servers_order_or_the_clients(folder: Path) -> None:
    text = TLS + "  cipher_suites:\n  - TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256\n"
    text += "  - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\n"
    older = client_context(folder)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    older.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305")
    other = client_context(folder)
    other.maximum_version = ssl.TLSVersion.TLSv1_2
    other.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    with serving(folder, text) as served:
        assert cipher(served, older) == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2")
        assert cipher(served, client_context(folder))[1] == "TLSv1.3"
        with pytest.raises(REFUSED):
            cipher(served, other)
    with serving(folder, text + "  prefer_server_cipher_suites: false\n") as served:
        assert cipher(served, older) == ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2")


def test_only_tls_1_3_suites_leave_nothing_older(folder: Path) -> None:
    older = client_context(folder)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    text = TLS + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n"
    with serving(folder, text) as served:
        assert served.status(client_context(folder)) == 200
        with pytest.raises(REFUSED):
            served.status(older)
    with pytest.raises(WebError, match=r"none of them is one of TLS 1\.2, the max_version"):
        Serving(folder, text + "  max_version: TLS12\n")


def test_maximum_version(folder: Path) -> None:
    with serving(folder, TLS + "  max_version: TLS12\n") as served:
        assert cipher(served, client_context(folder))[1] == "TLSv1.2"


def test_curve(folder: Path) -> None:
    with serving(folder, TLS + "  curve_preferences: [CurveP384]\n") as served:
        for curve, agreed in (("secp384r1", True), ("prime256v1", False)):
            tls = client_context(folder)
            tls.set_ecdh_curve(curve)
            if agreed:
                assert served.status(tls) == 200
            else:
                with pytest.raises(REFUSED):
                    served.status(tls)


def test_a_client_certificate_is_verified_if_given(folder: Path) -> None:
    text = VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    with serving(folder, TLS + text) as served:
        assert served.status(client_context(folder)) == 200
        assert served.status(with_certificate(folder, "client")) == 200
        with pytest.raises(REFUSED):
            served.status(with_certificate(folder, "server"))


@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        ("monitor.example", 200),
        ("2001:db8::17", 200),
        ("ops@monitor.example", 200),
        ("spiffe://example/monitor", 200),
        ("example", 0),
        ("MONITOR.example", 0),
        ("client", 0),  # the common name does not count
    ],
)
def test_only_clients_of_the_allowed_names(folder: Path, allowed: str, status: int) -> None:
    sans = ("DNS:monitor.example", "IP:2001:db8:0::17", "email:ops@monitor.example")
    new_certificate(folder, "client", *sans, "URI:spiffe://example/monitor")
    text = f"{TLS}{VERIFY}  client_allowed_sans: ['nobody.example', '{allowed}']\n"
    tls = with_certificate(folder, "client")
    with serving(folder, text) as served:
        if status:
            assert served.status(tls) == status
        else:
            with pytest.raises(REFUSED):
                served.status(tls)


def test_certificates_within_the_file(folder: Path) -> None:
    def block(file: str) -> str:
        lines = (folder / file).read_text().splitlines()
        return "|\n" + "".join(f"    {line}\n" for line in lines)

    text = f"tls_server_config:\n  cert: {block('server.pem')}  key: {block('server.key')}"
    text += f"  client_ca: {block('client.pem')}  client_auth_type: RequireAndVerifyClientCert\n"
    with serving(folder, text) as served:
        assert served.status(with_certificate(folder, "client")) == 200
        with pytest.raises(REFUSED):
            served.status(client_context(folder))
    wrong = text.replace("client_ca: |\n    -", "client_ca: |\n    x")
    with pytest.raises(WebError, match=r"cannot use tls_server_config\.client_ca of .*: .*; "):
        Serving(folder, wrong)


def test_headers_go_with_every_response(folder: Path) -> None:
    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    text += "    X-Content-Type-Options: nosniff\n    Strict-Transport-Security: max-age=60\n"
    with serving(folder, text + USERS) as served:
        answers = [
            send(served.server, b"GET / HTTP/1.1\r\n\r\n"),
            send(served.server, b"nonsense\r\n\r\n"),
            send(served.server, b"GET /" + b"a" * 9000),
            send(
                served.server,
                b"GET / HTTP/1.1\r\nAuthorization: "
                + RIGHT["Authorization"].encode()
                + b"\r\n\r\n",
            ),
        ]
    assert [int(answer.split()[1]) for answer in answers] == [401, 400, 431, 200]
    for answer in answers:
        lines = answer.split(b"\r\n\r\n")[0].split(b"\r\n")
        for header in (
            b"X-Frame-Options: deny",
            b"Strict-Transport-Security: max-age=60",
            b"X-Content-Type-Options: nosniff",
        ):
            assert lines.count(header) == 1


def test_guessers_do_not_keep_known_users_out(folder: Path) -> None:
    slow = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(10)).decode()
    with serving(folder, f"basic_auth_users:\n  prometheus: {slow}\n") as served:
        assert served.status(headers=RIGHT) == 200
        ends = threading.Event()
        found: set[int] = set()

        def guess() -> None:
            while not ends.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    found.add(served.status(headers=basic("prometheus", os.urandom(8).hex())))

        guessers = [threading.Thread(target=guess) for _ in range(30)]
        for guesser in guessers:
            guesser.start()
        try:
            assert [served.status(headers=RIGHT) for _ in range(30)] == [200] * 30
        finally:
            ends.set()
            for guesser in guessers:
                guesser.join()
        assert found == {401, 503}  # 503: too many others guess


def test_rate_limit(folder: Path) -> None:
    with serving(folder, "rate_limit:\n  interval: 1h\n  burst: 2\n" + USERS) as served:
        found = [served.status(headers=RIGHT), served.status(), served.status(headers=RIGHT)]
        assert found == [200, 401, 429]  # before a password is looked at


def test_token_bucket() -> None:
    now = 100.0
    bucket = TokenBucket(RateLimit(2.0, 3), lambda: now)
    assert [bucket() for _ in range(4)] == [True, True, True, False]
    now += 1.9
    assert not bucket()
    now += 0.2
    assert [bucket(), bucket()] == [True, False]
    now += 1000
    assert [bucket() for _ in range(4)] == [True, True, True, False]


# ---- What becomes of a change --------------------------------------------------------------------


def test_a_new_certificate_is_served_at_the_next_connection(folder: Path) -> None:
    with serving(folder, TLS) as served:
        before = client_context(folder)
        assert served.status(before) == 200
        (folder / "new").mkdir()
        new_certificate(folder / "new", "server")
        os.replace(folder / "new/server.pem", folder / "server.pem")
        after = client_context(folder)
        assert served.status(before) == 200  # the key does not match yet
        (folder / "server.key").write_bytes((folder / "new/server.key").read_bytes())
        assert served.status(after) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            served.status(before)
        pair = f"{folder / 'server.pem'}, {folder / 'server.key'}"
        problem = f"cannot use {pair}: KEY_VALUES_MISMATCH; correct it or name another file"
        assert served.reports == [problem, None]


def test_another_authority_of_clients(folder: Path) -> None:
    with serving(folder, TLS + VERIFY) as served:
        old = with_certificate(folder, "client")
        assert served.status(old) == 200
        new_certificate(folder, "client")
        assert served.status(with_certificate(folder, "client")) == 200
        with pytest.raises(REFUSED):
            served.status(old)
        assert served.reports == [None]


def test_users_come_and_go(folder: Path) -> None:
    with serving(folder, USERS) as served:
        assert [served.status(headers=RIGHT), served.status()] == [200, 401]
        served.file.write_text(USERS.replace("prometheus", "other"))
        assert served.status(headers=RIGHT) == 401
        assert served.status(headers=basic("other", "correct horse")) == 200
        assert served.reports == [None]


def test_a_new_certificate_needs_no_new_check_of_passwords(
    folder: Path,
) -> None:
    (folder / "web.yml").write_text(TLS + USERS)
    access = WebAccess(folder / "web.yml", lambda _: None, settle_seconds=0)
    before = access()
    new_certificate(folder, "server")
    after = access()
    assert after.tls is not before.tls
    assert after.accepts == before.accepts


def test_a_mistake_changes_nothing_and_is_reported_once(folder: Path) -> None:
    with serving(folder, TLS + USERS) as served:
        tls = client_context(folder)
        served.file.write_text(TLS + "basic_auth_users:\n  prometheus: secret\n")
        for _ in range(3):
            assert [served.status(tls, RIGHT), served.status(tls)] == [200, 401]
        problem = f"{served.file}:5: key 'basic_auth_users.prometheus': not a bcrypt hash of cost "
        assert served.reports == [
            f"{problem}4 to 15; make one with: htpasswd -nBC 10 NAME",
        ]
        served.file.unlink()
        assert [served.status(tls, RIGHT), served.status(tls)] == [200, 401]
        assert served.reports[1:] == [
            f"cannot use {served.file}: No such file or directory; correct it or name another file"
        ]
        served.file.write_text(TLS + USERS)
        assert served.status(tls, RIGHT) == 200
        assert served.reports[2:] == [None]


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (TLS + USERS, "", "TLS can be turned off only by a restart"),
        (USERS, TLS + USERS, "TLS can be turned on only by a restart"),
        (TLS + USERS, TLS, "basic auth can be turned off only by a restart"),
        (
            TLS + "  min_version: TLS13\n" + USERS,
            TLS + USERS,
            "tls_server_config.min_version can be lowered only by a restart",
        ),
    ],
)
def test_what_protects_stays_until_a_restart(
    folder: Path, before: str, after: str, problem: str
) -> None:
    tls = client_context(folder) if "tls" in before else None
    with serving(folder, before) as served:
        served.file.write_text(after)
        assert [served.status(tls, RIGHT), served.status(tls)] == [200, 401]
        assert served.reports == [f"{served.file}: {problem}"]


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (VERIFY, "", "client_auth_type can be weakened"),
        (VERIFY, "  client_auth_type: NoClientCert\n", "client_auth_type can be weakened"),
        (
            VERIFY,
            VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"),
            "client_auth_type can be weakened",
        ),
        (VERIFY + SANS, VERIFY, "client_allowed_sans can be emptied"),
        (
            VERIFY + SANS,
            VERIFY + "  client_allowed_sans: []\n",
            "client_allowed_sans can be emptied",
        ),
    ],
)
def test_clients_are_checked_as_strictly_until_a_restart(
    folder: Path, before: str, after: str, what: str
) -> None:
    new_certificate(folder, "client", "DNS:monitor.example")
    new_certificate(folder, "other", "DNS:other.example")
    authority = (folder / "client.pem").read_text() + (folder / "other.pem").read_text()
    (folder / "client.pem").write_text(authority)
    with serving(folder, TLS + before) as served:
        served.file.write_text(TLS + after)
        assert served.status(with_certificate(folder, "client")) == 200
        with pytest.raises(REFUSED):
            served.status(client_context(folder))
        if "sans" in what:
            with pytest.raises(REFUSED):
                served.status(with_certificate(folder, "other"))
        (problem,) = served.reports
        assert f"tls_server_config.{what}" in str(problem)


def test_what_protects_may_become_stricter(folder: Path) -> None:
    new_certificate(folder, "client", "DNS:monitor.example")
    tls = client_context(folder)
    with serving(folder, TLS) as served:
        assert served.status(tls) == 200
        for text in (VERIFY, VERIFY + SANS, VERIFY + SANS + "  min_version: TLS13\n" + USERS):
            served.file.write_text(TLS + text)
            with pytest.raises(REFUSED):
                served.status(tls)
        assert served.status(with_certificate(folder, "client"), RIGHT) == 200
        assert served.status(with_certificate(folder, "client")) == 401
        assert served.reports == [None, None, None]


def test_no_part_of_a_file_that_is_being_written_is_in_force(folder: Path) -> None:
    """Whatever part a connection meets, the old configuration holds until the new one is whole."""
    new = USERS.replace("prometheus", "first") + f"  second: {HASH}\n"
    with serving(folder, USERS, settle_seconds=1.0) as served:
        for end in range(0, len(new), 9):
            served.file.write_text(new[:end])
            assert served.status(headers=RIGHT) == 200
        served.file.write_text(new)
        written = time.monotonic()
        while served.status(headers=RIGHT) == 200:
            assert time.monotonic() < written + 60
            time.sleep(0.01)
        assert time.monotonic() - written >= 0.95
        for name in ("first", "second"):
            assert served.status(headers=basic(name, "correct horse")) == 200
        assert served.reports == [None]


def test_a_new_file_is_used_only_when_it_is_whole(folder: Path) -> None:
    web = folder / "web.yml"
    web.write_text(TLS)
    reports: list[WebError | None] = []
    access = WebAccess(web, reports.append, retry_seconds=0, settle_seconds=0.5)
    web.write_text(TLS.replace("server.", "new."))
    time.sleep(0.6)  # it is whole, and what it names is not there yet
    before = access()
    assert [str(problem).startswith("cannot use ") for problem in reports] == [True]
    for end in ("key", "pem"):
        shutil.copy(folder / f"server.{end}", folder / f"new.{end}")
        assert access() is before
    time.sleep(0.6)
    assert access() is not before
    assert reports[1:] == [None]


def test_a_change_that_is_older_holds_at_the_next_connection(folder: Path) -> None:
    with serving(folder, USERS, settle_seconds=0.2) as served:
        served.file.write_text(USERS.replace("prometheus", "other"))
        time.sleep(0.25)
        assert served.status(headers=RIGHT) == 401
        assert served.reports == [None]


def test_a_file_of_a_machine_whose_clock_is_ahead(folder: Path, tmp_path: Path) -> None:
    now = time.time()
    assert _unsettled_seconds([tmp_path], 1000) > 990
    assert _unsettled_seconds([tmp_path], 1000, now=now - 3600) == 0
    assert _unsettled_seconds([tmp_path], 1000, now=now + 3600) == 0
    assert _unsettled_seconds([tmp_path / "missing"], 1000) == 0


def test_a_mistake_is_looked_at_again_after_a_while(folder: Path) -> None:
    file = folder / "web.yml"
    file.write_text(USERS)
    reports: list[WebError | None] = []
    access = WebAccess(file, reports.append, retry_seconds=3600, settle_seconds=0)
    file.write_text("nonsense")
    before = access()
    file.write_text(USERS.replace("prometheus", "other"))
    assert access() is before  # an hour has not passed
    assert len(reports) == 1
