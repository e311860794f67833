"""`check --connect` against real servers and databases: its results, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ingestor.commands import check_connect
from ingestor.commands.check_result import CheckResult
from ingestor.config import load
from ingestor.errors import PermissionDenied
from ingestor.pipeline.decoder import Decoder
from ingestor.provider import catalog
from tests.support.daemon import InProcessDaemon, until, write_config
from tests.support.db_reader import DbReader
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
    """Run the checks with this provider and an empty SQLite database; return the results by name."""

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
        results: list[CheckResult] = []
        await check_connect.run_online_checks(config, results.append)
        assert all(simulator.api_key not in result.message and "eyJ" not in result.message for result in results)
        untimed = {result.name: result.message for result in results if result.seconds is None}
        assert all("skipped" in message or name == "outage" for name, message in untimed.items())
        return {result.name: result for result in results}

    return run


def failures(results: dict[str, CheckResult]) -> dict[str, int]:
    return {name: result.exit_code for name, result in results.items() if result.exit_code}


async def test_all_checks_pass_in_order_and_change_nothing(
    check: Check, simulator: FaultySimulator, database_url: str, tmp_path: Path
) -> None:
    results = await check(simulator, database_url=database_url)
    assert list(results) == GOOD
    assert [name for name, result in results.items() if result.exit_code or result.warning] == []
    assert results["token"].message == "API key accepted, tokens are valid for 5h"
    assert results[f"data {CROWD} AAPL"].message.startswith("10 rows up to 2026-01-05 ")
    assert results["database write"].message == "16 values written and rolled back"
    await no_connections(simulator)
    if database_url.startswith("sqlite"):
        assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    else:
        assert tables(database_url) == set()


@pytest.mark.parametrize(("setting", "source"), [("auto", "detected"), ("0.9", "set by provider.protocol")])
async def test_protocol_0_9_is_named(
    check: Check, make_simulator: Callable[..., Any], setting: str, source: str
) -> None:
    simulator = await make_simulator(protocol="0.9")
    results = await check(simulator, provider={"protocol": setting})
    assert failures(results) == {}
    assert results["server"].message == f"uses Socket.IO 0.8 or 0.9, {source}"


async def no_connections(simulator: FaultySimulator) -> None:
    await until(lambda: simulator.connections == [])


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


async def test_database_in_use_stays_unchanged(check: Check, simulator: FaultySimulator, migrated_url: str) -> None:
    results = await check(simulator, database_url=migrated_url)
    assert failures(results) == {}
    assert results["database write"].message == "16 values written and rolled back"
    db = DbReader(migrated_url)
    for table in ("series", "samples", "payloads", "instances", "batches", "events"):
        assert db.scalar(f"SELECT count(*) FROM {table}") == 0


async def test_write_is_skipped_while_daemon_uses_sqlite_file(
    check: Check, simulator: FaultySimulator, tmp_path: Path
) -> None:
    wanted = {CROWD: ["AAPL"]}
    url = f"sqlite:///{tmp_path / 'ingestor.db'}"
    config = write_config(tmp_path, url=simulator.url, database_url=url, subscriptions=wanted)
    async with InProcessDaemon(config, simulator.api_key) as daemon:
        await daemon.wait_until_live()
        results = await check(simulator, subscriptions=wanted)
    assert failures(results) == {}
    assert results["database write"].warning
    assert "skipped: the running daemon writes to this file" in results["database write"].message


# Failures


async def test_rejected_key_skips_only_socket_checks(check: Check, simulator: FaultySimulator) -> None:
    results = await check(simulator, key="another-key")
    assert failures(results) == {"token": 77}
    assert "the API key is not accepted; check provider.api_key_file" in results["token"].message
    assert results["server"].message == "skipped: there is no token"
    assert not results["clock"].warning
    assert results["database write"].message == "a batch without values written and rolled back"


async def test_missing_key_skips_login(check: Check, simulator: FaultySimulator) -> None:
    results = await check(simulator, key="")
    assert failures(results) == {}
    assert results["token"].message == "skipped: there is no API key"
    assert simulator.login_attempts == 0


async def test_outage_is_estimated_from_size_of_responses(check: Check, make_simulator: Callable[..., Any]) -> None:
    """Two tickers, each with a response per second that contains an hour of seconds."""
    path = "/real-time/market-prophit-sentiment"
    simulator = await make_simulator(window_seconds=3600)
    results = await check(simulator, subscriptions={path: ["AAPL", "ON"]}, spool={"max_bytes": "64MiB"})
    assert results["outage"].warning
    assert results["outage"].message.endswith("spool.max_bytes lasts for a database outage of 0.0 h")


async def test_unreachable_provider_fails_token_and_clock(
    check: Check, simulator: FaultySimulator, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    results = await check(simulator, url=url)
    assert failures(results) == {"token": 69, "clock": 69}
    remedy = "connection refused; correct provider.url, or see network, firewall and proxy"
    place = f"{tmp_path / 'config.yaml'}:3:10: provider.url"
    assert results["token"].message.startswith(f"{place}: {url}/jwt: {remedy}")
    assert results["clock"].message.startswith(f"{place}: {url}: {remedy}")


async def test_place_of_an_unknown_host_and_of_a_wrong_certificate_is_named(
    check: Check, simulator: FaultySimulator, server_side: ssl.SSLContext
) -> None:
    unknown = await check(simulator, url="https://no-such-host.invalid")
    assert unknown["token"].exit_code == 69
    assert "config.yaml:3:10: provider.url: https://no-such-host.invalid/jwt: " in unknown["token"].message
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", ssl=server_side) as server:
        port = server.sockets[0].getsockname()[1]
        untrusted = await check(simulator, url=f"https://127.0.0.1:{port}")
    assert untrusted["token"].exit_code == 69
    assert "certificate was not accepted: self" in untrusted["token"].message
    assert "name the authority that signed it in provider.ca_file" in untrusted["token"].message


async def test_socket_that_rejects_token_fails_connect(check: Check, simulator: FaultySimulator) -> None:
    simulator.refusal = "jwt malformed"
    results = await check(simulator)
    assert failures(results) == {f"connect {CROWD}": 77, f"connect {CHART}": 77}
    assert "jwt malformed" in results[f"connect {CROWD}"].message


async def test_refused_subscription_fails_and_quiet_feed_passes(check: Check, simulator: FaultySimulator) -> None:
    simulator.refuse("AAPL", "not in your plan")
    simulator.quiet.add("6E_F")
    results = await check(simulator)
    assert failures(results) == {f"subscribe {CROWD} AAPL": 69}
    assert (
        "refused: invalid_request_error: not in your plan; the daemon would keep retrying"
        in results[f"subscribe {CROWD} AAPL"].message
    )
    assert results[f"data {CHART} 6E_F"].message == "empty response: the feed works, and has no data now"


async def test_feed_without_data_is_a_warning_after_timeout(
    check: Check, simulator: FaultySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_connect, "DATA_SECONDS", 0.2)
    simulator.mute("AAPL")
    results = await check(simulator)
    assert failures(results) == {}
    silent = results[f"data {CROWD} AAPL"]
    assert silent.warning
    assert "no data within 0 s (this feed sends every 1m); the daemon would keep waiting" in silent.message


@pytest.mark.postgres
async def test_user_without_create_privilege_fails_write(
    check: Check, simulator: FaultySimulator, postgres_url: str
) -> None:
    with reader_role(postgres_url) as url:
        results = await check(simulator, database_url=url)
    assert failures(results) == {"database write": PermissionDenied.exit_code}
    assert "permission denied for schema public" in results["database write"].message
    assert "; GRANT CREATE, USAGE ON SCHEMA to this user" in results["database write"].message


@contextmanager
def reader_role(url: str) -> Iterator[str]:
    """Yield the URL of a role that may connect and read, but not create tables."""
    name = f"reader_{free_port()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE {name} LOGIN")
        yield url.replace(f"{url.partition('://')[2].partition('@')[0]}@", f"{name}@")
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize(
    ("ahead_seconds", "message"),
    [
        (1.9, "agrees with the provider's clock"),
        (-1.9, "agrees with the provider's clock"),
        (90.0, "90 s ahead of the provider's clock, so receive times are wrong; see `timedatectl`"),
        (-3600.0, "3600 s behind the provider's clock, so receive times are wrong; see `timedatectl`"),
    ],
)
def test_clock_skew_above_two_seconds_is_a_warning(ahead_seconds: float, message: str) -> None:
    assert check_connect._compare_clocks(ahead_seconds) == (message, abs(ahead_seconds) > 2)


@pytest.mark.parametrize(
    ("rows", "expected", "warning"),
    [
        ([row()], "1 rows up to 2026-01-01 00:00:00 UTC", False),
        ([], "empty response: the feed works, and has no data now", False),
        (
            [row(), row(value="x")],
            "1 of 2 rows are unreadable, they would become dead letters (value is not a number:",
            True,
        ),
        ([row() | {"mood": 1}], "1 rows up to 2026-01-01 00:00:00 UTC; unknown fields are not stored: 'mood'", True),
    ],
)
def test_message_about_first_response(rows: list[Any], expected: str, warning: bool) -> None:
    decoded = Decoder(catalog.metrics_of, catalog.feed_name).decode(frame(rows))
    message, is_warning = check_connect._check_response(decoded)
    assert message.startswith(expected)
    assert is_warning is warning


def test_unreadable_response_is_a_failure() -> None:
    decoded = Decoder(catalog.metrics_of, catalog.feed_name).decode(frame("<html>"))
    with pytest.raises(check_connect.ProbeFailed, match=r"unreadable \(not JSON: .*\), it would become a dead letter"):
        check_connect._check_response(decoded)
