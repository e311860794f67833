"""What tests are given: databases for real, and servers on loopback that speak as the provider does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import postgres as pg
from .support.missing import LOUD, missing


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not be tested here, once each, where nobody overlooks it."""
    places = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = {place[2].removeprefix("Skipped: ") for place in places if isinstance(place, tuple)}
    for reason in sorted(reason for reason in reasons if reason.startswith(LOUD)):
        terminalreporter.write_line(reason, red=True, bold=True)


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    found = pg.find_binaries()
    if found is None or not (found / "postgres").exists():
        missing("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder) or INGESTOR_TEST_POSTGRES (URL)")
    return found


@pytest.fixture(scope="session")
def postgres_server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that all tests of the run share; nobody stops it. For faults take ``postgres``."""
    named = os.environ.get("INGESTOR_TEST_POSTGRES")
    if named:
        yield named
        return
    with pg.own_server(request.getfixturevalue("postgres_binaries")) as server:
        yield server.url()


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A fresh, empty PostgreSQL database, `postgresql://user@127.0.0.1:port/name`."""
    with pg.fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture
def postgres(postgres_binaries: Path) -> Iterator[pg.Postgres]:
    """A running server of the test's own, to stop, kill, pause and start (1.5 s)."""
    with pg.own_server(postgres_binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ingestor.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
