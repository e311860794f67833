"""The token that all connections share: fetched when there is none, renewed in time, logins rate-limited."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from ingestor.config.model import TokenConfig
from ingestor.config.secret_file import SecretFile
from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime
from ingestor.core.permit import Permit
from ingestor.core.redaction import redactor
from ingestor.core.threads import run_in_daemon_thread
from ingestor.errors import IngestorError, InvalidTokenResponse, TokenRefused, TokenUnavailable
from ingestor.provider.auth.api_key import ApiKey
from ingestor.provider.auth.claims import Token, decode_claims, renewal_time, secrets_in
from ingestor.provider.auth.login import fetch_token
from ingestor.provider.transport import describe_error

LOGIN_SPACING_SECONDS = 5.0  # between two logins, whatever happens
RAPID_REJECTION_SECONDS = 60.0  # a token rejected sooner than this after its login was never valid
UNAVAILABLE_BACKOFF = Backoff(first_seconds=5.0, cap_seconds=300.0)
MAX_WAIT_WITHOUT_TOKEN_SECONDS = 30.0  # nothing can be received meanwhile
REFUSED_BACKOFF = Backoff(first_seconds=30.0, cap_seconds=900.0)  # slow, because only a person can fix it
KEPT_TOKENS = 4  # whose secrets stay masked: the current one, those it overlaps with, and a margin


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """The state of a TokenSource for status and metrics. Times are seconds from now; None without a token."""

    expires_in_seconds: float | None
    renews_in_seconds: float | None
    life_seconds: float | None
    key_refused: bool  # by the last login
    logins: Mapping[str, int]  # by outcome: ok, refused, unavailable, nonsense
    last_error: str


def unavailable_backoff(token_seconds: float) -> Backoff:
    """Return the backoff of a login that failed while a token is valid for so long: it ends soon after the token."""
    cap_seconds = max(token_seconds, MAX_WAIT_WITHOUT_TOKEN_SECONDS)
    return replace(UNAVAILABLE_BACKOFF, cap_seconds=min(UNAVAILABLE_BACKOFF.cap_seconds, cap_seconds))


class TokenSource:
    """The token that all connections share. Logs in once at a time, five seconds apart at least.

    ``on_renewed`` listeners receive each new token. ``on_failed`` listeners receive each error, including that of an
    unusable key file, and the seconds until the next login. While the provider refuses the key, its file is polled, and
    a new key in it is used at once.
    """

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        settings: TokenConfig,
        run_at: Callable[[str, Callable[[], Awaitable[object]], float], None],  # see ``JobScheduler.at``
        *,
        ca_file: Path | None = None,
        proxy: SecretStr | None = None,
        key_file: SecretFile | None = None,  # where ``api_key`` was read from
        spacing_seconds: float = LOGIN_SPACING_SECONDS,
        permit: Permit | None = None,  # no login without it
    ) -> None:
        self.on_renewed: list[Callable[[Token], None]] = []
        self.on_failed: list[Callable[[IngestorError, float], None]] = []
        self.api_key = ApiKey(api_key, key_file)
        self.api_key.on_changed.append(self._reset_backoff)
        self._settings = settings
        self._run_at = run_at
        self._fetch_token = partial(
            fetch_token,
            url,
            lifetime_seconds=settings.lifetime,
            timeout_seconds=settings.timeout,
            ca_file=ca_file,
            proxy=proxy,
        )
        self._spacing = spacing_seconds
        self._permit = permit or Permit()
        self.current: Token | None = None  # the newest token that was not rejected; it may have expired
        self._received_at = 0.0  # boottime of the current token's response
        self._login_task: asyncio.Task[Token] | None = None
        self._not_before = 0.0  # boottime of the next login at the earliest
        self._spaced_at = 0.0  # the same without the backoff of failures
        self._wake = asyncio.Event()  # ``_not_before`` was brought forward
        self._key_refused = False  # by the last login
        self._failures = 0
        self._rapid_rejections = 0  # tokens in a row that were rejected soon after their login
        self._logins: Counter[str] = Counter()
        self._last_error = ""
        self._masked: deque[frozenset[str]] = deque()

    async def get(self, *, fresh: bool = False) -> Token:
        """Return the current token or, with ``fresh``, a new one. Waits for the backoff of earlier failures, and for
        the permit.

        Raises TokenRefused or TokenUnavailable if it failed. Call again at once: the next one waits as long as needed.
        """
        if not fresh and self.current is not None and boottime() < self.current.expires_at:
            return self.current
        if self._login_task is None:
            self._login_task = asyncio.create_task(self._login(), name="token login")
            self._login_task.add_done_callback(self._on_login_done)
        return await asyncio.shield(self._login_task)

    def discard(self, token: Token) -> None:
        """Never return this token again: the server rejected it.

        The first replacement is fetched at once. The delay grows while replacements are rejected soon after login.
        """
        if self.current != token:
            return  # already replaced: another connection was rejected with it
        self.current = None
        now = boottime()
        rapid = now - self._received_at < RAPID_REJECTION_SECONDS
        self._rapid_rejections = self._rapid_rejections + 1 if rapid else 0
        if rapid:
            delay = UNAVAILABLE_BACKOFF.equal_jitter(self._rapid_rejections, chance())
            self._not_before = max(self._not_before, now + delay)

    @property
    def _token_seconds(self) -> float:
        """For how long the current token is valid; 0 if it has expired or there is none."""
        return max(0.0, self.current.expires_at - boottime()) if self.current else 0.0

    def status(self) -> TokenState:
        """Return a snapshot that contains no secret."""
        now, token = boottime(), self.current
        return TokenState(
            expires_in_seconds=token.expires_at - now if token else None,
            renews_in_seconds=self._renewal_due(token) - now if token else None,
            life_seconds=token.life_seconds if token else None,
            key_refused=self._key_refused,
            logins=dict(self._logins),
            last_error=self._last_error,
        )

    async def close(self) -> None:
        """Abandon a login in progress and stop polling the key file."""
        self.api_key.unwatch()
        if self._login_task is not None:
            self._login_task.cancel()
            await asyncio.wait([self._login_task])

    def _on_login_done(self, task: asyncio.Task[Token]) -> None:
        self._login_task = None
        if not task.cancelled():
            task.exception()  # listeners have it; retrieve it, so that asyncio does not report it

    async def _login(self) -> Token:
        await self._wait_for_slot()
        while not self._permit.held:
            await self._permit.wait()
            await self._wait_for_slot()
        api_key = self.api_key.value
        try:
            token = await self._fetch(api_key)
        except (TokenRefused, TokenUnavailable) as error:
            self._handle_failure(error)
            if api_key is not self.api_key.value:
                self._reset_backoff()  # the provider refused the old key, not the new one
            raise
        self._handle_success(token)
        return token

    async def _wait_for_slot(self) -> None:
        """Wait until the next login is due. ``_not_before`` may move in either direction meanwhile."""
        while (left := self._not_before - boottime()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                pass  # due, unless it was postponed

    async def _fetch(self, api_key: SecretStr) -> Token:
        try:
            return await run_in_daemon_thread(partial(self._fetch_token, api_key), "token login")
        except OSError as error:  # no thread
            raise TokenUnavailable(describe_error(error)) from None
        finally:
            # Counted from the end of a login, because the server may have received the request at any time before.
            self._spaced_at = boottime() + self._spacing
            self._not_before = max(self._not_before, self._spaced_at)

    def _handle_success(self, token: Token) -> None:
        self.current = token
        self._received_at = boottime()
        self._failures = 0
        self._key_refused = False
        self.api_key.unwatch()
        self._last_error = ""
        self._logins["ok"] += 1
        self._masked.append(secrets_in(token.value, decode_claims(token.value)))
        while len(self._masked) > KEPT_TOKENS:
            for secret in self._masked.popleft():
                redactor.remove(secret)
        self._schedule_renewal()
        for listener in self.on_renewed:
            listener(token)

    def _handle_failure(self, error: TokenRefused | TokenUnavailable) -> None:
        self._failures += 1
        self._key_refused = isinstance(error, TokenRefused)
        if isinstance(error, TokenRefused):
            outcome, backoff, retry_after = "refused", REFUSED_BACKOFF, 0.0
            self.api_key.watch(self._report)
        else:
            outcome = "nonsense" if isinstance(error, InvalidTokenResponse) else "unavailable"
            backoff, retry_after = unavailable_backoff(self._token_seconds), error.retry_after_seconds or 0.0
            self.api_key.unwatch()
        self._logins[outcome] += 1
        delay = max(backoff.equal_jitter(self._failures, chance()), retry_after)
        self._not_before = max(self._not_before, boottime() + delay)
        self._schedule_renewal()
        self._report(error)

    def _report(self, error: IngestorError) -> None:
        self._last_error = redactor.scrub(str(error))
        for listener in self.on_failed:
            listener(error, max(0.0, self._not_before - boottime()))

    def _reset_backoff(self) -> None:
        """Drop the backoff for a refused key, because the key changed: the next login waits for the spacing only."""
        if self._key_refused:
            self._key_refused = False
            self._failures = 0
            self._not_before = self._spaced_at
            self._wake.set()
            self._schedule_renewal()

    def _renewal_due(self, token: Token) -> float:
        return max(renewal_time(token.requested_at, token.life_seconds, self._settings.renew_before), self._not_before)

    def _schedule_renewal(self) -> None:
        if self.current is not None:
            self._run_at("token renewal", self._renew, self._renewal_due(self.current))

    async def _renew(self) -> None:
        try:
            await self.get(fresh=True)
        except (TokenRefused, TokenUnavailable):
            pass  # listeners have the error, and the next attempt is scheduled
