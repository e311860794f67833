"""JWTs like the provider's: signed, and full of secrets that must not appear anywhere else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from ingestor.core.clock import boottime
from ingestor.provider import catalog


class TokenIssuer:
    """Issues tokens and remembers which are valid. Lifetimes run on CLOCK_BOOTTIME."""

    def __init__(self, api_key: str, lifetime_seconds: float) -> None:
        self.lifetime_seconds = lifetime_seconds
        self._api_key = api_key
        self._secret = secrets.token_bytes(32)
        self._expires_at: dict[str, float] = {}

    def issue(self) -> str:
        """Return a new token, valid from now on."""
        now = boottime()
        self._expires_at = {token: at for token, at in self._expires_at.items() if at > now}
        body = f"{_encode({'typ': 'JWT', 'alg': 'HS256'})}.{_encode(self._claims())}"
        token = f"{body}.{_base64(hmac.digest(self._secret, body.encode(), hashlib.sha256))}"
        self._expires_at[token] = now + self.lifetime_seconds
        return token

    def why_rejected(self, token: str) -> str | None:
        """Return why the token is rejected, in the words of the usual JWT library; None if it is valid."""
        if not token:
            return "no token given"
        if token not in self._expires_at:
            return "invalid signature"
        return None if self.remaining_seconds(token) > 0 else "jwt expired"

    def remaining_seconds(self, token: str) -> float:
        """Return how long the token is still valid; 0 or less if it is expired or unknown."""
        return self._expires_at.get(token, 0.0) - boottime()

    def _claims(self) -> dict[str, Any]:
        issued_at = int(time.time())
        return {
            "iat": issued_at,
            "exp": issued_at + self.lifetime_seconds,
            "id": secrets.token_hex(4),  # so that two tokens of one second differ
            "api": self._api_key,
            "email": f"{secrets.token_hex(5)}@example.invalid",
            "salt": secrets.token_hex(8),
            "password": secrets.token_hex(32),
            "active": True,
            "rate_limit": 1000,
            "streaming_endpoint_paths": list(catalog.STREAMS),
            "endpoint_paths": [path for path in catalog.PATHS if path not in catalog.STREAMS],
        }


def _encode(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
