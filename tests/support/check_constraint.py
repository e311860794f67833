"""A database that rejects a value, as a constraint added by its owner would."""

from __future__ import annotations

from sqlalchemy import Engine, text


def refuse_all(engine: Engine, table: str) -> None:
    """Let the database reject every row of a table from now on."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"ALTER TABLE {table} ADD CHECK (false) NOT VALID"))
        else:
            abort = "BEGIN SELECT raise(ABORT, 'refused'); END"
            connection.execute(text(f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} {abort}"))


def refuse(engine: Engine, value: float) -> None:
    """Let the database reject every sample with this value from now on."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"ALTER TABLE samples ADD CHECK (value <> {value})"))
        else:
            connection.execute(
                text(
                    f"CREATE TRIGGER refuse BEFORE INSERT ON samples WHEN new.value = {value} BEGIN"
                    " SELECT raise(ABORT, 'refused'); END"
                )
            )
