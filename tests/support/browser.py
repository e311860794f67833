"""A Chromium without a window, driven through ChromeDriver's own protocol (WebDriver): Debian's chromium-driver."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .postgres_server import free_port
from .requirements import missing

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
TIMEOUT_SECONDS = 20


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in this folder. Skips the test where there is none."""
    programs = [shutil.which(name) for name in ("chromedriver", "chromium")]
    if None in programs:
        missing("Chromium: install Debian's chromium and chromium-driver")
    port = free_port()
    with subprocess.Popen([str(programs[0]), f"--port={port}", "--silent"], stdout=subprocess.DEVNULL) as driver:
        try:
            browser = Browser(f"http://127.0.0.1:{port}", str(programs[1]), profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.kill()


class Browser:
    """One window. What takes a while is awaited in a thread, so that a server in this process can answer it."""

    def __init__(self, driver_url: str, program: str, profile: Path) -> None:
        self._url = driver_url
        options = {"binary": program, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        _ready(driver_url)
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/session/{session['sessionId']}"

    def close(self) -> None:
        """End the browser."""
        self._ask("DELETE", "")

    async def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        await self._do("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: object) -> Any:
        """What a function body returns in the page; a promise is waited for."""
        return await self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    async def until(self, expression: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """Wait until it is true in the page, and return what it was. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while not (found := await self.run(f"return {expression}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_seconds} s: {expression}")
            await asyncio.sleep(0.05)
        return found

    async def press(self, *keys: str) -> None:
        """Each pressed and released on whatever has the focus. Beyond characters: the names of ``KEYS``."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        actions = {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]}
        await self._do("POST", "/actions", actions)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """How large the page is shown, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    async def console(self) -> list[str]:
        """What was logged since the last time somebody asked: warnings and errors, also of the browser itself."""
        entries = await self._do("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    async def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the browser's own protocol."""
        return await self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def _do(self, method: str, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self._ask, method, path, body)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                told = json.load(error)["value"]
            raise AssertionError(f"{told['error']}: {told['message']}") from None


# As WebDriver numbers them.
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c", "ArrowDown": "\ue015", "End": "\ue010"}


def _ready(url: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/status", timeout=5) as answer:
                if json.load(answer)["value"]["ready"]:
                    return
        except OSError:
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise TimeoutError("ChromeDriver does not get ready")
        time.sleep(0.02)
