"""The HTTP server for /healthz, /readyz, /metrics and the status page. Read-only; meant for this machine.

The daemon runs without it if the port is taken.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.aiohttp import make_aiohttp_handler

from ingestor.config.urls import is_loopback
from ingestor.config.validators import ListenAddress
from ingestor.core.listeners import describe_listener
from ingestor.monitoring.http_listener import HttpListener
from ingestor.monitoring.latest_values import LatestValues
from ingestor.monitoring.metrics import Metrics
from ingestor.monitoring.status import HealthResult, Status, check_health, check_readiness

log = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "ingestor",  # the default names the library's version
}
_CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {file.name: file.read_bytes() for file in sorted((Path(__file__).parent / "page").iterdir())}
_COMPRESS_IN_THREAD_BYTES = 4096  # longer bodies are compressed in a thread
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::\d{1,5})?")


class StatusServer:
    """Serves while the ``async with`` block runs. ``url`` is None if the port could not be opened."""

    def __init__(
        self,
        listen: ListenAddress,
        *,
        snapshot: Callable[[], Status],
        metrics: Metrics,
        values: LatestValues,
        history: Callable[[], bytes],
        coverage: Callable[[], bytes],
    ) -> None:
        """``history`` and ``coverage`` return the JSON document of that name; they must not block."""
        self.url: str | None = None
        self._listen = listen
        app = web.Application(middlewares=[self._note_request, _guard(listen.host)], client_max_size=1024)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                web.get("/healthz", partial(_serve_health, lambda: check_health(snapshot()))),
                web.get("/readyz", partial(_serve_health, lambda: check_readiness(snapshot()))),
                web.get("/status.json", partial(_serve_status, snapshot)),
                web.get("/values.json", partial(_serve_values, values)),
                web.get("/history.json", partial(_serve_json, history)),
                web.get("/coverage.json", partial(_serve_json, coverage)),
                web.get("/metrics", make_aiohttp_handler(metrics.registry, disable_compression=True)),
                web.get("/", partial(_serve_file, "page.html")),
                *(web.get(f"/{name}", partial(_serve_file, name)) for name in _FILES),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=15, lingering_time=1, shutdown_timeout=1
        )
        self._listener = HttpListener(self._runner)

    async def __aenter__(self) -> StatusServer:
        await self._runner.setup()
        try:
            address = await self._listener.listen(*self._listen)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
            await self._listener.close()
            self._log_not_listening(error)
        else:
            self.url = f"http://{ListenAddress(*address)}"
            if not is_loopback(self._listen.host):
                log.warning(
                    "http.listen: %s is reachable from other machines and has no authentication; "
                    "127.0.0.1 behind a reverse proxy is safer",
                    self._listen,
                )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._listener.close()
        await self._runner.cleanup()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._listener.connections)

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._listener.note_request(request.protocol)
        return await handler(request)

    def _log_not_listening(self, error: OSError | UnicodeError) -> None:
        # asyncio puts the system's message into one of its own
        number = error.errno if isinstance(error, OSError) else None
        log.error(
            "http.listen: cannot listen on %s (%s), continuing without status page and /metrics: "
            "free the port or change http.listen, then restart",
            self._listen,
            _describe(error, number, self._listen.port),
        )


def _describe(error: Exception, number: int | None, port: int) -> str:
    if number == errno.EADDRINUSE:
        return f"{describe_listener(port)} listens there"
    return os.strerror(number) if number and number > 0 else str(error)


def is_host_allowed(header: str, listen_host: str) -> bool:
    """Return whether a request with this Host header may be answered.

    This prevents DNS rebinding: a foreign page can make its own *name* resolve to us, but not an address or our names.
    """
    match = _HOST.fullmatch(header.lower())
    if match is None:
        return False
    name = match[1] or match[2]
    if name in {"localhost", listen_host.lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json_response(body: bytes, status: int = 200) -> web.Response:
    response = web.Response(
        status=status, body=body, content_type="application/json", zlib_executor_size=_COMPRESS_IN_THREAD_BYTES
    )
    response.enable_compression()  # if the client accepts it; the page is also viewed over slow tunnels
    return response


async def _serve_health(check: Callable[[], HealthResult], request: web.Request) -> web.Response:
    result = check()
    return _json_response(result.to_json(), 200 if result.ok else 503)


async def _serve_status(snapshot: Callable[[], Status], request: web.Request) -> web.Response:
    # In a thread, because thousands of subscriptions take a while.
    return _json_response(await asyncio.to_thread(snapshot().to_json))


async def _serve_values(values: LatestValues, request: web.Request) -> web.Response:
    after = request.query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise web.HTTPBadRequest(text="400: after must be a version from an earlier response\n")
    return _json_response(await asyncio.to_thread(values.changed_since, int(after)))


async def _serve_json(build: Callable[[], bytes], request: web.Request) -> web.Response:
    return _json_response(build())


async def _serve_file(name: str, request: web.Request) -> web.Response:
    return web.Response(body=_FILES[name], content_type=_CONTENT_TYPES[Path(name).suffix], charset="utf-8")


def _guard(listen_host: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not is_host_allowed(hosts[0], listen_host):
            raise web.HTTPForbidden(text="403: unknown Host name; use an address, or set http.listen to this name\n")
        if request.method not in {"GET", "HEAD"}:
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        return await handler(request)

    return guard


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
