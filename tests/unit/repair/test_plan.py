from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from ingestor.config.model import Subscription
from ingestor.provider.rest_api import current_request, history_request
from ingestor.repair import backfill_requests, plan
from ingestor.store.maintenance.repairs import Repair
from tests.support.repairs import CHART, CROWD, at, repair

HOUR = timedelta(hours=1)
SECONDS = "/real-time/market-prophit-sentiment"  # a row a second


@pytest.mark.parametrize(
    ("path", "start", "end", "lengths"),
    [
        pytest.param(CROWD, at(5, 10), at(5, 11), [HOUR], id="one request"),
        pytest.param(CROWD, at(1), at(20), [7 * 24 * HOUR, 7 * 24 * HOUR, 5 * 24 * HOUR], id="a week of minutes"),
        pytest.param(SECONDS, at(5, 0), at(5, 6), [2.8 * HOUR, 2.8 * HOUR, 0.4 * HOUR], id="as many seconds"),
        pytest.param(CHART, at(5, 10), at(13), [(14 + 6 * 24) * HOUR, 24 * HOUR], id="seven dates, not seven days"),
        pytest.param(SECONDS[11:] + "-chart-data", at(5), at(7), [24 * HOUR] * 2, id="a date of seconds"),
        pytest.param(CROWD, at(5), at(5), [], id="empty range"),
    ],
)
def test_range_is_split_into_ranges_of_one_request(
    path: str, start: datetime, end: datetime, lengths: list[timedelta]
) -> None:
    ranges = list(plan.split_range(path, start, end))
    assert [stop - begin for begin, stop in ranges] == lengths
    assert all(first[1] == second[0] for first, second in pairwise(ranges))


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        pytest.param(repair(at(5, 10), at(5, 12)), (at(5, 9), at(6)), id="window before it and rest of the day"),
        pytest.param(repair(at(5, 22), at(6)), (at(5, 21), at(6)), id="gap ends at midnight"),
        pytest.param(repair(at(5, 10), at(5, 12), path=SECONDS), (at(5, 9), at(5, 14, 36)), id="no additional request"),
        pytest.param(
            repair(at(5, 10), at(5, 12), kind="manual"), (at(5, 10), at(5, 12)), id="manual: exactly the range"
        ),
    ],
)
def test_history_range_is_extended_without_more_requests(gap: Repair, expected: tuple[datetime, datetime]) -> None:
    assert plan.history_range(gap) == expected
    assert len(list(plan.split_range(gap.path, *plan.history_range(gap)))) == len(
        list(plan.split_range(gap.path, plan.history_range(gap)[0], gap.to_ts))
    )


def test_remaining_queries_start_after_cursor() -> None:
    manual = repair(at(1), at(20), kind="manual", ticker="")
    queries = list(plan.all_queries(manual, ["AAPL", "ON", "TSLA"]))
    assert len(queries) == 9
    for number, query in enumerate(queries):
        assert (
            list(plan.remaining_queries(replace(manual, cursor=query.cursor), ["AAPL", "ON", "TSLA"]))
            == queries[number + 1 :]
        )


def test_remaining_queries_cover_range_at_any_length() -> None:
    manual, tickers = repair(at(1), at(20), kind="manual", ticker=""), ["AAPL", "ON"]
    for first_length, next_length in ((None, timedelta(days=2)), (timedelta(days=2), None)):
        queries = list(plan.all_queries(manual, tickers, first_length))
        for number, query in enumerate(queries):
            remaining = list(plan.remaining_queries(replace(manual, cursor=query.cursor), tickers, next_length))
            sent = [*queries[: number + 1], *remaining]
            for ticker in tickers:
                reached = at(1)
                for start, end in sorted((query.start, query.end) for query in sent if query.ticker == ticker):
                    assert start <= reached
                    reached = max(end, reached)
                assert reached == at(20)


@pytest.mark.parametrize(
    ("path", "start", "end", "expected"),
    [
        pytest.param(CROWD, at(1), at(8), 84 * HOUR, id="instants"),
        pytest.param(SECONDS, at(1), at(1, 0, 0, 3), timedelta(seconds=1.5), id="a few seconds"),
        pytest.param(SECONDS, at(1), at(1, 0, 0, 1), None, id="a range of one row cannot be split"),
        pytest.param(CHART, at(1), at(8), 72 * HOUR, id="dates"),
        pytest.param(CHART, at(1, 10), at(2, 10), 24 * HOUR, id="two dates, 24 hours"),
        pytest.param(CHART, at(1), at(2), None, id="one date"),
    ],
)
def test_range_is_halved_after_too_large_response(
    path: str, start: datetime, end: datetime, expected: timedelta | None
) -> None:
    assert plan.halved_length(path, plan.HistoryQuery(start=start, end=end, ticker="AAPL")) == expected


@pytest.mark.parametrize(
    ("kind", "path", "ticker", "hours_since", "expected"),
    [
        pytest.param("window", CROWD, "AAPL", 1.5, "snapshot", id="within reach of the window"),
        pytest.param("window", CROWD, "AAPL", 2, "historical", id="out of reach of the window"),
        pytest.param("window", "crowd-sentiment", "AAPL", 1, "snapshot", id="a stream has a real-time endpoint"),
        pytest.param("window", "crowd-sentiment", "", 1, "historical", id="but only for one ticker"),
        pytest.param("window", CHART, "AAPL", 1, "historical", id="a stream without real-time endpoint"),
        pytest.param("window", "/real-time/brand-new", "AAPL", 1, "snapshot", id="an undocumented endpoint"),
        pytest.param("snapshot", "/real-time/brand-new", "AAPL", 1, None, id="undocumented: no history"),
        pytest.param("snapshot", CROWD, "AAPL", 1, "historical", id="history after snapshot"),
        pytest.param("snapshot", "/real-time/user-sentiment-last-minute", "AAPL", 1, None, id="no history"),
        pytest.param("historical", CROWD, "AAPL", 30, None, id="nothing is left"),
    ],
)
def test_next_kind_of_repair(kind: str, path: str, ticker: str, hours_since: float, expected: str | None) -> None:
    gap = repair(at(5, 10), at(5, 10, 30), kind=kind, path=path, ticker=ticker)
    assert plan.next_kind(gap, at(5, 10) + hours_since * HOUR) == expected


@pytest.mark.parametrize(("moment", "expected"), [(at(5, 10), at(6)), (at(6), at(6))])
def test_day_ends_at_midnight_utc_in_any_time_zone(moment: datetime, expected: datetime) -> None:
    assert plan.day_end(moment) == expected
    assert plan.day_end(moment.astimezone()) == expected


@pytest.mark.parametrize(
    ("status", "moment", "early"),
    [
        pytest.param(400, at(6, 0, 1), True, id="the day may not be over for the provider"),
        pytest.param(400, at(7), False, id="over everywhere"),
        pytest.param(403, at(6, 0, 1), False, id="refused for another reason"),
    ],
)
def test_refusal_of_recent_day_may_be_too_early(status: int, moment: datetime, early: bool) -> None:
    assert plan.may_be_too_early(repair(at(5, 10), at(5, 12)), status, moment) is early


# Requests


def test_history_request_uses_instants_or_dates_before_end() -> None:
    params = {"ticker": "AAPL", "period": "30"}
    instants = history_request(CROWD, params, at(5, 10), at(6))
    assert instants is not None
    assert instants.path == "/historical/crowd-sentiment"
    assert instants.params == params | {"start_ts": "2026-01-05T10:00:00.000Z", "end_ts": "2026-01-05T23:59:59.999Z"}
    dates = history_request(CHART, {"ticker": "AAPL"}, at(5, 10), at(12))
    assert dates is not None
    assert dates.path == "/historical/crowd-sentiment-chart-data"
    assert dates.params == {"ticker": "AAPL", "start_date": "01-05-2026", "end_date": "01-11-2026"}


@pytest.mark.parametrize(
    ("path", "params", "current_path", "history_path"),
    [
        (CROWD, {"ticker": "A"}, "/real-time/crowd-sentiment", "/historical/crowd-sentiment"),
        ("crowd-sentiment", {"ticker": "A"}, "/real-time/crowd-sentiment", "/historical/crowd-sentiment"),
        (CHART, {"ticker": "A"}, None, "/historical/crowd-sentiment-chart-data"),
        ("user-sentiment", {"ticker": "A"}, "/real-time/user-sentiment", "/historical/user-sentiment-by-ticker"),
        ("user-sentiment", {"user_id": "7"}, "/real-time/user-sentiment", "/historical/user-sentiment-by-user"),
        ("/real-time/brand-new", {"ticker": "A"}, "/real-time/brand-new", None),
        ("brand-new", {"ticker": "A"}, None, None),
        (CROWD, {}, None, None),
    ],
)
def test_endpoint_of_request(
    path: str, params: dict[str, str], current_path: str | None, history_path: str | None
) -> None:
    current, history = current_request(path, params), history_request(path, params, at(5), at(6))
    assert (current and current.path, history and history.path) == (current_path, history_path)


# Manual repairs

NOW = datetime(2026, 1, 10, 15, tzinfo=UTC)
SUBSCRIBED = [
    Subscription(CROWD, params={"ticker": "AAPL"}),
    Subscription("crowd-sentiment"),
    Subscription(f"{CROWD}-moving-average", params={"ticker": "AAPL", "period": "30"}),
    Subscription("/real-time/user-sentiment", params={"ticker": "AAPL", "user_id": "7"}),
    Subscription("/real-time/user-sentiment-last-minute", params={"ticker": "AAPL"}),
]


def test_backfill_requests_each_feed_once_up_to_yesterday() -> None:
    requests = backfill_requests.build_requests(SUBSCRIBED, "AAPL", None, at(1), at(20), NOW)
    assert {(request.path, request.params) for request in requests} == {
        ("crowd-sentiment", '{"ticker":"AAPL"}'),
        (f"{CROWD}-moving-average", '{"period":"30","ticker":"AAPL"}'),
    }
    assert {(request.from_ts, request.to_ts) for request in requests} == {(at(1), at(10))}
    assert [backfill_requests.count_queries(request) for request in requests] == [2, 2]
    assert backfill_requests.from_json(backfill_requests.to_json(requests)) == requests


@pytest.mark.parametrize(
    ("ticker", "path", "days", "message"),
    [
        ("AAPL", None, (10, 12), "the range 2026-01-10 00:00 to 2026-01-10 00:00 UTC is empty"),
        ("AAPL", "/real-time/user-sentiment-last-minute", (1, 2), "no history for /real-time/user-sentiment-last-min"),
        ("", None, (1, 2), "a ticker is required"),
        ("A" * 65, CROWD, (1, 2), "at most 64 characters"),
        ("AAPL TSLA", CROWD, (1, 2), "must not contain spaces"),
    ],
)
def test_invalid_backfill_is_rejected(ticker: str, path: str | None, days: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backfill_requests.build_requests(SUBSCRIBED, ticker, path, at(days[0]), at(days[1]), NOW)


def test_backfill_of_unsubscribed_ticker_needs_path() -> None:
    with pytest.raises(ValueError, match='no subscription includes "TSLA"; name an endpoint with --path'):
        backfill_requests.build_requests(SUBSCRIBED[:1], "TSLA", None, at(1), at(2), NOW)
    (request,) = backfill_requests.build_requests(SUBSCRIBED[:1], "TSLA", CROWD, at(1), at(2), NOW)
    assert (request.path, request.params) == (CROWD, '{"ticker":"TSLA"}')
