"""A database that goes back in time: a copy of it takes its place."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Engine, event, text

from ingestor.store.engine import make_engine, sqlite_path
from tests.support.postgres_server import fresh_database

Switch: TypeAlias = Callable[[], None]

# What entries leave in the tables, without ids that depend on how they were batched, and when.
_CONTENTS = (
    "SELECT feed, ticker, ts, value, revision, received_at, source, instance_id, seq FROM observations",
    "SELECT feed, ticker, ts, value, received_at, source, instance_id, seq FROM revisions",
    "SELECT instance_id, seq, received_at, row_count, body FROM payloads",
    "SELECT instance_id, seq, at, kind, detail FROM events",
    "SELECT instance_id, seq, row_index, stage, body FROM dead_letters",
    "SELECT path, c.* FROM coverage c JOIN subscriptions USING (subscription_id)",
    "SELECT instance_id, sum(frames), sum(facts), sum(row_count) FROM batches GROUP BY instance_id",
    "SELECT spool_id, position, stepped_back FROM instances",
)


@contextmanager
def database_with_copy(engine: Engine, folder: Path, server_url: str) -> Iterator[tuple[Engine, Switch]]:
    """Yield an engine on a copy of the database, and what makes every later connection of ``engine`` lead there."""
    path = sqlite_path(str(engine.url))
    if path:
        copy = folder / "copy.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"VACUUM INTO '{copy}'")
        other = make_engine(f"sqlite:///{copy}")
        yield other, lambda: _take_over(other, copy, path)
        other.dispose()
        return
    engine.dispose()  # a database with connections cannot be copied
    with fresh_database(server_url, engine.url.render_as_string(False).replace("+psycopg", "")) as url:
        other = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))

        def switch() -> None:
            @event.listens_for(engine, "do_connect")
            def lead_there(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
                parameters["dbname"] = other.url.database

        yield other, switch
        engine.dispose()
        other.dispose()


def _take_over(other: Engine, copy: Path, path: Path) -> None:
    other.dispose()
    copy.replace(path)


def contents(engine: Engine) -> list[list[tuple[Any, ...]]]:
    """Return what is in the tables, apart from how it was batched, and when."""
    with engine.connect() as connection:
        return [sorted(map(tuple, connection.execute(text(query))), key=repr) for query in _CONTENTS]
