"""The provider's token: fetch it (requests), know when it must be renewed (pure), renew it (APScheduler).

The token is a secret that contains secrets: its claims repeat the API key, an e-mail address, a password's hash and
salt. They are told to the redactor before anybody else sees the token. Its signature is the provider's business.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

from pydantic import SecretStr

from ingestor.errors import IngestorError, TokenNonsense, TokenRefused, TokenUnavailable
from ingestor.provider.answer import Answer, Deadline, Oversized, Unanswered, ask
from ingestor.provider.backoff import Backoff, chance
from ingestor.provider.catalog import base_name
from ingestor.provider.clock import boottime
from ingestor.redaction import redactor

MAX_BYTES = 64 * 1024  # the largest answer printed in the documentation has 9,311
SPACING_SECONDS = 5.0  # between two logins at least, whatever happens
STRIKE_SECONDS = 60.0  # a token refused sooner than this after its login was never any good
LONGEST_WAIT_SECONDS = 3600.0  # of a Retry-After that we believe
LONGEST_LIFE_SECONDS = 366 * 86400.0
UNAVAILABLE = Backoff(first_seconds=5.0, cap_seconds=300.0)
REFUSED = Backoff(first_seconds=30.0, cap_seconds=900.0)  # a person has to act: no hurry
KEPT_TOKENS = 4  # whose secrets stay masked by value: the current one, those overlapped, and a margin

# Claims that may be shown. All others count as secret.
_PUBLIC = frozenset(
    {"iat", "exp", "nbf", "iss", "aud", "active", "tickers", "rate_limit", "rate_limit_count", "trial_end_at"}
    | {"endpoint_paths", "streaming_endpoint_paths"}
)
_TELLING = re.compile(r"api|key|mail|pass|hash|salt|secret|name|phone|token|address", re.IGNORECASE)
_PLAIN_WORD = re.compile(r"[a-z _-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What opens the socket. Its repr shows nothing of it."""

    value: str = field(repr=False)
    fetched_at: float  # seconds of CLOCK_BOOTTIME at the reply
    life_seconds: float
    feeds: frozenset[str] | None = None  # that the key may use; None where the claims do not say

    def covers(self, path: str) -> bool:
        """Whether the key may use this path, as far as the claims say: they are undocumented, so a no is a warning."""
        return self.feeds is None or base_name(path) in self.feeds

    @property
    def ends_at(self) -> float:
        """Seconds of CLOCK_BOOTTIME after which the provider no longer takes it."""
        return self.fetched_at + self.life_seconds


def life(claims: Mapping[str, object], date: str | None, configured_seconds: float) -> float:
    """How many seconds a token lives: ``exp - iat``, else ``exp`` less the reply's Date, else as configured.

    A result that makes no sense (not positive, over a year) falls back to ``configured_seconds``.
    """
    exp = _number(claims.get("exp"))
    begun = _number(claims.get("iat"))
    if begun is None and date:
        begun = _epoch(date)
    if exp is None or begun is None or not 0 < exp - begun <= LONGEST_LIFE_SECONDS:
        return configured_seconds
    return exp - begun


def renew_at(fetched_at: float, life_seconds: float, renew_before_seconds: float) -> float:
    """When to renew, on the clock of ``fetched_at``: before the end, but never in the first half of the life."""
    return fetched_at + max(life_seconds - renew_before_seconds, life_seconds / 2)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After asks for, 0 to 3600; a date counts from the reply's own Date, as clocks differ."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT_SECONDS)
    until, now = _epoch(text), _epoch(headers.get("Date", ""))
    if until is None or now is None:
        return None
    return min(max(until - now, 0.0), LONGEST_WAIT_SECONDS)


def claims_of(value: str) -> Mapping[str, Any]:
    """What a JWT says, unverified; empty for a token that is not a JWT."""
    parts = value.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def secrets_of(value: str, claims: Mapping[str, Any]) -> frozenset[str]:
    """Every text that must not be seen once this token is here: itself, its parts, and its private claims."""
    parts = {part for part in value.split(".")[1:] if len(part) >= 8}
    return frozenset({value, *parts, *_private(claims)})


def fetch(
    url: str,
    api_key: SecretStr,
    *,
    lifetime_seconds: float,
    timeout_seconds: float = 120.0,
    ca_file: Path | None = None,
    deadline: Deadline | None = None,
) -> Token:
    """Trade the API key for a token, blocking. ``deadline`` lets another thread end the call early.

    Raises:
        TokenRefused: 401 or 403. TokenUnavailable: nothing usable within ``timeout_seconds``, 429, 5xx.
        TokenNonsense: an answer that is not a token (HTML, ``{}``, a redirect, over 64 KiB).
    """
    basic = base64.b64encode(api_key.get_secret_value().encode() + b":").decode()
    headers = {"Authorization": f"Basic {basic}", "Accept": "application/json"}
    try:
        answer = ask(
            "POST",
            url,
            headers=headers,
            deadline=deadline or Deadline(timeout_seconds),
            max_bytes=MAX_BYTES,
            ca_file=ca_file,
        )
    except Oversized as error:
        raise TokenNonsense(f"{url}: {error}") from None
    except Unanswered as error:
        raise TokenUnavailable(f"{url}: {error}") from None
    return _token(url, answer, lifetime_seconds, boottime())


def _token(url: str, answer: Answer, lifetime_seconds: float, now: float) -> Token:
    if answer.status not in (200, 201):
        _refuse(url, answer)
    value = _value(url, answer.body)
    claims = claims_of(value)
    for secret in secrets_of(value, claims):
        redactor.add(secret)
    return Token(
        value=value,
        fetched_at=now,
        life_seconds=life(claims, answer.headers.get("Date"), lifetime_seconds),
        feeds=_feeds(claims),
    )


def _refuse(url: str, answer: Answer) -> NoReturn:
    status = answer.status
    if status in (401, 403):
        raise TokenRefused(f"{url}: HTTP {status}: the API key is not accepted; check provider.api_key_file")
    if status == 429 or status >= 500:
        raise TokenUnavailable(f"{url}: HTTP {status}", retry_after(answer.headers))
    if 300 <= status < 400:
        raise TokenNonsense(f"{url}: HTTP {status}: a redirect, not followed; check provider.url")
    raise TokenNonsense(f"{url}: HTTP {status}; check provider.url and provider.token_path")


def _value(url: str, body: bytes) -> str:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    value = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise TokenNonsense(f'{url}: the answer is not {{"token": "…"}} but {len(body)} bytes of something else')
    return value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _epoch(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _feeds(claims: Mapping[str, object]) -> frozenset[str] | None:
    lists = [claims.get(name) for name in ("endpoint_paths", "streaming_endpoint_paths")]
    paths = [path for one in lists if isinstance(one, list) for path in one if isinstance(path, str)]
    return frozenset(base_name(path) for path in paths) or None


def _private(claims: Mapping[str, Any]) -> Iterator[str]:
    for name, value in claims.items():
        if name not in _PUBLIC:
            for text in _leaves(value):
                # An ordinary word under an ordinary name would mask half of every log line.
                if len(text) >= 4 if _TELLING.search(name) else len(text) >= 8 and not _PLAIN_WORD.fullmatch(text):
                    yield text


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


class Lifetime(Protocol):
    """What ``config.provider.token`` says, in seconds."""

    @property
    def lifetime(self) -> float: ...
    @property
    def renew_before(self) -> float: ...
    @property
    def timeout(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """The supply as status and metrics show it. Times are seconds from now; None without a token."""

    ends_in_seconds: float | None
    renews_in_seconds: float | None
    life_seconds: float | None
    logins: Mapping[str, int]  # by outcome: ok, refused, unavailable, nonsense
    last_error: str


class TokenSupply:
    """The token that everybody uses: one login at a time, five seconds apart at least, renewed in time.

    ``renewed`` and ``failed`` are told of every login's outcome; ``failed`` also of the seconds until the next try.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        life: Lifetime,
        scheduler: Any,  # APScheduler's AsyncIOScheduler, started and stopped by the service
        *,
        ca_file: Path | None = None,
        spacing_seconds: float = SPACING_SECONDS,
    ) -> None:
        self.renewed: list[Callable[[Token], None]] = []
        self.failed: list[Callable[[IngestorError, float], None]] = []
        self._url = url
        self._api_key = api_key
        self._life = life
        self._scheduler = scheduler
        self._ca_file = ca_file
        self._spacing = spacing_seconds
        self._token: Token | None = None
        self._flight: asyncio.Task[Token] | None = None
        self._not_before = 0.0  # boottime of the next login at the earliest
        self._failures = 0
        self._strikes = 0  # tokens in a row that were refused as soon as they were shown
        self._logins: Counter[str] = Counter()
        self._last_error = ""
        self._masked: deque[frozenset[str]] = deque()

    @property
    def current(self) -> Token | None:
        """The newest token that was not refused; it may have ended."""
        return self._token

    async def get(self, *, fresh: bool = False) -> Token:
        """The current token, or with ``fresh`` a new one. Waits its turn after failures.

        Raises:
            TokenRefused, TokenUnavailable: this login failed. Ask again at once: the next one waits as long as it must.
        """
        if not fresh and self._token is not None and boottime() < self._token.ends_at:
            return self._token
        if self._flight is None:
            self._flight = asyncio.create_task(self._login(), name="token login")
            self._flight.add_done_callback(self._landed)
        return await asyncio.shield(self._flight)

    def discard(self, token: Token) -> None:
        """This token was refused: never hand it out again. One fresh one comes at once, further ones ever later."""
        if self._token != token:
            return  # somebody else was refused with it before, and there is a newer one
        self._token = None
        now = boottime()
        self._strikes = self._strikes + 1 if now - token.fetched_at < STRIKE_SECONDS else 0
        if self._strikes:
            self._not_before = max(self._not_before, now + UNAVAILABLE.half_jitter(self._strikes, chance()))

    def rearm(self) -> None:
        """Set the renewal's time anew. To be called after a step of the wall clock, which APScheduler follows."""
        if self._token is not None:
            self._arm(self._token)

    def status(self) -> TokenStatus:
        """A snapshot. Nothing in it is secret."""
        now, token = boottime(), self._token
        return TokenStatus(
            ends_in_seconds=token.ends_at - now if token else None,
            renews_in_seconds=self._due(token) - now if token else None,
            life_seconds=token.life_seconds if token else None,
            logins=MappingProxyType(dict(self._logins)),
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """End a login that is under way."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait([self._flight])

    def _landed(self, flight: asyncio.Task[Token]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # told to listeners already; asyncio must not report it as never retrieved

    async def _login(self) -> Token:
        await asyncio.sleep(max(0.0, self._not_before - boottime()))
        self._not_before = boottime() + self._spacing
        try:
            token = await self._fetch()
        except (TokenRefused, TokenUnavailable) as error:
            self._fail(error)
            raise
        self._take(token)
        return token

    async def _fetch(self) -> Token:
        deadline = Deadline(self._life.timeout)
        login = partial(
            fetch,
            self._url,
            self._api_key,
            lifetime_seconds=self._life.lifetime,
            ca_file=self._ca_file,
            deadline=deadline,
        )
        try:
            return await _aside(login)
        except asyncio.CancelledError:
            deadline.cut()  # the thread cannot be cancelled, but its socket can
            raise

    def _take(self, token: Token) -> None:
        self._token = token
        self._failures = 0
        self._last_error = ""
        self._logins["ok"] += 1
        self._masked.append(secrets_of(token.value, claims_of(token.value)))
        while len(self._masked) > KEPT_TOKENS:
            for secret in self._masked.popleft():
                redactor.forget(secret)
        self._arm(token)
        for tell in self.renewed:
            tell(token)

    def _fail(self, error: TokenRefused | TokenUnavailable) -> None:
        self._failures += 1
        backoff = REFUSED if isinstance(error, TokenRefused) else UNAVAILABLE
        asked = error.retry_after_seconds if isinstance(error, TokenUnavailable) else None
        wait = max(backoff.half_jitter(self._failures, chance()), asked or 0.0)
        self._not_before = max(self._not_before, boottime() + wait)
        self._last_error = redactor.scrub(str(error))
        self._logins[_outcome(error)] += 1
        if self._token is not None:
            self._arm(self._token)
        for tell in self.failed:
            tell(error, wait)

    def _due(self, token: Token) -> float:
        return max(renew_at(token.fetched_at, token.life_seconds, self._life.renew_before), self._not_before)

    def _arm(self, token: Token) -> None:
        self._scheduler.add_job(
            self._renew,
            "date",
            run_date=datetime.now(UTC) + timedelta(seconds=max(0.0, self._due(token) - boottime())),
            id="token renewal",
            replace_existing=True,
            max_instances=1,
            misfire_grace_time=None,  # else a job that is a second late is dropped for ever
            coalesce=True,
        )

    async def _renew(self) -> None:
        token = self._token
        if token is not None and boottime() < self._due(token) - 1:
            self._arm(token)  # the wall clock was set forward; the token's life was not
            return
        try:
            await self.get(fresh=True)
        except (TokenRefused, TokenUnavailable):
            pass  # listeners were told, and the next try is armed


async def _aside(login: Callable[[], Token]) -> Token:
    """Run it in a daemon thread: the end of the process waits for the loop's own threads, and a connect into nothing
    cannot be cut.
    """
    loop = asyncio.get_running_loop()
    landed: asyncio.Future[Token] = loop.create_future()

    def run() -> None:
        try:
            tell = partial(landed.set_result, login())
        except Exception as error:
            tell = partial(landed.set_exception, error)
        try:
            loop.call_soon_threadsafe(lambda: landed.done() or tell())
        except RuntimeError:
            pass  # the loop has ended, and nobody waits any more

    threading.Thread(target=run, name="token login", daemon=True).start()
    return await landed


def _outcome(error: TokenRefused | TokenUnavailable) -> str:
    if isinstance(error, TokenRefused):
        return "refused"
    return "nonsense" if isinstance(error, TokenNonsense) else "unavailable"
