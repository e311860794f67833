"""Which instances share the database, and which of them are alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from ingestor.daemon.instance_cache import load_shared_status
from ingestor.store.instances import load_instances
from ingestor.store.read.status_queries import count_unreceived

from .row_factory import Database

NOW = datetime.now(UTC)


@pytest.fixture
def db(engine: Engine) -> Database:
    return Database(engine)


def ago(**age: float) -> datetime:
    return datetime.now(UTC) - timedelta(**age)


def add_instance(db: Database, instance_id: int, *, started: dict[str, float], **columns: Any) -> None:
    """Add an instance that has recorded its start."""
    db.instance(instance_id, None, started_at=ago(**started), **columns)
    db.add("events", instance_id=instance_id, seq=1, at=NOW, kind="started", detail="{}")


def add_coverage(db: Database, subscription_id: int, instance_id: int, state: str, ended_at: datetime | None) -> None:
    db._seq += 1
    key = {"subscription_id": subscription_id, "instance_id": instance_id, "start_seq": db._seq}
    db.add("coverage", **key, started_at=ago(days=2), ended_at=ended_at, state=state)


def states(db: Database) -> dict[int, str]:
    return {record.instance_id: record.state for record in load_instances(db.engine)}


@pytest.mark.parametrize(
    ("sign", "state"),
    [
        pytest.param({"heartbeat_at": {"seconds": 20}}, "alive", id="heartbeat"),
        pytest.param({"heartbeat_at": {"seconds": 90}}, "silent", id="old heartbeat"),
        pytest.param({"heartbeat_at": {"hours": 3}, "committed_at": {"seconds": 20}}, "alive", id="writes a backlog"),
        pytest.param({"started_at": {"seconds": 20}}, "alive", id="just started"),
        pytest.param({}, "silent", id="never published one"),
        pytest.param({"heartbeat_at": {"seconds": -300}}, "alive", id="its clock is ahead"),
    ],
)
def test_instance_is_alive_for_a_minute_after_a_sign(db: Database, sign: dict[str, Any], state: str) -> None:
    at = {name: ago(**age) for name, age in sign.items()}
    committed_at = at.pop("committed_at", None)
    add_instance(db, 1, started={"days": 1})
    with db.engine.begin() as connection:
        if at:
            connection.exec_driver_sql("DELETE FROM instances")
    if at:
        db.instance(1, None, **({"started_at": ago(days=1)} | at))
    if committed_at:
        db.add("batches", instance_id=1, first_seq=1, last_seq=1, committed_at=ago(hours=3))
        db.add("batches", instance_id=1, first_seq=2, last_seq=9, committed_at=committed_at)
    add_coverage(db, 1, 1, "live", None)
    assert states(db) == {1: state}


def test_instance_that_rewinds_is_alive_and_behind(db: Database) -> None:
    add_instance(db, 1, started={"days": 1}, heartbeat_at=ago(minutes=30))
    db.add("batches", instance_id=1, first_seq=2, last_seq=9, committed_at=ago(seconds=1))
    (record,) = load_instances(db.engine)
    assert (record.state, round(record.behind_seconds or 0, -1)) == ("alive", 1800)


@pytest.mark.parametrize(
    ("last_event", "coverage", "state"),
    [
        pytest.param("stopped", "stopped", "stopped", id="clean end"),
        pytest.param("connected", "live", "silent", id="killed"),
        pytest.param("stopped", "crashed", "stopped", id="killed, then stopped before it subscribed"),
        pytest.param("connected", None, "stopped", id="its spool became another instance"),
        pytest.param("standing_by", "standby", "silent", id="killed while it stood by"),
        pytest.param("started", "stopped", "stopped", id="clean end, then a command without a daemon"),
        pytest.param("crashed", "crashed", "silent", id="killed, then a command without a daemon"),
    ],
)
def test_quiet_instance_is_stopped_only_after_an_end(
    db: Database, last_event: str, coverage: str | None, state: str
) -> None:
    add_instance(db, 1, started={"days": 1}, heartbeat_at=ago(hours=1))
    db.add("events", instance_id=1, seq=7, at=NOW, kind=last_event, detail="{}")
    add_coverage(db, 1, 1, "live", ago(hours=2))
    if coverage:
        add_coverage(db, 1, 1, coverage, None)
    (record,) = load_instances(db.engine)
    assert (record.state, record.behind_seconds is None) == (state, state == "stopped")


def test_instances_that_are_gone_or_replaced_are_left_out(db: Database) -> None:
    add_instance(db, 1, started={"days": 90}, name="long ago", heartbeat_at=ago(days=30))
    add_instance(db, 2, started={"days": 3}, name="host1", heartbeat_at=ago(days=2))
    add_instance(db, 3, started={"days": 1}, name="host1", heartbeat_at=ago(seconds=1))
    add_instance(db, 4, started={"days": 3}, name="host2", heartbeat_at=ago(days=2))
    for instance_id in (1, 2, 3, 4):
        add_coverage(db, 1, instance_id, "live", None)
    assert states(db) == {3: "alive", 4: "silent"}


def test_dead_one_of_two_instances_with_one_name_is_silent(db: Database) -> None:
    add_instance(db, 1, started={"days": 3}, name="host", heartbeat_at=ago(hours=2))
    add_instance(db, 2, started={"days": 2}, name="host", heartbeat_at=ago(seconds=1))
    for instance_id in (1, 2):
        add_coverage(db, 1, instance_id, "live", None)
    assert states(db) == {1: "silent", 2: "alive"}


def test_leases_count_while_they_last(db: Database) -> None:
    for instance_id in (1, 2):
        add_instance(db, instance_id, started={"seconds": 5})
    soon = datetime.now(UTC) + timedelta(minutes=1)
    for name, instance_id, until in (("retention", 1, soon), ("receiver", 2, soon), ("repair", 2, ago(seconds=1))):
        db.add("leases", name=name, instance_id=instance_id, until=until)
    first, second = load_instances(db.engine)
    assert [(record.leases, record.is_receiver) for record in (first, second)] == [
        (("retention",), False),
        (("receiver",), True),
    ]


def test_subscription_is_unreceived_if_no_alive_instance_has_it_live(db: Database) -> None:
    rows = [
        (1, 1, "live"),
        (1, 2, "disconnected"),  # the other one has it
        (2, 1, "silent"),
        (2, 2, "disconnected"),
        (3, 1, "refused"),
        (3, 3, "live"),  # of an instance that is not alive
        (4, 1, "stopped"),
    ]
    for subscription_id, instance_id, state in rows:
        add_coverage(db, subscription_id, instance_id, state, None)
    assert count_unreceived(db.engine, [1, 2]) == 2
    assert count_unreceived(db.engine, []) == 0


@pytest.mark.parametrize(
    ("age_seconds", "unreceived"), [pytest.param(5, 1, id="alive"), pytest.param(300, None, id="silent")]
)
def test_unreceived_subscriptions_are_unknown_where_the_daemon_gives_no_sign(
    db: Database, age_seconds: float, unreceived: int | None
) -> None:
    """Otherwise none would be missed while no instance can write, and IngestorNotConnected would not fire."""
    add_instance(db, 1, started={"seconds": age_seconds}, spool_id="ours")
    add_instance(db, 2, started={"seconds": 5})
    add_coverage(db, 1, 1, "disconnected", None)
    assert load_shared_status(db.engine, "ours").unreceived_subscriptions == unreceived


def test_instances_are_read_in_few_statements(db: Database) -> None:
    for instance_id in range(1, 61):
        add_instance(db, instance_id, started={"seconds": 5})
    statements: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    assert len(load_instances(db.engine)) == 50
    assert len(statements) <= 5  # SQLite begins a transaction
