from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ingestor.core.clock import boottime
from ingestor.daemon.resting_selector import MAX_RESTING_BYTES, RestingSelector

LONG_SECONDS = 20.0  # no test that rests that long ends in time


def run_resting(rest_seconds: float, scenario: Callable[[RestingSelector], Coroutine[Any, Any, None]]) -> None:
    selector = RestingSelector(rest_seconds)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(asyncio.wait_for(scenario(selector), LONG_SECONDS / 2))


@contextmanager
def open_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def receive(ours: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(ours, 1 << 16)


def test_data_is_read_at_the_end_of_a_rest_that_begins_when_it_comes() -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            await asyncio.sleep(0)
            selector.rest(0)
            sent_at: list[float] = []

            def send() -> None:
                theirs.send(b"x")
                sent_at.append(boottime())
                time.sleep(0.05)
                theirs.send(b"y")

            threading.Timer(0.05, send).start()
            assert await receive(ours) == b"xy"
            assert boottime() - sent_at[0] >= 0.19
            assert selector.came_at() <= sent_at[0] + 0.1  # it may have waited since then

    run_resting(0.2, scenario)


def test_data_without_a_rest_is_read_at_once() -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            sending = threading.Timer(0.05, theirs.send, [b"x"])
            sending.start()
            assert await receive(ours) == b"x"
            assert boottime() - selector.came_at() < LONG_SECONDS / 4

    run_resting(LONG_SECONDS, scenario)


def test_data_after_a_rest_in_which_nothing_came_is_read_at_once() -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            await asyncio.sleep(0)
            selector.rest(0)
            sending = threading.Timer(0.5, theirs.send, [b"x"])
            started_at = boottime()
            sending.start()
            assert await receive(ours) == b"x"
            assert selector.came_at() - started_at > 0.4

    run_resting(0.1, scenario)


def test_rest_ends_at_the_next_timer() -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            theirs.send(b"x")
            reader_called = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours, reader_called.set)
            for _ in range(20):
                selector.rest(0)
                await asyncio.sleep(0.005)
            assert reader_called.is_set()
            asyncio.get_running_loop().remove_reader(ours)

    run_resting(LONG_SECONDS, scenario)


def test_no_rest_while_callbacks_are_ready() -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            for _ in range(100):
                selector.rest(0)
                theirs.send(b"x")
                await asyncio.sleep(0)
            assert ours.recv(200) == b"x" * 100

    run_resting(LONG_SECONDS, scenario)


@pytest.mark.parametrize(("received_bytes", "rests"), [(MAX_RESTING_BYTES, True), (MAX_RESTING_BYTES + 1, False)])
def test_no_rest_while_much_is_received(received_bytes: int, rests: bool) -> None:
    async def scenario(selector: RestingSelector) -> None:
        with open_pair() as (ours, theirs):
            await asyncio.sleep(0)
            selector.rest(received_bytes)
            started_at = time.monotonic()
            threading.Timer(0.05, theirs.send, [b"x"]).start()
            await receive(ours)
            assert (time.monotonic() - started_at > 2.5) is rests

    run_resting(3, scenario)


def test_call_from_another_thread_is_run_at_the_end_of_the_rest() -> None:
    async def scenario(selector: RestingSelector) -> None:
        called, loop = asyncio.Event(), asyncio.get_running_loop()
        selector.rest(0)
        threading.Timer(0.02, loop.call_soon_threadsafe, [called.set]).start()
        await called.wait()

    run_resting(0.1, scenario)


def test_signal_is_handled_at_the_end_of_the_rest() -> None:
    async def scenario(selector: RestingSelector) -> None:
        handled, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, handled.set)
        selector.rest(0)
        threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        await handled.wait()
        loop.remove_signal_handler(signal.SIGUSR1)

    run_resting(0.1, scenario)


def test_data_in_the_tls_buffer_does_not_wait_for_the_rest(certificate: Path, server_side: ssl.SSLContext) -> None:
    """A record of TLS has many lines. The reader pauses the transport again and again, since it takes few of them."""
    lines = [b"%d\n" % number for number in range(2500)]

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(lines))
        await _reader.read()
        writer.close()

    async def scenario(selector: RestingSelector) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        port = server.sockets[0].getsockname()[1]
        context = ssl.create_default_context(cafile=str(certificate))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=100)
        read = [await reader.readline()]
        for _ in lines[1:]:
            selector.rest(0)
            read.append(await reader.readline())
        assert read == lines
        writer.close()
        server.close()

    run_resting(LONG_SECONDS, scenario)


def test_many_connections_are_read_in_few_looks_and_none_is_forgotten() -> None:
    messages, connections = 40, 50

    async def read_all(selector: RestingSelector, ours: socket.socket, looks: set[float]) -> bytes:
        data = b""
        while len(data) < messages:
            data += await receive(ours)
            looks.add(selector._looked_at)
            selector.rest(len(data))
        return data

    async def scenario(selector: RestingSelector) -> None:
        pairs = [stack.enter_context(open_pair()) for _ in range(connections)]

        def send() -> None:
            for number in range(messages):
                for _, theirs in pairs:
                    theirs.send(bytes([number]))
                time.sleep(0.005)

        looks: set[float] = set()
        sending = threading.Thread(target=send)
        sending.start()
        everything = await asyncio.gather(*(read_all(selector, ours, looks) for ours, _ in pairs))
        sending.join()
        assert everything == [bytes(range(messages))] * connections
        assert len(looks) < messages

    with ExitStack() as stack:
        run_resting(0.02, scenario)
