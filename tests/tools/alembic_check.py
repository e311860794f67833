"""``python -m tests.tools.alembic_check``: compare ``schema.py`` with ``migrations/``, on SQLite and PostgreSQL."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ingestor.store import migrate
from ingestor.store.engine import make_engine
from tests.support.postgres_server import find_binaries, own_server


def _check(url: str) -> None:
    engine = make_engine(url)
    migrate.upgrade(engine)
    migrate.check_metadata(engine)
    print(f"{engine.dialect.name}: schema {migrate.current_revision(engine)}, no difference")
    engine.dispose()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _check(f"sqlite:///{Path(folder) / 'x.db'}")
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL is not installed")
    with own_server(binaries) as server:
        _check(server.url().replace("postgresql://", "postgresql+psycopg://"))


if __name__ == "__main__":
    main()
