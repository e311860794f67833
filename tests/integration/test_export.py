"""`ingestor export`: complete, typed and in order; atomic files; no formulas that a spreadsheet would execute."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import time_machine
from pyarrow import parquet

from ingestor.core.extras import install_command
from ingestor.core.files import replace_atomically
from ingestor.errors import BatchRejected
from ingestor.store.engine import make_engine, repeatable_read
from ingestor.store.open_database import open_database
from ingestor.store.read import export, sample_columns
from ingestor.store.read.export_formats import ParquetWriter
from tests.integration.conftest import Command
from tests.integration.store.row_factory import Database, at
from tests.support.daemon import COMMAND

CROWD = ("crowd-sentiment", "crowd_sentiment")
Export = Callable[..., str]


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    yield Database(engine)
    engine.dispose()


@pytest.fixture
def exported(command: Command, write_config_for: Callable[..., Path], migrated_url: str) -> Export:
    """Run ``ingestor export`` with some arguments and return its stdout."""

    def run(*arguments: str) -> str:
        result = command("export", *arguments, "--config", write_config_for(migrated_url))
        assert (result.code, result.err) == (0, "")
        return result.out

    return run


@pytest.fixture
def config(write_config_for: Callable[..., Path], migrated_url: str) -> Path:
    return write_config_for(migrated_url)


def run_export(command: Command, config: Path, *arguments: str | Path) -> Any:
    return command("export", "--feed", "crowd-sentiment", *arguments, "--config", config)


def unboxed(text: str) -> str:
    """Return an error of typer without its line breaks."""
    return " ".join(text.replace("│", " ").split())


def tickers(text: str) -> list[tuple[str, str]]:
    return [(row["ticker"], row["ts"][11:16]) for row in csv.DictReader(io.StringIO(text))]


def test_export_has_columns_of_the_view_in_every_format(
    db: Database,
    exported: Export,
    command: Command,
    write_config_for: Callable[..., Path],
    migrated_url: str,
    tmp_path: Path,
) -> None:
    db.sample(*CROWD, "ON", "10:00", -0.1, revision=1, published_at=at("06:00"), received_at=at("10:00:02.5"), seq=7)
    db.sample(*CROWD, "ON", "10:00", 0.3, table="sample_revisions")
    db.sample("user-sentiment", "sentiment", "ON", "10:00:01.25", 1e-7, user_id="42", source="backfill", seq=2**40)
    first, second = exported("--feed", "crowd-sentiment").splitlines()
    assert first == "feed,metric,ticker,user_id,ts,value,revision,published_at,received_at,source,instance_id,seq"
    assert second == (
        "crowd-sentiment,crowd_sentiment,ON,,2024-03-10T10:00:00+00:00,-0.1,1,2024-03-10T06:00:00+00:00,"
        "2024-03-10T10:00:02.500000+00:00,stream,1,7"
    )
    line = json.loads(exported("--feed", "user-sentiment", "--format", "jsonl"))
    assert [type(line[name]) for name in ("value", "revision", "seq", "published_at")] == [float, int, int, type(None)]
    assert (line["value"], line["user_id"], line["ts"]) == (1e-7, "42", "2024-03-10T10:00:01.250000+00:00")
    file = tmp_path / "x.parquet"
    arguments = (
        "--feed",
        "user-sentiment",
        "--format",
        "parquet",
        "-o",
        file,
        "--config",
        write_config_for(migrated_url),
    )
    assert command("export", *arguments).out == f"{file}: 1 rows\n"
    table = parquet.read_table(file)
    stamp = pyarrow.timestamp("us", tz="UTC")
    types = {name: table.schema.field(name).type for name in ("ts", "published_at", "value", "revision", "seq")}
    assert list(types.values()) == [stamp, stamp, pyarrow.float64(), pyarrow.int32(), pyarrow.int64()]
    (row,) = table.to_pylist()
    assert row == line | {name: line[name] and datetime.fromisoformat(line[name]) for name in ("ts", "received_at")}


def test_csv_escapes_formulas_but_not_numbers(db: Database, exported: Export) -> None:
    for ticker in ("=1+1", "+1", "-A", "@SUM(A1)", "\tT", "\rR", "A=1", 'a"b,c'):
        db.sample(*CROWD, ticker, "10:00", -0.5)
    found = {
        row["ticker"]: row["value"] for row in csv.DictReader(io.StringIO(exported("--feed", "crowd-sentiment"), ""))
    }
    assert sorted(found) == sorted(["'=1+1", "'+1", "'-A", "'@SUM(A1)", "'\tT", "'\rR", "A=1", 'a"b,c'])
    assert set(found.values()) == {"-0.5"}


def test_export_selects_in_order_for_any_page_size(
    db: Database, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", 3)
    monkeypatch.setattr(export, "SERIES_PER_QUERY", 2)
    for ticker in ("C", "A", "B"):
        for minute in range(7 if ticker == "A" else 3):
            db.sample(*CROWD, ticker, f"10:0{minute}", 0.5)
    db.sample("tweet-volume", "volume", "A", "10:00", 3.0)
    everything = [("A", f"10:0{minute}") for minute in range(7)]
    everything += [(ticker, f"10:0{minute}") for ticker in "BC" for minute in range(3)]
    crowd = ("--feed", "crowd-sentiment")
    assert tickers(exported(*crowd)) == everything
    assert tickers(exported(*crowd, "--ticker", "C", "--ticker", "B")) == everything[7:]
    window = exported(*crowd, "--since", "2024-03-10T10:01", "--until", "2024-03-10T11:02+01:00")
    assert tickers(window) == [("A", "10:01"), ("B", "10:01"), ("C", "10:01")]
    with time_machine.travel(at("10:06:30"), tick=False):
        assert tickers(exported(*crowd, "--since", "90s")) == [("A", "10:05"), ("A", "10:06")]


def test_export_reads_several_feeds_and_times_of_any_year(db: Database, exported: Export) -> None:
    db.sample("tweet-volume", "volume", "A", "10:00", 3.0)
    db.sample(*CROWD, "A", "-9000 10:00:00.000001", 0.5, published_at=at("-9000 09:59:59.5"))
    db.sample(*CROWD, "B", "10:00", 0.25)
    db.sample("tweet-buzz", "buzz", "A", "10:00", 1.0)
    text = exported("--feed", "tweet-volume", "--feed", "crowd-sentiment", "--ticker", "A")
    rows = [(row["feed"], row["ts"], row["published_at"]) for row in csv.DictReader(io.StringIO(text))]
    assert rows == [
        ("crowd-sentiment", "1999-07-20T10:00:00.000001+00:00", "1999-07-20T09:59:59.500000+00:00"),
        ("tweet-volume", "2024-03-10T10:00:00+00:00", ""),
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_export_has_every_revision_for_any_page_size(
    db: Database, exported: Export, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", rows)
    db.sample(*CROWD, "A", "10:00", 0.5)
    expected = [(ticker, ts, number) for ticker in "AB" for ts in ("10:00", "10:01") for number in range(4)]
    for ticker, ts, number in expected:
        db.sample(*CROWD, ticker, ts, number / 8, table="sample_revisions", revision=number)
    text = exported("--feed", "crowd-sentiment", "--revisions")
    found = [(r["ticker"], r["ts"][11:16], int(r["revision"])) for r in csv.DictReader(io.StringIO(text))]
    assert found == expected


def test_file_name_decides_the_format(db: Database, command: Command, config: Path, tmp_path: Path) -> None:
    db.sample(*CROWD, "A", "10:00", 0.5)
    first_bytes = {}
    for name in ("x.csv", "x.JSONL", "x.parquet", "plain"):
        assert run_export(command, config, "-o", tmp_path / name).code == 0
        first_bytes[name] = (tmp_path / name).read_bytes()[:4]
    assert first_bytes == {"x.csv": b"feed", "x.JSONL": b'{"fe', "x.parquet": b"PAR1", "plain": b"feed"}
    assert run_export(command, config, "-o", tmp_path / "x.txt", "--format", "jsonl").code == 0
    contradiction = run_export(command, config, "-o", tmp_path / "y.csv", "--format", "parquet")
    unknown = run_export(command, config, "-o", tmp_path / "x.json")
    assert (contradiction.code, unknown.code) == (2, 2)
    assert "is named like csv, not parquet" in unboxed(contradiction.err)
    assert "is none of csv, jsonl, parquet; add --format" in unboxed(unknown.err)
    assert not (tmp_path / "y.csv").exists()


def test_existing_file_is_replaced_only_with_force(
    db: Database, command: Command, config: Path, tmp_path: Path
) -> None:
    db.sample(*CROWD, "A", "10:00", 0.5)
    file = tmp_path / "x.csv"
    file.write_text("previous")
    refused = run_export(command, config, "-o", file)
    assert (refused.code, file.read_text()) == (2, "previous")
    assert "exists; name another file, or replace it with --force" in unboxed(refused.err)
    assert run_export(command, config, "-o", file, "--force").code == 0
    assert file.read_text().startswith("feed,")


def test_unknown_ticker_names_similar_one_but_subscribed_one_is_known(
    db: Database, command: Command, config: Path
) -> None:
    db.sample(*CROWD, "AAPL", "10:00", 0.5)
    db.sample("tweet-volume", "volume", "AAPM", "10:00", 3.0)
    db.subscription(1, "TSLA")
    assert run_export(command, config, "--ticker", "AAPL", "--ticker", "TSLA").out.count("\n") == 2
    unknown = run_export(command, config, "--ticker", "AAPL", "--ticker", "AAPN")
    message = 'unknown ticker "AAPN" of crowd-sentiment; did you mean "AAPL"?\n'
    assert (unknown.code, unknown.out, unknown.err) == (2, "", message)


def test_export_reads_one_snapshot_while_daemon_writes(
    db: Database, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", 1)
    for ticker in "AB":
        db.sample(*CROWD, ticker, "10:00", 0.5)
    url = migrated_url.replace("postgresql://", "postgresql+psycopg://")
    with open_database(url) as engine, repeatable_read(engine) as connection:
        pages = export.read_pages(connection, export.ExportQuery(feeds=("crowd-sentiment",)))
        found = [next(pages)[1]]
        db.sample(*CROWD, "A", "10:01", 0.5)
        db.sample(*CROWD, "B", "10:01", 0.5)
        found += [page for _, page in pages]
    assert [page.names[number][2] for page in found for number in page.columns["series"]] == ["A", "B"]


def test_export_refuses_unknown_feed_but_not_empty_one(
    db: Database, exported: Export, command: Command, write_config_for: Callable[..., Path], migrated_url: str
) -> None:
    db.sample(*CROWD, "A", "10:00", 0.5)
    assert exported("--feed", "tweet-buzz").count("\n") == 1
    result = command("export", "--feed", "crowd", "--config", write_config_for(migrated_url))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith('unknown feed "crowd"; write one of ')
    assert "crowd-sentiment" in result.err


def test_exports_with_the_same_process_id_do_not_share_a_part(tmp_path: Path) -> None:
    """As in two containers, or after a kill in one of them."""
    path = tmp_path / "x.csv"
    with replace_atomically(path) as first:
        first.write(b"first")
        with replace_atomically(path) as second:
            second.write(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_file_of_an_interrupted_export_is_not_complete() -> None:
    """pyarrow would write its end when the writer is forgotten; a redirected stdout would look complete."""
    file = io.BytesIO()
    with pytest.raises(KeyboardInterrupt), ParquetWriter(file) as writer:
        raise KeyboardInterrupt
    del writer
    gc.collect()
    assert file.getvalue() == b"PAR1"


def test_parquet_without_pyarrow_names_the_extra(
    db: Database, command: Command, write_config_for: Callable[..., Path], migrated_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "ingestor.store.read.arrow_table", raising=False)
    monkeypatch.delattr("ingestor.store.read.arrow_table", raising=False)
    file = tmp_path / "x.parquet"
    result = command(
        "export", "--feed", "tweet-buzz", "--format", "parquet", "-o", file, "--config", write_config_for(migrated_url)
    )
    assert (result.code, result.out) == (78, "")
    needed = "Parquet or ingestor.read needs pyarrow, which is not installed; run: "
    assert result.err == f"{needed}{install_command('export')}\n"
    assert [file.name for file in tmp_path.iterdir() if "parquet" in file.name] == []
    db.sample(*CROWD, "A", "10:00", 0.5)
    assert tickers(command("export", "--feed", "crowd-sentiment", "--config", write_config_for(migrated_url)).out)


def test_statement_that_fails_among_its_rows_is_an_error_of_the_database(postgres_url: str) -> None:
    statement = (
        "COPY (SELECT repeat('x', 100), 1 / (2000 - i) FROM generate_series(1, 3000) i) TO STDOUT (FORMAT BINARY)"
    )
    with open_database(postgres_url.replace("postgresql://", "postgresql+psycopg://")) as engine:
        with pytest.raises(BatchRejected, match="division by zero"), repeatable_read(engine) as connection:
            sample_columns._copy(connection, statement, ())
        with repeatable_read(engine) as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1


# The command in a process of its own, with a database whose export takes a while.


SAMPLES = 100_000


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """Make a SQLite database with a value of one ticker per second from 2026-01-01 on."""
    file = Path(shutil.copy(sqlite_template, tmp_path_factory.mktemp("large") / "ingestor.db"))
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("INSERT INTO series VALUES (1, 'crowd-sentiment', 'crowd_sentiment', 'A', '', '2026-01-01')")
        raw.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1)"
            " INSERT INTO samples (series_id, ts, value, received_at, seq, instance_id, source) SELECT 1,"
            " strftime('%Y-%m-%d %H:%M:%S', '2026-01-01', i || ' seconds'), 0.5, '2026-01-01 00:00:00',"
            " i, 1, 1 FROM n",
            (SAMPLES,),
        )
    return file


@pytest.fixture
def large(filled: Path, write_config_for: Callable[..., Path]) -> list[str | Path]:
    """The command that exports this database."""
    return [COMMAND, "export", "--feed", "crowd-sentiment", "--config", write_config_for(f"sqlite:///{filled}")]


def parts(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.endswith(".part")]


def test_ctrl_c_keeps_previous_file_and_removes_partial_one(large: list[str | Path], tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("previous")
    process = subprocess.Popen(
        [*large, "-o", file, "--force"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(part.stat().st_size for part in parts(tmp_path)):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert file.read_text() == "previous"
    assert parts(tmp_path) == []


def test_full_disk_exits_74_and_leaves_no_file(large: list[str | Path], tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # noqa: E731
    done = subprocess.run([*large, "-o", file], preexec_fn=limit, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (74, "")
    assert (
        done.stderr
        == f"{file}: cannot be written (File too large); free some space there, or name a file on another disk\n"
    )
    assert not file.exists()
    assert parts(tmp_path) == []


def test_closed_stdout_ends_export_without_error(large: list[str | Path]) -> None:
    with subprocess.Popen(large, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith(b"feed,")
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_export_writes_into_pipe_without_replacing_it(large: list[str | Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    done = subprocess.run([*large, "-o", pipe, "--since", "2026-01-02"], capture_output=True, timeout=30)
    reader.join(20)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read[0].count(b"\n") == SAMPLES - 86_400 + 1
    assert pipe.is_fifo()
