"""Record the statements that a database executes, and find full scans in their query plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

Statement = tuple[str, Any]  # SQL, parameters


@contextmanager
def recorded_selects(engine: Engine, table: str) -> Iterator[list[Statement]]:
    """Record every SELECT from ``table`` within the block."""
    recorded: list[Statement] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().startswith("SELECT") and table in statement:
            recorded.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", record)
    yield recorded
    event.remove(engine, "before_cursor_execute", record)


def full_scans(engine: Engine, statement: Statement, *tables: str) -> list[str]:
    """Return the steps of the query plan that read all of one of ``tables`` (or aliases)."""
    postgres = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        if postgres:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # which would be faster for a few rows
        explain = "EXPLAIN" if postgres else "EXPLAIN QUERY PLAN"
        steps = [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement[0]}", statement[1])]
    if postgres:
        return [step for step in steps if any(f"Seq Scan on {table} " in step for table in tables)]
    return [step for step in steps if any(step == f"SCAN {table}" for table in tables)]
