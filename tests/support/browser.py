"""A headless Chromium, controlled through WebDriver: Debian's chromium and chromium-driver."""

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
from .requirements import skip_missing

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
    """Start a browser with an empty profile in this folder. Skips the test if it is not installed."""
    programs = [shutil.which(name) for name in ("chromedriver", "chromium")]
    if None in programs:
        skip_missing("Chromium: install Debian's chromium and chromium-driver")
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
    """One window. Calls run in a thread, so that a server in this process can answer the browser."""

    def __init__(self, driver_url: str, program: str, profile: Path) -> None:
        self._url = driver_url
        options = {"binary": program, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        _wait_until_ready(driver_url)
        session = self._request("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._url += f"/session/{session['sessionId']}"

    def close(self) -> None:
        """Close the browser."""
        self._request("DELETE", "")

    async def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        await self._call("POST", "/url", {"url": url})

    async def run(self, script: str, *arguments: object) -> Any:
        """Run a function body in the page and return its result. Awaits a promise."""
        return await self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    async def until(self, expression: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
        """Wait until the expression is true in the page, and return its value. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while not (found := await self.run(f"return {expression}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_seconds} s: {expression}")
            await asyncio.sleep(0.05)
        return found

    async def press(self, *keys: str) -> None:
        """Press and release keys: characters, or names of ``KEYS``."""
        strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        actions = {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]}
        await self._call("POST", "/actions", actions)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the size of the page, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        await self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    async def console(self) -> list[str]:
        """Return the warnings and errors logged since the last call, by the page or the browser."""
        entries = await self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    async def devtools(self, command: str, **parameters: object) -> Any:
        """Send a command of the Chrome DevTools Protocol."""
        return await self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    async def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        shot = await self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        return await asyncio.to_thread(self._request, method, path, body)

    def _request(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                value = json.load(error)["value"]
            raise AssertionError(f"{value['error']}: {value['message']}") from None


# Key codes of WebDriver.
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c", "ArrowDown": "\ue015", "End": "\ue010"}


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/status", timeout=5) as response:
                if json.load(response)["value"]["ready"]:
                    return
        except OSError:
            pass  # not listening yet
        if time.monotonic() > deadline:
            raise TimeoutError("ChromeDriver did not become ready")
        time.sleep(0.02)
