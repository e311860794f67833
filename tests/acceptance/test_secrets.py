"""Unique secrets must not appear in any output of daemon and commands, whatever goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from tests.support.faulty_simulator import FaultySimulator

from ..support.connect_proxy import ConnectProxy
from ..support.daemon import DaemonProcess, until, write_config
from ..support.db_reader import DbReader
from ..support.fork_server import ForkedCommand, ForkedDaemon, ForkServer
from ..support.postgres_server import Postgres

CROWD = "/real-time/crowd-sentiment"
KEY, NEW_KEY, OLD_KEY = "canary/key+1", "canary/key+2", "canary/key+3"
PASSWORD = "canary p@ss/word of the database"
PROXY_PASSWORD = "canary:p@ss of the proxy"
STRAY_TOKEN = "canary-token-in-a-redirect"
PAGES = (
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    *(f"/{name}.json" for name in ("status", "values", "history", "coverage")),
)
COMMANDS = [
    ["status"],
    ["check"],
    ["config", "show"],
    ["audit"],
    ["dead-letters", "list"],
    ["dead-letters", "show", "1"],
]
JSON = ("--output", "json")


class OutputRecorder:
    """Records everything that a daemon writes, anywhere."""

    def __init__(
        self, fork_server: ForkServer, folder: Path, key: str, environment: dict[str, str], **config: Any
    ) -> None:
        folder.mkdir()
        self.config = write_config(folder, **{"subscriptions": {CROWD: ["AAPL"]}, "log": {"level": "debug"}, **config})
        self.daemon: DaemonProcess = ForkedDaemon(fork_server, self.config, key, **environment)
        self.outputs: list[str] = []
        self._fork_server = fork_server
        self._environment: dict[str, Any] = {"folder": folder, "INGESTOR_PROVIDER__API_KEY": key, **environment}

    async def record(self, *commands: list[str]) -> None:
        """Record the current output of its pages and of these commands."""
        if self.daemon.status:
            self.outputs += [self.daemon.get(page)[1] for page in PAGES]
        await asyncio.gather(*map(self._run, commands))

    async def _run(self, arguments: list[str]) -> None:
        command = ForkedCommand(self._fork_server, *arguments, "--config", self.config, **self._environment)
        async with command:
            await command.wait_for_exit()
        assert command.stdout, command.stderr
        self.outputs += [command.stdout, command.stderr]

    async def stop(self) -> str:
        """Stop the daemon, and return all its output and everything it has written."""
        assert await self.daemon.terminate() == 0
        spool = [file.read_bytes().decode(errors="replace") for file in (self.config.parent / "spool").iterdir()]
        return "\n".join([self.daemon.stdout, self.daemon.stderr, *self.outputs, *texts(self.daemon.db), *spool])


# A provider that works, and what fails there and in the database.


@pytest.mark.postgres
async def test_no_secret_appears_in_any_output(
    make_simulator: Callable[..., Any], postgres: Postgres, fork_server: ForkServer, tmp_path: Path
) -> None:
    simulator: FaultySimulator = await make_simulator(api_key=KEY, token_bytes=9311)
    tokens = record_tokens(simulator)
    url = postgres.url().replace("@", f":{quote(PASSWORD, safe='')}@")
    recorder = OutputRecorder(
        fork_server,
        tmp_path / "main",
        KEY,
        {"INGESTOR_DATABASE__URL": url},
        url=simulator.url,
        database_url="sqlite:///not-this-one.db",
        subscriptions={CROWD: ["AAPL", "TSLA"]},
    )
    # Not forked, because its command line is checked too.
    recorder.daemon = DaemonProcess(recorder.config, KEY, INGESTOR_DATABASE__URL=url)
    async with recorder.daemon as daemon:
        await until(lambda: tokens)
        recorder.outputs.append(Path(f"/proc/{daemon.pid}/cmdline").read_text())
        echo = f"{KEY}, {tokens[0]}, {claims(tokens[0])}"
        await daemon.wait_until_live()
        await simulator.emit_raw(CROWD, '{"neither": "a list"}')
        postgres.stop()
        await until(lambda: "cannot be reached" in daemon.stderr)
        await recorder.record(["status"], ["check", *JSON])
        postgres.start()
        for event in ("err", "error"):
            await simulator.send_event(event, {"type": f"api_{event}", "message": echo})
            await until(lambda event=event: f"api_{event}: ***" in daemon.stderr)
        simulator.refuse("TSLA", f"not for {echo}")
        await simulator.kick()
        await until(lambda: "not for ***" in daemon.stderr)
        simulator.refusal = f"jwt malformed: {tokens[0]}"
        await simulator.close_transport("reset")
        await until(lambda: "jwt malformed: ***" in daemon.stderr)
        await recorder.record()
        simulator.refusal = None
        simulator.allow("TSLA")
        await until(lambda: len(tokens) > 1)
        await daemon.wait_until_live()
        await recorder.record(*COMMANDS, *([*command, *JSON] for command in COMMANDS))
        everything = await recorder.stop()
        await recorder.record(["status"], ["status", *JSON])
        everything += "\n".join(recorder.outputs)
    assert [secret for secret in [*known(KEY), *spellings(PASSWORD)] if secret in everything] == []
    assert [secret for token in tokens for secret in secrets_of(token) if secret in everything] == []


def record_tokens(simulator: FaultySimulator) -> list[str]:
    """Return a list to which the simulator adds every token that it issues."""
    tokens: list[str] = []
    issue = simulator.tokens.issue

    def issue_and_record() -> str:
        tokens.append(issue())
        return tokens[-1]

    simulator.tokens.issue = issue_and_record  # type: ignore[method-assign]
    return tokens


def claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return decoded


def secrets_of(token: str) -> list[str]:
    values = claims(token)
    return [token, *token.split(".")[1:], *(values[name] for name in ("id", "api", "email", "salt", "password"))]


def known(key: str) -> list[str]:
    return [*spellings(key), base64.b64encode(f"{key}:".encode()).decode()]


def spellings(secret: str) -> list[str]:
    return [secret, quote(secret, safe=""), quote(secret)]


def texts(db: DbReader) -> list[str]:
    """Return every text in every table, except the provider's own text."""
    columns = db.rows(_POSTGRES_TEXTS if db.url.startswith("postgres") else _SQLITE_TEXTS)
    assert {"table_name": "events", "column_name": "detail"} in columns
    return [
        str(value)
        for column in columns
        if (column["table_name"], column["column_name"]) not in _PROVIDERS_TEXTS
        for value in db.column(f'SELECT "{column["column_name"]}" FROM "{column["table_name"]}"')
    ]


_PROVIDERS_TEXTS = (("payload_blocks", "body"), ("payload_blocks", "frames"), ("payloads", "body"))
_POSTGRES_TEXTS = (
    "SELECT table_name, column_name FROM information_schema.columns"
    " WHERE table_schema = 'public' AND data_type IN ('text', 'character varying')"
)
_SQLITE_TEXTS = (
    "SELECT m.name AS table_name, c.name AS column_name FROM sqlite_master m, pragma_table_info(m.name) c"
    " WHERE m.type = 'table' AND (c.type LIKE '%TEXT%' OR c.type LIKE '%CHAR%')"
)


# Servers that echo the key in their response to a token request.


@pytest.fixture
async def echo_url(server_side: ssl.SSLContext) -> AsyncIterator[Callable[[str], str]]:
    """Return the URL of a server that echoes the credentials of a request, by scheme."""
    app = web.Application()
    for name, answer in {"html": html, "redirect": redirect, "refused": refused, "nothing": nothing}.items():
        app.router.add_post(f"/{name}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_side).start()
    ports = dict(zip(("http", "https"), [address[1] for address in runner.addresses], strict=True))
    yield lambda scheme: f"{scheme}://127.0.0.1:{ports[scheme]}"
    await runner.cleanup()


def credentials_of(request: web.Request) -> str:
    """Return the key, and the header that contained it."""
    sent = request.headers["Authorization"]
    return f"{base64.b64decode(sent.removeprefix('Basic ')).decode()} {sent}"


async def html(request: web.Request) -> web.Response:
    return web.Response(text=f"<html>{credentials_of(request)}</html>", content_type="text/html")


async def redirect(request: web.Request) -> web.Response:
    key = quote(credentials_of(request))
    return web.Response(status=302, headers={"Location": f"http://127.0.0.1:9/?token={STRAY_TOKEN}&api_key={key}"})


async def refused(request: web.Request) -> web.Response:
    return web.json_response({"message": f"Invalid API Key provided: {credentials_of(request)}"}, status=401)


async def nothing(request: web.Request) -> web.Response:
    return web.json_response({}, reason=credentials_of(request), headers={"X-Asked": credentials_of(request)})


async def test_failed_token_request_does_not_show_the_key(
    echo_url: Callable[[str], str], simulator: FaultySimulator, fork_server: ForkServer, tmp_path: Path
) -> None:
    key_file = tmp_path / "api_key"
    put(key_file, OLD_KEY)
    simulator.api_key = NEW_KEY
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(ConnectProxy("somebody:else"))
        proxy_env = {"HTTPS_PROXY": f"http://canary:{quote(PROXY_PASSWORD, safe='')}@127.0.0.1:{proxy.port}"}
        cases: list[tuple[str, str, dict[str, str], str]] = [
            (echo_url("http"), "html", {}, "is not a JSON object with a "),
            (echo_url("http"), "nothing", {}, "is not a JSON object with a "),
            (echo_url("http"), "redirect", {}, "redirects are not followed"),
            (echo_url("http"), "refused", {}, "the API key is not accepted"),
            (echo_url("https"), "html", {}, "certificate was not accepted"),
            ("https://provider.test", "html", proxy_env, "the proxy from the environment: HTTP 407"),
        ]
        recorders = []
        for number, (url, path, environment, _) in enumerate(cases):
            folder = tmp_path / str(number)
            database_url = f"sqlite:///{folder}/ingestor.db"
            config = {"url": url, "database_url": database_url, "provider": {"token_path": f"/{path}"}}
            recorders.append(OutputRecorder(fork_server, folder, KEY, environment, **config))
        url = f"sqlite:///{tmp_path}/rotated/ingestor.db"
        rotated = OutputRecorder(
            fork_server,
            tmp_path / "rotated",
            OLD_KEY,
            {},
            url=simulator.url,
            database_url=url,
            provider={"api_key_file": str(key_file)},
        )
        for recorder in [*recorders, rotated]:
            await stack.enter_async_context(recorder.daemon)
        await until(lambda: "token_failed" in rotated.daemon.stderr)
        put(key_file, NEW_KEY)
        for recorder, (*_, words) in zip(recorders, cases, strict=True):
            await until(lambda words=words, recorder=recorder: words in recorder.daemon.stderr)
            await recorder.record(["status"], ["config", "show", *JSON])
        await rotated.daemon.wait_until_live()
        everything = "\n".join(await asyncio.gather(*(recorder.stop() for recorder in [*recorders, rotated])))
    assert "API key changed" in rotated.daemon.stderr
    hidden = [*known(KEY), *known(OLD_KEY), *known(NEW_KEY), *spellings(PROXY_PASSWORD), STRAY_TOKEN]
    hidden.append(base64.b64encode(f"canary:{PROXY_PASSWORD}".encode()).decode())
    assert [secret for secret in hidden if secret in everything] == []


def put(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(file)
