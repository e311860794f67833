"""Engines on an empty and on a migrated database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from ingestor.store.engine import make_engine


@pytest.fixture
def empty_engine(database_url: str) -> Iterator[Engine]:
    """An empty database, opened as the daemon opens it."""
    engine = make_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """A database with the tables and views, without rows."""
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()
