"""JWTs like the provider's: signed, of any size, and full of secrets that must not be seen anywhere else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any, Literal

from ingestor.provider import catalog

TimeClaims = Literal["iat+exp", "exp", "none"]  # all three were printed or must be reckoned with


class TokenIssuer:
    """Issues tokens, and knows those that are still good. Lifetimes run on CLOCK_BOOTTIME."""

    def __init__(self, api_key: str, *, lifetime_seconds: float, stamps: TimeClaims, token_bytes: int | None) -> None:
        self.lifetime_seconds = lifetime_seconds
        self.stamps = stamps
        self.token_bytes = token_bytes
        self._api_key = api_key
        self._secret = secrets.token_bytes(32)
        self._expires_at: dict[str, float] = {}

    def issue(self) -> str:
        """A new token, good from now on."""
        now = _boot_seconds()
        self._expires_at = {token: at for token, at in self._expires_at.items() if at > now}
        token = self._sign(_fitted(self._claims(), self.token_bytes))
        self._expires_at[token] = now + self.lifetime_seconds
        return token

    def complaint(self, token: str | None) -> str | None:
        """Why the token is not accepted, in the words of the usual JWT library; None if it is."""
        if not token:
            return "no token given"
        remaining = self.remaining_seconds(token)
        if remaining is None:
            return "invalid signature"
        return None if remaining > 0 else "jwt expired"

    def remaining_seconds(self, token: str) -> float | None:
        """How long the token is still good; None for one that is not ours or was revoked."""
        expires_at = self._expires_at.get(token)
        return None if expires_at is None else expires_at - _boot_seconds()

    def revoke(self) -> None:
        """No token issued so far is good any longer."""
        self._expires_at.clear()

    def _claims(self) -> dict[str, Any]:
        issued_at = int(time.time())
        claims: dict[str, Any] = {"iat": issued_at} if self.stamps == "iat+exp" else {}
        if self.stamps != "none":
            claims["exp"] = issued_at + self.lifetime_seconds
        streams = list(catalog.STREAMS)
        paths = [path for path in catalog.PATHS if path not in catalog.STREAMS]
        return claims | {
            "id": secrets.token_hex(4),  # two tokens of one second differ
            "api": self._api_key,
            "email": f"{secrets.token_hex(5)}@example.invalid",
            "salt": secrets.token_hex(8),
            "password": secrets.token_hex(32),
            "active": True,
            "rate_limit": 1000,
            "streaming_endpoint_paths": streams,
            "endpoint_paths": paths,
        }

    def _sign(self, claims: dict[str, Any]) -> str:
        body = f"{_part({'typ': 'JWT', 'alg': 'HS256'})}.{_part(claims)}"
        signature = hmac.digest(self._secret, body.encode(), hashlib.sha256)
        return f"{body}.{_text(signature)}"


def _fitted(claims: dict[str, Any], token_bytes: int | None) -> dict[str, Any]:
    """The claims so that the token has about this many bytes (3 to spare): fewer of them, or more tickers."""
    if token_bytes is None:
        return claims
    room = (token_bytes - 81) * 3 // 4  # without header, signature and dots, before base64
    kept = dict(claims)
    for name in reversed(claims):
        if len(_json(kept)) > room and name not in ("api", "id", "iat", "exp"):
            del kept[name]
    padding = room - len(_json(kept)) - len(',"tickers":""')
    return kept | {"tickers": ("AAPL,TSLA,6E_F," * (padding // 15 + 1))[:padding]} if padding > 0 else kept


def _boot_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _part(value: dict[str, Any]) -> str:
    return _text(_json(value))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
