"""HTTP basic auth against bcrypt hashes."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping

import bcrypt

__all__ = ["BasicAuth"]

CHECKS = 4  # running or waiting; each takes a connection from clients that know their password


class BasicAuth:
    """Checks passwords one at a time, so that guessing costs at most one core.

    A right password is checked once; its keyed digest is kept, never the password.
    """

    def __init__(
        self,
        users: Mapping[str, bytes],
        wait_seconds: float,
        checkpw: Callable[[bytes, bytes], bool] = bcrypt.checkpw,
    ) -> None:
        self._checkpw = checkpw
        self._wait_seconds = wait_seconds
        self._users = {name.encode(): hashed for name, hashed in users.items()}
        self._slowest = max(self._users.values(), key=lambda hashed: int(hashed[4:6]))
        self._secret = secrets.token_bytes(32)
        self._accepted: set[bytes] = set()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(CHECKS)

    def accepts(self, authorization: str, source: str = "") -> bool:
        """Whether an Authorization header has the name and password of a user.

        An unknown name takes as long as a wrong password. Raises TimeoutError when too many
        checks wait.
        """
        scheme, _, encoded = authorization.partition(" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        name, colon, password = decoded.partition(b":")
        if scheme.lower() != "basic" or not colon:
            return False
        password = password[:72]  # bcrypt reads no more, and newer releases refuse longer ones
        hashed = self._users.get(name)
        identity = repr((name, hashed, password)).encode()
        digest = hashlib.blake2b(identity, key=self._secret).digest()
        if digest in self._accepted:
            return True
        if not self._check(password, hashed or self._slowest) or hashed is None:
            return False
        self._accepted.add(digest)
        return True

    def _check(self, password: bytes, hashed: bytes) -> bool:
        if not self._places.acquire(blocking=False):
            raise TimeoutError
        try:
            if not self._lock.acquire(timeout=self._wait_seconds):
                raise TimeoutError
            try:
                return self._checkpw(password, hashed)
            except ValueError:  # older releases refuse a password with a NUL
                return False
            finally:
                self._lock.release()
        finally:
            self._places.release()
