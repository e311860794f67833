"""How a server is reached, by HTTP and by websocket: TLS that is always verified, a proxy, and errors in words."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import requests
from pydantic import SecretStr

from ingestor.core.os_errors import describe_os_error
from ingestor.core.redaction import redactor

_PROXY_ERRORS = (requests.exceptions.ProxyError, aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})")  # the message of http.client

_REMEDIES = (
    (r"proxy from the environment", "see whether the proxy runs, or correct HTTPS_PROXY and NO_PROXY"),
    (r"certificate", "name the authority that signed it in provider.ca_file, or correct provider.url"),
    (r"^HTTP (429|5\d\d)$", "the provider is at fault, or busy"),
    (r"[Nn]ame|resolution|[Nn]o address", "correct provider.url, or let this machine resolve the name"),
    (r"", "correct provider.url, or see network, firewall and proxy"),
)


def make_tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later that always verifies; ``ca_file`` replaces the system's authorities.

    Blocks: it reads files.
    """
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)  # the system's policy may be higher
    return context


class RedirectRefused(aiohttp.ClientError):
    """The server redirects. Following it would send the token elsewhere."""


async def _refuse_redirect(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
    raise RedirectRefused("the server redirects elsewhere, which is not followed; check provider.url")


def http_session(tls_context: ssl.SSLContext | None, proxy: SecretStr | None = None) -> aiohttp.ClientSession:
    """Return an aiohttp session that follows no redirect. ``tls_context`` None: plain HTTP to loopback.

    It takes nothing from the environment: aiohttp would read .netrc along with the proxies.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls_context if tls_context is not None else True),
        trace_configs=[trace],
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy.get_secret_value() if proxy else None,
    )


def describe_error(error: BaseException) -> str:
    """Return what failed, in words, from the innermost cause that has a message: the outer ones quote URLs."""
    chain = _error_chain(error)
    through_proxy = any(isinstance(link, _PROXY_ERRORS) for link in chain)
    return ("the proxy from the environment: " if through_proxy else "") + _describe_chain(chain)


def with_remedy(reason: str) -> str:
    """Return the reason why the provider could not be reached, of ``describe_error`` or a status, with what to do."""
    if "; " in reason or ": raise " in reason:  # of a redirect, or of an exhausted resource: it has one
        return reason
    return f"{reason}; {next(remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason))}"


def _describe_chain(chain: list[BaseException]) -> str:
    for link in chain:
        if isinstance(link, RedirectRefused):
            return str(link)
        if isinstance(link, aiohttp.ClientHttpProxyError):
            return f"HTTP {link.status}"
        if refused := _TUNNEL_REFUSED.match(str(link)):
            return f"HTTP {refused[1]}"
        # aiohttp's own error is an instance too, without the message
        if isinstance(link, ssl.SSLCertVerificationError) and hasattr(link, "verify_message"):
            return f"the server's certificate was not accepted: {link.verify_message}"
    for link in reversed(chain):
        if isinstance(link, ssl.SSLError) and isinstance(getattr(link, "reason", None), str):
            return f"TLS: {link.reason.replace('_', ' ').lower()}"  # its errno is OpenSSL's, not the system's
        if isinstance(link, OSError) and link.strerror:
            # asyncio and the resolver put other texts there, with addresses; the errno is the system's
            text = describe_os_error(link.errno, link.strerror)
            return redactor.scrub(text[:1].lower() + text[1:])
    return "no answer in time" if isinstance(chain[0], requests.Timeout) else type(chain[-1]).__name__


def _error_chain(error: BaseException) -> list[BaseException]:
    """Return the error, its causes and its contexts: urllib3's cause has no message, its context is the original."""
    found: dict[int, BaseException] = {}
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is not None and id(link) not in found:
            found[id(link)] = link
            pending += [link.__context__, link.__cause__]
    return list(found.values())
