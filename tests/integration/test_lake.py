"""`ingestor export --partition day`: a folder of Parquet files that follows the database and survives its retention."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow
import pytest
from pyarrow import parquet
from sqlalchemy import delete, update

from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.read import export, sample_columns
from tests.integration.conftest import Command
from tests.integration.store.row_factory import DAY, Database, at

CROWD = ("crowd-sentiment", "crowd_sentiment")
PERIOD = "crowd-sentiment-moving-average?period=30"  # as the feed of a subscription with a parameter
Lake = Callable[..., str]


@pytest.fixture
def db(migrated_url: str) -> Iterator[Database]:
    """A database with two whole days of two tickers, all of it live, and the beginning of a third day."""
    engine = make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    db = Database(engine)
    db.instance(1, "+2 12:00")
    db.subscription(1, "A")
    db.state(1, 1, "live", "00:00", None)
    for day in ("", "+1 ", "+2 "):
        for ticker in "BA":
            for clock in ("00:00", "10:00", "23:59"):
                db.sample(*CROWD, ticker, f"{day}{clock}", 0.5, received_at=at(f"{day}{clock}:01.25"))
    yield db
    engine.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def lake(command: Command, write_config_for: Callable[..., Path], migrated_url: str, folder: Path) -> Lake:
    """Run ``ingestor export --partition day`` and return what it reports."""

    def run(*arguments: str | Path) -> str:
        line = ("export", "--partition", "day", *arguments, folder, "--config", write_config_for(migrated_url))
        result = command(*line)
        assert (result.code, result.err) == (0, "")
        return result.out.removeprefix(f"{folder}: ").removesuffix("\n")

    return run


def file(folder: Path, day: int, feed: str = "crowd-sentiment", view: str = "observations") -> Path:
    return folder / f"feed={feed}" / f"date={(DAY + timedelta(days=day)).date()}" / f"{view}.parquet"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[tuple[Any, ...]]:
    # Of this file only, without the columns that its path has.
    return [tuple(row.values()) for row in parquet.ParquetFile(path).read(["ticker", "ts", "value"]).to_pylist()]


def test_lake_has_final_days_sorted_by_ticker_and_ts(db: Database, lake: Lake, folder: Path) -> None:
    assert lake() == "days: 2 written, 1 not final; 12 rows written"
    assert sorted(contents(folder)) == [str(file(folder, day).relative_to(folder)) for day in (0, 1)]
    clocks = ("+1 00:00", "+1 10:00", "+1 23:59")
    assert parquet.read_schema(file(folder, 1)).names[:4] == ["metric", "ticker", "user_id", "ts"]
    assert rows(file(folder, 1)) == [(ticker, at(clock), 0.5) for ticker in "AB" for clock in clocks]


def test_lake_opens_in_duckdb_and_polars_with_feed_and_date(db: Database, lake: Lake, folder: Path) -> None:
    db.sample(PERIOD, "moving_average", "A", "+1 10:00", 0.75, published_at=at("+1 09:59"))
    lake("--all-days")
    file(folder, 0).with_name(".observations.parquet.1.part").write_bytes(b"of an export that was killed")
    query = f"""
        SELECT feed, date::text, metric, ticker, user_id, epoch_us(ts), value, revision, epoch_us(published_at),
            epoch_us(received_at), source, instance_id, seq
        FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true) ORDER BY feed, ticker, ts
    """
    with duckdb.connect() as connection:
        found = connection.execute(query).fetchall()
    assert len(found) == 19
    assert found[-1][:5] == (PERIOD, "2024-03-11", "moving_average", "A", "")
    assert found[-1][5] == int(at("+1 10:00").timestamp() * 1e6)
    assert found[-1][8] == int(at("+1 09:59").timestamp() * 1e6)
    frame = polars.scan_parquet(folder / "**/*.parquet", hive_partitioning=True).sort("feed", "ticker", "ts").collect()
    assert frame.select("feed", polars.col("date").cast(str), "value").rows() == [(r[0], r[1], r[6]) for r in found]
    assert frame.schema["ts"] == polars.Datetime("us", "UTC")


def test_examples_of_the_documentation_read_the_lake(db: Database, lake: Lake, folder: Path) -> None:
    lake()
    page = (Path(__file__).parents[2] / "docs/queries.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "duckdb" in block]
    example = example.replace("/srv/lake", str(folder)).replace("2026-11-01", "2024-03-10")
    names: dict[str, Any] = {}
    exec(example.replace("2026, 11, 2", "2024, 3, 11"), names)
    days = [(DAY + timedelta(days=number)).date() for number in (0, 1)]
    assert names["means"] == [(day, ticker, 0.5) for day in days for ticker in "AB"]
    assert names["day"]["ts"].to_list() == [at(f"+1 {clock}") for clock in ("00:00", "10:00", "23:59")] * 2


def test_unchanged_days_are_not_written_again(db: Database, lake: Lake, folder: Path) -> None:
    lake()
    for path in folder.rglob("*.parquet"):
        os.utime(path, (1, 1))
    assert lake() == "days: 2 unchanged, 1 not final; 0 rows written"
    assert {path.stat().st_mtime for path in folder.rglob("*.parquet")} == {1.0}


def test_healed_day_is_written_again_and_no_other(db: Database, lake: Lake, folder: Path) -> None:
    lake()
    before = contents(folder)
    db.sample(*CROWD, "A", "10:30", 0.25, received_at=at("09:00"))  # in the middle, and received earlier than others
    assert lake() == "days: 1 written, 1 unchanged, 1 not final; 7 rows written"
    after = contents(folder)
    assert [name for name in after if after[name] != before[name]] == [str(file(folder, 0).relative_to(folder))]
    assert ("A", at("10:30"), 0.25) in rows(file(folder, 0))


def test_restated_day_is_written_again(db: Database, lake: Lake, folder: Path) -> None:
    lake()
    with db.engine.begin() as connection:
        m = schema.samples
        restated = update(m).where(m.c.ts == at("+1 10:00")).values(value=0.75, revision=1)
        assert connection.execute(restated).rowcount == 2
    assert lake() == "days: 1 written, 1 unchanged, 1 not final; 6 rows written"
    assert ("B", at("+1 10:00"), 0.75) in rows(file(folder, 1))


def test_all_days_follow_until_they_are_final(db: Database, lake: Lake, folder: Path) -> None:
    assert lake("--all-days") == "days: 3 written; 18 rows written"
    db.sample(*CROWD, "A", "+2 11:01", 0.25)
    assert lake() == "days: 2 unchanged, 1 not final; 0 rows written"
    assert len(rows(file(folder, 2))) == 6
    assert lake("--all-days") == "days: 1 written, 2 unchanged; 7 rows written"


def test_days_that_retention_deleted_are_kept(db: Database, lake: Lake, folder: Path) -> None:
    lake()
    before = contents(folder)
    with db.engine.begin() as connection:
        connection.execute(delete(schema.samples).where(schema.samples.c.ts < at("10:30")))
    assert lake() == (
        "days: 1 unchanged, 1 not final, 1 kept (the database has deleted values of them); 0 rows written"
    )
    with db.engine.begin() as connection:
        connection.execute(delete(schema.samples).where(schema.samples.c.ts < at("+1 00:00")))
    assert lake() == "days: 1 unchanged, 1 not final; 0 rows written"
    assert contents(folder) == before


def test_day_that_retention_began_to_delete_is_neither_written_nor_replaced(
    db: Database, lake: Lake, folder: Path
) -> None:
    db.add("deletions", before=at("+1 00:00"), deleted_at=at("+2 00:00"), instance_id=1)
    assert lake() == "days: 1 written, 2 not final; 6 rows written"
    lake("--all-days")
    before = contents(folder)
    db.sample(*CROWD, "A", "10:30", 0.25)  # more rows than the file has
    kept = "1 kept (the database has deleted values of them)"
    assert lake("--all-days") == f"days: 2 unchanged, {kept}; 0 rows written"
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("heartbeat", "live", "repair", "written"),
    [
        ("+1 01:07", ("00:00", None), None, 1),
        ("+1 00:59", ("00:00", None), None, 0),  # not all that was received is written
        ("+2 12:00", ("00:00", "+1 01:05"), None, 0),  # a gap whose repair may not have been planned yet
        ("+2 12:00", ("00:00", "+1 01:05"), ("+1 01:05", "+1 02:00", "done"), 1),
        ("+2 12:00", ("00:00", None), ("+1 00:59", "+1 02:00", "open"), 0),  # asks from one hour before its gap on
        ("+2 12:00", ("00:00", None), ("+1 01:00", "+1 02:00", "open"), 1),
        ("+2 12:00", ("00:00", None), ("-1 23:00", "00:00", "open"), 1),
        ("+2 12:00", ("00:00", None), ("10:00", "10:01", "failed"), 1),
    ],
)
def test_day_is_final_once_nothing_can_change_it(
    migrated_url: str, lake: Lake, heartbeat: str, live: tuple[str, str | None], repair: tuple[str, str, str] | None,
    written: int,
) -> None:  # fmt: skip
    db = Database(make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://")))
    db.instance(1, heartbeat)
    db.subscription(1, "A")
    db.state(1, 1, "live", *live)
    if live[1]:
        db.state(1, 1, "disconnected", live[1], "+1 02:00")
        db.state(1, 1, "live", "+1 02:00", None)
    if repair:
        db.repair(1, *repair)
    db.sample(*CROWD, "A", "10:00", 0.5)
    report = lake()
    db.engine.dispose()
    assert report.startswith("days: 1 written" if written else "days: 1 not final")


@pytest.mark.parametrize(("heartbeat", "written"), [("+1 00:59", 0), ("+1 01:00", 1)])
def test_day_of_feed_that_is_no_longer_wanted_is_final_after_an_hour(
    migrated_url: str, lake: Lake, heartbeat: str, written: int
) -> None:
    db = Database(make_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://")))
    db.instance(1, heartbeat)
    db.subscription(1, "A")
    db.state(1, 1, "live", "00:00", "12:00")
    db.state(1, 1, "stopped", "12:00", None)
    db.sample(*CROWD, "A", "10:00", 0.5)
    report = lake()
    db.engine.dispose()
    assert report.startswith("days: 1 written" if written else "days: 1 not final")


def test_open_repair_of_another_feed_does_not_matter(db: Database, lake: Lake) -> None:
    db.subscription(2, "A", feed="tweet-volume", path="/real-time/tweet-volume")
    db.repair(2, "10:00", "11:00", "open")
    assert lake() == "days: 2 written, 1 not final; 12 rows written"


def test_revisions_have_a_folder_of_their_own(
    db: Database, lake: Lake, folder: Path, command: Command, tmp_path: Path
) -> None:
    db.sample(*CROWD, "A", "10:00", 0.125, table="sample_revisions")
    assert lake("--revisions") == "days: 1 written; 1 rows written"
    assert rows(file(folder, 0, view="revisions")) == [("A", at("10:00"), 0.125)]
    mixed = command("export", "--partition", "day", folder, "--config", tmp_path / "config.yaml")
    assert (mixed.code, mixed.out) == (74, "")
    assert mixed.err == f"{folder}: has revisions.parquet of another kind; name a folder of its own\n"


@pytest.mark.parametrize("metadata", [{}, {"ingestor.day": "0"}, {"ingestor.day": "{"}, {"ingestor.day": b"\xff"}])
def test_file_of_another_program_is_left_as_it_is(
    db: Database, lake: Lake, folder: Path, command: Command, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    lake()
    table = pyarrow.table({"value": [1.0]}).replace_schema_metadata(metadata)
    parquet.write_table(table, file(folder, 0))
    before = contents(folder)
    result = command("export", "--partition", "day", folder, "--config", tmp_path / "config.yaml")
    assert (result.code, result.out) == (74, "")
    assert result.err == f"{file(folder, 0)}: was not written by `ingestor export`; move it away\n"
    assert contents(folder) == before


def test_times_select_whole_days_and_feeds_are_selected(db: Database, lake: Lake, folder: Path) -> None:
    db.sample("tweet-volume", "volume", "A", "10:00", 3.0)
    chosen = ("--feed", "crowd-sentiment", "--since", "2024-03-11T11:00", "--until", "2024-03-11T11:30")
    assert lake(*chosen) == "days: 1 written; 6 rows written"
    assert list(contents(folder)) == [str(file(folder, 1).relative_to(folder))]


def test_row_groups_and_pages_do_not_change_a_file(
    db: Database, lake: Lake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_columns, "PAGE_ROWS", 1)
    monkeypatch.setattr(export, "SERIES_PER_QUERY", 1)
    monkeypatch.setattr("ingestor.store.read.export_formats.GROUP_ROWS", 2)
    assert lake() == "days: 2 written, 1 not final; 12 rows written"
    assert parquet.ParquetFile(file(folder, 0)).num_row_groups == 3
    assert [row[0] for row in rows(file(folder, 0))] == list("AAABBB")


@pytest.mark.parametrize(
    "option", [("-o", "x.parquet"), ("--format", "csv"), ("--ticker", "A"), ("--force",)], ids=lambda option: option[0]
)
def test_partition_refuses_options_of_a_single_file(
    command: Command, write_config_for: Callable[..., Path], migrated_url: str, folder: Path, option: tuple[str, ...]
) -> None:
    config = write_config_for(migrated_url)
    result = command("export", "--partition", "day", *option, folder, "--config", config)
    assert result.code == 2
    assert "cannot be combined with --partition" in result.err
    assert command("export", "--partition", "day", "--config", config).code == 2
    assert command("export", "--feed", "crowd-sentiment", folder, "--config", config).code == 2
    assert not folder.exists()
