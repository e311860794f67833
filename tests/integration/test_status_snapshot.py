"""The status of a daemon with thousands of subscriptions: only what changed is built again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingestor.config import Config, load
from ingestor.core.entries import State
from ingestor.daemon import status_snapshot
from ingestor.daemon.reload import ConfigReloader
from ingestor.monitoring.status import RecentErrors, StandbyStatus
from ingestor.pipeline.writer_status import WriterStatus
from ingestor.provider.auth import TokenState
from ingestor.provider.subscriptions.states import SubscriptionState
from ingestor.provider.subscriptions.supervisor import SubscriptionDiff, SupervisorStatus
from ingestor.spool.spool import Spool

from ..support.daemon import write_config

NO_TOKEN = TokenState(
    expires_in_seconds=None, renews_in_seconds=None, life_seconds=None, key_refused=False, logins={}, last_error=""
)


class FakeSupervisor:
    """Returns a status that the test changes."""

    def __init__(self) -> None:
        self._status = SupervisorStatus((), {}, {})

    def set_state(self, *tickers: str, state: State) -> None:
        keys = [("/real-time/tweet-buzz", "get", f'{{"ticker":"{ticker}"}}') for ticker in tickers]
        changed = {key: SubscriptionState(state, 1_000_000, f"reason: {state}") for key in keys}
        self._status = replace(self._status, subscriptions={**self._status.subscriptions, **changed})

    def status(self) -> SupervisorStatus:
        return self._status


@pytest.fixture
def supervisor() -> FakeSupervisor:
    return FakeSupervisor()


def reloader_of(config: Config) -> ConfigReloader:
    return ConfigReloader(
        config,
        lambda _config: SubscriptionDiff((), ()),
        lambda _fact: None,
        on_begin=lambda: None,
        on_end=lambda: None,
    )


@pytest.fixture
def sources(tmp_path: Path, supervisor: FakeSupervisor) -> status_snapshot.StatusSources:
    wanted = {"/real-time/tweet-buzz": ["AAPL", "ON"]}
    config = load(write_config(tmp_path, url="http://127.0.0.1:9", database_url="sqlite:///x.db", subscriptions=wanted))
    return status_snapshot.StatusSources(
        reloader=reloader_of(config),
        instance="desk",
        started_at=datetime.now(UTC),
        database_kind="sqlite",
        spool=Spool(tmp_path / "spool", max_bytes=1 << 20, sync_every_seconds=0.02),
        writer=WriterStatus(),
        supervisor=supervisor.status,
        tokens=lambda: NO_TOKEN,
        recent_errors=RecentErrors(),
    )


def test_subscription_status_is_rebuilt_only_if_state_changed(
    sources: status_snapshot.StatusSources, supervisor: FakeSupervisor
) -> None:
    assert [subscription.state for subscription in status_snapshot.build_status(sources).subscriptions] == [
        "pending",
        "pending",
    ]
    supervisor.set_state("AAPL", "ON", state="live")
    before = status_snapshot.build_status(sources).subscriptions
    supervisor.set_state("ON", state="refused")
    after = status_snapshot.build_status(sources).subscriptions
    assert [(subscription.state, subscription.reason) for subscription in after] == [
        ("live", "reason: live"),
        ("refused", "reason: refused"),
    ]
    assert after[0] is before[0]


def test_removed_subscription_leaves_cache(sources: status_snapshot.StatusSources, supervisor: FakeSupervisor) -> None:
    supervisor.set_state("AAPL", "ON", state="live")
    status_snapshot.build_status(sources)
    config = sources.reloader.config
    without_first = config.model_copy(update={"subscriptions": config.subscriptions[1:]})
    fewer = replace(sources, reloader=reloader_of(without_first))
    assert [subscription.params for subscription in status_snapshot.build_status(fewer).subscriptions] == [
        '{"ticker":"ON"}'
    ]
    assert len(fewer.cache) == 1


def test_token_that_is_not_used_while_standing_by_is_not_shown(sources: status_snapshot.StatusSources) -> None:
    expired = replace(sources, tokens=lambda: replace(NO_TOKEN, expires_in_seconds=-5.0))
    assert status_snapshot.build_status(expired).token.expires_at is not None
    standby = StandbyStatus(role="standby", reason="instance 3 (host2) receives")
    assert status_snapshot.build_status(replace(expired, standby=lambda: standby)).token.expires_at is None


def test_refused_key_is_shown_unless_another_instance_receives(sources: status_snapshot.StatusSources) -> None:
    refused = replace(sources, tokens=lambda: replace(NO_TOKEN, key_refused=True))
    assert status_snapshot.build_status(refused).token.key_refused
    standby = StandbyStatus(role="standby", reason="instance 3 (host2) receives")
    assert not status_snapshot.build_status(replace(refused, standby=lambda: standby)).token.key_refused


def test_state_of_disk_and_set_aside_spools_is_shown(sources: status_snapshot.StatusSources) -> None:
    sources.spool.disk_full, sources.spool.set_aside = True, 2
    spool = status_snapshot.build_status(sources).spool
    assert (spool.disk_full, spool.set_aside) == (True, 2)
