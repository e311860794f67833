"""The checks of what other processes may hold: the address of the status page, and the SQLite database."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from ingestor.commands.check_result import CheckResult
from ingestor.config import Config
from ingestor.config.urls import is_loopback
from ingestor.config.validators import ListenAddress
from ingestor.core.files import lock_holder
from ingestor.core.listeners import describe_listener, find_listener
from ingestor.errors import AlreadyLocked
from ingestor.spool.spool import LOCK

_CONSEQUENCE = "the daemon would run without status page, /readyz and /metrics"


def check_listen(config: Config) -> CheckResult:
    """Check that the HTTP server could listen, unless the running daemon does already. The daemon runs without it."""
    listen = config.http.listen
    try:
        _bind(listen)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            return _check_listener(config, listen)
        reason = os.strerror(number) if number and number > 0 else "the host is not known here"
        return CheckResult(
            "http", f"{_CONSEQUENCE}: cannot listen on {listen} ({reason}); change http.listen", warning=True
        )
    if is_loopback(listen.host):
        return CheckResult("http", f"{listen} is free for the status page and /metrics")
    message = (
        f"{listen} (http.listen) is reachable from other machines and has no authentication; 127.0.0.1 behind a reverse"
        " proxy is safer"
    )
    return CheckResult("http", message, warning=True)


def _bind(listen: ListenAddress) -> None:
    """Bind to every address as the HTTP server does, and let go. Raises OSError, UnicodeError."""
    infos = socket.getaddrinfo(*listen, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, *_, address in dict.fromkeys(infos):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)


def _check_listener(config: Config, listen: ListenAddress) -> CheckResult:
    found, daemon = find_listener(listen.port), lock_holder(config.spool.path / LOCK)
    if found and str(found[0]) == daemon:
        return CheckResult("http", f"the running daemon (process {daemon}) listens on {listen}")
    message = (
        f"{_CONSEQUENCE}: {describe_listener(listen.port)} listens on {listen}; end it, or choose another port in"
        " http.listen"
    )
    return CheckResult("http", message, warning=True)


def refuse_other_daemon(config: Config, database: Path) -> None:
    """Raise AlreadyLocked if a daemon with another spool writes to this SQLite file, which only one may."""
    path = Path(os.path.realpath(database))
    holder = lock_holder(path.with_name(path.name + ".lock"))
    if holder and holder != lock_holder(config.spool.path / LOCK):
        raise AlreadyLocked(
            f"{database}: process {holder}, a daemon with another spool, writes to it; stop that one, or give this"
            " daemon a database of its own in database.url"
        )
