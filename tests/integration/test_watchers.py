"""The daemon's periodic work: jobs, heartbeats, checks of the clocks and of the spool; and losses that it records."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ingestor.daemon import heartbeat, scheduler, watchers
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import AuditIssue, audit, find_losses
from tests.support.faulty_simulator import FaultySimulator

from ..support import expected_rows
from ..support.clock_step import SteppedClock
from ..support.daemon import CommandProcess, InProcessDaemon, until, write_config

CROWD = "/real-time/crowd-sentiment"
HOUR = 3600


@contextmanager
def engine_of(url: str) -> Iterator[Any]:
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), read_only=True)
    yield engine
    engine.dispose()


def findings(url: str) -> list[AuditIssue]:
    with engine_of(url) as engine:
        return audit(engine)


@pytest.mark.parametrize(
    ("step", "suspend", "kind", "reason"),
    [
        pytest.param(HOUR, 0, "clock_stepped", "the clock was set forward by 3600 s", id="forward"),
        pytest.param(-HOUR, 0, "clock_stepped", "the clock was set back by 3600 s", id="back"),
        pytest.param(0, HOUR, "stood_still", "the process stood still for 3600 s", id="suspended"),
    ],
)
async def test_clock_jump_leaves_gap_in_coverage_and_rearms_jobs(
    simulator: FaultySimulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: float,
    suspend: float,
    kind: str,
    reason: str,
) -> None:
    monkeypatch.setattr(heartbeat, "CLOCK_CHECK_SECONDS", 0.02)
    clock = SteppedClock(monkeypatch)
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        connection = await daemon.wait_until_live()
        scheduled = [job.next_run_time for job in jobs(daemon)]
        for job in jobs(daemon):
            job.modify(next_run_time=job.next_run_time + timedelta(days=1))
        clock.step(step)
        clock.suspend(suspend)
        states = ["pending", "live", "silent", *(["silent"] if step else []), "live"]
        await until(lambda: daemon.db.states("AAPL") == states)
        assert daemon.connection_ids == connection
        assert len(scheduled) == 3  # token, retention, repair
        rescheduled = [job.next_run_time for job in jobs(daemon)]
        slept = timedelta(seconds=suspend)
        assert all(
            abs(now - then) < timedelta(minutes=1) + slept for now, then in zip(rescheduled, scheduled, strict=True)
        )
    live, silent, *restarted, live_again = daemon.db.coverage("AAPL")[1:-1]
    assert live["ended_at"] == silent["started_at"]
    assert silent["reason"] == reason
    last = restarted[0] if restarted else silent
    assert last["ended_at"] == live_again["started_at"]
    assert abs(last["started_at"] - silent["ended_at"] - timedelta(seconds=step)) < timedelta(milliseconds=1) or suspend
    assert daemon.db.column(f"SELECT kind FROM events WHERE kind = '{kind}'") == [kind]
    assert findings(url) == []


async def test_heartbeat_checks_clocks_first(
    simulator: FaultySimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "CLOCK_CHECK_SECONDS", 3600)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    clock = SteppedClock(monkeypatch)
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        clock.suspend(HOUR)
        await until(lambda: daemon.db.states("AAPL") == ["pending", "live", "silent", "live"])


def jobs(daemon: InProcessDaemon) -> list[Any]:
    """Return APScheduler's jobs: the token's renewal, retention and repair."""
    found: list[Any] = daemon._service._scheduler._scheduler.get_jobs()
    return sorted(found, key=lambda job: str(job.id))


async def test_retention_runs_while_daemon_writes(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator: FaultySimulator = await make_simulator(started_at=time.time())  # rows prove what time it is
    monkeypatch.setattr(scheduler, "FIRST_RETENTION_SECONDS", 0.5)
    monkeypatch.setattr(scheduler, "RETENTION_SECONDS", 0.5)
    config = write_config(
        tmp_path,
        url=simulator.url,
        database_url=database_url,
        database={"retention": {"payloads": "1s", "journal": "1s"}},
        subscriptions={CROWD: ["AAPL"]},
    )
    daemon = InProcessDaemon(config, simulator.api_key)
    await daemon.__aenter__()
    await until(lambda: daemon.db.scalar("SELECT coalesce(min(seq), 0) FROM payloads") > 20)
    await until(lambda: daemon.db.scalar("SELECT max(last_seq - first_seq) FROM batches") > 20)
    assert findings(database_url) == []
    simulator.interval_seconds = None
    await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
    await daemon.stop()
    assert findings(database_url) == []
    assert daemon.db.scalar("SELECT min(first_seq) FROM batches") == 1


async def test_unreadable_spool_is_recorded_as_lost_and_audit_balances(
    simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    config = write_config(tmp_path, url=simulator.url, database_url=database_url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as first:
        await first.wait_until_live()
    (tmp_path / "spool" / "spool.db").write_bytes(b"rust" * 10_000)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        assert [error.kind for error in daemon.status.last_errors] == ["lost"]
    lost, pending, *_ = daemon.db.rows("SELECT * FROM coverage WHERE instance_id = 2 ORDER BY start_seq")
    assert (lost["state"], pending["state"]) == ("lost", "pending")
    heartbeat = "SELECT heartbeat_at FROM instances WHERE instance_id = 1"
    assert lost["started_at"] == daemon.db.rows(heartbeat)[0]["heartbeat_at"], "until then everything is stored"
    assert lost["ended_at"] == pending["started_at"]
    assert "unreadable" in lost["reason"]
    assert any("lost" in gap["states"] for gap in daemon.db.gaps("AAPL"))
    async with CommandProcess("audit", "--config", config, "--output", "json", folder=tmp_path) as program:
        assert await program.wait_for_exit() == 0
    report = json.loads(program.stdout)
    assert (report["balanced"], report["findings"]) == (True, [])
    (loss,) = report["notes"]
    assert lost["reason"] in loss["message"]


async def test_spool_emptied_behind_its_mark_is_recorded_as_lost(simulator: FaultySimulator, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]})
    async with InProcessDaemon(config, simulator.api_key) as first:
        await first.wait_until_live()
    for file in (tmp_path / "spool").glob("spool.db*"):
        file.unlink()
    async with InProcessDaemon(config, simulator.api_key) as second:
        await second.wait_until_live()
        assert [error.kind for error in second.status.last_errors] == ["lost"]
    lost, pending, *_ = second.db.rows("SELECT * FROM coverage WHERE instance_id = 2 ORDER BY start_seq")
    assert (lost["state"], lost["ended_at"]) == ("lost", pending["started_at"])
    assert "was replaced or has lost its last run" in lost["reason"]
    assert lost["started_at"] == second.db.column("SELECT heartbeat_at FROM instances WHERE instance_id = 1")[0]
    shutil.rmtree(tmp_path / "spool")
    async with InProcessDaemon(config, simulator.api_key) as third:
        await third.wait_until_live()
        assert list(third.status.last_errors) == [], "the folder was deleted on purpose"
    assert findings(url) == []


async def test_recreated_database_is_recorded_as_lost(simulator: FaultySimulator, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(
        tmp_path, url=simulator.url, database_url=url, subscriptions={CROWD: ["AAPL"]}, spool={"keep": {"size": "0B"}}
    )
    async with InProcessDaemon(config, simulator.api_key) as first:
        await first.wait_until_live()
        await until(lambda: first.status.spool.acked_seq > 10)
    (tmp_path / "ingestor.db").unlink()
    daemon = await InProcessDaemon(config, simulator.api_key).__aenter__()
    await daemon.wait_until_live()
    await until(lambda: [error.kind for error in daemon.status.last_errors] == ["lost"])
    await daemon.stop()
    assert daemon.db.column("SELECT kind FROM events WHERE kind = 'lost'") == ["lost"]
    assert findings(url) == []
    with engine_of(url) as engine:
        (loss,) = find_losses(engine)
    assert "earlier entries were written to another database" in loss.message


async def test_full_spool_disconnects_then_resumes_without_loss(
    make_simulator: Callable[..., Any], database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "SPOOL_CHECK_SECONDS", 0.02)
    # About 20 kB per frame; frames in flight at the disconnect are sent again.
    simulator: FaultySimulator = await make_simulator(interval_seconds=0.05, window_seconds=6000)
    config = write_config(
        tmp_path,
        url=simulator.url,
        database_url=database_url,
        spool={"max_bytes": "1MiB"},
        subscriptions={CROWD: ["AAPL", "ON"]},
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        with daemon.db.write_locked():
            await until(lambda: daemon.states == ["spool_full"] * 2)
            simulator.interval_seconds = None
            assert daemon.connection_ids == [None]
            full = daemon.status.spool
            assert 0.95 * full.limit_bytes < full.bytes < 1.2 * full.limit_bytes
            await asyncio.sleep(0.2)
            assert daemon.status.spool.bytes < full.bytes + 0.05 * full.limit_bytes
            assert daemon.states == ["spool_full"] * 2
        await daemon.wait_until_live()
        await simulator.tick()
        await daemon.wait_for_samples(lambda: expected_rows.current(simulator.emitted))
        assert daemon.db.scalar("SELECT count(*) FROM payloads") == daemon.status.connections[0].frames
        errors = [error.kind for error in daemon.status.last_errors]

    levels = [json.loads(detail) for detail in daemon.db.column(LEVELS)]
    assert [level["level"] for level in levels[:3]] == ["filling", "critical", "full"]
    assert [levels[0]["used_percent"] >= 70, levels[1]["used_percent"] >= 90] == [True, True]
    assert levels[3]["used_percent"] <= 80
    assert errors[:4] == ["spool_level", "spool_level", "spool_full", "disconnected"]
    assert daemon.db.states("ON") == ["pending", "live", "spool_full", "pending", "live", "stopped"]
    (full_gap,) = [gap for gap in daemon.db.gaps("ON") if "spool_full" in gap["states"]]
    assert "the spool is full" in full_gap["reason"]
    assert findings(database_url) == []


LEVELS = "SELECT detail FROM events WHERE kind IN ('spool_level', 'spool_full') AND detail LIKE '%level%' ORDER BY seq"
