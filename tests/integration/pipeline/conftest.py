from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ingestor.spool.keep import Keep
from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from tests.support.writers import raise_failure

KEEP_ALL = Keep(seconds=86_400.0, size_bytes=1 << 30)


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """Each database once: SQLite and PostgreSQL."""
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001)
    spool.start(raise_failure)
    yield spool
    await spool.close()


@pytest.fixture
async def keeping_spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """A spool that keeps everything."""
    spool = Spool(tmp_path / "spool", max_bytes=1 << 30, sync_every_seconds=0.001, keep=KEEP_ALL)
    spool.start(raise_failure)
    yield spool
    await spool.close()


@pytest.fixture
def server_url(request: pytest.FixtureRequest, engine: Engine) -> str:
    """The URL of the PostgreSQL server that ``engine`` is on; empty for SQLite."""
    return request.getfixturevalue("postgres_server_url") if engine.dialect.name == "postgresql" else ""
