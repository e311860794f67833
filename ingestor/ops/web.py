"""The status port: /healthz, /readyz, /metrics, /status.json and a small page. Reads only, and for this machine.

The daemon never depends on it: a port that is taken costs the page, not the data.
"""

from __future__ import annotations

import html
import ipaddress
import logging
import os
import re
from collections.abc import Callable
from types import TracebackType

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client.aiohttp import make_aiohttp_handler

from ingestor.config import Listen
from ingestor.config.urls import is_loopback
from ingestor.ops.metrics import Metrics
from ingestor.ops.status import Status, Verdict, healthy, ready

log = logging.getLogger(__name__)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "ingestor",  # the default names the library's version
}
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::\d{1,5})?")


class Web:
    """An HTTP server for as long as the block lasts. ``url`` is None if the port could not be had."""

    def __init__(self, listen: Listen, *, snapshot: Callable[[], Status], metrics: Metrics) -> None:
        self.url: str | None = None
        self._listen = listen
        pages = _Pages(snapshot)
        app = web.Application(middlewares=[_guard(listen.host)], client_max_size=1024)
        app.on_response_prepare.append(_harden)
        app.add_routes(
            [
                web.get("/", pages.index),
                web.get("/healthz", pages.healthz),
                web.get("/readyz", pages.readyz),
                web.get("/status.json", pages.status),
                web.get("/metrics", make_aiohttp_handler(metrics.registry, disable_compression=True)),
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

    async def __aenter__(self) -> Web:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, *self._listen).start()
        except (OSError, UnicodeError) as error:  # the latter for a host that cannot be a name
            self._tell_closed(error)
        else:
            self.url = f"http://{Listen(*self._runner.addresses[0][:2])}"
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
            "http.listen: %s cannot be had (%s): going on without /metrics and /status.json; "
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
    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot

    async def healthz(self, request: web.Request) -> web.Response:
        return _answer(healthy(self._snapshot()))

    async def readyz(self, request: web.Request) -> web.Response:
        return _answer(ready(self._snapshot()))

    async def status(self, request: web.Request) -> web.Response:
        return web.Response(body=self._snapshot().to_json(), content_type="application/json")

    async def index(self, request: web.Request) -> web.Response:
        return web.Response(text=page(self._snapshot()), content_type="text/html")


def host_allowed(header: str, listen_host: str) -> bool:
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


def page(status: Status) -> str:
    """The front page: the state in a few lines, and where the rest is."""
    verdict = ready(status)
    connected = sum(connection.connected for connection in status.connections)
    lines = (
        f"ingestor {status.version}, instance {status.instance}",
        "ready" if verdict.ok else "not ready: " + "; ".join(verdict.reasons),
        f"connections: {connected} of {len(status.connections)}; subscriptions: {len(status.subscriptions)}",
        f"rows: {status.rows.new} new, {status.rows.revised} revised, {status.rows.duplicate} duplicate, "
        f"{status.rows.dead} dead; spool: {status.spool.entries} entries",
    )
    links = "\n".join(
        f'<li><a href="{path}">{path}</a></li>' for path in ("/status.json", "/metrics", "/healthz", "/readyz")
    )
    text = "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>ingestor</title>\n'
        f"{text}\n<ul>\n{links}\n</ul>\n</html>\n"
    )


def _answer(verdict: Verdict) -> web.Response:
    status = 200 if verdict.ok else 503
    return web.Response(status=status, body=verdict.to_json(), content_type="application/json")


def _guard(listen_host: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not host_allowed(hosts[0], listen_host):
            raise web.HTTPForbidden(text="403: this Host name is not ours; ask by address, or name it in http.listen\n")
        if request.method not in {"GET", "HEAD"}:
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        return await handler(request)

    return guard


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
