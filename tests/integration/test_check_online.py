"""`check --connect` before real servers and databases: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestor.commands import check_online
from ingestor.commands.check import CheckResult
from ingestor.config import load
from ingestor.errors import PermissionDenied
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from tests.support.daemon import Resident, until, write_config
from tests.support.db_reader import Books
from tests.support.entries import frame, row
from tests.support.faulty_simulator import FaultySimulator
from tests.support.postgres_server import free_port

CROWD, CHART = "/real-time/crowd-sentiment", "crowd-sentiment-chart-data"
WANTED = {CROWD: ["AAPL", "ON"], CHART: ["6E_F"]}
GOOD = [
    "token",
    "clock",
    "server",
    f"connect {CROWD}",
    f"subscribe {CROWD} AAPL",
    f"data {CROWD} AAPL",
    f"connect {CHART}",
    f"subscribe {CHART} 6E_F",
    f"data {CHART} 6E_F",
    "outage",
    "database write",
]
Check = Callable[..., Any]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Try it with this provider and an empty SQLite database; returns what was found, by name."""

    async def run(
        simulator: FaultySimulator, *, key: str | None = None, url: str = "", **sections: Any
    ) -> dict[str, CheckResult]:
        key = simulator.api_key if key is None else key
        file = write_config(
            tmp_path,
            url=url or simulator.url,
            database_url=sections.pop("database_url", f"sqlite:///{tmp_path / 'ingestor.db'}"),
            subscriptions=sections.pop("subscriptions", WANTED),
            **sections,
        )
        config = load(file, {"INGESTOR_PROVIDER__API_KEY": key} if key else {})
        findings: list[CheckResult] = []
        await check_online.run_online_checks(config, findings.append)
        assert all(simulator.api_key not in one.message and "eyJ" not in one.message for one in findings)
        assert all(one.seconds is not None or "not tried" in one.message or one.name == "outage" for one in findings)
        return {one.name: one for one in findings}

    return run


def bad(found: dict[str, CheckResult]) -> dict[str, int]:
    return {name: one.exit_code for name, one in found.items() if one.exit_code}


async def test_of_a_healthy_provider_all_is_told_in_order_and_an_empty_database_stays_empty(
    check: Check, simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    found = await check(simulator, database_url=database_url)
    assert list(found) == GOOD
    assert [name for name, one in found.items() if one.exit_code or one.warning] == []
    assert found["token"].message == "the key is accepted; a token lives 5h"
    assert found[f"data {CROWD} AAPL"].message.startswith("10 rows up to 2026-01-05 ")
    assert found["database write"].message == "16 values: written, and taken back"
    await no_connections(simulator)
    if database_url.startswith("sqlite"):
        assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    else:
        assert tables(database_url) == set()


async def no_connections(simulator: FaultySimulator) -> None:
    await until(lambda: simulator.connections == [])


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


async def test_of_a_database_that_is_in_use_nothing_is_changed(
    check: Check, simulator: FaultySimulator, migrated_url: str
) -> None:
    found = await check(simulator, database_url=migrated_url)
    assert bad(found) == {}
    assert found["database write"].message == "16 values: written, and taken back"
    books = Books(migrated_url)
    for table in ("series", "samples", "payloads", "instances", "batches", "events"):
        assert books.one(f"SELECT count(*) FROM {table}") == 0


async def test_where_a_daemon_writes_to_the_same_file_nobody_else_does(
    check: Check, simulator: FaultySimulator, tmp_path: Path
) -> None:
    wanted = {CROWD: ["AAPL"]}
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions=wanted)
    async with Resident(config, simulator.api_key) as daemon:
        await daemon.live()
        found = await check(simulator, subscriptions=wanted)
    assert bad(found) == {}
    assert found["database write"].warning
    assert "the daemon writes there" in found["database write"].message


# What may be wrong.


async def test_a_key_that_is_refused_keeps_nothing_else_from_being_tried(
    check: Check, simulator: FaultySimulator
) -> None:
    found = await check(simulator, key="another-key")
    assert bad(found) == {"token": 77}
    assert "the API key is not accepted; check provider.api_key_file" in found["token"].message
    assert found["server"].message == "not tried, since there is no token"
    assert not found["clock"].warning
    assert found["database write"].message == "a batch without values: written, and taken back"


async def test_without_a_key_there_is_nothing_to_ask_for(check: Check, simulator: FaultySimulator) -> None:
    found = await check(simulator, key="")
    assert bad(found) == {}
    assert found["token"].message == "not tried, since there is no API key"
    assert simulator.login_attempts == 0


async def test_how_long_the_spool_lasts_is_reckoned_from_the_answers_that_came(
    check: Check, make_simulator: Callable[..., Any]
) -> None:
    """Two tickers, each with an answer a second that holds an hour of seconds."""
    path = "/real-time/market-prophit-sentiment"
    simulator = await make_simulator(window_seconds=3600)
    found = await check(simulator, subscriptions={path: ["AAPL", "ON"]}, spool={"max_bytes": "64MiB"})
    assert found["outage"].warning
    assert found["outage"].message.startswith("spool.max_bytes hold some 0.0 h of a database")


async def test_a_provider_that_is_not_there(check: Check, simulator: FaultySimulator) -> None:
    found = await check(simulator, url=f"http://127.0.0.1:{free_port()}")
    assert bad(found) == {"token": 69, "clock": 69}
    assert "connection refused" in found["token"].message


async def test_a_socket_that_does_not_take_the_token(check: Check, simulator: FaultySimulator) -> None:
    simulator.refusal = "jwt malformed"
    found = await check(simulator)
    assert bad(found) == {f"connect {CROWD}": 77, f"connect {CHART}": 77}
    assert "jwt malformed" in found[f"connect {CROWD}"].message


async def test_one_path_that_is_refused_and_another_that_is_quiet(check: Check, simulator: FaultySimulator) -> None:
    simulator.refuse("AAPL", "not in your plan")
    simulator.quiet.add("6E_F")
    found = await check(simulator)
    assert bad(found) == {f"subscribe {CROWD} AAPL": 69}
    assert (
        "refused: invalid_request_error: not in your plan; the daemon would go on asking"
        in found[f"subscribe {CROWD} AAPL"].message
    )
    assert found[f"data {CHART} 6E_F"].message == "an empty answer: the feed is alive, and quiet"


async def test_a_feed_from_which_nothing_comes_is_waited_for_so_long_and_no_longer(
    check: Check, simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_online, "DATA_SECONDS", 0.2)
    simulator.mute("AAPL")
    found = await check(simulator)
    assert bad(found) == {}
    silent = found[f"data {CROWD} AAPL"]
    assert silent.warning
    assert "nothing came within 0 s; this feed speaks every 1m; the daemon would wait" in silent.message


@pytest.mark.postgres
async def test_a_user_who_may_not_make_tables(check: Check, simulator: FaultySimulator, postgres_url: str) -> None:
    with a_role(postgres_url) as url:
        found = await check(simulator, database_url=url)
    assert bad(found) == {"database write": PermissionDenied.exit_code}
    assert "permission denied for schema public" in found["database write"].message
    assert "; GRANT CREATE, USAGE ON SCHEMA to this user" in found["database write"].message


@contextmanager
def a_role(url: str) -> Iterator[str]:
    """Somebody who may connect, and read what others made."""
    name = f"reader_{free_port()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {name} LOGIN")
        yield url.replace(f"{url.partition('://')[2].partition('@')[0]}@", f"{name}@")
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (1.9, "ours and the provider's agree"),
        (-1.9, "ours and the provider's agree"),
        (90.0, "ours is 90 s ahead of the provider's: times of receipt would be wrong; see `timedatectl`"),
        (-3600.0, "ours is 3600 s behind the provider's: times of receipt would be wrong; see `timedatectl`"),
    ],
)
def test_clocks_that_differ_by_more_than_a_date_can_tell(ahead: float, said: str) -> None:
    skew = check_online._skew(ahead)
    assert (skew.message, skew.warning) == (said, abs(ahead) > 2)


@pytest.mark.parametrize(
    ("rows", "said", "warning"),
    [
        ([row()], "1 rows up to 2026-01-01 00:00:00 UTC", False),
        ([], "an empty answer: the feed is alive, and quiet", False),
        (
            [row(), row(value="x")],
            "1 of 2 rows cannot be read, and would be dead letters (value is not a number:",
            True,
        ),
        ([row() | {"mood": 1}], "1 rows up to 2026-01-01 00:00:00 UTC; the fields 'mood' are not stored", True),
    ],
)
def test_what_the_first_answer_says(rows: list[Any], said: str, warning: bool) -> None:
    decoded = Decoder(catalog.metrics_of, catalog.feed_name).decode(frame(rows))
    outcome = check_online._understood(decoded)
    assert outcome.message.startswith(said)
    assert outcome.warning is warning


def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    decoded = Decoder(catalog.metrics_of, catalog.feed_name).decode(frame("<html>"))
    with pytest.raises(check_online.ProbeFailed, match=r"cannot be read \(not JSON: .*\); it would be a dead letter"):
        check_online._understood(decoded)
