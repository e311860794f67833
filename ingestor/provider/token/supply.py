"""The token that everybody uses: fetched when there is none, renewed in time, and never asked for in a hurry."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import SecretStr

from ingestor.errors import IngestorError, TokenNonsense, TokenRefused, TokenUnavailable
from ingestor.provider.answer import Deadline
from ingestor.provider.backoff import Backoff, chance
from ingestor.provider.clock import boottime
from ingestor.provider.token.claims import Token, claims_of, renew_at, secrets_of
from ingestor.provider.token.login import fetch
from ingestor.redaction import redactor

SPACING_SECONDS = 5.0  # between two logins at least, whatever happens
STRIKE_SECONDS = 60.0  # a token refused sooner than this after its login was never any good
UNAVAILABLE = Backoff(first_seconds=5.0, cap_seconds=300.0)
REFUSED = Backoff(first_seconds=30.0, cap_seconds=900.0)  # a person has to act: no hurry
KEPT_TOKENS = 4  # whose secrets stay masked by value: the current one, those overlapped, and a margin


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
