"""The fast path of the decoder reads what it reads exactly as the decoder does without it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingestor.core.entries import Frame
from ingestor.pipeline.decoder import DecodedFrame, Decoder, split_event
from ingestor.pipeline.plain_rows import PlainReader
from tests.support.entries import CROWD, decoder, frame, row
from tests.support.hostile_payloads import cut_payloads, payloads, texts
from tests.support.strict_times import strict_us

CHART = "crowd-sentiment-chart-data"


def warm_decoder(path: str = CROWD) -> Decoder:
    """A decoder that knows plain rows of each form that the payloads may have."""
    made = decoder()
    forms: list[dict[str, Any]] = [{}, {"volume": 1, "crowd_sentiment": 1}, {"average_sentiment": 1}]
    for form in forms:
        made.decode(frame([{"ts": "2026-01-01T00:00:00.000Z", "ticker": "AAPL", "volume": 1} | form], path=path))
    made.decode(frame([row()], path=path))
    return made


def exactly(decoded: DecodedFrame) -> tuple[Any, ...]:
    """Everything of a frame, each value with all its bits. Fields of one row have no order."""
    values = [(index, series, ts_us, value.hex()) for series, ts_us, value, index in decoded.observations]
    assert [index for index, *_ in values] == sorted(index for index, *_ in values)
    named = (decoded.event, decoded.body, decoded.path, decoded.params, decoded.feed)
    return *named, sorted(values), decoded.rows, decoded.published_us, decoded.dead, decoded.unknown_fields


def assert_alike(fast: Decoder, given_frame: Frame) -> None:
    slowly = decoder(fast=False).decode(given_frame)
    assert exactly(fast.decode(given_frame)) == exactly(slowly)
    assert exactly(fast.decode_any(given_frame, *split_event(given_frame))) == exactly(slowly)


@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(payloads | payloads | cut_payloads() | texts, min_size=1, max_size=4),
    st.sampled_from([CROWD, CHART, "user-sentiment", "never-heard-of"]),
    st.sampled_from(["stream", "snapshot", "backfill"]),
)
def test_any_payload_is_decoded_alike(bodies: list[str], path: str, source: Any) -> None:
    fast = warm_decoder(path)
    for body in bodies:
        assert_alike(fast, frame(body, path=path, source=source))


_digits = st.from_regex(r"[+-]?[0-9]{0,25}(\.[0-9]{0,25})?([eE][+-]?[0-9]{0,3})?", fullmatch=True)
_numbers = st.one_of(
    _digits,
    st.floats().map(repr),
    st.integers(-(10**40), 10**40).map(str),
    st.text("0123456789.eE+- _", max_size=8),
    st.integers(390, 420).map("1".__mul__),
    st.integers(390, 420).map(lambda length: "0." + "3" * length),
    st.sampled_from(["NaN", "nan", "Infinity", "-inf", "-0", "-0.0", "1e999", "-1e-400", "5e-324", "1.8e308"]),
    st.sampled_from(["true", "false", "null", "None", "[]", "{}", "", "\u0661", "\\u0031", "0x10", "1,5", "1" * 5000]),
)


@settings(max_examples=2_000, deadline=None)
@example(["1" * 401], True, 0)
@example(["0." + "1" * 399], True, 60)
@example(["-0.0", "-0"], True, 0)
@given(st.lists(_numbers, min_size=1, max_size=3), st.booleans(), st.sampled_from([0, 60]))
def test_any_number_is_read_alike(numbers: list[str], quoted: bool, others: int) -> None:
    rows = [json.dumps(row(minute=minute, value="?")) for minute in range(len(numbers))]
    given_rows = [
        text.replace('"?"', f'"{number}"' if quoted else number) for text, number in zip(rows, numbers, strict=True)
    ]
    given_rows += [json.dumps(row("ON", minute)) for minute in range(others)]
    assert_alike(warm_decoder(), frame(f"[{','.join(given_rows)}]"))


_days = st.sampled_from(
    ["2026-01-01", "1970-01-01", "1970-01-02", "9998-12-31", "9998-12-29", "0001-01-01", "2026-02-30", "20260101"]
)
_clocks = st.sampled_from(
    ["", "T00:00", "T23:59:59.999999", " 12:34", "T24:00", "T12", "T12:34:5", "T12:34:56,12345670", "T12:60"]
)
_offsets = st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+23:59", "+2359", "+05", "+24:00", " "])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.builds("".join, st.tuples(_days, _clocks, _offsets)), min_size=1, max_size=6))
def test_any_time_is_read_alike_whatever_was_read_before(times: list[str]) -> None:
    fast = warm_decoder()
    for ts in times:
        decoded = fast.decode(frame([row() | {"ts": ts}]))
        assert [ts_us for _, ts_us, _, _ in decoded.observations] == [us for us in [strict_us(ts)] if us is not None]


def reader(path: str, payload: Any) -> PlainReader:
    """What reads the rows of a path once this payload was decoded."""
    made = decoder()
    made.decode(frame(payload, path=path))
    found = made._feeds[path, "{}"].reader
    assert found is not None
    return found


PLAIN = [row(), row(minute=1, value="0.25"), row("ON")]


def test_plain_rows_are_read_by_the_fast_path() -> None:
    values = reader(CROWD, [row()]).read(json.dumps(PLAIN))
    assert values == decoder().decode(frame(PLAIN)).observations


def test_plain_rows_of_several_values_are_read_by_the_fast_path() -> None:
    rows = [row(minute=minute, field="volume") | {"buzz": "0.5", "crowd_sentiment": minute} for minute in range(3)]
    values = reader(CHART, rows).read(json.dumps(rows))
    assert values == decoder().decode(frame(rows, path=CHART)).observations


def test_empty_list_is_read_by_the_fast_path() -> None:
    assert reader(CROWD, [row()]).read("[]") == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps([row() | {"user_id": 7}]), id="a user"),
        pytest.param(json.dumps([row() | {"mood": 1}]), id="an unknown field"),
        pytest.param(json.dumps([row(), row(value=None)]), id="no value"),
        pytest.param(json.dumps({"results": [row()]}), id="an envelope"),
        pytest.param(json.dumps([row(value="1" * 401)]), id="a number of 401 characters"),
        pytest.param(json.dumps([row(value="inf")]), id="an infinity"),
        pytest.param(json.dumps([row("A" * 65)]), id="a long ticker"),
        pytest.param(json.dumps([row() | {"ts": "1970-01-01T00:00Z"}]), id="a time near the limit"),
        pytest.param("[1]", id="no object"),
        pytest.param("\ud800", id="a surrogate"),
    ],
)
def test_what_is_not_plain_is_left_to_the_decoder(body: str) -> None:
    assert reader(CROWD, [row()]).read(body) is None
