"""Who is connected, and what each has asked for. Knows nothing of the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ingestor.simulator.rest_api import BadRequest


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """One subscription that a client has made."""

    sid: str  # the Socket.IO session
    path: str
    method: str
    params: Mapping[str, str]
    key: str = field(init=False)  # what makes it the same subscription as another of its session

    def __post_init__(self) -> None:
        # Once: thousands of subscriptions are looked at with every tick.
        object.__setattr__(self, "key", json.dumps([self.path, dict(self.params)], sort_keys=True))

    @property
    def names(self) -> set[str]:
        """What a test may call it by: its path, its ticker."""
        return {self.path, self.params.get("ticker", self.path)}


@dataclass(slots=True)
class ClientSession:
    """One connected client."""

    sid: str
    request: web.Request  # of the handshake
    token: str = field(repr=False)
    asked: dict[str, SubscribeRequest] = field(default_factory=dict)
    last_bucket: dict[str, int] = field(default_factory=dict)  # the newest that was sent, by the key of what was asked

    def add(self, asked: SubscribeRequest) -> None:
        """Take a subscription. One that is there already is answered anew."""
        self.asked[asked.key] = asked
        self.last_bucket.pop(asked.key, None)

    def remove(self, asked: SubscribeRequest) -> None:
        """Forget a subscription. Raises BadRequest if there is none."""
        if self.asked.pop(asked.key, None) is None:
            raise BadRequest("Not subscribed")


def parse_request(sid: str, wanted: Any) -> SubscribeRequest:
    """What a client sends with ``subscribe`` and ``unsubscribe``. Raises BadRequest."""
    if not isinstance(wanted, dict) or not isinstance(wanted.get("path"), str):
        raise BadRequest("Missing required parameter: path")
    params = wanted.get("params") or {}
    if not isinstance(params, dict):
        raise BadRequest("Invalid parameter: params")
    return SubscribeRequest(sid, wanted["path"], str(wanted.get("method") or "get"), params)
