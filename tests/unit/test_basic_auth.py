from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import bcrypt

from monitor.web.basic_auth import WRONG, BasicAuth

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()


OTHER_HASH = bcrypt.hashpw(b"a" * 72, b"$2b$05$" + b"." * 22).decode().replace("$2b$", "$2y$")


def header(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Bcrypt:
    """Notes each check."""

    def __init__(self) -> None:
        self.checks: list[tuple[bytes, bytes]] = []

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.checks.append((password, hashed))
        return bcrypt.checkpw(password, hashed)


FAST, SLOW = HASH.encode(), OTHER_HASH.encode()


def test_each_password_is_checked_once() -> None:
    checked = Bcrypt()
    auth = BasicAuth({"fast": FAST, "slow": SLOW}, 5.0, checked)
    wrong = [("nobody", "x"), ("nobody", "a" * 72), ("fast", "x")]
    for index, pair in enumerate((*wrong, *wrong)):
        assert not auth.accepts(header(*pair), str(index))
    assert checked.checks == [(b"x", SLOW), (b"a" * 72, SLOW), (b"x", FAST)]
    checked.checks.clear()
    assert [auth.accepts(header("fast", "correct horse")) for _ in range(3)] == [True] * 3
    assert checked.checks == [(b"correct horse", FAST)]
    assert not auth.accepts(header("slow", "correct horse"), "x")
    assert not auth.accepts(header("nobody", "correct horse"), "y")
    assert len(checked.checks) == 3


def test_guesses_do_not_push_out_what_is_right() -> None:
    checked = Bcrypt()
    auth = BasicAuth({"fast": FAST}, 5.0, checked)
    assert auth.accepts(header("fast", "correct horse"))
    for guess in range(WRONG + 1):
        auth._wrong.put(str(guess).encode(), True)
    assert auth.accepts(header("fast", "correct horse"))
    assert len(checked.checks) == 1


def test_many_with_the_same_password_need_one_check() -> None:
    checked = Bcrypt()
    auth = BasicAuth({"fast": FAST}, 5.0, checked)
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(auth.accepts, [header("fast", "correct horse")] * 8))
    assert found == [True] * 8
    assert len(checked.checks) == 1
