"""The status port: /healthz, /readyz, /metrics, and the status page with what it shows. Reads only, for this machine.

The daemon never depends on it: a port that is taken costs the page, not the data.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.aiohttp import make_aiohttp_handler

from ingestor.config import ListenAddress
from ingestor.config.urls import is_loopback
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
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {file.name: file.read_bytes() for file in sorted((Path(__file__).parent / "page").iterdir())}
_COMPRESSED_ASIDE_BYTES = 4096  # what is longer is compressed in a thread
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::\d{1,5})?")


class StatusServer:
    """An HTTP server for as long as the block lasts. ``url`` is None if the port could not be had."""

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
        """``history`` and ``coverage`` give the JSON of that name, at once."""
        self.url: str | None = None
        self._listen = listen
        pages = _Pages(snapshot, values)
        app = web.Application(middlewares=[_guard(listen.host)], client_max_size=1024)
        app.on_response_prepare.append(_harden)
        app.add_routes(
            [
                web.get("/healthz", pages.healthz),
                web.get("/readyz", pages.readyz),
                web.get("/status.json", pages.status),
                web.get("/values.json", pages.values),
                web.get("/history.json", _json(history)),
                web.get("/coverage.json", _json(coverage)),
                web.get("/metrics", make_aiohttp_handler(metrics.registry, disable_compression=True)),
                web.get("/", _file("page.html")),
                *(web.get(f"/{name}", _file(name)) for name in _FILES),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=15,
            lingering_time=1,
            shutdown_timeout=1,
        )

    async def __aenter__(self) -> StatusServer:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, *self._listen).start()
        except (OSError, UnicodeError) as error:  # the latter for a host that cannot be a name
            self._tell_closed(error)
        else:
            self.url = f"http://{ListenAddress(*self._runner.addresses[0][:2])}"
            self._warn_if_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def _tell_closed(self, error: OSError | UnicodeError) -> None:
        # asyncio wraps the system's words in its own
        number = error.errno if isinstance(error, OSError) else None
        log.error(
            "http.listen: %s cannot be had (%s): going on without status page and /metrics; "
            "free the port or set http.listen to another one, and restart",
            self._listen,
            os.strerror(number) if number and number > 0 else error,
        )

    def _warn_if_open(self) -> None:
        if not is_loopback(self._listen.host):
            log.warning(
                "http.listen: %s can be reached from other machines, and asks nobody who they are; "
                "127.0.0.1 with a proxy in front is safer",
                self._listen,
            )


class _Pages:
    """What is made anew for each request. Of thousands of subscriptions it takes a while: in a thread."""

    def __init__(self, snapshot: Callable[[], Status], values: LatestValues) -> None:
        self._snapshot = snapshot
        self._values = values

    async def healthz(self, request: web.Request) -> web.Response:
        return _verdict(check_health(self._snapshot()))

    async def readyz(self, request: web.Request) -> web.Response:
        return _verdict(check_readiness(self._snapshot()))

    async def status(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.to_thread(self._snapshot().to_json))

    async def values(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit() and len(after) <= 18):
            raise web.HTTPBadRequest(text="400: after is the version that a former answer named\n")
        return _answer(await asyncio.to_thread(self._values.changed_since, int(after)))


def is_host_allowed(header: str, listen_host: str) -> bool:
    """May a request with this Host header be answered?

    Against DNS rebinding: a page elsewhere can point its own *name* at us, but never an address or our names.
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


def _answer(body: bytes, status: int = 200) -> web.Response:
    response = web.Response(
        status=status, body=body, content_type="application/json", zlib_executor_size=_COMPRESSED_ASIDE_BYTES
    )
    response.enable_compression()  # if the browser likes; the page is also looked at from afar, through a tunnel
    return response


def _verdict(verdict: HealthResult) -> web.Response:
    return _answer(verdict.to_json(), 200 if verdict.ok else 503)


def _json(made: Callable[[], bytes]) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return _answer(made())

    return answer


def _file(name: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=_FILES[name], content_type=_TYPES[Path(name).suffix], charset="utf-8")

    return answer


def _guard(listen_host: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not is_host_allowed(hosts[0], listen_host):
            raise web.HTTPForbidden(text="403: this Host name is not ours; ask by address, or name it in http.listen\n")
        if request.method not in {"GET", "HEAD"}:
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        return await handler(request)

    return guard


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
