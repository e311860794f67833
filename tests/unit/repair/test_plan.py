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
        pytest.param(CROWD, at(5, 10), at(5, 11), [HOUR], id="as it is"),
        pytest.param(CROWD, at(1), at(20), [7 * 24 * HOUR, 7 * 24 * HOUR, 5 * 24 * HOUR], id="a week of minutes"),
        pytest.param(SECONDS, at(5, 0), at(5, 6), [2.8 * HOUR, 2.8 * HOUR, 0.4 * HOUR], id="as many seconds"),
        pytest.param(CHART, at(5, 10), at(13), [(14 + 6 * 24) * HOUR, 24 * HOUR], id="seven dates, not seven days"),
        pytest.param(SECONDS[11:] + "-chart-data", at(5), at(7), [24 * HOUR] * 2, id="a date of seconds"),
        pytest.param(CROWD, at(5), at(5), [], id="nothing"),
    ],
)
def test_what_is_asked_for_is_cut_into_what_one_question_may_ask_for(
    path: str, start: datetime, end: datetime, lengths: list[timedelta]
) -> None:
    found = list(plan.split_range(path, start, end))
    assert [stop - begin for begin, stop in found] == lengths
    assert all(one[1] == two[0] for one, two in pairwise(found))


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(repair(at(5, 10), at(5, 12)), (at(5, 9), at(6)), id="with the window before, and its day"),
        pytest.param(repair(at(5, 22), at(6)), (at(5, 21), at(6)), id="a day that ends with it"),
        pytest.param(repair(at(5, 10), at(5, 12), path=SECONDS), (at(5, 9), at(5, 14, 36)), id="no question more"),
        pytest.param(repair(at(5, 10), at(5, 12), kind="manual"), (at(5, 10), at(5, 12)), id="by hand, that alone"),
    ],
)
def test_history_is_asked_for_a_little_more_where_that_costs_nothing(
    one: Repair, expected: tuple[datetime, datetime]
) -> None:
    assert plan.history_range(one) == expected
    assert len(list(plan.split_range(one.path, *plan.history_range(one)))) == len(
        list(plan.split_range(one.path, plan.history_range(one)[0], one.to_ts))
    )


def test_steps_go_on_after_the_cursor_of_the_last_one_that_was_done() -> None:
    one = repair(at(1), at(20), kind="manual", ticker="")
    every = list(plan.all_queries(one, ["AAPL", "ON", "TSLA"]))
    assert len(every) == 9
    for number, step in enumerate(every):
        assert (
            list(plan.remaining_queries(replace(one, cursor=step.cursor), ["AAPL", "ON", "TSLA"]))
            == every[number + 1 :]
        )


def test_what_is_left_is_left_in_pieces_of_any_length() -> None:
    one, tickers = repair(at(1), at(20), kind="manual", ticker=""), ["AAPL", "ON"]
    for done_in, go_on_in in ((None, timedelta(days=2)), (timedelta(days=2), None)):
        every = list(plan.all_queries(one, tickers, done_in))
        for number, step in enumerate(every):
            rest = list(plan.remaining_queries(replace(one, cursor=step.cursor), tickers, go_on_in))
            asked = [*every[: number + 1], *rest]
            for ticker in tickers:
                reached = at(1)
                for start, end in sorted((each.start, each.end) for each in asked if each.ticker == ticker):
                    assert start <= reached
                    reached = max(end, reached)
                assert reached == at(20)


@pytest.mark.parametrize(
    ("path", "start", "end", "expected"),
    [
        pytest.param(CROWD, at(1), at(8), 84 * HOUR, id="instants"),
        pytest.param(SECONDS, at(1), at(1, 0, 0, 3), timedelta(seconds=1.5), id="a few seconds"),
        pytest.param(SECONDS, at(1), at(1, 0, 0, 1), None, id="nothing is shorter than what one row is about"),
        pytest.param(CHART, at(1), at(8), 72 * HOUR, id="dates"),
        pytest.param(CHART, at(1, 10), at(2, 10), 24 * HOUR, id="a day that begins and ends in the midst of two"),
        pytest.param(CHART, at(1), at(2), None, id="one date"),
    ],
)
def test_where_an_answer_was_too_long_half_of_it_is_asked_for(
    path: str, start: datetime, end: datetime, expected: timedelta | None
) -> None:
    assert plan.halved_length(path, plan.HistoryQuery(start=start, end=end, ticker="AAPL")) == expected


@pytest.mark.parametrize(
    ("kind", "path", "ticker", "hours_since", "expected"),
    [
        pytest.param("window", CROWD, "AAPL", 1.5, "snapshot", id="asked at once"),
        pytest.param("window", CROWD, "AAPL", 2, "historical", id="no real-time answer reaches so far"),
        pytest.param("window", "crowd-sentiment", "AAPL", 1, "snapshot", id="a stream has a real-time endpoint"),
        pytest.param("window", "crowd-sentiment", "", 1, "historical", id="which answers for one ticker only"),
        pytest.param("window", CHART, "AAPL", 1, "historical", id="and some streams have none"),
        pytest.param("window", "/real-time/brand-new", "AAPL", 1, "snapshot", id="an endpoint that is not documented"),
        pytest.param("snapshot", "/real-time/brand-new", "AAPL", 1, None, id="has no documented history"),
        pytest.param("snapshot", CROWD, "AAPL", 1, "historical", id="tomorrow"),
        pytest.param("snapshot", "/real-time/user-sentiment-last-minute", "AAPL", 1, None, id="no history"),
        pytest.param("historical", CROWD, "AAPL", 30, None, id="nothing is left"),
    ],
)
def test_one_way_after_the_other(kind: str, path: str, ticker: str, hours_since: float, expected: str | None) -> None:
    one = repair(at(5, 10), at(5, 10, 30), kind=kind, path=path, ticker=ticker)
    assert plan.next_kind(one, at(5, 10) + hours_since * HOUR) == expected


@pytest.mark.parametrize(("moment", "expected"), [(at(5, 10), at(6)), (at(6), at(6))])
def test_a_day_ends_at_midnight_utc_wherever_we_are(moment: datetime, expected: datetime) -> None:
    assert plan.day_end(moment) == expected
    assert plan.day_end(moment.astimezone()) == expected


@pytest.mark.parametrize(
    ("status", "moment", "early"),
    [
        pytest.param(400, at(6, 0, 1), True, id="not yesterday yet, where the provider is"),
        pytest.param(400, at(7), False, id="yesterday everywhere"),
        pytest.param(403, at(6, 0, 1), False, id="refused for another reason"),
    ],
)
def test_a_day_that_has_just_ended_may_be_asked_for_too_early(status: int, moment: datetime, early: bool) -> None:
    assert plan.may_be_too_early(repair(at(5, 10), at(5, 12)), status, moment) is early


# Questions


def test_a_question_names_instants_or_dates_and_its_end_is_not_included() -> None:
    asked = {"ticker": "AAPL", "period": "30"}
    instants = history_request(CROWD, asked, at(5, 10), at(6))
    assert instants is not None
    assert instants.path == "/historical/crowd-sentiment"
    assert instants.params == asked | {"start_ts": "2026-01-05T10:00:00.000Z", "end_ts": "2026-01-05T23:59:59.999Z"}
    dates = history_request(CHART, {"ticker": "AAPL"}, at(5, 10), at(12))
    assert dates is not None
    assert dates.path == "/historical/crowd-sentiment-chart-data"
    assert dates.params == {"ticker": "AAPL", "start_date": "01-05-2026", "end_date": "01-11-2026"}


@pytest.mark.parametrize(
    ("path", "params", "now", "then"),
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
def test_which_endpoint_answers(path: str, params: dict[str, str], now: str | None, then: str | None) -> None:
    present, past = current_request(path, params), history_request(path, params, at(5), at(6))
    assert (present and present.path, past and past.path) == (now, then)


# By hand

NOW = datetime(2026, 1, 10, 15, tzinfo=UTC)
SUBSCRIBED = [
    Subscription(CROWD, params={"ticker": "AAPL"}),
    Subscription("crowd-sentiment"),
    Subscription(f"{CROWD}-moving-average", params={"ticker": "AAPL", "period": "30"}),
    Subscription("/real-time/user-sentiment", params={"ticker": "AAPL", "user_id": "7"}),
    Subscription("/real-time/user-sentiment-last-minute", params={"ticker": "AAPL"}),
]


def test_by_hand_every_feed_that_brings_the_ticker_is_asked_once_and_up_to_yesterday() -> None:
    found = backfill_requests.build_requests(SUBSCRIBED, "AAPL", None, at(1), at(20), NOW)
    assert {(one.path, one.params) for one in found} == {
        ("crowd-sentiment", '{"ticker":"AAPL"}'),
        (f"{CROWD}-moving-average", '{"period":"30","ticker":"AAPL"}'),
    }
    assert {(one.from_ts, one.to_ts) for one in found} == {(at(1), at(10))}
    assert [backfill_requests.count_queries(one) for one in found] == [2, 2]
    assert backfill_requests.from_json(backfill_requests.to_json(found)) == found


@pytest.mark.parametrize(
    ("ticker", "path", "days", "message"),
    [
        ("AAPL", None, (10, 12), "nothing lies between 2026-01-10 00:00 and 2026-01-10 00:00 UTC"),
        ("AAPL", "/real-time/user-sentiment-last-minute", (1, 2), "no history of /real-time/user-sentiment-last-min"),
        ("", None, (1, 2), "name a ticker"),
        ("A" * 65, CROWD, (1, 2), "at most 64 characters"),
        ("AAPL TSLA", CROWD, (1, 2), "must not contain spaces"),
    ],
)
def test_by_hand_what_cannot_be_asked_for_is_refused_before_anything_is_done(
    ticker: str, path: str | None, days: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        backfill_requests.build_requests(SUBSCRIBED, ticker, path, at(days[0]), at(days[1]), NOW)


def test_by_hand_a_ticker_that_nobody_subscribed_to_needs_its_endpoint_named() -> None:
    with pytest.raises(ValueError, match='"TSLA" is not subscribed to; say of which endpoint: --path'):
        backfill_requests.build_requests(SUBSCRIBED[:1], "TSLA", None, at(1), at(2), NOW)
    (found,) = backfill_requests.build_requests(SUBSCRIBED[:1], "TSLA", CROWD, at(1), at(2), NOW)
    assert (found.path, found.params) == (CROWD, '{"ticker":"TSLA"}')
