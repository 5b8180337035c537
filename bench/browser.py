"""A headless Chromium that opens local files, spoken to over a pipe in its DevTools protocol; nothing but the standard library."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT = 120.0
"""Seconds for anything at all: on a busy machine a browser takes long to start, and no test is decided by the clock."""


class BrowserError(RuntimeError):
    """The browser ended, did not answer in time, or refused a command."""


def find() -> str | None:
    """The browser's program, None if there is none."""
    return os.environ.get("MMTWIN_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab.

    :ivar problems: errors on the console, exceptions and failed loads so far, as text.
    :ivar requests: addresses that the page asked for.
    """

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._process, self._read, self._write = process, read, write
        self._buffer, self._number, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result. :raises BrowserError: it failed."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError as error:
            raise BrowserError(f"the browser ended with {self._process.wait()}") from error
        deadline = time.monotonic() + TIMEOUT
        while True:
            got = self._receive(deadline)
            if got.get("id") == self._number:
                if "error" in got:
                    raise BrowserError(f"{method}: {got['error'].get('message')}")
                result: dict[str, Any] = got["result"]
                return result
            self._note(got)

    def open(self, path: Path) -> None:
        """Opens a file and waits until it has loaded."""
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._note(self._receive(deadline))

    def run(self, script: str) -> Any:
        """The value of an expression (promises are waited for). :raises BrowserError: it threw."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(str(found["exceptionDetails"].get("exception", {}).get("description", found["exceptionDetails"]["text"])))
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + TIMEOUT
        while not self.run(script):
            if time.monotonic() > deadline:
                raise BrowserError(f"never true: {script}")
            time.sleep(0.05)

    def screen(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """The window's size in CSS pixels, and the colours that the system prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserError(f"no answer in {TIMEOUT:g} s")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise BrowserError(f"the browser ended with {self._process.wait()}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps an event, and what it says of problems."""
        if "method" not in event:
            return
        self._events.append(event)
        params = event["params"]
        match event["method"]:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(" ".join(str(argument.get("value", argument.get("description"))) for argument in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(str(params["entry"]["text"]))
            case "Network.loadingFailed":
                self.problems.append(str(params.get("errorText")))
            case "Network.requestWillBeSent":
                self.requests.append(str(params["request"]["url"]))


@contextlib.contextmanager
def page(program: str) -> Iterator[Page]:
    """A browser with one tab, ended at the end.

    :raises BrowserError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="mmtwin-browser-", ignore_cleanup_errors=True) as profile:
        commands, answers = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (commands[0], answers[1])]

        def three_and_four() -> None:
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        mine = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (answers[0], commands[1])]
        for fd in (*commands, *answers):
            os.close(fd)
        environment = {**os.environ, "HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile}
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=three_and_four, pass_fds=(3, 4), env=environment, start_new_session=True,
        )  # fmt: skip
        for fd in theirs:
            os.close(fd)
        try:
            yield Page(process, *mine)
        finally:
            for fd in mine:
                os.close(fd)  # the pipe's end ends the browser
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
