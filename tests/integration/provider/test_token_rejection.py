"""A token that is refused during the handshake, in each way in which a server can refuse it."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise
from typing import Literal

import pytest
from aiohttp import web

from ingestor.config.model import Subscription
from ingestor.core.backoff import Backoff
from ingestor.provider.auth import token_source
from ingestor.provider.subscriptions import connection_group

from .raw_engineio_server import ClientSocket, Memory, RawServer
from .running_supervisor import StartSupervisor

Stage = Literal["probe", "websocket", "packet"]
PATHS = ("crowd-sentiment", "tweet-buzz", "tweet-volume")
SUBSCRIPTIONS = [Subscription(f"/real-time/{path}", "get", {"ticker": "AAPL"}) for path in PATHS]


class RejectingServer(RawServer):
    """Issues token-1, token-2, …, and refuses the first ``refusals`` of them."""

    def __init__(self, refusals: int, stage: Stage, answer: int | str, generation: str) -> None:
        super().__init__(ClientSocket.acknowledge, generation=generation)
        self.refusals = refusals
        self.login_times: list[float] = []
        self.shown: list[str] = []  # the tokens of all requests, in order
        self._stage = stage
        self._answer = answer

    async def _login(self, _: web.Request) -> web.Response:
        self.login_times.append(asyncio.get_running_loop().time())
        return web.json_response({"token": f"token-{len(self.login_times)}"})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        token = request.query["token"]
        self.shown.append(token)
        here = (request.query["transport"] == "polling") == (self._stage == "probe")
        if not here or int(token.removeprefix("token-")) > self.refusals:
            return await super()._serve(request)
        if isinstance(self._answer, int):
            return web.Response(status=self._answer, text="no")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(f"0{self._open}")
        if self._generation == "4":
            await socket.receive_str()  # "40"
        await socket.send_str(self._answer)
        await socket.receive()
        return socket


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_group, "RECONNECT", Backoff(first_seconds=0.02, cap_seconds=0.05))
    monkeypatch.setattr(connection_group, "RECONNECT_AFTER_RESTART", Backoff(first_seconds=0.02, cap_seconds=0.05))


REFUSALS = [
    pytest.param("probe", 401, "4", id="probe, 401"),
    pytest.param("probe", 403, "4", id="probe, 403"),
    pytest.param("websocket", 401, "4", id="handshake, 401"),
    pytest.param("websocket", 403, "3", id="handshake, 403"),
    pytest.param("packet", '44{"message":"jwt expired"}', "4", id="connect_error of 3.x and 4.x"),
    pytest.param("packet", '44"not authorized"', "3", id="ERROR of 1.x and 2.x"),
]


@pytest.mark.parametrize(("stage", "answer", "generation"), REFUSALS)
async def test_rejected_token_is_replaced_at_once(
    run: StartSupervisor,
    memory: Memory,
    stage: Stage,
    answer: int | str,
    generation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A test that waits for this backoff fails: the replacement must be fetched at once.
    monkeypatch.setattr(token_source, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=60, cap_seconds=60))
    monkeypatch.setattr(
        token_source, "RAPID_REJECTION_SECONDS", 0.0
    )  # as if the refused token had been valid for a while
    async with RejectingServer(1, stage, answer, generation) as server:
        await run(server.url, "any", SUBSCRIPTIONS[:1])
        await memory.until(lambda: memory.facts("subscribed"))
    assert len(server.login_times) == 2
    assert server.shown == sorted(server.shown), "a refused token is never used again"
    assert re.search("refused the token|not accept the token", memory.facts("connect_failed")[0].detail["reason"])


async def test_repeated_rejections_slow_down_logins(
    run: StartSupervisor, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_source, "UNAVAILABLE_BACKOFF", Backoff(first_seconds=0.4, cap_seconds=10))
    async with RejectingServer(4, "packet", '44{"message":"jwt expired"}', "4") as server:
        await run(server.url, "any", SUBSCRIPTIONS)
        await memory.until(lambda: len(memory.facts("subscribed")) == len(SUBSCRIPTIONS))
    gaps = [later - earlier for earlier, later in pairwise(server.login_times)]
    assert len(gaps) == 4
    assert gaps[0] >= 0.2
    assert gaps[2] >= 0.8


def test_login_spacing_is_five_seconds() -> None:
    assert token_source.LOGIN_SPACING_SECONDS == 5
