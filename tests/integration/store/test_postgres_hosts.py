"""Several PostgreSQL servers in one URL: which one is used, what is refused, and when a commit counts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import Engine, text

from ingestor.errors import DatabaseUnavailable
from ingestor.store import migrate, transaction_watchdog
from ingestor.store.engine import fetch_all, make_engine, postgres_hosts, transaction
from ingestor.store.open_database import open_database
from ingestor.store.server_identity import ServerIdentity, read_server_identity
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo, Registration, SpoolExtent
from tests.integration.conftest import Command
from tests.support.entries import T0
from tests.support.postgres_cluster import PostgresCluster
from tests.support.postgres_server import USER, Postgres, free_port
from tests.support.requirements import skip_missing

pytestmark = pytest.mark.postgres


@contextmanager
def opened(url: str, **options: object) -> Iterator[Engine]:
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"), **options)  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.dispose()


def url_of(*servers: Postgres | int) -> str:
    ports = (server if isinstance(server, int) else server.port for server in servers)
    return f"postgresql://{USER}@{','.join(f'127.0.0.1:{port}' for port in ports)}/postgres"


def port_of(engine: Engine) -> int:
    return int(fetch_all(engine, text("SELECT current_setting('port')"))[0][0])


def register(engine: Engine, server: tuple[str, int] | None = None) -> Registration:
    info = InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0)
    return BatchWriter(engine).register(info, SpoolExtent(1, server=server))


@contextmanager
def silent_port() -> Iterator[int]:
    """A port of a host that drops packets: the queue of its listener is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


# -- which host


def test_host_that_drops_packets_costs_seconds_only(postgres_server_url: str) -> None:
    port = urlsplit(postgres_server_url).port or 0
    with silent_port() as silent, opened(url_of(silent, port)) as engine:
        started_at = time.monotonic()
        assert port_of(engine) == port
        assert time.monotonic() - started_at < 9
        hosts = postgres_hosts(engine)
        assert hosts is not None
        assert hosts.answered == f"127.0.0.1:{port}"
        assert hosts.passed_over == (f"127.0.0.1:{silent}: connection timeout expired",)


def test_hosts_that_were_passed_over_are_logged_once_and_not_by_readers(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    url = url_of(free_port(), postgres)
    for _ in range(2):
        with opened(url, read_only=True) as engine:
            assert port_of(engine) == postgres.port
    assert "not used" not in caplog.text
    with opened(url) as engine:
        for _ in range(2):
            assert port_of(engine) == postgres.port
            engine.dispose()
    assert caplog.text.count("not used: 127.0.0.1:") == 1


def test_error_names_every_host_and_what_each_one_said(command: Command, write_config_for: Callable[..., Path]) -> None:
    first, second = free_port(), free_port()
    result = command("db", "upgrade", "--config", write_config_for(url_of(first, second)))
    assert result.code == 69
    assert (
        f"no host of database.url can be used: 127.0.0.1:{first}: Connection refused; 127.0.0.1:{second}" in result.err
    )


def test_check_says_which_host_answers(
    command: Command, write_config_for: Callable[..., Path], postgres_server_url: str
) -> None:
    port, closed = urlsplit(postgres_server_url).port or 0, free_port()
    result = command("check", "--config", write_config_for(url_of(closed, port)))
    assert f"127.0.0.1:{port} answers; 127.0.0.1:{closed}: Connection refused" in result.out
    assert "✓ database: postgresql+psycopg://" in result.out


# -- TLS


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a certificate authority."""
    if not shutil.which("openssl"):
        skip_missing("TLS: install openssl")
    folder = tmp_path_factory.mktemp("authority")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    return folder


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def encrypt(server: Postgres, authority: Path, names: str) -> None:
    """Give a server a certificate of its own for these names."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    signer: list[str | Path] = ["-CA", authority / "ca.crt", "-CAkey", authority / "ca.key"]
    made = authority / f"{server.port}"
    openssl("req", "-new", *key, "-subj", "/CN=server", "-keyout", f"{made}.key", "-out", f"{made}.csr")
    Path(f"{made}.ext").write_text(f"subjectAltName={names}")
    options = ["-in", f"{made}.csr", "-extfile", f"{made}.ext", "-out", f"{made}.crt", "-CAcreateserial"]
    openssl("x509", "-req", *options, *signer)
    for suffix, setting in ((".key", "ssl_key_file"), (".crt", "ssl_cert_file")):
        target = server.socket_folder / f"server{suffix}"
        shutil.copy(f"{made}{suffix}", target)
        if os.geteuid() == 0:
            shutil.chown(target, server.socket_folder.owner())
        target.chmod(0o600)
        server.configure(setting, str(target))
    server.configure("ssl", "on")


@pytest.mark.slow
def test_each_host_must_have_a_certificate_of_its_own_name(postgres_cluster: PostgresCluster, authority: Path) -> None:
    first, second = postgres_cluster.primary, postgres_cluster.standby
    second.promote()
    encrypt(first, authority, "DNS:another.example")
    encrypt(second, authority, "IP:127.0.0.1")
    options = f"?sslmode=verify-full&sslrootcert={authority}/ca.crt"
    with opened(url_of(first, second) + options) as engine:
        assert port_of(engine) == second.port
        encrypted = fetch_all(engine, text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert [tuple(row) for row in encrypted] == [(True,)]
    encrypt(second, authority, "DNS:another.example")
    second.execute("SELECT pg_reload_conf()")
    with opened(url_of(first, second) + options) as engine, pytest.raises(DatabaseUnavailable) as raised:
        port_of(engine)
    assert str(raised.value).count('does not match host name "127.0.0.1"') == 2


# -- a primary that was replaced


def identity_of(server: Postgres) -> ServerIdentity:
    with opened(server.url()) as engine, engine.connect() as connection:
        found = read_server_identity(connection)
    assert found is not None
    return found


def test_replaced_primary_is_refused_and_the_new_one_is_found_behind_it(postgres_cluster: PostgresCluster) -> None:
    old, new = postgres_cluster.primary, postgres_cluster.standby
    with opened(old.url()) as engine:
        migrate.upgrade(engine)
    before = identity_of(old)
    postgres_cluster.wait_for_standby()
    postgres_cluster.promote()  # the old one goes on accepting writes
    after = identity_of(new)
    assert after == (before.system, before.timeline + 1)
    both = url_of(old, new)
    with opened(both) as engine:
        assert register(engine).server == before  # the first in the list, as long as nothing else is known
        replaced = (
            f"127.0.0.1:{old.port} is a primary that was replaced: it is on timeline 1 .* timeline 2 was written to"
        )
        with pytest.raises(DatabaseUnavailable, match=replaced):
            register(engine, after)
    with opened(both, known_server=lambda: after) as engine:
        assert register(engine, after).server == after
        assert port_of(engine) == new.port
    with opened(old.url(), known_server=lambda: after) as engine, pytest.raises(DatabaseUnavailable, match=replaced):
        migrate.current_revision(engine)
    Path(old._data, "standby.signal").touch()
    old.stop("fast")
    old.start()
    old.promote()
    with opened(old.url(), known_server=lambda: after) as engine:
        assert register(engine, after).server == after


def test_restored_copy_and_another_system_are_accepted(postgres: Postgres) -> None:
    with opened(postgres.url()) as engine:
        migrate.upgrade(engine)
        copy = postgres.backup()
        before = register(engine).server
        assert before is not None
    postgres.restore(copy)
    with opened(postgres.url(), known_server=lambda: before) as engine:
        assert register(engine, before).server == before
        assert register(engine, ("1", 99)).server == before


def test_replaced_primary_is_not_read_either_if_the_newest_server_is_known(postgres_url: str) -> None:
    with opened(postgres_url) as engine, engine.connect() as connection:
        found = read_server_identity(connection)
    assert found is not None
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    with (
        pytest.raises(DatabaseUnavailable, match="is a primary that was replaced"),
        open_database(url, known_server=lambda: (found.system, found.timeline + 1)) as engine,
    ):
        fetch_all(engine, text("SELECT 1"))


def test_server_that_hides_its_timeline_is_used(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        owner.execute("CREATE ROLE plain LOGIN")
        try:
            with opened(postgres_url.replace(USER, "plain", 1), known_server=lambda: ("1", 99)) as engine:
                assert fetch_all(engine, text("SELECT 1")) == [(1,)]
        finally:
            owner.execute("DROP ROLE plain")
    assert "a replaced primary that comes back is not recognized" in caplog.text


# -- a commit that waits for a standby


def insert(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.exec_driver_sql("INSERT INTO written DEFAULT VALUES")


class Waiting:
    """An INSERT in another thread."""

    def __init__(self, engine: Engine) -> None:
        self.error: DatabaseUnavailable | None = None
        self._thread = threading.Thread(target=self._run, args=(engine,), daemon=True)
        self._thread.start()

    def _run(self, engine: Engine) -> None:
        try:
            insert(engine)
        except DatabaseUnavailable as error:
            self.error = error

    def join(self) -> DatabaseUnavailable | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.error


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def test_commit_counts_only_once_the_standby_has_it(
    postgres_cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transaction_watchdog, "SLOW_COMMIT_SECONDS", 0.3)
    primary = postgres_cluster.primary
    primary.execute("CREATE TABLE written (id int GENERATED ALWAYS AS IDENTITY)")
    postgres_cluster.make_synchronous()
    with opened(postgres_cluster.url()) as engine:
        insert(engine)
        states: list[str | None] = []
        hosts = postgres_hosts(engine)
        assert hosts is not None
        hosts.on_slow_commit = states.append
        postgres_cluster.cut()

        waiting = Waiting(engine)
        until(lambda: states)
        assert states == [
            f"a COMMIT waits for a synchronous standby of 127.0.0.1:{primary.port}; see pg_stat_replication there, and"
            " synchronous_standby_names"
        ]
        primary.execute(CANCEL)
        error = waiting.join()
        assert "a COMMIT ended with a warning (canceling wait for synchronous replication" in str(error)
        assert states[1:] == [None]
        assert [record.levelname for record in caplog.records if "COMMIT" in record.getMessage()][:1] == ["WARNING"]

        waiting = Waiting(engine)
        until(lambda: len(states) == 3)
        postgres_cluster.restore_flow()
        assert waiting.join() is None
        insert(engine)
    assert primary.execute("SELECT count(*) FROM written") == [(4,)]
    assert postgres_cluster.standby.execute("SELECT count(*) FROM written") == [(4,)]
