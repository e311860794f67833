"""The ground that other tests stand on: what the fixtures promise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from ..support.postgres_cluster import PostgresCluster
from ..support.postgres_server import Postgres
from ..support.tcp_proxy import Direction


@pytest.mark.postgres
def test_fresh_database_is_empty_and_writable(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("select count(*) from pg_tables where schemaname = 'public'")
        assert tables.fetchone() == (0,)
        connection.execute("create table kept (n int)")


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["immediate", "kill"])
def test_killed_postgres_keeps_committed_rows(postgres: Postgres, end: str) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("create table kept as select 7 as n")

    postgres.kill() if end == "kill" else postgres.stop("immediate")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.url())
    postgres.start()

    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("select n from kept").fetchone() == (7,)


@pytest.mark.postgres
def test_paused_postgres_does_not_respond_until_resumed(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        postgres.pause()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres.url(), connect_timeout=2)
        postgres.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def insert(cluster: PostgresCluster, number: int) -> None:
    with psycopg.connect(cluster.url("numbers"), autocommit=True) as connection:
        connection.execute("create table if not exists numbers (n int)")
        connection.execute("insert into numbers values (%s)", [number])


def numbers(server: Postgres) -> list[int]:
    with psycopg.connect(server.url("numbers")) as connection:
        return [number for (number,) in connection.execute("select n from numbers order by n")]


@pytest.mark.postgres
@pytest.mark.slow
def test_promoted_standby_has_what_was_committed_before_the_cut(postgres_cluster: PostgresCluster) -> None:
    postgres_cluster.create_database("numbers")
    insert(postgres_cluster, 1)
    postgres_cluster.cut()
    insert(postgres_cluster, 2)
    postgres_cluster.restore_flow()
    postgres_cluster.cut()
    insert(postgres_cluster, 3)
    postgres_cluster.kill_primary()
    postgres_cluster.promote()
    insert(postgres_cluster, 4)
    assert numbers(postgres_cluster.primary) == [1, 2, 4]
    postgres_cluster.rebuild()
    postgres_cluster.make_synchronous()
    insert(postgres_cluster, 5)
    assert numbers(postgres_cluster.standby) == [1, 2, 4, 5]


@pytest.mark.postgres
@pytest.mark.slow
def test_restored_server_has_what_was_committed_before_the_backup(postgres: Postgres) -> None:
    postgres.execute("create table numbers as select 1 as n")
    backup = postgres.backup()
    postgres.execute("insert into numbers values (2)")
    postgres.restore(backup)
    assert postgres.execute("select n from numbers") == [(1,)]


def test_database_url_covers_both_databases(database_url: str) -> None:
    assert database_url.startswith(("sqlite:////", "postgresql://"))


async def exchange(url: str, request: bytes, size: int) -> bytes:
    """Return the response within half a second; fewer bytes than ``size`` if the rest does not arrive."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        async with asyncio.timeout(0.5):
            return await reader.readexactly(size)
    except asyncio.IncompleteReadError as end:
        return end.partial
    finally:
        writer.close()


@pytest.fixture
async def echo_url() -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1024):
                writer.write(data)
        except ConnectionResetError:
            pass  # what a cut looks like from here
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_proxy_forwards_all_bytes(tcp_proxy: Callable[[str], Any], echo_url: str) -> None:
    proxy = await tcp_proxy(echo_url)
    assert await exchange(proxy.url, b"hello", 5) == b"hello"
    assert proxy.accepted == 1


async def test_slow_proxy_delays_bytes(tcp_proxy: Callable[[str], Any], echo_url: str) -> None:
    proxy = await tcp_proxy(echo_url)
    proxy.delay_seconds = 0.05
    proxy.bytes_per_second = 100
    began = time.monotonic()
    assert await exchange(proxy.url, b"hello", 5) == b"hello"
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("fault", ["half_open", "paused"])
async def test_half_open_or_paused_proxy_forwards_nothing(
    tcp_proxy: Callable[[str], Any], echo_url: str, fault: str
) -> None:
    proxy = await tcp_proxy(echo_url)
    if fault == "half_open":
        proxy.half_open = True
    else:
        proxy.pause()
    with pytest.raises(TimeoutError):
        await exchange(proxy.url, b"hello", 5)


@pytest.mark.parametrize(("direction", "arrives"), [("to_client", b"one two"), ("to_server", b"")])
async def test_proxy_cuts_after_pattern(
    tcp_proxy: Callable[[str], Any], echo_url: str, direction: Direction, arrives: bytes
) -> None:
    proxy = await tcp_proxy(echo_url)
    proxy.cut_after(direction, b"two")
    try:
        found = await exchange(proxy.url, b"one two three", 13)
    except ConnectionResetError:
        found = b""
    assert found in (arrives, b"")
    assert await exchange(proxy.url, b"one two three", 13) == b"one two three", "once"


async def test_proxy_cut_and_refusal_end_connections(tcp_proxy: Callable[[str], Any], echo_url: str) -> None:
    proxy = await tcp_proxy(echo_url)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    proxy.refusing = True
    with pytest.raises(ConnectionResetError):
        await exchange(proxy.url, b"x", 1)
