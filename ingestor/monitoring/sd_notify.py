"""Notify systemd of the daemon's state, and feed its watchdog. Without systemd every call does nothing.

The protocol is one datagram per notification: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class SystemdNotifier:
    """Sends notifications to the service manager, if one started this process."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        name = env.get("NOTIFY_SOCKET", "")
        # A name with @ is in Linux's abstract namespace. Other kinds of sockets are not supported.
        self._address = "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""

    def ready(self, status: str = "") -> None:
        """Report that startup or a reload has finished. ``status`` is a line for `systemctl status`."""
        # One line: a newline would start another assignment.
        self._send("READY=1", *([f"STATUS={' '.join(status.split())}"] if status else []))

    def reloading(self) -> None:
        """Report that the config is being reloaded. Call ``ready`` afterwards, whether or not the reload succeeded."""
        # systemd 253 and newer require this timestamp, on this clock, to recognize the reload that they requested.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the daemon is shutting down."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Reset the watchdog's timeout."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)  # called in the event loop, which must not wait for a busy manager
                channel.sendto("\n".join(lines).encode(errors="backslashreplace"), self._address)
        except OSError as error:
            log.warning("could not send %s to systemd, continuing without it: %s", lines[0], error.strerror)


async def feed_watchdog(systemd: SystemdNotifier, timeout_seconds: float, is_healthy: Callable[[], bool]) -> None:
    """Feed the watchdog twice per timeout as long as ``is_healthy`` returns True. Runs until cancelled."""
    was_healthy = True
    while True:
        healthy = is_healthy()
        if healthy:
            systemd.watchdog()
        elif was_healthy:
            log.error(
                "the daemon is stuck, no longer feeding the watchdog: systemd will restart it within %.0f s",
                timeout_seconds,
            )
        was_healthy = healthy
        await asyncio.sleep(timeout_seconds / 2)


def watchdog_seconds(env: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Return the timeout of the watchdog; None if there is none or it watches another process."""
    if env.get("WATCHDOG_PID", str(pid or os.getpid())) != str(pid or os.getpid()):
        return None
    try:
        microseconds = int(env.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1_000_000 if microseconds > 0 else None
