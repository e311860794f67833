"""The ground that other tests stand on: what the fixtures promise."""

from __future__ import annotations

import psycopg
import pytest

from ..support.postgres import Postgres


@pytest.mark.postgres
def test_a_fresh_database_is_empty_and_takes_tables(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("select count(*) from pg_tables where schemaname = 'public'")
        assert tables.fetchone() == (0,)
        connection.execute("create table kept (n int)")


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["immediate", "kill"])
def test_a_server_that_was_ended_hard_keeps_what_was_committed(postgres: Postgres, end: str) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("create table kept as select 7 as n")

    postgres.kill() if end == "kill" else postgres.stop("immediate")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.url())
    postgres.start()

    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("select n from kept").fetchone() == (7,)


@pytest.mark.postgres
def test_a_paused_server_answers_nobody_until_it_is_resumed(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        postgres.pause()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres.url(), connect_timeout=2)
        postgres.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def test_each_kind_of_database_is_offered(database_url: str) -> None:
    assert database_url.startswith(("sqlite:////", "postgresql://"))
