"""Spool, writer and a real database together: what is in the tables afterwards."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import psycopg
import pytest
from msgspec import structs
from sqlalchemy import Engine, event, text

from ingestor.core.entries import Frame
from ingestor.pipeline import dead_letters
from ingestor.pipeline.dead_letters import requeue_dead_letters
from ingestor.spool.chunk_store import SpoolUnreadable
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from ingestor.store.read import status as letters
from ingestor.store.read.audit import audit
from tests.support.check_constraint import refuse
from tests.support.daemon import until
from tests.support.entries import CROWD, T0, fact, frame, row
from tests.support.flaky_commit import FlakyCommits
from tests.support.postgres_server import fresh_database
from tests.support.writers import make_writer, put, query, raise_failure

MINUTE = 60_000_000


OBSERVATIONS = "SELECT ticker, value, revision, source, seq FROM observations ORDER BY ticker, ts"
LEDGER = "SELECT sum(row_count), sum(new_rows), sum(revised_rows), sum(duplicate_rows), sum(dead_rows) FROM batches"


async def test_rows_reach_the_table_once_however_often_they_come(spool: Spool, engine: Engine) -> None:
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


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in three"])
async def test_a_restated_value_becomes_current_and_the_others_are_kept(
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


async def test_a_slow_answer_never_replaces_a_newer_value(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row(value=2)], received_us=T0 + 10))
    make_writer(spool, engine).run()
    await put(spool, frame([row(value=1)], received_us=T0 + 5, source="snapshot"))
    make_writer(spool, engine).run()
    assert query(engine, OBSERVATIONS) == [("AAPL", 2.0, 1, "stream", 1)]
    assert query(engine, "SELECT value, revision, source FROM revisions") == [(1.0, 0, "snapshot")]


async def test_a_value_said_again_after_another_instance_restated_it_is_current_again(
    tmp_path: Path, spool: Spool, engine: Engine
) -> None:
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


async def test_a_batch_that_did_commit_unseen_is_not_written_again(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A")]), frame([row("B")]))
    stale = make_writer(spool, engine)
    stale.register()  # it has read its position …
    make_writer(spool, engine).run()  # … when an earlier try's commit comes through
    stale.step()
    stale.step()
    assert stale.status.position == 2
    assert query(engine, "SELECT count(*) FROM batches") == [(1,)]
    assert query(engine, "SELECT count(*) FROM payloads") == [(2,)]


@pytest.mark.postgres
async def test_a_sample_that_another_daemon_prunes_while_it_is_restated_is_written_anew(
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


async def test_an_errand_is_done_once_what_it_follows_is_committed_and_not_at_all_once_the_writer_has_ended(
    spool: Spool, engine: Engine
) -> None:
    await put(spool, frame([row("A")]))
    made = make_writer(spool, engine)
    count = "SELECT count(*) FROM observations"
    done, too_early = (
        made.run_in_writer(lambda me: (me, query(engine, count)), after_seq=1),
        made.run_in_writer(lambda me: me, after_seq=2),
    )
    made.run()
    assert done.result(0) == (1, [(1,)])
    for waiting in (too_early, made.run_in_writer(lambda me: me)):
        with pytest.raises(CancelledError):
            waiting.result(0)


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done unseen"])
async def test_after_a_commit_that_failed_nothing_counts_as_known(spool: Spool, engine: Engine, done: bool) -> None:
    sent: list[list[str]] = []
    made = make_writer(spool, engine, on_rows=lambda rows: sent.append([row.series[2] for row in rows]))
    made.register()
    for tickers in ("AB", "A"):
        await put(spool, frame([row(ticker) for ticker in tickers]))
        made.step()
    FlakyCommits(engine).fail(1, done=done)
    await put(spool, frame([row("B", 1)]))
    made.step()
    await put(spool, frame([row("A")]))
    made.step()
    assert [tickers for tickers in sent if tickers != ["B"]] == [["A", "B"], [], ["A"]]


async def test_dead_rows_stand_beside_the_living(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row("A"), {"ticker": "B"}, row("C")]), frame("{bad"), frame([]))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "C"]
    letters = query(engine, "SELECT seq, row_index, stage, reason, body FROM dead_letters ORDER BY seq")
    assert letters == [(1, 1, "decode", "no ts", '{"ticker": "B"}'), (2, None, "decode", "not JSON", "{bad")]
    assert query(engine, "SELECT seq, row_count FROM payloads ORDER BY seq") == [(1, 3), (3, 0)]
    assert query(engine, "SELECT frames, dead_frames, dead_rows FROM batches") == [(3, 1, 1)]


@pytest.mark.parametrize("bad", [[0], [2], [4], [1, 2], [0, 1, 2, 3, 4]], ids=str)
async def test_a_row_that_the_database_refuses_stands_alone(spool: Spool, engine: Engine, bad: list[int]) -> None:
    refuse(engine, 666.0)
    await put(spool, frame([row("T", minute, 666.0 if minute in bad else 1.0) for minute in range(5)]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT count(*) FROM samples") == [(5 - len(bad),)]
    letters = query(engine, "SELECT row_index, stage, body FROM dead_letters ORDER BY row_index")
    assert [(index, stage) for index, stage, _ in letters] == [(index, "insert") for index in bad]
    assert all(json.loads(body)["crowd_sentiment"] == 666.0 for *_, body in letters)
    assert query(engine, "SELECT position FROM instances") == [(1,)]


async def test_every_repetition_of_what_the_database_refuses_is_a_letter(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    await put(spool, frame([row(value=666.0)]), frame([row(value=666.0), row("ON")]), frame([row("ON")]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT seq, row_index FROM dead_letters ORDER BY seq") == [(1, 0), (2, 0)]
    assert query(engine, "SELECT new_rows, duplicate_rows, dead_rows FROM batches") == [(1, 1, 2)]
    assert audit(engine) == []


async def test_a_row_whose_values_are_all_refused_is_one_letter(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    chart = {"ts": "2026-01-01T00:00:00.000Z", "ticker": "A", "crowd_sentiment": 666, "volume": 666, "buzz": 1}
    await put(spool, frame([chart], path="crowd-sentiment-chart-data"))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT metric, value FROM observations") == [("buzz", 1.0)]
    [(body,)] = query(engine, "SELECT body FROM dead_letters")
    assert (json.loads(body)["crowd_sentiment"], json.loads(body)["volume"]) == (666.0, 666.0)
    assert audit(engine) == []


async def test_a_name_that_the_database_refuses_costs_only_its_own_rows(spool: Spool, engine: Engine) -> None:
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


async def test_a_database_that_takes_no_dead_letters_is_not_well(spool: Spool, engine: Engine) -> None:
    refuse(engine, 666.0)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE dead_letters ADD CHECK (seq > 1000)"))
        else:
            connection.execute(
                text("CREATE TRIGGER full BEFORE INSERT ON dead_letters BEGIN SELECT raise(ABORT, 'full'); END")
            )
    await put(spool, frame([row(value=666.0)]))
    outages: list[str] = []

    def stop(error: str, _delay_seconds: float) -> None:
        outages.append(error)
        writer.stop()

    writer = make_writer(spool, engine, on_outage=stop)
    writer.register()
    writer.step()
    assert len(outages) == 1
    assert "rejects even a plain-ASCII dead letter" in outages[0]
    assert query(engine, "SELECT position FROM instances") == [(0,)]
    assert query(engine, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert spool.acked == 0


async def test_a_database_restored_from_an_older_copy_is_met_as_another_instance(spool: Spool, engine: Engine) -> None:
    await put(spool, fact("subscribed", state="live", tickers=["A"]), frame([row("A")]))
    make_writer(spool, engine).run()
    await put(spool, frame([row("B")]))
    make_writer(spool, engine).run()
    await put(spool, fact())  # with this sync the spool forgets what was acknowledged
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET position = 1"))
        connection.execute(text("DELETE FROM batches WHERE first_seq > 1"))
    await put(spool, frame([row("C")]))
    lost: list[str] = []
    made = make_writer(spool, engine, on_lost=lost.append)
    FlakyCommits(engine).fail(2, done=False)  # that of the old one's end: it is tried again, and told once
    made.run()
    assert lost == ["the database's position 1 does not fit the spool: one of them is an older copy"]
    assert query(engine, "SELECT count(*) FROM instances") == [(2,)]
    assert "C" in [ticker for ticker, *_ in query(engine, OBSERVATIONS)]
    states = query(engine, "SELECT state, ended_at IS NULL FROM coverage ORDER BY start_seq")
    assert [(state, bool(still)) for state, still in states] == [("live", False), ("lost", False)]


async def test_a_database_that_never_met_a_spool_with_a_past_lacks_what_it_forgot(spool: Spool, engine: Engine) -> None:
    lost: list[str] = []
    for ticker in "AB":
        await put(spool, frame([row(ticker)]))
        made = make_writer(spool, engine, on_lost=lost.append)
        made.run()
        assert lost == []
    await put(spool, fact())  # with this sync the spool forgets what was acknowledged
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM instances"))
    made.run()
    assert lost == ["the database does not know this spool, which had written to one before"]


@pytest.mark.parametrize("older", ["DELETE FROM instances", "UPDATE instances SET position = 1"])
async def test_what_was_acknowledged_and_not_yet_forgotten_is_not_begun_with(
    spool: Spool, engine: Engine, older: str
) -> None:
    made = make_writer(spool, engine)
    made.register()
    for ticker in "AB":
        await put(spool, frame([row(ticker)]))
    made.step()
    with engine.begin() as connection:
        connection.execute(text(older))
    made.register()
    await put(spool, frame([row("C")]))  # with this sync the spool forgets what was acknowledged
    made.step()
    assert (made.status.position, made.drained) == (3, True)
    assert query(engine, "SELECT max(seq) FROM payloads") == [(3,)]


async def test_a_spool_older_than_the_database_does_not_have_its_new_entries_taken_for_old(
    spool: Spool, engine: Engine
) -> None:
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
async def test_entries_that_are_not_as_they_were_written_condemn_the_spool(
    tmp_path: Path, spool: Spool, engine: Engine, damage: str, message: str
) -> None:
    for ticker in "ABC":
        await put(spool, frame([row(ticker)]))
    made = make_writer(spool, engine)
    made.register()
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as db:
        db.execute(damage)
    db.close()
    with pytest.raises(SpoolUnreadable, match=message):
        made.step()


def damage_last(folder: Path) -> None:
    with sqlite3.connect(folder / "spool" / "spool.db") as db:
        db.execute(
            "UPDATE chunks SET body = zeroblob(length(body)) WHERE first_seq = (SELECT max(first_seq) FROM chunks)"
        )
    db.close()


@pytest.mark.parametrize(("max_rows", "commit"), [(1, 4), (2, 2)], ids=["begun ahead", "the only one"])
async def test_what_is_written_when_the_spool_cannot_be_read_on_is_written_to_its_end(
    tmp_path: Path, spool: Spool, engine: Engine, max_rows: int, commit: int
) -> None:
    for ticker in "ABC":
        await put(spool, frame([row(ticker)]))
    made = make_writer(spool, engine, max_rows=max_rows)
    made.register()
    damage_last(tmp_path)
    FlakyCommits(engine).fail(commit, done=False)  # that of B
    with pytest.raises(SpoolUnreadable, match="entries 3 to 3"):
        made.run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A", "B"]
    assert spool.acked == 2


async def test_what_waits_for_company_when_the_spool_cannot_be_read_on_is_written(
    tmp_path: Path, spool: Spool, engine: Engine
) -> None:
    made = make_writer(spool, engine, max_wait_seconds=1, drain=False)
    made.register()
    await put(spool, frame([row("A")]))
    assert made.read_ahead.read_entries(0, 0)
    await put(spool, frame([row("B")]))
    damage_last(tmp_path)
    made.step()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A"]
    with pytest.raises(SpoolUnreadable, match="entries 2 to 2"):
        made.step()


async def test_the_seconds_of_a_batch_are_those_of_its_write_also_while_the_next_one_is_read(
    spool: Spool, engine: Engine
) -> None:
    seconds: list[float] = []
    made = make_writer(spool, engine, max_rows=2, on_batch=seconds.append)
    commit = engine.dialect.do_commit
    engine.dialect.do_commit = lambda connection: (time.sleep(0.05), commit(connection))  # type: ignore[method-assign]
    await put(spool, *(frame([row(ticker)]) for ticker in "ABC"))
    made.run()
    assert len(seconds) == 2
    assert min(seconds) >= 0.05


async def test_beside_one_of_the_largest_frames_nothing_is_read_ahead(spool: Spool, engine: Engine) -> None:
    made = make_writer(spool, engine, max_rows=2)
    made.register()
    await put(spool, frame([row("A")]), frame([row("B", minute) for minute in range(10)]), frame([row("C")]))
    begun = []
    for _ in range(2):
        made.step()
        begun.append(made.read_ahead.next_batch is not None)
    assert begun == [False, False]
    made.step()
    assert made.status.new == 12


HOSTILE = ["O'Brien\"; DROP TABLE samples;--", "%s%(x)s", ":x", "a\nb", "\x1b[31m", "\u202eLPAA", "{}[]\\", "π€😀"]


async def test_hostile_tickers_are_text_like_any_other(spool: Spool, engine: Engine) -> None:
    await put(spool, frame([row(ticker) for ticker in HOSTILE]))
    make_writer(spool, engine).run()
    assert sorted(ticker for ticker, *_ in query(engine, OBSERVATIONS)) == sorted(HOSTILE)


async def test_nul_and_lone_surrogates_in_a_body_are_kept_as_escapes(spool: Spool, engine: Engine) -> None:
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
    assert [(ticker, seq, state, bool(still)) for ticker, seq, state, still in rows] == [
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


async def test_a_batch_is_as_large_as_the_load(spool: Spool, engine: Engine) -> None:
    working = make_writer(spool, engine, max_rows=200, max_wait_seconds=0.02, drain=False)
    thread = threading.Thread(target=working.run)
    thread.start()
    try:
        for number in range(5):  # a trickle: each is written without waiting for more than max_wait
            began = time.monotonic()
            await put(spool, frame([row(minute=number)]))
            await until(lambda: working.drained)
            assert time.monotonic() - began < 1.0  # IDLE_SECONDS: nobody waits until the writer comes round by itself
        assert working.status.batches == 5
        await put(spool, *(frame([row(minute=number)]) for number in range(10, 1210)))
        await until(lambda: working.drained)
    finally:
        working.stop()
        thread.join()
    sizes = [rows for (rows,) in query(engine, "SELECT frames FROM batches ORDER BY first_seq")]
    assert sizes[:5] == [1] * 5
    assert max(sizes) == 200
    assert sum(sizes) / len(sizes[5:]) > 120  # whoever falls behind writes full batches, but for the first and the last


async def test_without_payload_retention_no_payload_is_kept(spool: Spool, engine: Engine) -> None:
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


async def test_a_dead_row_that_can_be_stored_now_goes_in_under_the_stamp_of_its_receipt(
    spool: Spool, engine: Engine
) -> None:
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


async def test_what_is_said_again_after_a_letter_that_was_retried_is_current_again(
    spool: Spool, engine: Engine
) -> None:
    made = make_writer(spool, engine)
    made.register()
    await put(spool, frame([row(value=1)], received_us=T0 + 10))
    made.step()
    retried = structs.replace(frame([row(value=2)], received_us=T0 + 50), retry_of=1)
    await put(spool, retried, frame([row(value=1)], received_us=T0 + 60))
    made.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 1.0, 2, "stream", 3)]


async def test_a_dead_frame_goes_the_whole_way_again(spool: Spool, engine: Engine) -> None:
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


async def test_letters_leave_the_spool_room_and_those_that_die_again_are_not_tried_for_ever(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "PAGE_DEAD_LETTERS", 10)
    monkeypatch.setattr(dead_letters, "POLL_SECONDS", 0.01)
    small = Spool(tmp_path / "small", max_bytes=20_000, sync_every_seconds=0.001)
    small.start(raise_failure)
    await put(small, *(frame("{bad" + "x" * 300) for _ in range(60)))
    make_writer(small, engine).run()
    retrying = asyncio.create_task(requeue_dead_letters(small, engine, []))
    await asyncio.sleep(0.3)
    assert 1_000 < small.live_bytes < 10_000
    made = make_writer(small, engine, drain=False)
    writing = asyncio.create_task(asyncio.to_thread(made.run))
    try:
        assert await asyncio.wait_for(retrying, 20) == 60
    finally:
        made.drain()
        await writing
    assert query(engine, "SELECT count(*) FROM dead_letters") == [(120,)]
    await small.close()


async def test_a_page_of_letters_is_bounded_in_bytes(spool: Spool, engine: Engine) -> None:
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


async def test_a_value_restated_and_said_again_within_a_batch_is_current(spool: Spool, engine: Engine) -> None:
    made = make_writer(spool, engine)
    made.register()
    for batch in ([0.1], [0.2, 0.1]):
        await put(spool, *(frame([row(value=number)]) for number in batch))
        made.step()
    assert query(engine, OBSERVATIONS) == [("AAPL", 0.1, 2, "stream", 3)]


async def test_a_batch_is_bounded_in_bytes_though_its_rows_be_few(spool: Spool, engine: Engine) -> None:
    await put(spool, *(frame("x" * (3 << 20)) for _ in range(9)))
    make_writer(spool, engine).run()
    sizes = [last - first + 1 for first, last in query(engine, "SELECT first_seq, last_seq FROM batches")]
    assert sum(sizes) == 9
    assert max(sizes) <= 3


async def test_an_event_name_that_no_database_takes_stops_nobody(spool: Spool, engine: Engine) -> None:
    await put(spool, Frame(T0, "c", "stream", "re\0s", CROWD, "{}", '42["re\\u0000s",[]]'), frame([row()]))
    make_writer(spool, engine).run()
    assert query(engine, "SELECT seq, event FROM payloads ORDER BY seq") == [(1, "re\\u0000s"), (2, "res")]


async def test_an_entry_that_the_database_refuses_elsewhere_than_in_its_rows_stands_alone(
    spool: Spool, engine: Engine
) -> None:
    with engine.begin() as connection:
        for table, column in (("payloads", "body"), ("events", "kind")):
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"ALTER TABLE {table} ADD CHECK ({column} NOT LIKE '%nonsense%')"))
            else:
                connection.execute(
                    text(
                        f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} WHEN new.{column} LIKE '%nonsense%'"
                        " BEGIN SELECT raise(ABORT, 'refused'); END"
                    )
                )
    await put(spool, *(frame([row("nonsense" if i == 3 else "A", i)]) for i in range(8)))
    make_writer(spool, engine).run()
    assert [ticker for ticker, *_ in query(engine, OBSERVATIONS)] == ["A"] * 7
    [(seq, index, stage, body)] = query(engine, "SELECT seq, row_index, stage, body FROM dead_letters")
    assert (seq, index, stage) == (4, None, "insert")
    assert "nonsense" in body
    assert audit(engine) == []


async def test_a_field_that_is_not_documented_is_told_of_once(
    spool: Spool, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    await put(spool, *(frame([row(minute=i) | {"mood": 1}]) for i in range(3)))
    make_writer(spool, engine, max_rows=2).run()
    assert [one.getMessage() for one in caplog.records if "mood" in one.getMessage()] == [
        "crowd-sentiment: field 'mood' is not documented, its values are not stored"
    ]
