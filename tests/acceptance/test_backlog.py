"""Start the daemon with a gigabyte in the spool, as after a day without a database: time to READY, and memory."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingestor.core.entries import Frame
from ingestor.spool.chunk_store import ChunkWriter, pack

from ..support.daemon import CommandProcess, DaemonProcess, write_config
from ..support.numbered_feed import KEY, PATH, TICKERS
from ..support.postgres_server import free_port
from ..support.process_usage import resident_mib

BACKLOG_BYTES = 1 << 30
WINDOW_ROWS = 60
CHUNK_FRAMES = 4  # as received within 20 ms
READY_SECONDS = 5.0
START = datetime(2026, 1, 5, tzinfo=UTC)


def filled(path: Path) -> int:
    """Fill an unused spool with a gigabyte of rolling windows, and return the number of frames."""
    path.parent.mkdir()
    file, number = ChunkWriter(path), 0
    while file.head.live_bytes < BACKLOG_BYTES:
        rows = []
        for _ in range(500):
            rows.append(pack(number + 1, [window(number + more) for more in range(CHUNK_FRAMES)]))
            number += CHUNK_FRAMES
        file.write(rows, acked=0)
    file.close()
    return number


def window(number: int) -> Frame:
    ticker, last = TICKERS[number % len(TICKERS)], START + timedelta(minutes=number // len(TICKERS))
    stamps = [(last - timedelta(minutes=back)).isoformat() for back in range(WINDOW_ROWS)]
    rows = [{"ts": stamp, "ticker": ticker, "average_sentiment": hash(stamp) % 1000 / 1000} for stamp in stamps]
    text = f'42["res",{json.dumps(rows, separators=(",", ":"))}]'
    return Frame(time.time_ns() // 1000, "c0ffee000001", "stream", "res", PATH, "{}", text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_gigabyte_spool_is_ready_in_5_s_with_bounded_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path,
        url=f"http://127.0.0.1:{free_port()}",
        database_url=f"sqlite:///{tmp_path / 'ingestor.db'}",
        subscriptions={PATH: TICKERS},
        spool={"max_bytes": "2GiB"},
    )
    frames = filled(tmp_path / "spool" / "spool.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        daemon = DaemonProcess(config, KEY, NOTIFY_SOCKET=str(tmp_path / "notify"))
        began = time.monotonic()
        async with daemon:
            while not (await asyncio.to_thread(manager.recv, 1024)).startswith(b"READY=1"):
                pass
            ready = time.monotonic() - began
            sizes = [resident_mib(daemon.pid)]
            while daemon.status.get("spool", {}).get("acked_seq", 0) < frames:
                await asyncio.sleep(0.5)
                sizes.append(resident_mib(daemon.pid))
            drained = time.monotonic() - began
            assert await daemon.terminate(timeout_seconds=20) == 0
    with capsys.disabled():
        print(
            f"\n{frames} frames: ready after {ready:.1f} s, drained after {drained:.0f} s;"
            f" {sizes[0]:.0f} MiB at first, {sizes[len(sizes) // 2]:.0f} half-way, {max(sizes):.0f} at most"
        )
    assert ready < READY_SECONDS
    assert max(sizes) < max(sizes[: len(sizes) // 2]) + 32
    assert max(sizes) < 256
    assert daemon.db.scalar("SELECT count(*) FROM payloads") == frames
    assert daemon.db.scalar("SELECT count(*) FROM observations") == frames + len(TICKERS) * (WINDOW_ROWS - 1)
    async with CommandProcess("audit", "--config", config, folder=tmp_path) as audit:
        assert await audit.wait_for_exit(600) == 0, audit.stdout
