from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestor.config import Config
from ingestor.core.entries import Fact
from ingestor.daemon.reload import ConfigReloader, read_config
from ingestor.errors import ConfigError
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff


class Reloads:
    """A reloader of a config file, and what it did."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.yaml"
        self.write("AAPL")
        self.facts: list[Fact] = []
        self.applied: list[list[Any]] = []
        self.begun = self.ended = 0
        self.on_apply: Callable[[], object] = lambda: None
        self.reloader = ConfigReloader(
            read_config(self.file), self.apply, self.facts.append, on_begin=self.begin, on_end=self.end
        )

    def write(self, *tickers: str) -> None:
        self.file.write_text(f"subscriptions: [{{path: /real-time/crowd-sentiment, tickers: {list(tickers)}}}]")

    def apply(self, config: Config) -> SubscriptionDiff:
        self.applied.append([subscription.params.get("ticker") for subscription in config.subscriptions])
        self.on_apply()
        return SubscriptionDiff((), ())

    def begin(self) -> None:
        self.begun += 1

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reloads:
    monkeypatch.setenv("INGESTOR_PROVIDER__API_KEY", "any")
    return Reloads(tmp_path)


async def test_reloads_that_wait_are_one(reloads: Reloads) -> None:
    first = asyncio.create_task(reloads.reloader.reload())
    while reloads.begun == 0 or reloads.reloader.is_waiting:
        await asyncio.sleep(0)
    results = await asyncio.gather(first, *(reloads.reloader.reload() for _ in range(1500)))
    assert len(reloads.applied) == 2
    assert (reloads.begun, reloads.ended) == (2, 1)
    assert len(results) == 1501
    assert [fact.kind for fact in reloads.facts] == ["config_reloaded"], "the second one changed nothing"


async def test_change_during_a_reload_is_in_the_next_one(reloads: Reloads) -> None:
    later: list[asyncio.Task[dict[str, Any]]] = []

    def change() -> None:
        if not later:
            reloads.write("AAPL", "TSLA")
            later.append(asyncio.create_task(reloads.reloader.reload()))

    reloads.on_apply = change
    await reloads.reloader.reload()
    await later[0]
    assert reloads.applied == [["AAPL"], ["AAPL", "TSLA"]]


async def test_rejection_is_raised_to_each_and_recorded_once(reloads: Reloads) -> None:
    good = reloads.file.read_text()
    reloads.file.write_text("subscriptions: 7")
    for _ in range(3):
        results = await asyncio.gather(*(reloads.reloader.reload() for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [ConfigError] * 5
    assert [fact.kind for fact in reloads.facts] == ["config_rejected"]
    reloads.file.write_text(good)
    await reloads.reloader.reload()
    assert reloads.facts[-1].kind == "config_reloaded"
    assert reloads.reloader.successful


async def test_cancelled_call_does_not_end_the_reload_for_others(reloads: Reloads) -> None:
    reloads.file.unlink()
    os.mkfifo(reloads.file)
    first = asyncio.create_task(reloads.reloader.reload())
    second = asyncio.create_task(reloads.reloader.reload())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with await asyncio.to_thread(reloads.file.open, "w") as pipe:
        pipe.write("subscriptions: [{path: /real-time/crowd-sentiment}]")
    assert (await second)["added"] == 0
