"""Files by build id from debuginfod servers: https://sourceware.org/elfutils/Debuginfod.html.

Used only where DEBUGINFOD_URLS names servers: a server learns which programs run here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # slow to import, and needed only where a server is named
    from http.client import HTTPResponse

__all__ = ["Debuginfod", "What"]

URLS_VARIABLE = "DEBUGINFOD_URLS"
FILE_LIMIT = 1 << 28
CACHE_LIMIT = 1 << 30
FILE_SECONDS = 60.0
WAIT_SECONDS = 10.0
_CHUNK = 1 << 18

What = Literal["executable", "debuginfo"]


class Debuginfod:
    """The servers of DEBUGINFOD_URLS; the files that they sent are kept in ~/.cache/seal-monitor.

    `report` gets a message when a server fails; that server is not asked again.
    """

    def __init__(
        self, environment: Mapping[str, str], report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._servers = environment.get(URLS_VARIABLE, "").split()
        base = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME', '/root')}/.cache"
        self._cache = Path(base) / "seal-monitor" / "debuginfod"
        self._report = report
        self._missing: set[tuple[str, What]] = set()

    def fetch(self, build_id: str, what: What) -> Path | None:
        """The file, from the cache or a server; None where neither has it."""
        target = self._cache / f"{build_id}.{what}"
        if not self._servers or (build_id, what) in self._missing:
            return None
        if target.is_file():
            return target
        for server in list(self._servers):
            try:
                if self._download(f"{server.rstrip('/')}/buildid/{build_id}/{what}", target):
                    return target
            except (OSError, ValueError) as error:
                self._report(f"{server}: {error}; not asked again")
                self._servers.remove(server)
        self._missing.add((build_id, what))
        return None

    def _download(self, url: str, target: Path) -> bool:
        """Download to `target`; False where the server has no such file.

        Raises OSError, ValueError.
        """
        from http.client import HTTPException  # noqa: PLC0415 - only where it is needed
        from urllib.error import HTTPError  # noqa: PLC0415
        from urllib.request import urlopen  # noqa: PLC0415

        if not url.startswith(("http://", "https://")):
            raise ValueError("not an http or https URL")
        try:
            with urlopen(url, timeout=WAIT_SECONDS) as answer:
                self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file:
                    try:
                        for chunk in _chunks(answer):
                            file.write(chunk)
                        file.close()
                        os.replace(file.name, target)
                    except BaseException:
                        os.unlink(file.name)
                        raise
        except HTTPError as error:
            error.close()
            if error.code == 404:
                return False
            raise
        except HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Remove the oldest files beyond the limit, but never the newest one."""
        with suppress(FileNotFoundError):  # another process tidies, too
            files = [(path.stat(), path) for path in self._cache.iterdir()]
            files.sort(key=lambda file: file[0].st_mtime, reverse=True)
            size = 0
            for index, (status, path) in enumerate(files):
                size += status.st_size
                if index and size > CACHE_LIMIT:
                    path.unlink()


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    """The answer in parts. Raises OSError when it is too long, too slow or too short."""
    size, until = 0, time.monotonic() + FILE_SECONDS
    # read1 returns what has arrived: so the deadline also stops a slow server.
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > FILE_LIMIT:
            raise OSError(f"sent more than {FILE_LIMIT} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"took longer than {FILE_SECONDS:.0f} s")
        yield chunk
    if answer.length:  # bytes that it announced and did not send
        raise OSError(f"sent {answer.length} bytes too few")
