from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ingestor.spool.spool import Spool
from ingestor.store.engine import make_engine
from tests.support.writers import raise_failure


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
