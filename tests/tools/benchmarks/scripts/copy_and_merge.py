"""Receive, decode, COPY, merge and commit on PostgreSQL, without spool, ledger, coverage or revisions.

It shows the cost of the daemon's guarantees: a crash loses data here. Columns and the number of rows per transaction
are the daemon's, which merges only where rows may be there already, and stores texts in blocks.
"""

import asyncio
import queue
import struct
import sys
import threading
import time
from datetime import UTC, datetime

import msgspec
import psycopg

from tests.tools.benchmarks.scripts.minimal_client import texts

url, database, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3]) * int(sys.argv[4])
ROWS = 5_000
TABLES = """
CREATE TABLE samples (
    series_id integer, revision integer NOT NULL, ts timestamptz, value double precision NOT NULL,
    received_at timestamptz NOT NULL, published_at timestamptz, seq bigint NOT NULL, instance_id integer NOT NULL,
    source smallint NOT NULL, PRIMARY KEY (series_id, ts)
);
CREATE TABLE payloads (
    instance_id integer, seq bigint, received_at timestamptz NOT NULL, row_count integer NOT NULL, body text NOT NULL,
    PRIMARY KEY (instance_id, seq)
);
CREATE TEMPORARY TABLE stage (
    series_id integer, ts timestamptz, value double precision, received_at timestamptz, seq bigint
) ON COMMIT DELETE ROWS;
"""
MERGE = """
INSERT INTO samples SELECT series_id, 0, ts, value, received_at, NULL, seq, 1, 1 FROM stage
ORDER BY series_id, ts ON CONFLICT DO NOTHING
"""
SAMPLE = struct.Struct(">hiiiqidiqiq")
PAYLOAD = struct.Struct(">hiiiqiqiii")
HEADER, TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
CENTURY = datetime(2000, 1, 1, tzinfo=UTC)
CENTURY_US = 946_684_800_000_000


class Row(msgspec.Struct):
    ts: datetime
    ticker: str
    average_sentiment: str


class Writer:
    """Writes received texts, in its own thread."""

    def __init__(self) -> None:
        self.texts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.committed = threading.Event()
        self._decode = msgspec.json.Decoder(list[Row]).decode
        self._series: dict[str, int] = {}
        self._seq = 0
        self._database = psycopg.connect(database)
        self._database.execute(TABLES)
        self._database.commit()

    def run(self) -> None:
        done = 0
        while done < wanted:
            done += self._write(self.texts.get())
        self.committed.set()

    def _write(self, text: str) -> int:
        samples, payloads, count = bytearray(HEADER), bytearray(HEADER), 0
        while True:
            count += self._add(text, samples, payloads)
            if count >= ROWS or self.texts.empty():
                break
            text = self.texts.get()
        with self._database.cursor() as cursor:
            with cursor.copy("COPY stage FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(bytes(samples + TRAILER))
            cursor.execute(MERGE)
            with cursor.copy("COPY payloads FROM STDIN (FORMAT BINARY)") as copy:
                copy.write(bytes(payloads + TRAILER))
        self._database.commit()
        return count

    def _add(self, text: str, samples: bytearray, payloads: bytearray) -> int:
        body = text[9:-1].encode()
        rows = self._decode(body)
        now = time.time_ns() // 1000 - CENTURY_US
        self._seq += 1
        for row in rows:
            since = row.ts - CENTURY
            stamp = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
            series = self._series.setdefault(row.ticker, len(self._series))
            value = float(row.average_sentiment)
            samples += SAMPLE.pack(5, 4, series, 8, stamp, 8, value, 8, now, 8, self._seq)
        payloads += PAYLOAD.pack(5, 4, 1, 8, self._seq, 8, now, 4, len(rows), len(body)) + body
        return len(rows)


async def main() -> None:
    writer = Writer()
    threading.Thread(target=writer.run, daemon=True).start()

    async def receive() -> None:
        async for text in texts(url):
            writer.texts.put(text)

    receiving = asyncio.create_task(receive())
    await asyncio.to_thread(writer.committed.wait)
    print("done", flush=True)
    receiving.cancel()


asyncio.run(main())
