"""Hostile payloads: each row is stored or rejected, and both databases agree on which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, select, text, union_all

from ingestor.core.entries import Frame, SeriesKey
from ingestor.core.times import to_datetime
from ingestor.pipeline.batch_builder import BatchBuilder
from ingestor.pipeline.decoder import DecodedFrame
from ingestor.spool.chunk_store import pack, unpack
from ingestor.store import schema
from ingestor.store.engine import make_engine
from ingestor.store.read.audit import audit
from ingestor.store.write.batch_writer import BatchWriter
from ingestor.store.write.registration import InstanceInfo
from tests.support.entries import CROWD, T0, decoder, frame, row
from tests.support.hostile_payloads import cut_payloads, payloads, texts
from tests.support.hypothesis_steps import wanted_steps
from tests.support.postgres_server import fresh_database

pytestmark = pytest.mark.postgres


class Outcome(NamedTuple):
    """What a database holds of one frame."""

    counts: dict[str, int]
    payloads: list[tuple[int, str]]  # rows, body
    letters: list[tuple[int | None, str, str, str, str]]  # row, stage, reason, detail, body

    @property
    def reasons(self) -> list[tuple[int | None, str]]:
        return [(row_index, reason) for row_index, _, reason, _, _ in self.letters]


class Store:
    """One database, given frames one by one."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._database = BatchWriter(self.engine)
        self._decoder = decoder()
        instance = InstanceInfo(spool_id="s", name="", version="", config_sha256="", started_us=T0)
        self._seq = self._database.register(instance).position

    def write(self, given: Frame) -> Outcome:
        """Take a frame through spool format, decoder and database."""
        self._seq += 1
        builder = BatchBuilder(self._seq, self._decoder)
        for entry in unpack(pack(self._seq, [given])):
            builder.add(entry)
        self._database.write(builder.batch)
        counts = "row_count, new_rows, revised_rows, duplicate_rows, dead_rows, dead_frames"
        [ledger] = self.query(f"SELECT {counts} FROM batches WHERE last_seq = {self._seq}")
        letter = "row_index, stage, reason, detail, body"
        return Outcome(
            dict(zip(counts.split(", "), ledger, strict=True)),
            self.query(f"SELECT row_count, body FROM payloads WHERE first_seq = {self._seq}"),  # opens one block
            self.query(f"SELECT {letter} FROM dead_letters WHERE seq = {self._seq} ORDER BY row_index"),
        )

    def is_recorded(self, series: SeriesKey, ts_us: int, value: float) -> bool:
        """Whether this value is recorded, as current or as a revision."""
        recorded = union_all(*(_values(table, series, ts_us) for table in (schema.samples, schema.sample_revisions)))
        with self.engine.connect() as connection:
            return value.hex() in map(float.hex, connection.execute(recorded).scalars())

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(found) for found in connection.execute(text(sql))]


def _values(table: Table, series: SeriesKey, ts_us: int) -> Any:
    names = schema.series.c
    key = (names.feed, names.metric, names.ticker, names.user_id)
    found = select(table.c.value).join(schema.series, names.series_id == table.c.series_id)
    return found.where(
        table.c.ts == to_datetime(ts_us), *(column == name for column, name in zip(key, series, strict=True))
    )


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    postgres_server_url: str,
    postgres_template_url: str,
) -> Iterator[list[Store]]:
    """SQLite and PostgreSQL, which receive the same frames."""
    path = copy(sqlite_template, tmp_path_factory.mktemp("hostile") / "ingestor.db")
    with fresh_database(postgres_server_url, postgres_template_url) as postgres_url:
        made = [Store(f"sqlite:///{path}"), Store(postgres_url.replace("postgresql://", "postgresql+psycopg://"))]
        yield made
        findings = [audit(store.engine) for store in made]
        for store in made:
            store.engine.dispose()
    assert findings == [[], []]


def write_to_both(stores: list[Store], hostile: Frame) -> Outcome:
    """Write a frame to both, and return the outcome, which is the same."""
    on_sqlite, on_postgres = (store.write(hostile) for store in stores)
    assert on_sqlite == on_postgres
    return on_sqlite


# -- faults, one by one

GOOD, BAD = row("GOOD"), row("BAD", value="?")
DEEP = "[" * 100_000 + "]" * 100_000


def between_good_rows(bad: str) -> str:
    """A row of raw text between two good rows."""
    return f"[{json.dumps(GOOD)},{bad},{json.dumps(GOOD)}]"


def with_value(raw: str) -> str:
    return between_good_rows(json.dumps(BAD).replace('"?"', raw))


def with_ticker(raw: str) -> str:
    return between_good_rows(json.dumps(row("?")).replace('"?"', raw))


DEAD_ROWS = [
    pytest.param(between_good_rows('{"ticker":"A","average_sentiment":1}'), "no ts", id="no ts"),
    pytest.param(between_good_rows('{"ts":"2026-01-01T00:00:00Z","average_sentiment":1}'), "no ticker", id="no ticker"),
    pytest.param(between_good_rows("17"), "not an object", id="a number for a row"),
    pytest.param(with_value("NaN"), "value is not finite", id="NaN"),
    pytest.param(with_value("Infinity"), "value is not finite", id="Infinity"),
    pytest.param(with_value("-Infinity"), "value is not finite", id="-Infinity"),
    pytest.param(with_value("1e400"), "value is not finite", id="1e400"),
    pytest.param(with_value(str(10**400)), "value out of range", id="10^400"),
    pytest.param(with_value("9" * 5_000), "value is not finite", id="5,000 digits"),
    pytest.param(with_value(f'"{10**400}"'), "value is not a number", id="10^400 as text"),
    pytest.param(with_ticker('"A\\u0000B"'), "ticker has characters that cannot be stored", id="NUL escaped"),
    pytest.param(with_ticker('"\\ud800"'), "ticker has characters that cannot be stored", id="lone surrogate escaped"),
    pytest.param(with_ticker('"\udfff"'), "ticker has characters that cannot be stored", id="lone surrogate"),
    pytest.param(with_ticker(f'"{"A" * 10_000}"'), "ticker too long", id="a ticker of 10 kB"),
    pytest.param(with_ticker(f'"{"A" * (10 << 20)}"'), "ticker too long", id="a ticker of 10 MB"),
    pytest.param(with_ticker('["A"]'), "ticker is not text", id="a list for a ticker"),
]


@pytest.mark.parametrize(("body", "reason"), DEAD_ROWS)
def test_unstorable_row_is_rejected_and_its_neighbors_are_not(stores: list[Store], body: str, reason: str) -> None:
    outcome = write_to_both(stores, frame(body))
    assert outcome.reasons == [(1, reason)]
    assert (outcome.counts["row_count"], outcome.counts["dead_rows"]) == (3, 1)


DEAD_FRAMES = [
    pytest.param("{bad", "not JSON", id="not JSON"),
    pytest.param("", "not JSON", id="nothing"),
    pytest.param('"\0', "not JSON", id="NUL"),
    pytest.param("[],[]", "not JSON", id="two arguments"),
    pytest.param('"text"', "not a list of rows", id="text"),
    pytest.param("null", "not a list of rows", id="null"),
    pytest.param('{"results": 17}', "not a list of rows", id="an envelope without a list"),
    pytest.param(DEEP, "nested too deep", id="nested deep"),
    pytest.param(with_value(DEEP), "nested too deep", id="a value nested deep"),
    pytest.param(with_ticker('"A\0B"'), "not JSON", id="NUL in a ticker, not escaped"),
    pytest.param('"' + "x" * (10 << 20), "not JSON", id="10 MB that end too soon"),
    pytest.param(json.dumps([{}] * 1_001), "too many bad rows", id="1,001 bad rows"),
    pytest.param(json.dumps({"path": "\0", "results": [GOOD]}), "feed has characters that cannot be stored", id="path"),
    pytest.param(json.dumps({"path": "p" * 100, "results": [GOOD]}), "feed too long", id="long path"),
]


@pytest.mark.parametrize(("body", "reason"), DEAD_FRAMES)
def test_unreadable_frame_is_one_dead_letter(stores: list[Store], body: str, reason: str) -> None:
    outcome = write_to_both(stores, frame(body))
    assert outcome.reasons == [(None, reason)]
    assert (outcome.payloads, outcome.counts["dead_frames"]) == ([], 1)


@pytest.mark.parametrize("body", ["[]", '{"path":"crowd-sentiment","params":{},"results":[]}'])
def test_empty_response_is_a_frame_without_rows(stores: list[Store], body: str) -> None:
    outcome = write_to_both(stores, frame(body))
    assert (outcome.payloads, outcome.letters, outcome.counts["row_count"]) == ([(0, body)], [], 0)


TICKERS = [
    "O'Brien\"; DROP TABLE samples;--",
    "%s %(x)s %%",
    ":x :value",
    "a\nb\tc",
    "\x1b[31mred",
    "\u202eLPAA",
    "{}[]\\",
    "π€😀",
    "\u200b",
    " ",
    "NULL",
    "A" * 64,
    "😀" * 64,
]


@pytest.mark.parametrize("ticker", TICKERS, ids=ascii)
def test_hostile_ticker_is_stored_as_text(stores: list[Store], ticker: str) -> None:
    assert write_to_both(stores, frame([row(ticker)])).letters == []
    for store in stores:
        assert store.is_recorded(("crowd-sentiment", "crowd_sentiment", ticker, ""), T0, 0.5)


STORED: list[tuple[str, float]] = [
    (str(2**63), 2.0**63),
    (str(2**70), 2.0**70),
    (str(-(2**70)), -(2.0**70)),
    ("1e308", 1e308),
    (str(2**53 + 1), 2.0**53),
    ("5e-324", 5e-324),
    ('"-2.5e-310"', -2.5e-310),
    ("1e-400", 0.0),
    ("-1e-400", 0.0),
    ("-0.0", 0.0),
    ('"-0"', 0.0),
    ('"0.5000000000000001"', 0.5000000000000001),
    ('"+.5"', 0.5),
]


@pytest.mark.parametrize("other_rows", [0, 600], ids=["few rows", "many rows"])
@pytest.mark.parametrize(("raw", "value"), STORED)
def test_edge_case_number_is_the_same_double_in_both(
    stores: list[Store], raw: str, value: float, other_rows: int
) -> None:
    ticker = f"V{STORED.index((raw, value))}-{other_rows}"
    others = [row(f"V{number}") for number in range(other_rows)]
    outcome = write_to_both(stores, frame(json.dumps([row(ticker, value="?"), *others]).replace('"?"', raw)))
    assert outcome.letters == []
    for store in stores:
        assert store.is_recorded(("crowd-sentiment", "crowd_sentiment", ticker, ""), T0, value)


def test_sign_of_zero_is_no_revision(stores: list[Store]) -> None:
    for seconds, raw in enumerate(["-0.0", "0.0", '"-0"', "0"]):
        body = json.dumps([row("ZERO", value="?")]).replace('"?"', raw)
        counts = write_to_both(stores, frame(body, received_us=T0 + seconds)).counts
        assert (counts["new_rows"], counts["revised_rows"]) == (int(seconds == 0), 0)


@pytest.mark.parametrize("other_rows", [0, 600], ids=["few rows", "many rows"])
def test_far_future_time_is_exact_to_the_microsecond(stores: list[Store], other_rows: int) -> None:
    far = {"ts": "9998-12-31T23:59:59.123457Z", "ticker": f"FAR{other_rows}"}
    others = [row(f"FAR{number}") for number in range(other_rows)]
    counts = write_to_both(stores, frame([far | {"average_sentiment": value} for value in (1, 2)] + others)).counts
    assert (counts["revised_rows"], counts["dead_rows"]) == (1, 0)
    for store in stores:
        assert store.is_recorded(
            ("crowd-sentiment", "crowd_sentiment", far["ticker"], ""), 253_370_764_799_123_457, 2.0
        )


def test_last_of_equal_keys_counts(stores: list[Store]) -> None:
    twice = '[{"ts":"x","ts":"2026-01-01T00:00:00Z","ticker":"A","ticker":"TWICE","average_sentiment":1}]'
    assert write_to_both(stores, frame(twice)).letters == []
    for store in stores:
        assert store.is_recorded(("crowd-sentiment", "crowd_sentiment", "TWICE", ""), T0, 1.0)


def test_frame_of_10_megabytes_is_stored_whole(stores: list[Store]) -> None:
    body = json.dumps([row("BIG"), row("BIG", 1) | {"comment": "x" * (10 << 20)}])
    outcome = write_to_both(stores, frame(body))
    assert (outcome.counts["new_rows"], outcome.payloads) == (2, [(2, body)])


# -- fuzz


@settings(max_examples=wanted_steps(400), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    payloads | payloads | cut_payloads() | texts,
    st.sampled_from([CROWD, "crowd-sentiment-chart-data", "user-sentiment", "never-heard-of"]),
    st.sampled_from(["stream", "snapshot", "backfill"]),
)
def test_every_row_is_stored_or_rejected_alike_by_both(stores: list[Store], body: str, path: str, source: Any) -> None:
    hostile = frame(body, path=path, source=source)
    counts, payloads, letters = write_to_both(stores, hostile)
    assert all(stage == "decode" for _, stage, *_ in letters)  # nothing is left for a database to reject
    assert len(payloads) + counts["dead_frames"] == 1
    decoded = _as_spooled(hostile)
    if not counts["dead_frames"]:
        stored = {index for *_, index in decoded.observations}
        dead = {row_index for row_index, *_ in letters}
        assert (stored | dead, stored & dead) == (set(range(decoded.rows)), set())
        for store in stores:
            assert all(store.is_recorded(series, ts_us, value) for series, ts_us, value, _ in decoded.observations)


def _as_spooled(given: Frame) -> DecodedFrame:
    [(_, spooled)] = unpack(pack(1, [given]))
    assert isinstance(spooled, Frame)
    return decoder().decode(spooled)
