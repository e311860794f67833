"""Spool, writer and a real database together: what is in the tables afterwards."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec import structs
from sqlalchemy import Engine, event, insert, text

from ingestor.core.entries import BACKFILL_REQUESTED, Frame
from ingestor.core.times import to_datetime
from ingestor.daemon.control_handlers import build_handlers
from ingestor.errors import DatabaseUnavailable
from ingestor.pipeline import dead_letters
from ingestor.pipeline import writer as writer_module
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.repair import backfill_requests, repeat_backfill
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.spool.spool import Spool
from ingestor.store import migrate
from ingestor.store.engine import make_engine
from ingestor.store.maintenance.repairs import BackfillRequest
from ingestor.store.read import status_queries as letters
from ingestor.store.read.audit import audit
from ingestor.store.schema import repairs
from tests.support.check_constraint import refuse, refuse_all
from tests.support.daemon import until
from tests.support.entries import CROWD, T0, fact, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.postgres_server import fresh_database
from tests.support.writers import make_writer, put, query, raise_failure

MINUTE = 60_000_000


OBSERVATIONS = "SELECT ticker, value, revision, source, seq FROM observations ORDER BY ticker, ts"
LEDGER = "SELECT sum(row_count), sum(new_rows), sum(revised_rows), sum(duplicate_rows), sum(dead_rows) FROM batches"


async def test_repeated_rows_are_stored_once(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A"), row("B")]), frame([row("A"), row("B"), row("C")]))
    make_writer(spool, engine).run()
    await put(spool, frame([row("A"), row("C")]))
    make_writer(spool, engine).run()
    assert query(engine, OBSERVATIONS) == [
        ("A", 0.5, 0, "stream", 1),
        ("B", 0.5, 0, "stream", 1),
        ("C", 0.5, 0, "stream", 2),
    ]
    assert query(engine, LEDGER) == [(7, 3, 0, 4, 0)]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "several batches"])
async def test_restated_value_becomes_current_and_others_revisions(
    spool: Spool, engine: Engine, together: bool
) -> None:
    for number in (1, 2, 2, 3):
        await put(spool, frame([row(value=number)]))
        if not together:
            make_writer(spool, engine).run()
    make_writer(spool, engine).run()
    assert query(engine, OBSERVATIONS) == [("AAPL", 3.0, 2, "stream", 4)]
    assert query(engine, "SELECT value, revision, seq FROM revisions ORDER BY revision") == [(1.0, 0, 1), (2.0, 1, 2)]
    assert query(engine, LEDGER) == [(4, 1, 2, 1, 0)]


async def test_late_snapshot_does_not_replace_a_newer_value(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row(value=2)], received_us=T0 + 10))
    make_writer(spool, engine).run()
    await put(spool, frame([row(value=1)], received_us=T0 + 5, source="snapshot"))
    make_writer(spool, engine).run()
    assert query(engine, OBSERVATIONS) == [("AAPL", 2.0, 1, "stream", 1)]
    assert query(engine, "SELECT value, revision, source FROM revisions") == [(1.0, 0, "snapshot")]


async def test_value_repeated_after_another_instance_is_current(tmp_path: Path, spool: Spool, engine: Engine) -> None:
    other = Spool(tmp_path / "other", max_bytes=1 << 30, sync_every_seconds=0.001)
    other.start(raise_failure)
    await put(other, frame([row(value=2)], received_us=T0 + 20))
    make_writer(other, engine).run()
    await other.close()
    await put(spool, frame([row(value=1)], received_us=T0 + 10), frame([row(value=1)], received_us=T0 + 30))
    make_writer(spool, engine).run()
    assert query(engine, OBSERVATIONS) == [("AAPL", 1.0, 2, "stream", 2)]
    assert query(engine, "SELECT value, revision FROM revisions ORDER BY revision") == [(1.0, 0), (2.0, 1)]
    assert audit(engine) == []


async def test_value_repeated_after_a_reconnect_is_current(tmp_path: Path, spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    await put(spool, frame([row(value=1)], received_us=T0 + 10))
    writer.step()
    other = Spool(tmp_path / "other", max_bytes=1 << 30, sync_every_seconds=0.001)
    other.start(raise_failure)
    await put(other, frame([row(value=2)], received_us=T0 + 20))
    make_writer(other, engine).run()
    await other.close()
    await put(spool, frame([row(value=1)], received_us=T0 + 30, connection="another"))
    writer.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 1.0, 2, "stream", 2)]
    assert audit(engine) == []


async def test_requested_value_is_compared_with_the_database(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    for received_us, value, source in ((10, 1, "stream"), (20, 2, "snapshot"), (30, 1, "stream"), (25, 1, "snapshot")):
        await put(spool, frame([row(value=value)], received_us=T0 + received_us, source=source))
        writer.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 1.0, 2, "stream", 3)]
    assert audit(engine) == []


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_batch_of_unknown_outcome_is_written_once(spool: Spool, engine: Engine, done: bool) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    await put(spool, frame([row("A")]), frame([row("B")]))
    FlakyCommits(engine).fail(2, done=done)  # after that of the names
    writer.step()
    writer.step()
    assert writer.status.position == 2
    assert query(engine, "SELECT instance_id, first_seq, last_seq FROM batches") == [(1, 1, 2)]
    assert query(engine, "SELECT count(*) FROM payloads") == [(2,)]
    assert audit(engine) == []


@pytest.mark.postgres
async def test_sample_deleted_while_it_is_restated_is_inserted(
    spool: Spool, postgres_template_url: str, postgres_server_url: str
) -> None:
    with fresh_database(postgres_server_url, postgres_template_url) as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        await put(spool, frame([row(value=1)]))
        make_writer(spool, engine).run()
        await put(spool, frame([row(value=2)]))

        @event.listens_for(engine, "before_cursor_execute")
        def prune(_c: object, _cursor: object, statement: str, *_: object) -> None:
            if "FOR UPDATE" in statement:
                with psycopg.connect(url) as other:
                    other.execute("DELETE FROM samples WHERE value = 1")

        make_writer(spool, engine).run()
        assert query(engine, OBSERVATIONS) == [("AAPL", 2.0, 0, "stream", 2)]
        engine.dispose()


async def test_submitted_work_runs_after_its_seq_or_is_cancelled(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A")]))
    writer = make_writer(spool, engine)
    count = "SELECT count(*) FROM observations"
    done, too_early = (
        writer.run_in_writer(lambda instance_id: (instance_id, query(engine, count)), after_seq=1),
        writer.run_in_writer(lambda instance_id: instance_id, after_seq=2),
    )
    writer.run()
    assert done.result(0) == (1, [(1,)])
    for waiting in (too_early, writer.run_in_writer(lambda instance_id: instance_id)):
        with pytest.raises(CancelledError):
            waiting.result(0)


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_dedup_cache_is_empty_after_a_failed_commit(spool: Spool, engine: Engine, done: bool) -> None:
    written: list[list[str]] = []
    writer = make_writer(spool, engine, on_rows=lambda rows: written.append([row.series[2] for row in rows]))
    writer.register()
    for tickers in ("AB", "A"):
        await put(spool, frame([row(ticker) for ticker in tickers]))
        writer.step()
    FlakyCommits(engine).fail(1, done=done)
    await put(spool, frame([row("B", 1)]))
    writer.step()  # after the failure, it only registers
    writer.step()
    await put(spool, frame([row("A")]))
    writer.step()
    assert [tickers for tickers in written if tickers != ["B"]] == [["A", "B"], [], ["A"]]


async def test_dead_rows_do_not_affect_other_rows(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A"), {"ticker": "B"}, row("C")]), frame("{bad"), frame([]))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "C"]
    letters = query(engine, "SELECT seq, row_index, stage, reason, body FROM dead_letters ORDER BY seq")
    assert letters == [(1, 1, "decode", "no ts", '{"ticker": "B"}'), (2, None, "decode", "not JSON", "{bad")]
    assert query(engine, "SELECT seq, row_count FROM payloads ORDER BY seq") == [(1, 3), (3, 0)]
    assert query(engine, "SELECT frames, dead_frames, dead_rows FROM batches") == [(3, 1, 1)]


@pytest.mark.parametrize("bad", [[0], [2], [4], [1, 2], [0, 1, 2, 3, 4]], ids=str)
async def test_row_rejected_by_the_database_affects_no_other_row(spool: Spool, engine: Engine, bad: list[int]) -> None:
    refuse(engine, 666.0)
    await put(spool, frame([row("T", minute, 666.0 if minute in bad else 1.0) for minute in range(5)]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT count(*) FROM samples") == [(5 - len(bad),)]
    letters = query(engine, "SELECT row_index, stage, body FROM dead_letters ORDER BY row_index")
    assert [(index, stage) for index, stage, _ in letters] == [(index, "insert") for index in bad]
    assert all(json.loads(body)["crowd_sentiment"] == 666.0 for *_, body in letters)
    assert query(engine, "SELECT position FROM instances") == [(1,)]


async def test_each_repetition_of_a_rejected_row_is_a_dead_letter(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    await put(spool, frame([row(value=666.0)]), frame([row(value=666.0), row("ON")]), frame([row("ON")]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT seq, row_index FROM dead_letters ORDER BY seq") == [(1, 0), (2, 0)]
    assert query(engine, "SELECT new_rows, duplicate_rows, dead_rows FROM batches") == [(1, 1, 2)]
    assert audit(engine) == []


async def test_row_with_several_rejected_values_is_one_dead_letter(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    chart = {"ts": "2026-01-01T00:00:00.000Z", "ticker": "A", "crowd_sentiment": 666, "volume": 666, "buzz": 1}
    await put(spool, frame([chart], path="crowd-sentiment-chart-data"))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT metric, value FROM observations") == [("buzz", 1.0)]
    [(body,)] = query(engine, "SELECT body FROM dead_letters")
    assert (json.loads(body)["crowd_sentiment"], json.loads(body)["volume"]) == (666.0, 666.0)
    assert audit(engine) == []


async def test_rejected_series_name_affects_its_own_rows_only(spool: Spool, engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE series ADD CHECK (ticker <> 'BAD')"))
        else:
            connection.execute(
                text(
                    "CREATE TRIGGER refuse BEFORE INSERT ON series WHEN new.ticker = 'BAD' BEGIN"
                    " SELECT raise(ABORT, 'refused'); END"
                )
            )
    await put(spool, frame([row("A"), row("BAD"), row("C")]), frame([row("BAD", 1)]))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "C"]
    letters = query(engine, "SELECT seq, row_index, stage FROM dead_letters ORDER BY seq")
    assert letters == [(1, 1, "insert"), (2, 0, "insert")]


@pytest.mark.parametrize(
    ("table", "message"),
    [("samples", "rejects rows, and dead letters too"), ("payload_blocks", "rejects even a plain-ASCII dead letter")],
)
async def test_database_that_rejects_dead_letters_is_unavailable(
    spool: Spool, engine: Engine, table: str, message: str
) -> None:
    refuse_all(engine, table)
    refuse_all(engine, "dead_letters")
    await put(spool, frame([row(value=666.0)]))
    outages: list[str] = []

    def stop(error: str, _delay_seconds: float) -> None:
        outages.append(error)
        writer.stop()

    writer = make_writer(spool, engine, on_outage=stop)
    writer.register()
    writer.step()
    assert len(outages) == 1
    assert message in outages[0]
    assert query(engine, "SELECT position FROM instances") == [(0,)]
    assert query(engine, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert spool.acked == 0


async def test_database_restored_from_a_backup_gets_a_new_instance(spool: Spool, engine: Engine) -> None:
    await put(spool, fact("subscribed", state="live", tickers=["A"]), frame([row("A")]))
    make_writer(spool, engine).run()
    await put(spool, frame([row("B")]))
    make_writer(spool, engine).run()
    await put(spool, fact())  # this sync deletes what was acknowledged
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET position = 1"))
        connection.execute(text("DELETE FROM batches WHERE first_seq > 1"))
    await put(spool, frame([row("C")]))
    lost: list[str] = []
    writer = make_writer(spool, engine, on_lost=lambda reason, _since_us: lost.append(reason))
    FlakyCommits(engine).fail(2, done=False)  # the one that closes the old instance: retried, and reported once
    writer.run()
    assert lost == ["the database's position 1 does not fit the spool: one of them is an older copy"]
    assert query(engine, "SELECT count(*) FROM instances") == [(2,)]
    assert "C" in [ticker for ticker, *_ in query(engine, OBSERVATIONS)]
    states = query(engine, "SELECT state, ended_at IS NULL FROM coverage ORDER BY start_seq")
    assert [(state, bool(is_open)) for state, is_open in states] == [("live", False), ("lost", False)]


async def test_database_that_does_not_know_the_spool_is_a_loss(spool: Spool, engine: Engine) -> None:
    lost: list[str] = []
    for ticker in "AB":
        await put(spool, frame([row(ticker)]))
        writer = make_writer(spool, engine, on_lost=lambda reason, _since_us: lost.append(reason))
        writer.run()
        assert lost == []
    await put(spool, fact())  # this sync deletes what was acknowledged
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instances"))
    writer.run()
    assert lost == ["the database does not know this spool, which had written to one before"]


@pytest.mark.parametrize("older", ["DELETE FROM instances", "UPDATE instances SET position = 1"])
async def test_acknowledged_entries_are_not_written_again(spool: Spool, engine: Engine, older: str) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    for ticker in "AB":
        await put(spool, frame([row(ticker)]))
    writer.step()
    with engine.begin() as connection:
        connection.execute(text(older))
    writer.register()
    await put(spool, frame([row("C")]))  # this sync deletes what was acknowledged
    writer.step()
    assert (writer.status.position, writer.drained) == (3, True)
    assert query(engine, "SELECT max(seq) FROM payloads") == [(3,)]


async def test_entries_of_a_restored_spool_are_written(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A")]))
    make_writer(spool, engine).run()
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET position = 1000"))
    await put(spool, frame([row("B")]))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "B"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE chunks SET body = zeroblob(length(body)) WHERE first_seq = 2", "entries 2 to 2: checksum differs"),
        ("DELETE FROM chunks WHERE first_seq = 2", "entries after 0: some are missing"),
        ("DELETE FROM chunks", "entries after 0: some are missing"),
    ],
)
async def test_missing_or_changed_entries_make_the_spool_unreadable(
    tmp_path: Path, spool: Spool, engine: Engine, damage: str, message: str
) -> None:
    for ticker in "ABC":
        await put(spool, frame([row(ticker)]))
    writer = make_writer(spool, engine)
    writer.register()
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as db:
        db.execute(damage)
    db.close()
    with pytest.raises(SpoolUnreadable, match=message):
        writer.step()


def damage_last(folder: Path) -> None:
    with sqlite3.connect(folder / "spool" / "spool.db") as db:
        db.execute(
            "UPDATE chunks SET body = zeroblob(length(body)) WHERE first_seq = (SELECT max(first_seq) FROM chunks)"
        )
    db.close()


@pytest.mark.parametrize(("max_rows", "commit"), [(1, 4), (2, 2)], ids=["next batch exists", "no next batch"])
async def test_batch_in_progress_is_committed_when_the_spool_fails(
    tmp_path: Path, spool: Spool, engine: Engine, max_rows: int, commit: int
) -> None:
    for ticker in "ABC":
        await put(spool, frame([row(ticker)]))
    writer = make_writer(spool, engine, max_rows=max_rows)
    writer.register()
    damage_last(tmp_path)
    FlakyCommits(engine).fail(commit, done=False)  # the commit of B
    with pytest.raises(SpoolUnreadable, match="entries 3 to 3"):
        writer.run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "B"]
    assert spool.acked == 2


async def test_partial_batch_is_committed_when_the_spool_fails(tmp_path: Path, spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine, max_wait_seconds=1, drain=False)
    writer.register()
    await put(spool, frame([row("A")]))
    assert writer.read_ahead.read_entries(0, 0)
    await put(spool, frame([row("B")]))
    damage_last(tmp_path)
    writer.step()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A"]
    with pytest.raises(SpoolUnreadable, match="entries 2 to 2"):
        writer.step()


async def test_batch_seconds_are_those_of_the_transaction(spool: Spool, engine: Engine) -> None:
    seconds: list[float] = []
    writer = make_writer(spool, engine, max_rows=2, on_batch=seconds.append)
    commit = engine.dialect.do_commit
    engine.dialect.do_commit = lambda connection: (time.sleep(0.05), commit(connection))  # type: ignore[method-assign]
    await put(spool, *(frame([row(ticker)]) for ticker in "ABC"))
    writer.run()
    assert len(seconds) == 2
    assert min(seconds) >= 0.05


async def test_nothing_is_built_ahead_of_a_very_large_batch(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine, max_rows=2)
    writer.register()
    await put(spool, frame([row("A")]), frame([row("B", minute) for minute in range(10)]), frame([row("C")]))
    built_ahead = []
    for _ in range(2):
        writer.step()
        built_ahead.append(writer.read_ahead.next_batch is not None)
    assert built_ahead == [False, False]
    writer.step()
    assert writer.status.new == 12


HOSTILE = ["O'Brien\"; DROP TABLE samples;--", "%s%(x)s", ":x", "a\nb", "\x1b[31m", "\u202eLPAA", "{}[]\\", "π€😀"]


async def test_hostile_tickers_are_stored_as_text(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row(ticker) for ticker in HOSTILE]))
    make_writer(spool, engine).run()
    assert sorted(ticker for ticker, *_ in query(engine, OBSERVATIONS)) == sorted(HOSTILE)


async def test_nul_and_lone_surrogates_in_a_body_become_escapes(spool: Spool, engine: Engine) -> None:
    await put(spool, frame('["\0\ud800"]', source="backfill"))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT body FROM dead_letters") == [('["\\u0000\\ud800"]',)]


async def test_facts_become_events_and_coverage(spool: Spool, engine: Engine) -> None:
    await put(
        spool,
        fact("pending", at_us=T0, state="pending", tickers=["A", "B"]),
        fact("subscribed", at_us=T0 + 2 * MINUTE, state="live", tickers=["A"]),
        fact("disconnected", at_us=T0 + 9 * MINUTE, since_us=T0 + 5 * MINUTE, state="disconnected", tickers=["A"]),
    )
    make_writer(spool, engine).run()
    assert query(engine, "SELECT seq, kind FROM events ORDER BY seq") == [
        (1, "pending"),
        (2, "subscribed"),
        (3, "disconnected"),
    ]
    rows = query(
        engine,
        "SELECT ticker, start_seq, state, ended_at IS NULL FROM coverage JOIN subscriptions USING (subscription_id)"
        " ORDER BY ticker, start_seq",
    )
    assert [(ticker, seq, state, bool(is_open)) for ticker, seq, state, is_open in rows] == [
        ("A", 1, "pending", False),
        ("A", 2, "live", False),
        ("A", 3, "disconnected", True),
        ("B", 1, "pending", True),
    ]


async def test_batches_are_bounded_and_gapless(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame([row(minute=i)]) for i in range(50)))
    make_writer(spool, engine, max_rows=10).run()
    batches = query(engine, "SELECT first_seq, last_seq FROM batches ORDER BY first_seq")
    assert len(batches) == 5
    assert [first for first, _ in batches] == [1, *(last + 1 for _, last in batches[:-1])]


async def test_batch_size_follows_the_load(spool: Spool, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "IDLE_SECONDS", 60.0)  # so that only an entry wakes the writer
    working = make_writer(spool, engine, max_rows=200, max_wait_seconds=0.02, drain=False)
    thread = threading.Thread(target=working.run)
    thread.start()
    try:
        for number in range(5):  # a trickle: each entry waits for max_wait at most
            await put(spool, frame([row(minute=number)]))
            await until(lambda: working.drained)
        assert working.status.batches == 5
        await put(spool, *(frame([row(minute=number)]) for number in range(10, 1210)))
        await until(lambda: working.drained)
    finally:
        working.stop()
        thread.join()
    sizes = [rows for (rows,) in query(engine, "SELECT frames FROM batches ORDER BY first_seq")]
    assert sizes[:5] == [1] * 5
    assert max(sizes) == 200
    # A writer that is behind writes full batches, except the first and the last.
    assert sum(sizes) / len(sizes[5:]) > 120


async def test_payloads_are_not_stored_without_payload_retention(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row()]))
    make_writer(spool, engine, keep_payloads=False).run()
    assert query(engine, "SELECT count(*) FROM payloads") == [(0,)]
    assert query(engine, "SELECT count(*) FROM samples") == [(1,)]


async def test_heartbeat_is_published_once_all_before_it_is_committed(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A")]), frame([row("B")]))
    spool.heartbeat(T0 + MINUTE)
    await put(spool, frame([row("C")]))
    writer = make_writer(spool, engine, max_rows=1)
    writer.register()
    writer.step()
    assert query(engine, "SELECT position, heartbeat_at FROM instances") == [(1, None)]
    writer.step()
    assert query(engine, "SELECT heartbeat_at IS NOT NULL FROM instances") in ([(True,)], [(1,)])


async def test_retried_dead_row_keeps_its_time_of_receipt(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    envelope = {"path": "crowd-sentiment", "params": {}, "results": [row("A", value=666.0), row("B")]}
    await put(spool, frame(envelope, received_us=T0, path="other"))
    make_writer(spool, engine).run()
    await put(spool, frame([row("A", value=2.0)], received_us=T0 + MINUTE))
    make_writer(spool, engine).run()
    with engine.begin() as connection:
        drop = "ALTER TABLE samples DROP CONSTRAINT samples_value_check"
        connection.execute(text(drop if engine.dialect.name == "postgresql" else "DROP TRIGGER refuse"))
    assert await requeue_dead_letters(spool, engine, []) == 1
    make_writer(spool, engine).run()
    assert [(ticker, value) for ticker, value, *_ in query(engine, OBSERVATIONS)] == [("A", 2.0), ("B", 0.5)]
    assert query(engine, "SELECT ticker, value FROM revisions") == [("A", 666.0)]
    assert query(engine, "SELECT count(*) FROM dead_letters WHERE retried_at IS NULL") == [(0,)]
    assert audit(engine) == []


async def test_value_repeated_after_a_retried_letter_is_current(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    await put(spool, frame([row(value=1)], received_us=T0 + 10))
    writer.step()
    retried = structs.replace(frame([row(value=2)], received_us=T0 + 50), retry_of=1)
    await put(spool, retried, frame([row(value=1)], received_us=T0 + 60))
    writer.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 1.0, 2, "stream", 3)]


async def test_retried_dead_frame_is_decoded_again(spool: Spool, engine: Engine) -> None:
    await put(spool, frame("{bad"), Frame(T0, "c", "stream", "", "p", "{}", "42[]"))
    make_writer(spool, engine).run()
    assert await requeue_dead_letters(spool, engine, [1]) == 1
    make_writer(spool, engine).run()
    letters = query(engine, "SELECT dead_letter_id, seq, body, retried_at IS NULL FROM dead_letters ORDER BY 1")
    assert [(n, seq, body, bool(new)) for n, seq, body, new in letters] == [
        (1, 1, "{bad", False),
        (2, 2, "42[]", True),
        (3, 3, "{bad", True),
    ]
    assert await requeue_dead_letters(spool, engine, []) == 2
    assert audit(engine) == []


async def test_retry_of_dead_letters_leaves_space_and_ends(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "PAGE_DEAD_LETTERS", 10)
    monkeypatch.setattr(dead_letters, "POLL_SECONDS", 0.01)
    small = Spool(tmp_path / "small", max_bytes=20_000, sync_every_seconds=0.001)
    small.start(raise_failure)
    await put(small, *(frame("{bad" + "x" * 300) for _ in range(60)))
    make_writer(small, engine).run()
    retrying = asyncio.create_task(requeue_dead_letters(small, engine, []))
    await until(lambda: small.live_bytes > 1_000)
    await asyncio.sleep(0.3)
    assert small.live_bytes < 10_000
    writer = make_writer(small, engine, drain=False)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))
    try:
        assert await asyncio.wait_for(retrying, 20) == 60
    finally:
        writer.drain()
        await writing
    assert query(engine, "SELECT count(*) FROM dead_letters") == [(120,)]
    await small.close()


async def test_retry_of_dead_letters_leaves_the_connection_of_the_writer_alone(
    spool: Spool, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "PAGE_DEAD_LETTERS", 1)
    writer = make_writer(spool, engine, drain=False)
    writing = asyncio.create_task(asyncio.to_thread(writer.run))
    await put(spool, *(frame("{bad") for _ in range(30)))
    await until(lambda: writer.status.position == 30)
    url = engine.url.render_as_string(hide_password=False)
    nothing: Any = None
    handlers = build_handlers(status=nothing, reloader=nothing, repair=nothing, spool=spool, database_url=url)
    assert await handlers["retry"]({}) == {"retried": 30}
    writer.drain()
    await writing
    assert writer.registrations == 1


async def test_page_of_dead_letters_is_bounded_in_bytes(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame("{bad" + "x" * 1000) for _ in range(5)))
    make_writer(spool, engine).run()
    pages = [
        [
            letter["dead_letter_id"]
            for letter in letters.next_dead_letters(engine, after_id=after, max_id=4, max_bytes=size)
        ]
        for after, size in ((0, 2500), (2, 2500), (4, 2500), (0, 1))
    ]
    assert pages == [[1, 2], [3, 4], [], [1]]


async def test_value_restated_and_repeated_in_a_batch_is_current(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    writer.register()
    for batch in ([0.1], [0.2, 0.1]):
        await put(spool, *(frame([row(value=number)]) for number in batch))
        writer.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 0.1, 2, "stream", 3)]


async def test_batch_with_few_rows_is_bounded_in_bytes(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame("x" * (3 << 20)) for _ in range(9)))
    make_writer(spool, engine).run()
    sizes = [last - first + 1 for first, last in query(engine, "SELECT first_seq, last_seq FROM batches")]
    assert sum(sizes) == 9
    assert max(sizes) <= 3


async def test_unstorable_event_name_becomes_escapes(spool: Spool, engine: Engine) -> None:
    await put(spool, Frame(T0, "c", "stream", "re\0s", CROWD, "{}", '42["re\\u0000s",[]]'), frame([row()]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT seq, event FROM payloads ORDER BY seq") == [(1, "re\\u0000s"), (2, "res")]


async def test_entry_rejected_outside_its_rows_is_isolated(spool: Spool, engine: Engine) -> None:
    with engine.begin() as connection:
        for table, column in (("payload_blocks", "{0}body || coalesce({0}frames, '')"), ("events", "{0}kind")):
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"ALTER TABLE {table} ADD CHECK ({column.format('')} NOT LIKE '%nonsense%')"))
            else:
                connection.execute(
                    text(
                        f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table}"
                        f" WHEN {column.format('new.')} LIKE '%nonsense%' BEGIN SELECT raise(ABORT, 'refused'); END"
                    )
                )
    await put(spool, *(frame([row("nonsense" if i == 3 else "A", i)]) for i in range(8)))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A"] * 7
    [(seq, index, stage, body)] = query(engine, "SELECT seq, row_index, stage, body FROM dead_letters")
    assert (seq, index, stage) == (4, None, "insert")
    assert "nonsense" in body
    assert audit(engine) == []


async def test_undocumented_field_is_logged_once(
    spool: Spool, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    await put(spool, *(frame([row(minute=i) | {"mood": 1}]) for i in range(3)))
    make_writer(spool, engine, max_rows=2).run()
    assert [record.getMessage() for record in caplog.records if "mood" in record.getMessage()] == [
        "crowd-sentiment: field 'mood' is not documented, its values are not stored"
    ]


@pytest.mark.postgres
async def test_reason_that_the_encoding_of_the_database_lacks_does_not_cost_a_transition(
    spool: Spool, postgres_server_url: str
) -> None:
    with fresh_database(postgres_server_url, encoding="LATIN1") as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        migrate.upgrade(engine)
        lost = fact("disconnected", state="disconnected", at_us=T0 + 1, tickers=["AAPL"], detail={"reason": "обрыв"})
        await put(spool, fact("subscribed", state="live", tickers=["AAPL"]), lost)
        await asyncio.to_thread(make_writer(spool, engine).run)
        assert query(engine, "SELECT state, reason FROM coverage ORDER BY start_seq") == [
            ("live", ""),
            ("disconnected", "обрыв".encode("ascii", "backslashreplace").decode()),
        ]
        engine.dispose()


@pytest.mark.postgres
async def test_lost_backfill_that_the_database_cannot_store_does_not_stop_the_writer(
    keeping_spool: Spool, postgres_server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_database(postgres_server_url, encoding="LATIN1") as url:
        engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        migrate.upgrade(engine)
        at = to_datetime(T0)
        names = {"path": CROWD, "method": "get", "params": "{}", "feed": "crowd-sentiment", "ticker": "Ж"}
        requests = backfill_requests.to_json([BackfillRequest(**names, from_ts=at, to_ts=at)])
        await put(keeping_spool, fact(), fact(BACKFILL_REQUESTED, detail={"requests": requests}))
        await asyncio.to_thread(make_writer(keeping_spool, engine).run)
        with engine.begin() as connection:  # as an older copy would have it
            for statement in ("UPDATE instances SET position = 0", "DELETE FROM batches", "DELETE FROM events"):
                connection.execute(text(statement))
        writer = make_writer(keeping_spool, engine, repeat_backfill=partial(repeat_backfill, engine))
        await asyncio.to_thread(writer.run)
        assert query(engine, "SELECT position FROM instances") == [(2,)]
        (warning,) = [record for record in caplog.records if "a backfill may be lost" in record.getMessage()]
        assert "LATIN1" in warning.__dict__["reason"]
        engine.dispose()


async def test_heartbeat_is_set_back_with_the_clock(spool: Spool, engine: Engine) -> None:
    writer = make_writer(spool, engine)
    await put(spool, fact(state="live", tickers=["A"]))
    spool.heartbeat(T0 + 100)
    await put(spool, fact())
    writer.register()
    writer.step()
    restarted = structs.replace(fact("clock_restarted", since_us=T0 + 10), until_us=T0 + 100)
    await put(spool, restarted)
    writer.step()
    beat = query(engine, "SELECT CAST(heartbeat_at AS TEXT) FROM instances")[0][0]
    assert beat.startswith("2026-01-01 00:00:00.00001")


async def test_repairs_of_time_that_is_still_to_come_are_forgotten(spool: Spool, engine: Engine) -> None:
    repair = {"subscription_id": 1, "from_ts": to_datetime(T0), "state": "done", "created_at": to_datetime(T0)}
    kinds = {5: "window", 10: "window", 11: "window", 12: "historical", 13: "manual"}
    with engine.begin() as connection:
        for us, kind in kinds.items():
            connection.execute(insert(repairs), repair | {"to_ts": to_datetime(T0 + us), "kind": kind})
        of_others = {"subscription_id": 2, "to_ts": to_datetime(T0 + 14), "kind": "snapshot"}
        connection.execute(insert(repairs), repair | of_others)
    await put(spool, fact(state="live", tickers=["A"], at_us=T0))
    await put(spool, structs.replace(fact("clock_restarted", since_us=T0 + 10), until_us=T0 + 100))
    make_writer(spool, engine).run()
    kept = query(engine, "SELECT kind FROM repairs ORDER BY to_ts")
    assert kept == [("window",), ("window",), ("manual",), ("snapshot",)]


async def test_backlog_of_a_database_that_is_away_from_the_start_has_an_age(spool: Spool, engine: Engine) -> None:
    is_away = True

    def prepare() -> None:
        if is_away:
            raise DatabaseUnavailable("away")

    writer = make_writer(spool, engine, prepare=prepare)
    await put(spool, frame([row("A")], received_us=T0 + 5), frame([row("A")], received_us=T0 + 9))
    with pytest.raises(DatabaseUnavailable):
        writer.register()
    assert writer.status.oldest_us == T0 + 5
    is_away = False
    writer.run()
    assert writer.status.oldest_us is None


async def test_instance_that_begins_late_claims_nothing_before_its_first_entry(spool: Spool, engine: Engine) -> None:
    """What came before it is in another database, if anywhere."""
    await put(spool, frame([row()], received_us=T0 + 5))
    await put(spool, fact(at_us=T0 + 10, since_us=T0, state="live", tickers=["A"]))
    spool.ack(1)
    spool.purge_acknowledged()
    await until(lambda: spool.first_seq() == 2)
    writer = make_writer(spool, engine)
    writer.register()
    writer.step()
    assert query(engine, "SELECT CAST(started_at AS TEXT) FROM coverage")[0][0].startswith("2026-01-01 00:00:00.00001")
