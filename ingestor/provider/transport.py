"""How a server is reached, by HTTP and websocket alike: TLS that is always verified, a proxy, and in words why not."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import requests
from pydantic import SecretStr

from ingestor.core.redaction import redactor

_OF_THE_PROXY = (
    requests.exceptions.ProxyError,
    aiohttp.ClientProxyConnectionError,
    aiohttp.ClientHttpProxyError,
)
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")  # http.client's words, when it is not let through


def make_tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or later, always verified; ``ca_file`` replaces the system's authorities. Blocks: it reads files."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)  # the system's policy may say more
    return context


class RedirectRefused(aiohttp.ClientError):
    """The server wants us, and our token, somewhere else. We do not go."""


async def _stay(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
    raise RedirectRefused("the server redirects elsewhere, which is not followed; check provider.url")


def http_session(verification: ssl.SSLContext | None, proxy: SecretStr | None = None) -> aiohttp.ClientSession:
    """An aiohttp session that stays where it was sent. ``verification`` None: plain http to loopback.

    Nothing comes from the environment: aiohttp would read .netrc along with its proxies.
    """
    stay = aiohttp.TraceConfig()
    stay.on_request_redirect.append(_stay)
    connector = aiohttp.TCPConnector(ssl=verification if verification is not None else True)
    return aiohttp.ClientSession(
        connector=connector,
        trace_configs=[stay],
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy.get_secret_value() if proxy else None,
    )


def describe_error(error: BaseException) -> str:
    """What failed, in words, from the innermost cause that has some: the outer ones quote URLs."""
    links = _chain(error)
    whose = "the proxy that the environment names: " if any(isinstance(link, _OF_THE_PROXY) for link in links) else ""
    return whose + _words(links)


def _words(links: list[BaseException]) -> str:
    for link in links:
        if isinstance(link, aiohttp.ClientHttpProxyError):
            return f"HTTP {link.status}"
        if refused := _TUNNEL.match(str(link)):
            return f"HTTP {refused[1]}"
        # aiohttp's own error is an instance too, without the words
        if isinstance(link, ssl.SSLCertVerificationError) and hasattr(link, "verify_message"):
            return f"the server's certificate was not accepted: {link.verify_message}"
    for link in reversed(links):
        if isinstance(link, ssl.SSLError) and isinstance(getattr(link, "reason", None), str):
            return f"TLS: {link.reason.replace('_', ' ').lower()}"  # its number is OpenSSL's, not the system's
        if isinstance(link, OSError) and link.strerror:
            # asyncio and the resolver put words of their own there, with addresses; the number is the system's
            words = os.strerror(link.errno) if link.errno and link.errno > 0 else link.strerror
            return redactor.scrub(words.lower())
    return "no answer in time" if isinstance(links[0], requests.Timeout) else type(links[-1]).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """The error and all that led to it: urllib3 names as cause a copy without words, and has the original beside it."""
    found: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in found:
            found[id(one)] = one
            waiting += [one.__context__, one.__cause__]
    return list(found.values())
