"""`ingestor replay`: the target has the same samples and revisions as the source."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from ingestor.commands import replay as replay_command
from ingestor.core.entries import Fact, Frame, LetterOrigin
from ingestor.core.times import to_datetime
from ingestor.errors import PermissionDenied
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.batch_policy import BatchPolicy
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from ingestor.store import schema, views
from ingestor.store.engine import make_engine, repeatable_read
from ingestor.store.read import fingerprint as compared
from ingestor.store.read import replay_source
from ingestor.store.read.audit import audit
from ingestor.store.read.fingerprint import Fingerprint
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.integration.conftest import Command
from tests.support.daemon import InProcessDaemon, until, write_config
from tests.support.entries import CROWD, T0, decoder, fact, frame, row

FIRST, LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
Advance = Callable[[int], None]
MINUTE_US = 60_000_000


def driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sqlite to postgres", "postgres to sqlite"])
def urls(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> tuple[str, str]:
    """URLs of a database with tables, and of one of the other kind that is empty or does not exist."""
    file = tmp_path / "x.db"
    server: str = request.getfixturevalue("postgres_url")
    if request.param == "postgres to sqlite":
        return driver(server), f"sqlite:///{file}"
    file.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{file}", driver(server)


pytestmark = pytest.mark.postgres


@pytest.fixture
def source(urls: tuple[str, str]) -> Iterator[Engine]:
    from ingestor.store import migrate

    engine = make_engine(urls[0])
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def target(urls: tuple[str, str], source: Engine) -> Iterator[Engine]:
    with replay_command.open_target(source, urls[1]) as engine:
        yield engine


class Daemon:
    """Writes entries, a batch at a time."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._database = BatchWriter(engine)
        self._database.register(InstanceInfo(spool_id=name, name=name, version="", config_sha256="", started_us=T0))
        self._seq = 0

    def write(self, *entries: Frame | Fact, by: Decoder | None = None) -> None:
        assembly = BatchBuilder(self._seq + 1, by or decoder())
        for entry in entries:
            self._seq += 1
            assembly.add((self._seq, entry))
        self._database.write(assembly.batch)


def replay(
    source: Engine, target: Engine, start: datetime = FIRST, end: datetime = LAST, advance: Advance = lambda _done: None
) -> replay_command.ReplayResult:
    with repeatable_read(source) as frozen:
        return replay_command.Replayer(frozen, target, replay_source.entry_ranges(frozen, start, end)).run(advance)


def contents(engine: Engine) -> Fingerprint:
    with repeatable_read(engine) as frozen:
        return compared.compute_fingerprint(frozen, FIRST, LAST)


def view_rows(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of both views, with the spool in place of the instance."""
    with engine.connect() as connection:
        spools = {
            row.instance_id: re.sub(r"replay of (\w+) from \d+", r"\1", row.spool_id)
            for row in connection.execute(select(schema.instances))
        }
        return {
            view.name: sorted(
                ({**row._mapping, "instance_id": spools[row.instance_id]} for row in connection.execute(select(view))),
                key=lambda row: (row["feed"], row["ticker"], row["ts"], row["revision"]),
            )
            for view in (views.observations, views.revisions)
        }


def history(seed: int) -> Iterator[tuple[str, list[Frame | Fact]]]:
    """Yield (daemon, batch): two daemons that receive nearly the same, with restated, late, REST and dead values."""
    chance = random.Random(seed)
    now_us = T0
    for _ in range(60):
        entries: list[Frame | Fact] = []
        for _ in range(chance.randrange(1, 5)):
            now_us += chance.randrange(1, 3 * MINUTE_US)
            if chance.random() < 0.05:
                now_us -= 20 * MINUTE_US
            rows = [
                row(chance.choice(("A", "ON")), chance.randrange(8), chance.randrange(3))
                for _ in range(chance.randrange(6))
            ]
            rows += [{"ticker": "bad"}] * (chance.random() < 0.2)
            payload: Any = rows if chance.random() < 0.9 else "no JSON"
            source = chance.choice(("stream", "stream", "stream", "snapshot", "backfill"))
            entries.append(frame(payload, received_us=now_us, source=source))
            entries += [fact(at_us=now_us)] * (chance.random() < 0.1)
        yield chance.choice(("one", "two")), entries


@pytest.mark.parametrize("seed", range(2))
def test_replay_copies_everything_and_can_be_repeated(source: Engine, target: Engine, seed: int) -> None:
    daemons = {name: Daemon(source, name) for name in ("one", "two")}
    for name, entries in history(seed):
        daemons[name].write(*entries)
    found = view_rows(source)
    assert len(found["revisions"]) > 20
    first = replay(source, target)
    assert view_rows(target) == found
    assert contents(target) == contents(source)
    assert first.rows == first.new + first.revised + first.duplicate + dead_rows(source)
    assert (first.new, first.revised) == (len(found["observations"]), len(found["revisions"]))
    assert replay(source, target) == replay_command.ReplayResult()
    assert view_rows(target) == found
    assert audit(target) == []


def dead_rows(engine: Engine) -> int:
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM dead_letters WHERE row_index IS NOT NULL")
        return int(connection.execute(query).scalar_one())


def hours(daemon: Daemon, count: int) -> None:
    """Return nine minutes of values, restated every hour."""
    for hour in range(count):
        received_us = T0 + hour * 60 * MINUTE_US
        daemon.write(*(frame([row(minute=m, value=hour + m)], received_us=received_us) for m in range(9)))


def hour(number: float) -> datetime:
    return to_datetime(T0 + int(number * 60 * MINUTE_US))


def test_replay_resumes_at_its_end_and_rejects_earlier_entries(source: Engine, target: Engine) -> None:
    hours(Daemon(source, "one"), 6)
    assert replay(source, target, hour(0.5), hour(1.5)).entries == 9
    assert replay(source, target, hour(3.5), hour(4.5)).entries == 27  # including those in between, in order
    assert replay(source, target, hour(1.5), hour(2.5)).entries == 0
    with pytest.raises(ValueError, match="was replayed from entry 10 on"):
        replay(source, target)
    assert replay(source, target, hour(1)).entries == 9
    assert [row["value"] for row in view_rows(target)["observations"]] == [5 + minute for minute in range(9)]


def test_interrupted_replay_is_resumed(source: Engine, target: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_command, "POLICY", BatchPolicy(max_rows=10, max_wait_seconds=0))
    hours(Daemon(source, "one"), 4)
    with source.begin() as connection:  # received by a clock that was set back each time
        for first_seq in connection.execute(select(schema.batches.c.first_seq)).scalars().all():
            this_batch = schema.batches.c.first_seq == first_seq
            connection.execute(
                schema.batches.update().where(this_batch).values(committed_at=to_datetime(T0 - first_seq))
            )

    def interrupt(done: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(source, target, advance=interrupt)
    assert 0 < replay(source, target).entries < 26
    assert view_rows(target) == view_rows(source)


def blind() -> Decoder:
    """Return a decoder with a bug: every frame becomes a dead letter."""

    def metrics_of(path: str) -> None:
        raise RuntimeError(path)

    return Decoder(metrics_of, catalog.feed_name)


def retried(engine: Engine, index: int) -> dict[str, Any]:
    """Return the fields of a frame that retries the dead letter with this index."""
    c = schema.dead_letters.c
    with engine.connect() as connection:
        letters = connection.execute(select(c.dead_letter_id, c.instance_id, c.seq, c.row_index)).all()
    letter_id, *origin = letters[index]
    return {"retry_of": letter_id, "retry_origin": LetterOrigin(*origin)}


def test_retried_dead_letter_keeps_its_age(source: Engine, target: Engine) -> None:
    daemon = Daemon(source, "one")
    daemon.write(frame([row(value=1)], received_us=T0), by=blind())
    daemon.write(frame([row(value=2)], received_us=T0 + 5))
    daemon.write(frame([row(value=1)], received_us=T0, **retried(source, 0)))
    assert [row["value"] for row in view_rows(source)["observations"]] == [2]
    assert replay(source, target).entries == 2
    assert view_rows(target) == view_rows(source)


def test_newly_decodable_frame_is_replayed_in_its_place(source: Engine, target: Engine) -> None:
    def half_blind(path: str) -> dict[str, str]:
        return {"other": "crowd_sentiment"}

    daemon = Daemon(source, "one")
    daemon.write(frame([row(value=1)], received_us=T0), by=blind())
    daemon.write(frame([row(value=2), row(value=3, minute=1)], received_us=T0 + 5))
    daemon.write(frame([row("ON"), row("6E")], received_us=T0 + 6), by=Decoder(half_blind, catalog.feed_name))
    daemon.write(frame([row("BA"), row("IT")], received_us=T0 + 7), by=Decoder(half_blind, catalog.feed_name))
    with source.begin() as connection:
        connection.execute(text("DELETE FROM payload_blocks WHERE first_seq = 4"))  # like retention
    done = replay(source, target)
    found = view_rows(target)
    assert [(row["ticker"], row["value"], row["seq"]) for row in found["observations"]] == [
        ("6E", 0.5, 3),
        ("AAPL", 2, 2),
        ("AAPL", 3, 2),
        ("BA", 0.5, 4),
        ("IT", 0.5, 4),
        ("ON", 0.5, 3),
    ]
    assert [(row["value"], row["seq"]) for row in found["revisions"]] == [(1, 1)]
    assert (done.entries, done.dead) == (5, 0)


def test_replay_into_itself_is_rejected(source: Engine, urls: tuple[str, str], tmp_path: Path) -> None:
    same = urls[0].replace("127.0.0.1", "localhost")
    if source.dialect.name == "sqlite":
        (tmp_path / "link.db").symlink_to(tmp_path / "x.db")
        same = f"sqlite:///{tmp_path / 'link.db'}"
    with pytest.raises(PermissionDenied), replay_command.open_target(source, same):
        pass
    assert not (tmp_path / "link.db.lock").exists()


@pytest.mark.usefixtures("source")
def test_command_compares_both_databases(
    command: Command, write_config_for: Callable[..., Path], urls: tuple[str, str], source: Engine
) -> None:
    Daemon(source, "one").write(frame([row(), row(minute=1), {"ticker": "bad"}]), frame([row(value=2)]))
    arguments = ("replay", "--into", urls[1], "--config", write_config_for(urls[0]))
    ended = command(*arguments)
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == "2 entries with 4 rows: 2 new, 1 revised, 0 duplicate, 1 dead"
    hash_ = contents(source).sha256
    assert second == f"both databases have the same contents: 2 values and 1 revisions, sha256 {hash_}"
    with source.begin() as connection:
        connection.execute(text("UPDATE samples SET value = 0.75 WHERE value = 0.5"))
    found = json.loads(command(*arguments, "--output", "json").out)
    assert (found["same"], found["entries"]) == (False, 0)
    assert found["written"]["sha256"] == hash_ != found["read"]["sha256"]
    ended = command("replay", "--into", urls[0], "--config", write_config_for(urls[0]))
    assert (ended.code, ended.out) == (77, "")
    assert "this is the database to read from" in ended.err


def test_comparison_excludes_what_daemon_writes_meanwhile(
    command: Command,
    write_config_for: Callable[..., Path],
    urls: tuple[str, str],
    source: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemon(source, "one")
    daemon.write(frame([row()]))
    run = replay_command.Replayer.run

    def run_while_more_comes(self: replay_command.Replayer, advance: Advance) -> replay_command.ReplayResult:
        daemon.write(frame([row(value=7), row(minute=1)]))
        return run(self, advance)

    monkeypatch.setattr(replay_command.Replayer, "run", run_while_more_comes)
    arguments = ("replay", "--into", urls[1], "--config", write_config_for(urls[0]), "--output", "json")
    found = json.loads(command(*arguments).out)
    assert (found["same"], found["entries"], found["read"]["values"]) == (True, 1, 1)
    monkeypatch.undo()
    found = json.loads(command(*arguments).out)
    assert (found["same"], found["entries"], found["read"]["values"]) == (True, 1, 2)


def test_samples_without_payloads_are_not_compared(
    command: Command, write_config_for: Callable[..., Path], urls: tuple[str, str], source: Engine
) -> None:
    daemon = Daemon(source, "one")
    old, later = (T0 + number * 60 * MINUTE_US for number in (0, 5))
    daemon.write(frame("no JSON", received_us=old), frame([row("A")], received_us=old), by=blind())
    daemon.write(frame([row("B")], received_us=old))
    daemon.write(frame([row("C", minute=301)], received_us=later))
    daemon.write(frame([row("A")], received_us=old, **retried(source, 1)))
    with source.begin() as connection:
        connection.execute(text("DELETE FROM payload_blocks WHERE first_seq < 4"))  # like retention
    for since in ([], ["--from", "2000-01-01"]):
        arguments = ("replay", "--into", urls[1], "--config", write_config_for(urls[0]), "--output", "json")
        found = json.loads(command(*arguments, *since).out)
        assert (found["same"], found["read"]["values"]) == (True, 1)
        assert found["from"] == "2026-01-01T05:00:00+00:00"
    assert found["entries"] == 0


async def test_database_of_daemon_is_rebuilt(
    make_simulator: Callable[..., Any], urls: tuple[str, str], tmp_path: Path
) -> None:
    simulator = await make_simulator(restate_every=5)
    wanted = {CROWD: ["AAPL", "ON"], "crowd-sentiment-chart-data": ["AAPL"]}
    config = write_config(
        tmp_path, url=simulator.url, database_url=urls[0].replace("+psycopg", ""), subscriptions=wanted
    )
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await until(lambda: daemon.status.rows.new > 300 and daemon.status.rows.revised > 3)
    source = make_engine(urls[0])
    with replay_command.open_target(source, urls[1]) as target:
        replay(source, target)
        assert view_rows(target) == view_rows(source)
    source.dispose()
