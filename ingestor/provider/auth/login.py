"""One login: exchange the API key for a token, or raise a typed error that says why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pydantic import SecretStr

from ingestor.core.clock import boottime
from ingestor.core.redaction import redactor
from ingestor.errors import InvalidTokenResponse, TokenRefused, TokenUnavailable
from ingestor.provider.auth.claims import Token, decode_claims, feeds_in, lifetime, parse_http_date, secrets_in
from ingestor.provider.http_client import BodyTooLarge, HttpRequest, HttpResponse, RequestFailed
from ingestor.provider.transport import with_remedy

MAX_RESPONSE_BYTES = 64 * 1024  # the largest response in the documentation has 9,311
MAX_RETRY_AFTER_SECONDS = 3600.0  # a longer Retry-After is shortened to this


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the Retry-After in seconds, 0 to 3600. A date counts from the response's own Date, as clocks differ."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    until, now = parse_http_date(text), parse_http_date(headers.get("Date", ""))
    if until is None or now is None:
        return None
    return min(max(until - now, 0.0), MAX_RETRY_AFTER_SECONDS)


def fetch_token(
    url: str,
    api_key: SecretStr,
    *,
    lifetime_seconds: float,
    timeout_seconds: float = 120.0,
    ca_file: Path | None = None,
    proxy: SecretStr | None = None,
) -> Token:
    """Exchange the API key for a token. Blocks for at most ``timeout_seconds``.

    Raises:
        TokenRefused: 401 or 403. TokenUnavailable: nothing usable within ``timeout_seconds``, 429, 5xx.
        InvalidTokenResponse: the response is not a token (HTML, ``{}``, a redirect, over 64 KiB).
    """
    request = HttpRequest(
        method="POST",
        url=url,
        api_key=api_key,
        timeout_seconds=timeout_seconds,
        max_bytes=MAX_RESPONSE_BYTES,
        ca_file=ca_file,
        proxy=proxy,
    )
    sent_at = boottime()  # not when the response is complete: its life may have begun long before
    try:
        response = request.send()
    except BodyTooLarge as error:
        raise InvalidTokenResponse(f"{url}: {error}") from None
    except RequestFailed as error:
        raise TokenUnavailable(f"{url}: {with_remedy(str(error))}") from None
    return _parse_token(url, response, lifetime_seconds, sent_at)


def _parse_token(url: str, response: HttpResponse, lifetime_seconds: float, sent_at: float) -> Token:
    if response.status not in (200, 201):
        _raise_for_status(url, response)
    value = _token_value(url, response.body)
    claims = decode_claims(value)
    for secret in secrets_in(value, claims):
        redactor.add(secret)
    return Token(
        value=value,
        requested_at=sent_at,
        life_seconds=lifetime(claims, response.headers.get("Date"), lifetime_seconds),
        feeds=feeds_in(claims),
    )


def _raise_for_status(url: str, response: HttpResponse) -> NoReturn:
    status = response.status
    if status in (401, 403):
        raise TokenRefused(f"{url}: HTTP {status}: the API key is not accepted; check provider.api_key_file")
    if status == 429 or status >= 500:
        raise TokenUnavailable(f"{url}: {with_remedy(f'HTTP {status}')}", retry_after_seconds(response.headers))
    if 300 <= status < 400:
        raise InvalidTokenResponse(f"{url}: HTTP {status}: redirects are not followed; check provider.url")
    raise InvalidTokenResponse(f"{url}: HTTP {status}; check provider.url and provider.token_path")


def _token_value(url: str, body: bytes) -> str:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    value = content.get("token") if isinstance(content, dict) else None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise InvalidTokenResponse(
            f'{url}: the response ({len(body)} bytes) is not a JSON object with a "token";'
            " check provider.url and provider.token_path"
        )
    return value
