"""HTTP basic auth against bcrypt hashes."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping

import bcrypt

from monitor.untrusted.recent import Recent
from monitor.web.checks import Checks

__all__ = ["BasicAuth"]

WRONG = 2048  # credentials that are remembered as wrong


class BasicAuth:
    """Checks passwords one at a time, in the order of `checks`: guessing costs at most one core.

    Each is checked once. What is kept are keyed digests, never a password: of the right ones, at
    most one for each user, so that a client with a right password waits for nobody; and of the last
    wrong ones, so that a client that repeats one costs nothing.
    """

    def __init__(
        self,
        users: Mapping[str, bytes],
        wait_seconds: float,
        checkpw: Callable[[bytes, bytes], bool] = bcrypt.checkpw,
    ) -> None:
        self._checkpw = checkpw
        self._users = {name.encode(): hashed for name, hashed in users.items()}
        self._slowest = max(self._users.values(), key=lambda hashed: int(hashed[4:6]))
        self._secret = secrets.token_bytes(32)
        self._accepted: dict[bytes, bytes] = {}  # user: digest
        self._wrong: Recent[bytes, bool] = Recent(WRONG)
        self._checks = Checks(wait_seconds)

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
        identity = repr((name, password)).encode()
        digest = hashlib.blake2b(identity, key=self._secret, digest_size=16).digest()
        known = self._known(name, digest)
        if known is not None:
            return known
        with self._checks.turn(source, digest):
            known = self._known(name, digest)  # another client may have had the same
            return self._check(name, password, digest, source) if known is None else known

    def _known(self, name: bytes, digest: bytes) -> bool | None:
        if self._accepted.get(name) == digest:
            return True
        return None if self._wrong.get(digest) is None else False

    def _check(self, name: bytes, password: bytes, digest: bytes, source: str) -> bool:
        hashed = self._users.get(name)
        try:
            is_right = self._checkpw(password, hashed or self._slowest) and hashed is not None
        except ValueError:  # older releases refuse a password with a NUL
            is_right = False
        if is_right:
            self._accepted[name] = digest
        else:
            self._wrong.put(digest, True)
            self._checks.failed(source)
        return is_right
