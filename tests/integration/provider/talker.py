"""What a raw server says when it behaves: it confirms whatever is asked, and sends data all the time."""

from __future__ import annotations

import asyncio
import json

from .raw import Visitor

PACE_SECONDS = 0.02


def bare(ticker: str) -> str:
    """A list of one row, which names its ticker and nothing else does."""
    row = {"ts": "2026-01-05T14:30:00.000Z", "ticker": ticker, "average_sentiment": 0.5}
    return f'42["res",[{json.dumps(row)}]]'


def empty(_: str) -> str:
    """A list of nothing."""
    return '42["res",[]]'


def empty_envelope(ticker: str) -> str:
    """Nothing, but it says for whom."""
    return f'42["data",{{"path":"crowd-sentiment","params":{{"ticker":"{ticker}"}},"results":[]}}]'


class Talker:
    """To be given to ``raw_server``. Sends what ``says`` has for each of ``tickers``."""

    def __init__(self, *tickers: str) -> None:
        self.says = dict.fromkeys(tickers, bare)
        self.errors: dict[str, str] = {}  # ticker → what its subscription is answered

    async def __call__(self, visitor: Visitor) -> None:
        answered = 0
        while not visitor.gone.is_set():
            asked = sorted(visitor.asked("subscribe") + visitor.asked("unsubscribe"))
            for number, wish in asked[answered:]:
                error = self.errors.get(wish["params"].get("ticker", ""))
                await visitor.say(f"43{number}{json.dumps([error])}")
            answered = len(asked)
            for ticker, text in list(self.says.items()):
                await visitor.say(text(ticker))
            await asyncio.sleep(PACE_SECONDS)


def asked_for(visitor: Visitor, ticker: str, verb: str = "subscribe") -> int:
    """How often this visitor asked for a ticker."""
    return sum(wish["params"].get("ticker") == ticker for _, wish in visitor.asked(verb))
