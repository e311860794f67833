"""A database with the schema in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from ingestor.store.engine import make_engine


@pytest.fixture
def empty_engine(database_url: str) -> Iterator[Engine]:
    """Opened as the daemon opens it; nothing in it."""
    engine = make_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """The tables and views, without rows."""
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()
