from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from ingestor.provider.auth import Token
from ingestor.provider.auth.claims import decode_claims, lifetime, renewal_time, secrets_in
from ingestor.provider.auth.login import retry_after_seconds
from ingestor.provider.auth.token_source import unavailable_backoff

CONFIGURED = 18_000.0
DATE = "Mon, 09 Jun 2014 20:00:00 GMT"
DATE_EPOCH = 1_402_344_000


def jwt(claims: Any) -> str:
    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("claims", "date", "seconds"),
    [
        pytest.param({"iat": 1000, "exp": 4600}, None, 3600, id="exp minus iat"),
        pytest.param({"iat": 1000, "exp": 4600}, DATE, 3600, id="exp minus iat, despite a Date"),
        pytest.param({"exp": DATE_EPOCH + 60}, DATE, 60, id="exp minus Date"),
        pytest.param({"exp": DATE_EPOCH + 60}, None, CONFIGURED, id="exp without Date"),
        pytest.param({"exp": DATE_EPOCH + 60}, "yesterday", CONFIGURED, id="exp with invalid Date"),
        pytest.param({"iat": 1000}, DATE, CONFIGURED, id="iat only"),
        pytest.param({}, DATE, CONFIGURED, id="neither"),
        pytest.param({"iat": 1000, "exp": 1000}, DATE, CONFIGURED, id="zero lifetime"),
        pytest.param({"iat": 4600, "exp": 1000}, DATE, CONFIGURED, id="negative lifetime"),
        pytest.param({"iat": 0, "exp": 10**11}, DATE, CONFIGURED, id="longer than a year"),
        pytest.param({"iat": "1000", "exp": "4600"}, None, CONFIGURED, id="strings"),
        pytest.param({"iat": True, "exp": 4600}, None, CONFIGURED, id="boolean"),
        pytest.param({"iat": 1000, "exp": float("nan")}, None, CONFIGURED, id="not a number"),
        pytest.param({"iat": 1000, "exp": 10**400}, None, CONFIGURED, id="too large for a float"),
        pytest.param({"iat": 1000.5, "exp": 4600.5}, None, 3600, id="fractions"),
    ],
)
def test_lifetime_is_taken_from_claims(claims: dict[str, object], date: str | None, seconds: float) -> None:
    assert lifetime(claims, date, CONFIGURED) == seconds


@pytest.mark.parametrize(
    ("life_seconds", "before", "due"),
    [
        pytest.param(18_000, 600, 117_400, id="ten minutes before expiry"),
        pytest.param(3_600, 600, 103_000, id="ten minutes before an hour"),
        pytest.param(600, 600, 100_300, id="not before half the life"),
        pytest.param(60, 600, 100_030, id="margin longer than the life"),
        pytest.param(1_000, 0, 101_000, id="no margin"),
    ],
)
def test_renewal_is_before_expiry_and_after_half_the_life(life_seconds: float, before: float, due: float) -> None:
    assert renewal_time(100_000.0, life_seconds, before) == due


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After": " 17 "}, 17.0),
        ({"Retry-After": "999999"}, 3600.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
        ({"Retry-After": "Mon, 09 Jun 2014 20:01:30 GMT", "Date": DATE}, 90.0),
        ({"Retry-After": "Mon, 09 Jun 2014 19:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Mon, 09 Jun 2014 20:01:30 GMT"}, None),
    ],
)
def test_retry_after_accepts_seconds_and_dates(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_claims_are_decoded_without_verification() -> None:
    assert decode_claims(jwt({"exp": 1, "api": "k"})) == {"exp": 1, "api": "k"}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "opaque",
        "a.b",
        "a.b.c",
        "a.!!!.c",
        jwt([1]),
        jwt("text"),
        "x." + base64.b64encode(b"[" * 9000).decode() + ".y",
    ],
)
def test_other_tokens_have_no_claims(value: str) -> None:
    assert decode_claims(value) == {}


def test_secrets_are_token_parts_and_private_claims() -> None:
    claims = {
        "api": "the-key",
        "email": "me@example",
        "password": {"hash": "letmeinletmein", "salt": "na-cl"},
        "nick": "S3cret-nick",
        "plan": "premium plan",
        "tickers": ["AAPL-LONG-NAME"],
        "endpoint_paths": ["/real-time/crowd-sentiment"],
        "exp": 12,
    }
    value = jwt(claims)
    secrets = secrets_in(value, claims)
    assert {value, "the-key", "me@example", "letmeinletmein", "na-cl", "S3cret-nick"} <= secrets
    assert not secrets & {"premium plan", "AAPL-LONG-NAME", "/real-time/crowd-sentiment"}
    assert value.split(".")[1] in secrets, "a part of the token is a secret too"


@pytest.mark.parametrize(
    ("feeds", "path", "allowed"),
    [
        (None, "/real-time/tweet-buzz", True),
        (frozenset({"tweet-buzz"}), "/real-time/tweet-buzz", True),
        (frozenset({"tweet-buzz"}), "tweet-buzz", True),
        (frozenset({"tweet-buzz"}), "/real-time/tweet-volume", False),
    ],
)
def test_token_allows_feeds_named_by_claims_or_all(feeds: frozenset[str] | None, path: str, allowed: bool) -> None:
    assert Token(value="t", requested_at=0.0, life_seconds=1.0, feeds=feeds).allows(path) is allowed


def test_repr_does_not_contain_the_token() -> None:
    assert "s3cret" not in repr(Token(value="s3cret", requested_at=1.0, life_seconds=2.0))


@pytest.mark.parametrize(
    ("token_seconds", "failures", "longest"),
    [
        pytest.param(0, 1, 5, id="without a token, first"),
        pytest.param(0, 50, 30, id="without a token"),
        pytest.param(100, 50, 100, id="until the token ends"),
        pytest.param(600, 50, 300, id="while there is a token"),
    ],
)
def test_login_is_tried_again_soon_while_nothing_can_be_received(
    token_seconds: float, failures: int, longest: float
) -> None:
    assert unavailable_backoff(token_seconds).ceiling(failures) == longest
