from __future__ import annotations

import base64
import threading
import time

import bcrypt
import pytest

from monitor.web.basic_auth import CHECKS, BasicAuth

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()


OTHER_HASH = bcrypt.hashpw(b"a" * 72, b"$2b$05$" + b"." * 22).decode().replace("$2b$", "$2y$")


def header(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_right_password_is_checked_once_others_each_time() -> None:
    checks: list[tuple[bytes, bytes]] = []

    def checkpw(password: bytes, hashed: bytes) -> bool:
        checks.append((password, hashed))
        return bcrypt.checkpw(password, hashed)

    fast, slow = HASH.encode(), OTHER_HASH.encode()
    auth = BasicAuth({"fast": fast, "slow": slow}, 5.0, checkpw)
    wrong = [("nobody", "x"), ("nobody", "x"), ("nobody", "a" * 72), ("fast", "x"), ("fast", "x")]
    assert [auth.accepts(header(*pair)) for pair in wrong] == [False] * 5
    assert checks == [
        *((b"x", slow), (b"x", slow), (b"a" * 72, slow)),
        *((b"x", fast), (b"x", fast)),
    ]
    checks.clear()
    assert [auth.accepts(header("fast", "correct horse")) for _ in range(3)] == [True] * 3
    assert checks == [(b"correct horse", fast)]
    assert not auth.accepts(header("slow", "correct horse"))
    assert not auth.accepts(header("nobody", "correct horse"))
    assert len(checks) == 3


def test_a_few_checks_at_once_and_no_more() -> None:
    leave = threading.Event()
    begun: list[bytes] = []

    def checkpw(password: bytes, _: bytes) -> bool:
        begun.append(password)
        return leave.wait(10)

    auth = BasicAuth({"fast": HASH.encode()}, 10.0, checkpw)
    answers: list[bool] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(auth.accepts(header("fast", "x"))))
        for _ in range(CHECKS)
    ]
    for thread in waiting:
        thread.start()
    deadline = time.monotonic() + 10
    while auth._places._value:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(TimeoutError):
        auth.accepts(header("fast", "x"))
    assert begun == [b"x"]
    leave.set()
    for thread in waiting:
        thread.join()
    assert answers == [True] * CHECKS
