"""Every way to reach the provider fails like any other attempt when no file, socket or thread can be opened."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ingestor.errors import ConnectionFailed, TokenUnavailable
from tests.support.descriptors import only_descriptors
from tests.support.postgres_server import free_port

from .conftest import WAYS, Reach


@pytest.mark.parametrize("way", WAYS)
async def test_attempt_without_descriptors_fails_and_says_what_to_do(reach: Reach, way: str) -> None:
    messages, url = list[str](), f"http://127.0.0.1:{free_port()}"
    for number in range(4):
        with only_descriptors(number), pytest.raises((ConnectionFailed, TokenUnavailable)) as caught:
            await reach(way, url)
        messages.append(str(caught.value))
    assert "too many open files: raise LimitNOFILE" in messages[0]
    assert "connection refused" in messages[-1]


async def test_login_without_a_thread_fails_and_says_what_to_do(
    web_server: Callable[..., Awaitable[Any]], make_token_source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = make_token_source(await web_server())
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(TokenUnavailable, match="raise TasksMax"):
        await source.get()
