"""The lease of the instance that receives, on PostgreSQL: who gets it, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.errors import DatabaseUnavailable
from ingestor.store import leases
from ingestor.store.engine import make_engine
from ingestor.store.receiver_lease import NAME, LeaseAnswer, ReceiverLease
from tests.support import postgres_server as pg
from tests.support.postgres_server import Postgres

pytestmark = pytest.mark.postgres
SECONDS = 15.0
MakeLease = Callable[..., ReceiverLease]


@pytest.fixture
def url(postgres_server_url: str, postgres_template_url: str) -> Iterator[str]:
    with pg.fresh_database(postgres_server_url, postgres_template_url) as url:
        yield url


@pytest.fixture
def db(url: str) -> Iterator[psycopg.Connection]:
    """Two registered instances."""
    with psycopg.connect(url, autocommit=True) as db:
        for number, name in ((1, "a"), (2, "b")):
            db.execute(
                "INSERT INTO instances (spool_id, run_id, name, position, version, config_sha256, started_at,"
                " heartbeat_at) VALUES (%s, %s, %s, 0, '', '', now(), now() - interval '3 s')",
                [f"spool-{number}", f"run-{number}", name],
            )
        yield db


@pytest.fixture
def make_lease(url: str) -> Iterator[MakeLease]:
    with ExitStack() as stack:

        def make(run_id: str, seconds: float = SECONDS) -> ReceiverLease:
            lease = ReceiverLease(_engine(url), run_id, seconds)
            stack.callback(lease.close)
            return lease

        yield make


def _engine(url: str) -> Engine:
    return make_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def test_free_lease_is_taken_and_renewed_by_one_instance(db: psycopg.Connection, make_lease: MakeLease) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    assert a.take() == LeaseAnswer(True)
    assert a.take() == LeaseAnswer(True)
    answer = b.take()
    assert not answer.is_ours and answer.other
    assert str(answer.other) == "instance 1 (a)"
    assert 10 < answer.other.left_seconds <= 15
    assert answer.other.silent_seconds and 3 <= answer.other.silent_seconds < 10


def test_ended_lease_is_taken_over_and_names_its_last_holder(db: psycopg.Connection, make_lease: MakeLease) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    a.take()
    db.execute("UPDATE leases SET until = now() - interval '1 ms'")
    answer = b.take()
    assert answer.is_ours and answer.other and answer.other.instance_id == 1
    assert b.take() == LeaseAnswer(True)
    assert not a.take().is_ours


def test_released_lease_is_free_at_once_and_not_taken_again_before_resume(
    db: psycopg.Connection, make_lease: MakeLease
) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    a.take()
    a.release()
    assert a.take() == LeaseAnswer(False)
    assert b.take(only_look=True) == LeaseAnswer(False)
    a.resume()
    assert a.take().is_ours
    b.release()  # what another holds
    assert a.take() == LeaseAnswer(True)
    b.resume()
    a.release()
    assert b.take().is_ours


def test_look_reports_the_holder_and_takes_nothing(db: psycopg.Connection, make_lease: MakeLease) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    assert a.take(only_look=True) == LeaseAnswer(False)
    assert b.take().is_ours
    other = a.take(only_look=True).other
    assert other and other.instance_id == 2


def test_run_that_has_not_registered_gets_no_lease(db: psycopg.Connection, make_lease: MakeLease) -> None:
    assert make_lease("run-3").take() == LeaseAnswer(False)
    assert db.execute("SELECT count(*) FROM leases").fetchone() == (0,)


def test_run_whose_instance_another_run_took_over_loses_the_lease_to_it(
    db: psycopg.Connection, make_lease: MakeLease
) -> None:
    old, new = make_lease("run-1"), make_lease("run-1-again")
    old.take()
    db.execute("UPDATE instances SET run_id = 'run-1-again' WHERE spool_id = 'spool-1'")
    assert old.take() == LeaseAnswer(False)
    assert new.take() == LeaseAnswer(True)  # at once: the earlier run has ended


def test_lease_goes_on_when_the_run_becomes_another_instance(db: psycopg.Connection, make_lease: MakeLease) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    a.take()
    _become_another_instance(db)
    assert a.take() == LeaseAnswer(True)
    other = b.take().other
    assert other and other.instance_id > 2


def _become_another_instance(db: psycopg.Connection) -> None:
    db.execute(
        "INSERT INTO instances (spool_id, run_id, name, position, version, config_sha256, started_at)"
        " SELECT 'another', run_id, name, 0, '', '', now() FROM instances WHERE spool_id = 'spool-1'"
    )


def test_lease_from_before_the_databases_clock_was_set_back_does_not_count(
    db: psycopg.Connection, make_lease: MakeLease
) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    a.take()
    db.execute("UPDATE leases SET until = now() + interval '1 h'")
    assert b.take().is_ours
    assert not a.take().is_ours


def test_one_of_several_that_start_at_the_same_moment_gets_the_lease(
    db: psycopg.Connection, make_lease: MakeLease
) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    for _ in range(20):
        db.execute("DELETE FROM leases")
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda lease: lease.take().is_ours, (a, b)))
        assert sorted(answers) == [False, True]


def test_holder_that_stops_between_two_statements_holds_up_nobody(
    db: psycopg.Connection, url: str, make_lease: MakeLease
) -> None:
    a, b = make_lease("run-1"), make_lease("run-2")
    with a._session() as stopped:
        assert leases.acquire(stopped, NAME, 1, timedelta(seconds=SECONDS))
        db.execute("UPDATE leases SET until = now() - interval '1 ms'")
        started = time.monotonic()
        assert b.take().is_ours
        assert time.monotonic() - started < 5  # a wait for a lock takes at least half of the lease


def test_server_that_hangs_delays_an_answer_by_half_the_lease_at_most(
    postgres: Postgres, make_lease: MakeLease
) -> None:
    engine = _engine(postgres.url())
    lease = ReceiverLease(engine, "run-1", 6.0)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    postgres.pause()
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        lease.take()
    assert time.monotonic() - started < 5.5
    postgres.resume()
    lease.close()


def test_open_connection_to_a_replaced_server_is_not_used(db: psycopg.Connection, url: str) -> None:
    known: list[tuple[str, int] | None] = [None]
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), known_server=lambda: known[0])
    lease = ReceiverLease(engine, "run-1", SECONDS, known_server=lambda: known[0])
    assert lease.take().is_ours
    (system,) = db.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone() or ()
    known[0] = (system, 2)
    with pytest.raises(DatabaseUnavailable, match="replaced"):
        lease.take()
    lease.close()
