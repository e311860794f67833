"""The token that everybody uses: fetched when there is none, renewed in time, and never asked for in a hurry."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pydantic import SecretStr

from ingestor.config import SecretFile
from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import IngestorError, InvalidTokenResponse, TokenRefused, TokenUnavailable
from ingestor.provider.auth.api_key import ApiKey
from ingestor.provider.auth.claims import Token, decode_claims, renewal_time, secrets_in
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.http_client import Deadline

LOGIN_SPACING_SECONDS = 5.0  # between two logins at least, whatever happens
RAPID_REJECTION_SECONDS = 60.0  # a token refused sooner than this after its login was never any good
UNAVAILABLE_BACKOFF = Backoff(first_seconds=5.0, cap_seconds=300.0)
REFUSED_BACKOFF = Backoff(first_seconds=30.0, cap_seconds=900.0)  # a person has to act: no hurry
KEPT_TOKENS = 4  # whose secrets stay masked by value: the current one, those overlapped, and a margin


class TokenSettings(Protocol):
    """What ``config.provider.token`` says, in seconds."""

    @property
    def lifetime(self) -> float: ...
    @property
    def renew_before(self) -> float: ...
    @property
    def timeout(self) -> float: ...


class RenewalScheduler(Protocol):
    """What runs the renewal: the daemon's ``JobScheduler``."""

    def at(self, name: str, job: Callable[[], Awaitable[object]], due_at: float) -> None:
        """Run ``job`` at the boottime ``due_at``, in place of an earlier job of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """The supply as status and metrics show it. Times are seconds from now; None without a token."""

    expires_in_seconds: float | None
    renews_in_seconds: float | None
    life_seconds: float | None
    logins: Mapping[str, int]  # by outcome: ok, refused, unavailable, nonsense
    last_error: str


class TokenSource:
    """The token that everybody uses: one login at a time, five seconds apart at least, renewed in time.

    ``renewed`` and ``failed`` are told of every login's outcome; ``failed`` also of the seconds until the next try, and
    of a key's file that cannot be used. While the provider refuses the key, another one in that file is used at once.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        life: TokenSettings,
        scheduler: RenewalScheduler,
        *,
        ca_file: Path | None = None,
        proxy: SecretStr | None = None,
        key_file: SecretFile | None = None,  # that ``api_key`` was read from
        spacing_seconds: float = LOGIN_SPACING_SECONDS,
    ) -> None:
        self.on_renewed: list[Callable[[Token], None]] = []
        self.on_failed: list[Callable[[IngestorError, float], None]] = []
        self.api_key = ApiKey(api_key, key_file)
        self.api_key.on_changed.append(self._pardon)
        self._url = url
        self._life = life
        self._scheduler = scheduler
        self._ca_file = ca_file
        self._proxy = proxy
        self._spacing = spacing_seconds
        self._token: Token | None = None
        self._flight: asyncio.Task[Token] | None = None
        self._not_before = 0.0  # boottime of the next login at the earliest
        self._spaced_at = 0.0  # the same, were there no failure
        self._sooner = asyncio.Event()  # it has been brought forward
        self._key_refused = False  # by the last login
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
        if not fresh and self._token is not None and boottime() < self._token.expires_at:
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
        self._strikes = self._strikes + 1 if now - token.fetched_at < RAPID_REJECTION_SECONDS else 0
        if self._strikes:
            self._not_before = max(self._not_before, now + UNAVAILABLE_BACKOFF.equal_jitter(self._strikes, chance()))

    def status(self) -> TokenState:
        """A snapshot. Nothing in it is secret."""
        now, token = boottime(), self._token
        return TokenState(
            expires_in_seconds=token.expires_at - now if token else None,
            renews_in_seconds=self._due(token) - now if token else None,
            life_seconds=token.life_seconds if token else None,
            logins=MappingProxyType(dict(self._logins)),
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """End a login that is under way, and look at no file any more."""
        self.api_key.unwatch()
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait([self._flight])

    def _landed(self, flight: asyncio.Task[Token]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # told to listeners already; asyncio must not report it as never retrieved

    async def _login(self) -> Token:
        await self._turn()
        api_key = self.api_key.value
        try:
            token = await self._fetch(api_key)
        except (TokenRefused, TokenUnavailable) as error:
            self._fail(error)
            if api_key is not self.api_key.value:
                self._pardon()  # the refusal was not the new key's
            raise
        self._take(token)
        return token

    async def _turn(self) -> None:
        """Wait until the next login may begin, which may be put off or brought forward meanwhile."""
        while (left := self._not_before - boottime()) > 0:
            self._sooner.clear()
            try:
                async with asyncio.timeout(left):
                    await self._sooner.wait()
            except TimeoutError:
                pass  # it is time, unless it was put off

    async def _fetch(self, api_key: SecretStr) -> Token:
        deadline = Deadline(self._life.timeout)
        login = partial(
            fetch_token,
            self._url,
            api_key,
            lifetime_seconds=self._life.lifetime,
            ca_file=self._ca_file,
            proxy=self._proxy,
            deadline=deadline,
        )
        try:
            return await run_in_daemon_thread(login, "token login")
        except asyncio.CancelledError:
            deadline.cut()  # the thread cannot be cancelled, but its socket can
            raise
        finally:
            # From its end on: of a login's beginning nobody but us knows how long it was on its way.
            self._spaced_at = boottime() + self._spacing
            self._not_before = max(self._not_before, self._spaced_at)

    def _take(self, token: Token) -> None:
        self._token = token
        self._failures = 0
        self._key_refused = False
        self.api_key.unwatch()
        self._last_error = ""
        self._logins["ok"] += 1
        self._masked.append(secrets_in(token.value, decode_claims(token.value)))
        while len(self._masked) > KEPT_TOKENS:
            for secret in self._masked.popleft():
                redactor.forget(secret)
        self._arm(token)
        for tell in self.on_renewed:
            tell(token)

    def _fail(self, error: TokenRefused | TokenUnavailable) -> None:
        self._failures += 1
        backoff = REFUSED_BACKOFF if isinstance(error, TokenRefused) else UNAVAILABLE_BACKOFF
        asked = error.retry_after_seconds if isinstance(error, TokenUnavailable) else None
        wait = max(backoff.equal_jitter(self._failures, chance()), asked or 0.0)
        self._not_before = max(self._not_before, boottime() + wait)
        self._logins[_outcome(error)] += 1
        self._key_refused = isinstance(error, TokenRefused)
        if self._key_refused:
            self.api_key.watch(self._complain)
        else:
            self.api_key.unwatch()
        if self._token is not None:
            self._arm(self._token)
        self._complain(error)

    def _complain(self, error: IngestorError) -> None:
        self._last_error = redactor.scrub(str(error))
        for tell in self.on_failed:
            tell(error, max(0.0, self._not_before - boottime()))

    def _pardon(self) -> None:
        """The key is another: what its predecessor's refusal has put off is due as soon as the spacing allows."""
        if self._key_refused:
            self._key_refused = False
            self._failures = 0
            self._not_before = self._spaced_at
            self._sooner.set()
            if self._token is not None:
                self._arm(self._token)

    def _due(self, token: Token) -> float:
        return max(renewal_time(token.fetched_at, token.life_seconds, self._life.renew_before), self._not_before)

    def _arm(self, token: Token) -> None:
        self._scheduler.at("token renewal", self._renew, self._due(token))

    async def _renew(self) -> None:
        try:
            await self.get(fresh=True)
        except (TokenRefused, TokenUnavailable):
            pass  # listeners were told, and the next try is armed


def _outcome(error: TokenRefused | TokenUnavailable) -> str:
    if isinstance(error, TokenRefused):
        return "refused"
    return "nonsense" if isinstance(error, InvalidTokenResponse) else "unavailable"
