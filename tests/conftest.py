"""Fixtures for all tests: real databases, and stand-ins for the provider on loopback."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingestor.core.redaction import redactor
from ingestor.store import migrate
from ingestor.store.engine import make_engine
from tests.support.faulty_simulator import FaultySimulator

from .support import postgres_server as pg
from .support.node_server import NodeServer, start_installs
from .support.postgres_cluster import PostgresCluster, own_cluster
from .support.requirements import SKIP_PREFIX, skip_missing
from .support.tcp_proxy import TcpProxy

# A minute of data every 20 ms, ten minutes in each response, and a clock that is the same in every run.
PACE: dict[str, Any] = {
    "seed": 7,
    "interval_seconds": 0.02,
    "step_seconds": 60,
    "window_seconds": 600,
    "started_at": datetime(2026, 1, 5, 14, 30, tzinfo=UTC).timestamp(),
    "record_limit": 1_000_000,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=15, help="Number of random kills of the daemon, on each database.")
    parser.addoption("--scenarios", type=int, default=400, help="Number of scenarios of the claims model, in all.")
    parser.addoption("--scenario", type=int, metavar="SEED", help="Run this scenario of the claims model only.")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the parts of the claims model, a minute each: at the end, one worker would run most of them."""
    parts = [item for item in items if "/claims/" in item.nodeid]
    if len(parts) < len(items):
        items[:] = [item for item in items if item not in parts]
        spacing = len(items) // (len(parts) + 1)
        for number, part in enumerate(parts):
            items.insert(number * (spacing + 1), part)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Escape lone surrogates in captured logs of hostile payloads, because pytest-xdist cannot transfer them."""
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the missing requirements at the end of the summary, each once, where they are not overlooked."""
    _summarize_claims(terminalreporter)
    places = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = {place[2].removeprefix("Skipped: ") for place in places if isinstance(place, tuple)}
    for reason in sorted(reason for reason in reasons if reason.startswith(SKIP_PREFIX)):
        terminalreporter.write_line(reason, red=True, bold=True)


def _summarize_claims(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was claimed in the scenarios of the claims model: it is easy to be right by claiming nothing."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [value for report in reports for name, value in report.user_properties if name == "claims"]
    scenarios, stored, claimed = (sum(column) for column in zip(*figures, strict=True)) if figures else (0, 0, 0)
    if stored:
        percent = 100 * claimed / stored
        terminalreporter.write_line(f"claims model: {scenarios} scenarios, {percent:.0f} % of the stored rows claimed")


@pytest.fixture(autouse=True)
def _forget_secrets() -> Iterator[None]:
    """Remove a test's secrets from the redactor, which is shared by the process and would mask them in other tests."""
    before = redactor._counts.copy()
    yield
    for secret in (redactor._counts - before).elements():
        redactor.remove(secret)


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    found = pg.find_binaries()
    if found is None or not (found / "postgres").exists():
        skip_missing("PostgreSQL: install it, or set INGESTOR_TEST_PG_BIN (folder) or INGESTOR_TEST_POSTGRES (URL)")
    return found


@pytest.fixture(scope="session")
def postgres_server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that all tests of the run share and must not stop. For faults, use ``postgres``."""
    configured = os.environ.get("INGESTOR_TEST_POSTGRES")
    if configured:
        yield configured
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
    """A running server for one test, to stop, kill, pause and start (takes 1.5 s)."""
    with pg.own_server(postgres_binaries) as server:
        yield server


@pytest.fixture
def postgres_cluster(postgres_binaries: Path) -> Iterator[PostgresCluster]:
    """A primary and a standby that streams from it, for one test (takes 3 s)."""
    with own_cluster(postgres_binaries) as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ingestor.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with the schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "ingestor.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template_url(postgres_server_url: str) -> Iterator[str]:
    """A PostgreSQL database with the schema, to be copied."""
    with pg.fresh_database(postgres_server_url) as url:
        _migrate(url)
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database with the schema, copied from a template, because migrations take a quarter of a second."""
    if request.param == "sqlite":
        path = shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "ingestor.db")
        yield f"sqlite:///{path}"
        return
    server, template = (request.getfixturevalue(name) for name in ("postgres_server_url", "postgres_template_url"))
    with pg.fresh_database(server, template) as url:
        yield url


def _migrate(url: str) -> None:
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    migrate.upgrade(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and provider.test, with its key."""
    if not shutil.which("openssl"):
        skip_missing("TLS: install openssl")
    made = tmp_path_factory.mktemp("tls") / "pair.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:provider.test"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *names, "-keyout", made, "-out", f"{made}.crt"], check=True, capture_output=True)
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
async def make_simulator() -> AsyncIterator[Callable[..., Any]]:
    """`await make_simulator(**options)`: a running simulator at the tests' pace, with other options where given."""
    async with AsyncExitStack() as running:

        async def make(**options: Any) -> FaultySimulator:
            return await running.enter_async_context(FaultySimulator(**{**PACE, **options}))

        yield make


@pytest.fixture
async def simulator(make_simulator: Callable[..., Any]) -> FaultySimulator:
    """A running simulator at the tests' pace."""
    made: FaultySimulator = await make_simulator()
    return made


@pytest.fixture
async def tcp_proxy() -> AsyncIterator[Callable[[str], Any]]:
    """`await tcp_proxy(url)`: a proxy in front of that server, with faults to switch on."""
    async with AsyncExitStack() as running:

        async def make(upstream_url: str) -> TcpProxy:
            return await running.enter_async_context(TcpProxy(upstream_url))

        yield make


@pytest.fixture(scope="session")
def socketio_installs() -> None:
    """Start to install every release of socket.io into the cache."""
    start_installs()


@pytest.fixture
async def make_node_server(socketio_installs: None) -> AsyncIterator[Callable[..., Any]]:
    """`await make_node_server("2", **settings)`: a running Node server of socket.io; see ``node_server.VERSIONS``."""
    async with AsyncExitStack() as running:

        async def make(generation: str, **settings: Any) -> NodeServer:
            return await running.enter_async_context(NodeServer(generation, **settings))

        yield make
