"""A database with the schema in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from ingestor.store.engine import connect


@pytest.fixture
def empty_engine(database_url: str) -> Iterator[Engine]:
    """Opened as the daemon opens it; nothing in it."""
    engine = connect(database_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """The tables and views, without rows."""
    engine = connect(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()
