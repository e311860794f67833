"""The snapshot of a daemon with thousands of subscriptions: what did not change is not made anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingestor.config import Config, load
from ingestor.core.entries import State
from ingestor.daemon import status_snapshot
from ingestor.daemon.reload import ConfigReloader
from ingestor.monitoring.status import RecentErrors
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.auth import TokenState
from ingestor.provider.subscriptions.states import SubscriptionState
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff, SupervisorStatus
from ingestor.spool.spool import Spool

from ..support.daemon import write_config

NO_TOKEN = TokenState(expires_in_seconds=None, renews_in_seconds=None, life_seconds=None, logins={}, last_error="")


class Receiver:
    """What the receive side says; a test changes it."""

    def __init__(self) -> None:
        self.said = SupervisorStatus((), {}, {})

    def stands(self, *tickers: str, state: State) -> None:
        keys = [("/real-time/tweet-buzz", "get", f'{{"ticker":"{ticker}"}}') for ticker in tickers]
        changed = {key: SubscriptionState(state, 1_000_000, f"so it is {state}") for key in keys}
        self.said = replace(self.said, subscriptions={**self.said.subscriptions, **changed})

    def status(self) -> SupervisorStatus:
        return self.said


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def in_force(config: Config) -> ConfigReloader:
    return ConfigReloader(config, lambda: config, lambda _config: SubscriptionDiff((), ()), lambda _fact: None)


@pytest.fixture
def parts(tmp_path: Path, receiver: Receiver) -> status_snapshot.StatusSources:
    wanted = {"/real-time/tweet-buzz": ["AAPL", "ON"]}
    config = load(write_config(tmp_path, url="http://127.0.0.1:9", database_url="sqlite:///x.db", subscriptions=wanted))
    return status_snapshot.StatusSources(
        reload=in_force(config),
        instance="desk",
        started_at=datetime.now(UTC),
        database_kind="sqlite",
        spool=Spool(tmp_path / "spool", max_bytes=1 << 20, sync_every_seconds=0.02),
        writer=WriterStatus(),
        receive=receiver.status,
        tokens=lambda: NO_TOKEN,
        troubles=RecentErrors(),
    )


def test_a_subscription_is_told_anew_when_and_only_when_its_standing_is_another(
    parts: status_snapshot.StatusSources, receiver: Receiver
) -> None:
    assert [one.state for one in status_snapshot.build_status(parts).subscriptions] == ["pending", "pending"]
    receiver.stands("AAPL", "ON", state="live")
    before = status_snapshot.build_status(parts).subscriptions
    receiver.stands("ON", state="refused")
    after = status_snapshot.build_status(parts).subscriptions
    assert [(one.state, one.reason) for one in after] == [("live", "so it is live"), ("refused", "so it is refused")]
    assert after[0] is before[0]


def test_what_is_not_wanted_any_more_is_forgotten(parts: status_snapshot.StatusSources, receiver: Receiver) -> None:
    receiver.stands("AAPL", "ON", state="live")
    status_snapshot.build_status(parts)
    config = parts.reload.config
    one_less = config.model_copy(update={"subscriptions": config.subscriptions[1:]})
    fewer = replace(parts, reload=in_force(one_less))
    assert [one.params for one in status_snapshot.build_status(fewer).subscriptions] == ['{"ticker":"ON"}']
    assert len(fewer.told) == 1
