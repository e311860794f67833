"""What a raw server says when it behaves: it confirms whatever is asked, and sends data all the time."""

from __future__ import annotations

import asyncio
import json

from .raw_engineio_server import Visitor

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
        self.unanswered: set[str] = set()  # tickers whose subscription is not answered, or later

    async def __call__(self, visitor: Visitor) -> None:
        await visitor.until(lambda: visitor.asked("subscribe") or visitor.gone.is_set())
        answered: set[int] = set()
        while not visitor.gone.is_set():
            for number, wish in visitor.asked("subscribe") + visitor.asked("unsubscribe"):
                ticker = wish["params"].get("ticker", "")
                if number not in answered and ticker not in self.unanswered:
                    await visitor.say(f"43{number}{json.dumps([self.errors.get(ticker)])}")
                    answered.add(number)
            for ticker, text in list(self.says.items()):
                await visitor.say(text(ticker))
            await asyncio.sleep(PACE_SECONDS)


def asked_for(visitor: Visitor, ticker: str, verb: str = "subscribe") -> int:
    """How often this visitor asked for a ticker."""
    return sum(wish["params"].get("ticker") == ticker for _, wish in visitor.asked(verb))
