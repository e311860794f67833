from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingestor.core.entries import Frame
from ingestor.pipeline import decoder as module
from ingestor.pipeline.decoder import DEAD_ROWS_PER_FRAME, DecodedFrame
from tests.support.entries import CROWD, T0, decoder, frame, row
from tests.support.strict_times import strict_us

MINUTE = 60_000_000


def decode(payload: Any, **options: Any) -> DecodedFrame:
    return decoder().decode(frame(payload, **options))


def test_list_takes_its_feed_from_the_requested_path() -> None:
    decoded = decode([row(minute=1, value=-0.25), row("ON", minute=2, value="0.5000000000000001")])
    assert decoded.observations == [
        (("crowd-sentiment", "crowd_sentiment", "AAPL", ""), T0 + MINUTE, -0.25, 0),
        (("crowd-sentiment", "crowd_sentiment", "ON", ""), T0 + 2 * MINUTE, 0.5000000000000001, 1),
    ]
    assert (decoded.rows, decoded.dead, decoded.published_us) == (2, [], None)


def test_envelope_has_its_own_path_and_published_time() -> None:
    envelope = {
        "path": "crowd-sentiment-chart-data",
        "params": {},
        "timestamp": "2025-12-31T20:00:00.404Z",
        "results": [
            {"ts": "2026-01-01T00:00:00.000Z", "ticker": "TSLA", "crowd_sentiment": "0.5", "volume": "1", "buzz": None}
        ],
    }
    decoded = decode(envelope, event="data")
    assert [(key, value) for key, _, value, _ in decoded.observations] == [
        (("crowd-sentiment-chart-data", "crowd_sentiment", "TSLA", ""), 0.5),
        (("crowd-sentiment-chart-data", "volume", "TSLA", ""), 1.0),
    ]
    assert decoded.published_us == T0 - 4 * 3600 * 1_000_000 + 404_000


@pytest.mark.parametrize(
    ("path", "field", "metric"),
    [
        (CROWD, "average_sentiment", "crowd_sentiment"),
        ("crowd-sentiment", "crowd_sentiment", "crowd_sentiment"),
        ("/historical/crowd-sentiment", "average_sentiment", "crowd_sentiment"),
        ("/real-time/market-prophit-sentiment", "signal_value", "mp_sentiment"),
        ("/real-time/crowd-sentiment-z-score", "z_score", "z_score"),
        ("crowd-sentiment-chart-data", "crowd_sentiment_z_score_moving_avg", "crowd_sentiment_z_score_moving_average"),
        ("/real-time/never-heard-of", "whatever", "whatever"),
    ],
)
def test_metric_has_one_name_in_every_form_of_a_feed(path: str, field: str, metric: str) -> None:
    [((_, name, _, _), _, value, _)] = decode([row(field=field)], path=path).observations
    assert (name, value) == (metric, 0.5)


def test_params_except_ticker_and_user_are_part_of_the_feed() -> None:
    decoded = decode([row()], params='{"period":"30"}')
    assert decoded.feed == "crowd-sentiment?period=30"


@pytest.mark.parametrize("payload", [[], {"path": "crowd-sentiment", "params": {}, "results": []}])
def test_empty_response_is_a_frame_without_rows(payload: Any) -> None:
    decoded = decode(payload)
    assert (decoded.rows, decoded.observations, decoded.dead) == (0, [], [])


def test_single_row_is_read_as_a_list_of_one() -> None:
    assert decode(row(value=1)).observations[0][2] == 1.0


def test_user_rows_have_a_series_for_each_user() -> None:
    user = {
        "ts": "2026-01-01T00:00:30.000Z",
        "user_id": 2243075472,
        "ticker": "J",
        "sentiment": "0.1",
        "user_score": "1",
    }
    keys = [key for key, *_ in decode([user], path="user-sentiment").observations]
    assert keys == [
        ("user-sentiment", "sentiment", "J", "2243075472"),
        ("user-sentiment", "user_score", "J", "2243075472"),
    ]


def test_unknown_fields_of_a_known_feed_are_counted_only() -> None:
    decoded = decode([row() | {"mood": "0.5"}, row(minute=1) | {"mood": 1}])
    assert len(decoded.observations) == 2
    assert decoded.unknown_fields == {"mood": 2}


BAD_VALUES: list[tuple[str, str]] = [
    ("NaN", "value is not finite"),
    ("Infinity", "value is not finite"),
    ("-Infinity", "value is not finite"),
    ("1" + "0" * 400, "value out of range"),
    ("1" + "0" * 5000, "value is not finite"),
    ("1e999", "value is not finite"),
    ("true", "value is not a number"),
    ('"0x10"', "value is not a number"),
    ('"1_000"', "value is not a number"),
    ('"nan"', "value is not a number"),
    ('"\\u0661"', "value is not a number"),
    ("[]", "value is not a number"),
    ("null", "no value"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_VALUES, ids=[text[:14] for text, _ in BAD_VALUES])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_bad_value_rejects_its_own_row_only(text: str, reason: str, place: int) -> None:
    rows = [json.dumps(row(minute=minute)) for minute in range(3)]
    rows[place] = rows[place].replace("0.5", text)
    decoded = decode(f"[{','.join(rows)}]")
    assert len(decoded.observations) == 2
    [dead] = decoded.dead
    assert (dead.row_index, dead.reason) == (place, reason)
    assert '"ticker": "AAPL"' in dead.body


@pytest.mark.parametrize("text", ["-0.0", "-0", '"-0.0"', '"-0"', "-1e-400", '"-1e-400"'])
def test_negative_zero_is_read_as_zero(text: str) -> None:
    [(_, _, value, _)] = decode(f"[{json.dumps(row()).replace('0.5', text)}]").observations
    assert str(value) == "0.0"


def test_integer_of_70_bits_is_read_as_a_double() -> None:
    assert decode([row(value=2**70)]).observations[0][2] == float(2**70)


BAD_ROWS: list[tuple[Any, str]] = [
    ({"ticker": "A", "average_sentiment": 1}, "no ts"),
    ({"ts": 5, "ticker": "A", "average_sentiment": 1}, "ts is not text"),
    ({"ts": "noon", "ticker": "A", "average_sentiment": 1}, "ts is not a time"),
    ({"ts": "0001-01-01T00:00:00+14:00", "ticker": "A", "average_sentiment": 1}, "ts out of range"),
    ({"ts": "2026-01-01T00:00:00Z", "average_sentiment": 1}, "no ticker"),
    ({"ts": "2026-01-01T00:00:00Z", "ticker": "", "average_sentiment": 1}, "no ticker"),
    ({"ts": "2026-01-01T00:00:00Z", "ticker": 7, "average_sentiment": 1}, "ticker is not text"),
    ({"ts": "2026-01-01T00:00:00Z", "ticker": "A" * 65, "average_sentiment": 1}, "ticker too long"),
    (
        {"ts": "2026-01-01T00:00:00Z", "ticker": "A\0", "average_sentiment": 1},
        "ticker has characters that cannot be stored",
    ),
    (
        {"ts": "2026-01-01T00:00:00Z", "ticker": "\ud800", "average_sentiment": 1},
        "ticker has characters that cannot be stored",
    ),
    ({"ts": "2026-01-01T00:00:00Z", "ticker": "A", "user_id": 10**5000, "average_sentiment": 1}, "user_id too long"),
    (17, "not an object"),
    (None, "not an object"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_row_without_a_usable_key_is_rejected_with_reason(bad: Any, reason: str) -> None:
    text = json.dumps(bad) if "user_id" not in (bad if isinstance(bad, dict) else {}) else _with_huge_user()
    decoded = decode(f"[{json.dumps(row())},{text}]")
    assert len(decoded.observations) == 1
    assert [(dead.row_index, dead.reason) for dead in decoded.dead] == [(1, reason)]


def _with_huge_user() -> str:
    return '{"ts":"2026-01-01T00:00:00Z","ticker":"A","user_id":1' + "0" * 300 + ',"average_sentiment":1}'


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{bad", "not JSON"),
        ("1,2", "not JSON"),
        ("", "not JSON"),
        ('"text"', "not a list of rows"),
        ("17", "not a list of rows"),
        ("null", "not a list of rows"),
        ('{"results": 3}', "not a list of rows"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
    ],
)
def test_unreadable_frame_is_rejected_whole(body: str, reason: str) -> None:
    decoded = decode(body)
    assert decoded.dead_frame is not None
    assert (decoded.dead_frame.reason, decoded.dead_frame.body) == (reason, body)
    assert decoded.observations == []


def test_text_that_is_not_an_event_is_rejected() -> None:
    decoded = decoder().decode(Frame(T0, "c", "stream", "", CROWD, "{}", "42[]"))
    assert decoded.dead_frame is not None
    assert decoded.dead_frame.body == "42[]"


def test_thousands_of_bad_rows_are_one_dead_letter() -> None:
    good, bad = [row()], [{}] * (DEAD_ROWS_PER_FRAME + 1)
    decoded = decode(good + bad)
    assert [dead.row_index for dead in decoded.dead] == [None]
    assert decoded.observations == []


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ([row() | {"comment": "x" * (12 << 20)}], "too long"),
        ([row(f"T{number}") for number in range(6)], "too many values"),
    ],
)
def test_frame_that_needs_too_much_memory_is_rejected(
    payload: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VALUES_PER_FRAME", 5)
    decoded = decode(payload)
    assert [(dead.row_index, dead.reason) for dead in decoded.dead] == [(None, reason)]
    assert decoded.observations == []


def test_row_with_1000_fields_is_rejected() -> None:
    decoded = decode([row() | {f"f{number}": 1 for number in range(1_000)}, row("GOOD")])
    assert [(dead.row_index, dead.reason) for dead in decoded.dead] == [(0, "too many fields")]
    assert len(decoded.observations) == 1


@pytest.mark.parametrize(
    "text", ['{"ts":  "x",\t"ticker":"\\u0041"}', '{"ts": NaN}', '{"a": ' + "9" * 5000 + "}", '"\\ud800"', " 1e999 "]
)
@pytest.mark.parametrize(
    "around",
    [
        "[%s]",
        '{"results":[%s]}',
        ' { "path" : "x" , "results": [1], "results" :\n[ %s ] , "timestamp": null}',
        "[ {},%s , {}]",
    ],
)
def test_rejected_row_keeps_its_original_text(text: str, around: str) -> None:
    assert text.strip() in [dead.body for dead in decode(around % text).dead]


def test_rejected_single_row_keeps_its_original_text() -> None:
    assert decode(' {"ticker": NaN}  ').dead[0].body == '{"ticker": NaN}'


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
rows_of_anything = st.fixed_dictionaries(
    {}, optional={"ts": json_values, "ticker": json_values, "user_id": json_values, "average_sentiment": json_values}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(rows_of_anything, max_size=5) | json_values)
def test_every_row_of_any_payload_is_read_or_rejected(payload: Any) -> None:
    decoded = decode(payload)
    if decoded.dead_frame is None:
        rows = payload if isinstance(payload, list) else payload.get("results", [payload])
        rows = [] if rows is None else [rows] if isinstance(rows, dict) else rows
        read = {index for *_, index in decoded.observations}
        dead = {letter.row_index for letter in decoded.dead}
        assert read | dead == set(range(len(rows)))
        assert not read & dead


# Valid times, edge cases, and texts that are almost a time.
_days = st.sampled_from(
    [
        "2026-01-01",
        "2026-W01-4",
        "20260101",
        "2026W01",
        "1970-01-01",
        "1970-01-02",
        "1969-12-31",
        "9998-12-31",
        "9998-12-30",
        "9998-12-29",
        "9999-12-31",
        "0001-01-01",
        "2026-02-30",
        "2026-1-1",
        "٢026-01-01",
    ]
)
_clocks = st.sampled_from(
    ["T00:00", "T23:59:59.999999", "T24:00", "T12", "T1234", "T12:34:56.1234567", "T12:60", " 12:34", "TT12:34", ""]
)
_offsets = st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+23:59", "+23:59:59", "+24:00", " ", "T"])
_parts = st.lists(_days, min_size=1, max_size=4), st.lists(st.builds(str.__add__, _clocks, _offsets), max_size=4)


@settings(max_examples=500, deadline=None)
@example(["9998-12-31", "1970-01-01"], ["T23:59:59.999999-23:59", "T00:00+23:59"], [])
@given(*_parts, st.lists(st.datetimes(timezones=st.none() | st.timezones()).map(str), max_size=3))
def test_time_is_parsed_alike_whatever_was_cached_before(days: list[str], clocks: list[str], others: list[str]) -> None:
    times = [day + clock for clock in ["T00:00:00Z", *clocks] for day in ["2026-01-01", *days]]
    shared = decoder()
    for ts in [*times, *others]:
        decoded = shared.decode(frame([{"ts": ts, "ticker": "A", "average_sentiment": 1}]))
        assert [ts_us for _, ts_us, _, _ in decoded.observations] == _expected_ts(ts)


def _expected_ts(ts: str) -> list[int]:
    return [] if (us := strict_us(ts)) is None else [us]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_decode_raises_for_no_text(text: str) -> None:
    for whole in (text, f'42["res",{text}]', f"[{text}]"):
        decoder().decode(Frame(T0, "c", "stream", "res", CROWD, "{}", whole))
    msgspec.msgpack.encode(decode("[]").rows)


def test_decode_raises_at_no_depth() -> None:
    found: list[str] = []

    def sweep() -> None:  # in a thread, as the writer is: a frame's depth counts from the bottom of the stack
        for depth in range(850, 1050):
            nest = "[" * depth + "]" * depth
            bodies = (f'[{{"ts":{nest}}}]', f'{{"path":"x","params":{{"a":{nest}}},"results":[{nest}]}}', nest)
            found.extend(decode(body).dead[0].reason for body in bodies)

    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    assert len(found) == 600
    assert "error in the decoder" not in found


@pytest.mark.parametrize(
    "text",
    [
        '42[ "res",[%s]]',
        '42["res" ,[%s]]',
        '42["\\u0072es",[%s]]',
        '42["res",[%s] ]',
        '42["res",[%s]] ',
        '42[\n"res"\n,\n[%s]\n]\n',
    ],
)
def test_event_is_read_with_blanks_and_escapes(text: str) -> None:
    decoded = decoder().decode(Frame(T0, "c", "stream", "res", CROWD, "{}", text % json.dumps(row())))
    assert (decoded.dead, len(decoded.observations)) == ([], 1)
    assert decoded.body.strip() == f"[{json.dumps(row())}]"


@pytest.mark.parametrize("text", ['42["res"]', '42["res",1,2]', '42["res"', "42"])
def test_event_without_exactly_one_argument_is_rejected(text: str) -> None:
    decoded = decoder().decode(Frame(T0, "c", "stream", "res", CROWD, "{}", text))
    assert decoded.dead_frame is not None


def test_envelope_may_have_a_single_row_or_null() -> None:
    assert len(decode({"path": "crowd-sentiment", "results": row()}).observations) == 1
    assert decode({"path": "crowd-sentiment", "results": None}).dead == []


def test_rejected_single_row_of_an_envelope_keeps_its_text() -> None:
    assert decode('{"results": {"ts": NaN} }').dead[0].body == '{"ts": NaN}'
