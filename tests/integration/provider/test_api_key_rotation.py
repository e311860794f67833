"""A refused API key, and a new key in its file."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from ingestor.config.secret_file import SecretFile
from ingestor.core.backoff import Backoff
from ingestor.core.redaction import redactor
from ingestor.errors import ConfigError, IngestorError, InsecureSecretFile, TokenRefused, TokenUnavailable
from ingestor.provider.auth import TokenSource, token_source
from ingestor.provider.auth import api_key as key_module

from .conftest import KEY
from .raw_http_server import RawHttpServer, Reply, http, token_reply, until
from .test_token_source import jwt

Serve = Callable[..., Awaitable[RawHttpServer]]
Make = Callable[..., TokenSource]
NEW = "another-key-of-the-source"
LONG_SECONDS = 60.0  # longer than any test waits


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every backoff longer than a test waits."""
    for name in ("UNAVAILABLE_BACKOFF", "REFUSED_BACKOFF"):
        monkeypatch.setattr(token_source, name, Backoff(first_seconds=LONG_SECONDS, cap_seconds=LONG_SECONDS))
    monkeypatch.setattr(key_module, "POLL_SECONDS", 0.02)


@pytest.fixture
def key_file(tmp_path: Path) -> SecretFile:
    """The file with the initial key."""
    file = SecretFile(tmp_path / "api_key")
    write_key(file, KEY.get_secret_value())
    return file


def write_key(file: SecretFile, text: str, mode: int = 0o600) -> None:
    """Replace the file atomically, as a careful operator does."""
    temporary = file.path.with_name("temporary")
    temporary.write_text(text + "\n")
    temporary.chmod(mode)
    temporary.replace(file.path)


def accept(api_key: str, *tokens: str) -> Reply:
    """Reply with the next token to this key, and with 401 to every other key."""
    credentials = base64.b64encode(f"{api_key}:".encode())
    remaining = list(tokens)

    async def reply(request: bytes) -> AsyncIterator[bytes]:
        yield token_reply(remaining.pop(0) if remaining else "a.token") if credentials in request else http(401, "{}")

    return reply


def record_errors(tokens: TokenSource) -> list[IngestorError]:
    errors: list[IngestorError] = []
    tokens.on_failed.append(lambda error, _: errors.append(error))
    return errors


async def test_new_key_is_used_at_once_after_refusal(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    server = await web_server(accept(NEW))
    tokens = make_token_source(server, key_file=key_file, spacing_seconds=0.3)
    changes: list[str] = []
    tokens.api_key.on_changed.append(lambda: changes.append(tokens.api_key.value.get_secret_value()))
    with pytest.raises(TokenRefused):
        await tokens.get()
    waiting = asyncio.create_task(tokens.get())
    await asyncio.sleep(0.1)
    assert len(server.requests) == 1
    write_key(key_file, NEW)
    async with asyncio.timeout(5):
        assert (await waiting).value == "a.token"
    assert server.times[1] - server.times[0] > 0.29
    assert changes == [NEW]
    assert redactor.scrub(f"{NEW} {base64.b64encode(f'{NEW}:'.encode()).decode()}") == "*** ***"


async def test_key_changed_before_refusal_is_found(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    tokens = make_token_source(await web_server(accept(NEW)), key_file=key_file)
    write_key(key_file, NEW)
    with pytest.raises(TokenRefused):
        await tokens.get()
    async with asyncio.timeout(5):
        assert (await tokens.get()).value == "a.token"


async def test_new_key_brings_postponed_renewal_forward(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    server = await web_server(token_reply(jwt(1.0)), accept(NEW, "a.new.token"))
    tokens = make_token_source(server, key_file=key_file)
    first = await tokens.get()
    await until(lambda: tokens.status().logins.get("refused"))
    assert tokens.current == first
    write_key(key_file, NEW)
    await until(lambda: tokens.current != first)
    assert tokens.current is not None
    assert tokens.current.value == "a.new.token"


@pytest.mark.parametrize(
    ("text", "mode", "kind", "remedy"),
    [
        pytest.param(
            NEW, 0o644, InsecureSecretFile, "others can read or change this file; run: chmod 600 ", id="exposed"
        ),
        pytest.param("two words", 0o600, ConfigError, "must be one word", id="no key"),
        pytest.param("", 0o600, ConfigError, "is empty", id="empty"),
    ],
)
async def test_unusable_key_file_is_reported_once_then_used(
    web_server: Serve,
    make_token_source: Make,
    key_file: SecretFile,
    text: str,
    mode: int,
    kind: type[ConfigError],
    remedy: str,
) -> None:
    tokens = make_token_source(await web_server(accept(NEW)), key_file=key_file)
    errors = record_errors(tokens)
    with pytest.raises(TokenRefused):
        await tokens.get()
    write_key(key_file, text, mode)
    await until(lambda: len(errors) > 1)
    await asyncio.sleep(10 * key_module.POLL_SECONDS)
    assert [type(error) for error in errors] == [TokenRefused, kind]
    assert str(errors[1]).startswith(f"{key_file.path}: provider.api_key: {remedy}")
    assert tokens.status().last_error == str(errors[1])
    assert tokens.api_key.value == KEY, "the old key is kept"
    if kind is InsecureSecretFile:
        key_file.path.chmod(0o600)  # changes neither its content nor its mtime
    else:
        write_key(key_file, NEW)
    async with asyncio.timeout(5):
        assert (await tokens.get()).value == "a.token"


async def test_missing_key_file_is_reported_and_found_again(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    tokens = make_token_source(await web_server(accept(NEW)), key_file=key_file)
    errors = record_errors(tokens)
    with pytest.raises(TokenRefused):
        await tokens.get()
    key_file.path.unlink()
    await until(lambda: "cannot be read" in str(errors[-1]))
    write_key(key_file, NEW)
    async with asyncio.timeout(5):
        assert (await tokens.get()).value == "a.token"


async def test_new_key_does_not_shorten_other_backoff(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    server = await web_server(http(429, Retry_After="60"))
    tokens = make_token_source(server, key_file=key_file)
    with pytest.raises(TokenUnavailable):
        await tokens.get()
    write_key(key_file, NEW)
    assert await tokens.api_key.reload()
    waiting = asyncio.create_task(tokens.get())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert len(server.requests) == 1


async def test_refusal_of_old_key_does_not_delay_new_key(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    late = asyncio.Event()

    async def refuse_late(_: bytes) -> AsyncIterator[bytes]:
        await late.wait()
        yield http(403, "{}")

    server = await web_server(refuse_late, accept(NEW))
    tokens = make_token_source(server, key_file=key_file)
    login = asyncio.create_task(tokens.get())
    await until(lambda: server.requests)
    write_key(key_file, NEW)
    assert await tokens.api_key.reload()
    late.set()
    with pytest.raises(TokenRefused):
        await login
    async with asyncio.timeout(5):
        assert (await tokens.get()).value == "a.token"


async def test_reload_reports_change_and_keeps_key_on_error(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    server = await web_server(token_reply())
    tokens = make_token_source(server, key_file=key_file)
    assert not await tokens.api_key.reload()
    write_key(key_file, NEW, 0o640)
    with pytest.raises(InsecureSecretFile, match="chmod 600"):
        await tokens.api_key.reload()
    assert tokens.api_key.value == KEY
    key_file.path.chmod(0o600)
    assert await tokens.api_key.reload()
    assert tokens.api_key.value.get_secret_value() == NEW
    assert not await make_token_source(server).api_key.reload(), "a key from the environment cannot change"


async def test_replaced_key_uses_its_own_file(
    web_server: Serve, make_token_source: Make, key_file: SecretFile, tmp_path: Path
) -> None:
    tokens = make_token_source(await web_server(accept(NEW)), key_file=key_file)
    other = SecretFile(tmp_path / "other")
    write_key(other, "wrong-as-well")
    reading = asyncio.create_task(tokens.api_key.reload())
    await asyncio.sleep(0)
    assert tokens.api_key.replace(SecretStr("wrong-as-well"), other)
    assert not await reading
    with pytest.raises(TokenRefused):
        await tokens.get()
    await asyncio.sleep(5 * key_module.POLL_SECONDS)
    assert tokens.api_key.value.get_secret_value() == "wrong-as-well"
    write_key(other, NEW)
    async with asyncio.timeout(5):
        assert (await tokens.get()).value == "a.token"


async def test_key_file_polling_ends_after_login_or_close(
    web_server: Serve, make_token_source: Make, key_file: SecretFile
) -> None:
    tokens = make_token_source(await web_server(accept(NEW)), key_file=key_file)
    polls = lambda: [task for task in asyncio.all_tasks() if task.get_name() == "key file"]  # noqa: E731
    with pytest.raises(TokenRefused):
        await tokens.get()
    assert polls()
    write_key(key_file, NEW)
    await tokens.get()
    await until(lambda: not polls())
    os.truncate(key_file.path, 0)
    write_key(key_file, "refused-once-more")
    assert await tokens.api_key.reload()
    with pytest.raises(TokenRefused):
        await tokens.get(fresh=True)
    assert polls()
    await tokens.close()
    await until(lambda: not polls())
