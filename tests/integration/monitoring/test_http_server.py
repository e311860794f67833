from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import aiohttp
import pytest

from ingestor.monitoring.status import DatabaseStatus, Heartbeat, Status

from .status_server import GOOD, Shown, row


@pytest.fixture
def daemon() -> Shown:
    return Shown()


@pytest.fixture
async def client(daemon: Shown) -> AsyncIterator[aiohttp.ClientSession]:
    async with daemon.web() as web, aiohttp.ClientSession(web.url) as session:
        yield session


@pytest.mark.parametrize(
    ("path", "type_", "part"),
    [
        ("/", "text/html", '<script type="module" src="/page.js">'),
        ("/page.css", "text/css", ":root"),
        ("/page.js", "text/javascript", "import "),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/healthz", "application/json", '{"ok":true,"reasons":[]}'),
        ("/readyz", "application/json", '{"ok":true,"reasons":[]}'),
        ("/status.json", "application/json", '"instance":"desk"'),
        ("/values.json", "application/json", '{"version":1,"lines":[["crowd-sentiment","AAPL","crowd_sentiment",'),
        ("/history.json", "application/json", '"points":[[5.0,7.0,3,0.25]]'),
        ("/coverage.json", "application/json", '"cell_seconds":600'),
        ("/metrics", "text/plain", "ingestor_database_up 1.0"),
    ],
)
async def test_every_page_answers(client: aiohttp.ClientSession, path: str, type_: str, part: str) -> None:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.content_type == type_
        assert part in await response.text()


async def test_status_json_is_the_whole_status(client: aiohttp.ClientSession) -> None:
    async with client.get("/status.json") as response:
        assert Status.from_json(await response.read()) == GOOD


async def test_prometheus_may_ask_for_openmetrics(client: aiohttp.ClientSession) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
    async with client.get("/metrics", headers=accept) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize(
    ("path", "spoil", "reason"),
    [
        pytest.param(
            "/healthz",
            lambda status: replace(status, pulses=(Heartbeat(name="spool", age_seconds=99, limit_seconds=30),)),
            "spool has not advanced for 99 s (limit 30 s)",
            id="stuck",
        ),
        pytest.param(
            "/readyz",
            lambda status: replace(status, database=DatabaseStatus()),
            "the database cannot be reached",
            id="no database",
        ),
    ],
)
async def test_bad_health_is_a_503_with_its_reason(
    client: aiohttp.ClientSession, daemon: Shown, path: str, spoil: Callable[[Status], Status], reason: str
) -> None:
    daemon.status = spoil(daemon.status)
    async with client.get(path) as response:
        assert response.status == 503
        assert json.loads(await response.read()) == {"ok": False, "reasons": [reason]}


async def test_head_is_get_without_a_body(client: aiohttp.ClientSession) -> None:
    async with client.head("/status.json") as response:
        assert response.status == 200
        assert await response.read() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/nowhere"])
async def test_only_reading_is_allowed(client: aiohttp.ClientSession, method: str, path: str) -> None:
    async with client.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


async def test_another_sites_name_for_us_is_refused(client: aiohttp.ClientSession) -> None:
    async with client.get("/status.json", headers={"Host": "rebound.example"}) as response:
        assert response.status == 403
        assert "desk" not in await response.text()


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: rebound.example\r\n\r\n", id="two"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="none"),
    ],
)
async def test_a_request_names_its_host_once(daemon: Shown, request_: bytes) -> None:
    async with daemon.web() as web:
        assert web.url
        answer = await exchange(int(web.url.rpartition(":")[2]), request_)
    assert answer.split()[1] in {b"400", b"403"}


async def exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.readline(), 5)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("path", "host"), [("/", "localhost"), ("/nowhere", "localhost"), ("/", "rebound.example")])
async def test_every_answer_is_hardened(client: aiohttp.ClientSession, path: str, host: str) -> None:
    async with client.get(path, headers={"Host": host, "Origin": "https://rebound.example"}) as response:
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Server"] == "ingestor"
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


async def test_nothing_but_our_own_files_may_run_be_shown_or_be_asked(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        policy = dict(rule.split(maxsplit=1) for rule in response.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert {name for name, source in policy.items() if name.endswith("-src") and source != "'self'"} == set()
    assert policy["require-trusted-types-for"] == "'script'"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}


@pytest.mark.parametrize("after", ["-1", "x", "", "٣", "1" * 19])
async def test_a_version_that_nobody_named_is_refused(client: aiohttp.ClientSession, after: str) -> None:
    async with client.get("/values.json", params={"after": after}) as response:
        assert response.status == 400


async def test_who_names_a_version_is_told_what_came_after_it(client: aiohttp.ClientSession, daemon: Shown) -> None:
    async with client.get("/values.json", params={"after": "1"}) as response:
        assert await response.json() == {"version": 1, "lines": []}
    daemon.values.add_rows([row("ON")])
    async with client.get("/values.json", params={"after": "1"}) as response:
        assert [line[1] for line in (await response.json())["lines"]] == ["ON"]


async def test_a_port_that_is_taken_costs_the_page_and_not_the_daemon(
    daemon: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        async with daemon.web(port=port) as web:
            assert web.url is None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"http.listen: 127.0.0.1:{port} cannot be had (Address already in use)")


async def test_a_host_that_cannot_be_a_name_costs_no_more(daemon: Shown, caplog: pytest.LogCaptureFixture) -> None:
    async with daemon.web(host="not..a.name", port=8642) as web:
        assert web.url is None
    assert caplog.messages[0].startswith("http.listen: not..a.name:8642 cannot be had")


async def test_nobody_is_warned_of_loopback(daemon: Shown, caplog: pytest.LogCaptureFixture) -> None:
    async with daemon.web(host="::1") as web:
        assert web.url
        assert web.url.startswith("http://[::1]:")
    assert caplog.records == []


async def test_a_listener_that_is_not_surely_loopback_is_warned_of(
    daemon: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    # The resolver reads this as 127.0.0.1, but it is a name to everyone else: nothing is opened to the network.
    async with daemon.web(host="127.1") as web:
        assert web.url
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "can be reached from other machines" in record.getMessage()
