"""The connected clients and their subscriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ingestor.simulator.rest_api import BadRequest


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """What a client sends with ``subscribe`` or ``unsubscribe``."""

    sid: str  # the Socket.IO session
    path: str
    method: str
    params: Mapping[str, str]
    key: str = field(init=False)  # two requests of a session with the same key are one subscription

    def __post_init__(self) -> None:
        # Computed once: every tick looks at thousands of subscriptions.
        object.__setattr__(self, "key", json.dumps([self.path, dict(self.params)], sort_keys=True))


@dataclass(slots=True)
class ClientSession:
    """One connected client."""

    sid: str
    request: web.Request  # of its transport
    token: str = field(repr=False)
    subscriptions: dict[str, SubscribeRequest] = field(default_factory=dict)  # by key
    last_bucket: dict[str, int] = field(default_factory=dict)  # the newest that was sent, by key

    def add(self, request: SubscribeRequest) -> None:
        """Add a subscription. Subscribing again starts it from the beginning."""
        self.subscriptions[request.key] = request
        self.last_bucket.pop(request.key, None)


def parse_request(sid: str, payload: Any) -> SubscribeRequest:
    """Parse the payload of ``subscribe`` and ``unsubscribe``. Raises BadRequest."""
    if not isinstance(payload, dict) or not isinstance(payload.get("path"), str):
        raise BadRequest("Missing required parameter: path")
    params = payload.get("params") or {}
    if not isinstance(params, dict):
        raise BadRequest("Invalid parameter: params")
    return SubscribeRequest(sid, payload["path"], str(payload.get("method") or "get"), params)
