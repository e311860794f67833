"""A well-behaved script for a raw server: it acknowledges every request and sends data all the time."""

from __future__ import annotations

import asyncio
import json

from .raw_engineio_server import ClientSocket

PACE_SECONDS = 0.02


def one_row(ticker: str) -> str:
    """Return a data event: a list of one row. Only the row names the ticker."""
    row = {"ts": "2026-01-05T14:30:00.000Z", "ticker": ticker, "average_sentiment": 0.5}
    return f'42["res",[{json.dumps(row)}]]'


def empty_list(_: str) -> str:
    """Return a data event: an empty list."""
    return '42["res",[]]'


def empty_envelope(ticker: str) -> str:
    """Return a data event: an envelope without rows, which names its ticker."""
    return f'42["data",{{"path":"crowd-sentiment","params":{{"ticker":"{ticker}"}},"results":[]}}]'


class ScriptedReplies:
    """The ``talk`` of a ``raw_server``: sends the entry of ``payloads`` for each of ``tickers``."""

    def __init__(self, *tickers: str) -> None:
        self.payloads = dict.fromkeys(tickers, one_row)
        self.errors: dict[str, str] = {}  # ticker → error in the acknowledgement of its subscription
        self.unanswered: set[str] = set()  # tickers whose subscription is not acknowledged for now

    async def __call__(self, client: ClientSocket) -> None:
        await client.until(lambda: client.requests("subscribe") or client.closed.is_set())
        acknowledged: set[int] = set()
        while not client.closed.is_set():
            for ack_id, payload in client.requests("subscribe") + client.requests("unsubscribe"):
                ticker = payload["params"].get("ticker", "")
                if ack_id not in acknowledged and ticker not in self.unanswered:
                    await client.send(f"43{ack_id}{json.dumps([self.errors.get(ticker)])}")
                    acknowledged.add(ack_id)
            for ticker, make_event in list(self.payloads.items()):
                await client.send(make_event(ticker))
            await asyncio.sleep(PACE_SECONDS)


def count_requests(client: ClientSocket, ticker: str, event: str = "subscribe") -> int:
    """Return how often this client sent the event for a ticker."""
    return sum(payload["params"].get("ticker") == ticker for _, payload in client.requests(event))
