from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import aiohttp
import pytest

from ingestor.monitoring.status import DatabaseStatus, Heartbeat, Status

from .status_server import GOOD, StatusContent, row


@pytest.fixture
def content() -> StatusContent:
    return StatusContent()


@pytest.fixture
async def client(content: StatusContent) -> AsyncIterator[aiohttp.ClientSession]:
    async with content.server() as server, aiohttp.ClientSession(server.url) as session:
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
async def test_every_path_is_served(client: aiohttp.ClientSession, path: str, type_: str, part: str) -> None:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.content_type == type_
        assert part in await response.text()


async def test_status_json_is_the_whole_status(client: aiohttp.ClientSession) -> None:
    async with client.get("/status.json") as response:
        assert Status.from_json(await response.read()) == GOOD


async def test_metrics_are_served_as_openmetrics_on_request(client: aiohttp.ClientSession) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
    async with client.get("/metrics", headers=accept) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


@pytest.mark.parametrize(
    ("path", "change", "reason"),
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
            "the database is unavailable: no attempt to reach it has succeeded yet",
            id="no database",
        ),
    ],
)
async def test_failed_check_is_a_503_with_its_reason(
    client: aiohttp.ClientSession, content: StatusContent, path: str, change: Callable[[Status], Status], reason: str
) -> None:
    content.status = change(content.status)
    async with client.get(path) as response:
        assert response.status == 503
        assert json.loads(await response.read()) == {"ok": False, "reasons": [reason]}


async def test_head_is_get_without_a_body(client: aiohttp.ClientSession) -> None:
    async with client.head("/status.json") as response:
        assert response.status == 200
        assert await response.read() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/nowhere"])
async def test_only_get_and_head_are_allowed(client: aiohttp.ClientSession, method: str, path: str) -> None:
    async with client.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


async def test_foreign_host_name_is_refused(client: aiohttp.ClientSession) -> None:
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
async def test_request_must_have_one_host_header(content: StatusContent, request_: bytes) -> None:
    async with content.server() as server:
        assert server.url
        answer = await exchange(int(server.url.rpartition(":")[2]), request_)
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
async def test_every_response_has_the_security_headers(client: aiohttp.ClientSession, path: str, host: str) -> None:
    async with client.get(path, headers={"Host": host, "Origin": "https://rebound.example"}) as response:
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Server"] == "ingestor"
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


async def test_content_security_policy_allows_own_files_only(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        policy = dict(rule.split(maxsplit=1) for rule in response.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert {name for name, source in policy.items() if name.endswith("-src") and source != "'self'"} == set()
    assert policy["require-trusted-types-for"] == "'script'"
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}


@pytest.mark.parametrize("after", ["-1", "x", "", "٣", "1" * 19])
async def test_invalid_version_is_refused(client: aiohttp.ClientSession, after: str) -> None:
    async with client.get("/values.json", params={"after": after}) as response:
        assert response.status == 400


async def test_values_after_a_version_are_those_changed_since(
    client: aiohttp.ClientSession, content: StatusContent
) -> None:
    async with client.get("/values.json", params={"after": "1"}) as response:
        assert await response.json() == {"version": 1, "lines": []}
    content.values.add_rows([row("ON")])
    async with client.get("/values.json", params={"after": "1"}) as response:
        assert [line[1] for line in (await response.json())["lines"]] == ["ON"]


async def test_taken_port_is_logged_and_not_raised(content: StatusContent, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        async with content.server(port=port) as server:
            assert server.url is None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"http.listen: cannot listen on 127.0.0.1:{port} (process {os.getpid()} (")


async def test_invalid_host_name_is_logged_and_not_raised(
    content: StatusContent, caplog: pytest.LogCaptureFixture
) -> None:
    async with content.server(host="not..a.name", port=8642) as server:
        assert server.url is None
    assert caplog.messages[0].startswith("http.listen: cannot listen on not..a.name:8642")


async def test_loopback_address_is_not_warned_of(content: StatusContent, caplog: pytest.LogCaptureFixture) -> None:
    async with content.server(host="::1") as server:
        assert server.url
        assert server.url.startswith("http://[::1]:")
    assert caplog.records == []


async def test_address_other_than_loopback_is_warned_of(
    content: StatusContent, caplog: pytest.LogCaptureFixture
) -> None:
    # The resolver reads this as 127.0.0.1, but our check takes it for a name: nothing is opened to the network.
    async with content.server(host="127.1") as server:
        assert server.url
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "is reachable from other machines and has no authentication" in record.getMessage()
