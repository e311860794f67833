"""How a database means to find what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

Asked = tuple[str, Any]  # statement, parameters


@contextmanager
def questions(engine: Engine, table: str) -> Iterator[list[Asked]]:
    """Every SELECT of a table, and its parameters, for as long as the block lasts."""
    asked: list[Asked] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().startswith("SELECT") and table in statement:
            asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


def reads_whole(engine: Engine, asked: Asked, *tables: str) -> list[str]:
    """The steps by which one of these tables (or aliases) would be read from end to end."""
    postgres = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        if postgres:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # of a few rows it would read all, and be right
        explain = "EXPLAIN" if postgres else "EXPLAIN QUERY PLAN"
        steps = [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {asked[0]}", asked[1])]
    if postgres:
        return [step for step in steps if any(f"Seq Scan on {table} " in step for table in tables)]
    return [step for step in steps if any(step == f"SCAN {table}" for table in tables)]
