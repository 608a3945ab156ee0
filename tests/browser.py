"""A real browser for tests of pages: headless Chromium, driven over a pipe (DevTools protocol)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = "chromium-headless-shell"
FLAGS = (
    *("--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-breakpad", "--hide-scrollbars"),
)

# Its pipes are to be descriptors 3 and 4.
_START = 'exec "$0" "${@:3}" 3<&"$1" 4>&"$2"'


def program() -> str | None:
    return shutil.which(PROGRAM)


class Browser:
    """One page at a time. `seen`: what it has logged and asked for since `open`."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._session: str | None = None
        self.seen: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Any:
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        self._commands.flush()
        while (message := self._next()).get("id") != self._number:
            pass
        assert "error" not in message, message
        return message["result"]

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has gone"
            data += byte
        message: dict[str, Any] = json.loads(data)
        if "method" in message:
            self.seen.append(message)
        return message

    def open(self, page: Path, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Load it, as wide as a phone or a desk; `scheme` is light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.seen.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(message["method"] == "Page.loadEventFired" for message in self.seen):
            self._next()

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def messages(self) -> list[str]:
        """What the page logged: its console, errors, violations of its policy."""
        logging = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [str(message) for message in self.seen if message["method"] in logging]

    def requests(self) -> list[str]:
        return [
            message["params"]["request"]["url"]
            for message in self.seen
            if message["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is gone afterwards, with all that it has started."""
    path = program()
    assert path
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="seal-monitor-browser-") as profile:
        process = subprocess.Popen(
            [
                *("/bin/bash", "-c", _START, path, str(command_end), str(answer_end)),
                *(*FLAGS, f"--user-data-dir={profile}"),
            ],
            pass_fds=(command_end, answer_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(command_end)
        os.close(answer_end)
        try:
            with open(commands, "wb") as out, open(answers, "rb") as back:
                found = Browser(out, back)
                yield found
                found.call("Browser.close")  # ends its own children, and waits for them
                process.wait(timeout=10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
