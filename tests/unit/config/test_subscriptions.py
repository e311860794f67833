from __future__ import annotations

import time
from pathlib import Path

import pytest

from ingestor.config import Subscription, load
from ingestor.errors import ConfigError
from ingestor.provider.catalog import feed_name

from .conftest import Loaded, Refused


def wanted(loaded: Loaded, items: str) -> list[tuple[str, str, str]]:
    return [subscription.key for subscription in loaded(f"subscriptions: [{items}]").subscriptions]


def test_tickers_expand_to_one_subscription_each(loaded: Loaded) -> None:
    items = "{path: /a, tickers: [X, ON], params: {period: 030}}, {path: b, ticker: Y, method: GET}"
    assert wanted(loaded, items) == [
        ("/a", "get", '{"period":"030","ticker":"X"}'),
        ("/a", "get", '{"period":"030","ticker":"ON"}'),
        ("b", "get", '{"ticker":"Y"}'),
    ]


def test_key_is_canonical(loaded: Loaded) -> None:
    (key,) = wanted(loaded, "{path: /a, params: {z: é, a: 'x \"y'}}")
    assert key == ("/a", "get", '{"a":"x \\"y","z":"é"}')


def test_subscription_equality_ignores_location() -> None:
    subscription = Subscription("/a", "get", {"ticker": "X", "p": "1"}, location="c.yaml:1:1")
    other = Subscription("/a", "get", {"p": "1", "ticker": "X"}, location="c.yaml:9:9")
    assert subscription == other
    assert len({subscription, other}) == 1
    assert subscription != Subscription("/a", "get", {"ticker": "Y", "p": "1"})
    assert subscription.ticker == "X"
    assert Subscription("/a").ticker == ""


def test_subscription_is_immutable() -> None:
    params = {"ticker": "X"}
    subscription = Subscription("/a", "get", params)
    params["ticker"] = "Y"
    assert subscription.ticker == "X"
    with pytest.raises(TypeError):
        subscription.params["ticker"] = "Y"  # type: ignore[index]
    with pytest.raises(AttributeError):
        subscription.path = "/b"  # type: ignore[misc]


def test_subscription_knows_location_of_its_path(loaded: Loaded) -> None:
    read = loaded("subscriptions:\n  - path: /a\n    tickers: [X, Y]\n  - {path: /b}\n").subscriptions
    assert [(subscription.location, subscription.config_path) for subscription in read] == [
        ("config.yaml:2:11", "subscriptions.0"),
        ("config.yaml:2:11", "subscriptions.0"),
        ("config.yaml:4:12", "subscriptions.1"),
    ]


@pytest.mark.parametrize("ticker", ["6E", "6E_F", "EURAUD", "BRK.B", "^GSPC", "ΑΒΓ", "';DROP", "x" * 64])
def test_ticker_is_accepted_as_written(loaded: Loaded, ticker: str) -> None:
    read = loaded(f'subscriptions: [{{path: /a, ticker: "{ticker}"}}]')
    assert read.subscriptions[0].ticker == ticker


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("{path: /a, ticker: A B}", "1:36: subscriptions.0.ticker: a ticker must not contain spaces"),
        ('{path: /a, ticker: "A\\n"}', "ticker: contains a control character"),
        ('{path: /a, ticker: "A\\e[1m"}', "ticker: contains a control character"),
        ("{path: /a, ticker: ''}", "ticker: is empty"),
        ("{path: /a, ticker: }", "ticker: has no value"),
        (f"{{path: /a, ticker: {'x' * 65}}}", "ticker: a ticker may have at most 64 characters, this has 65"),
        ("{path: /a, tickers: []}", "tickers: is empty; add at least one"),
        ("{path: /a, tickers: }", "tickers: has no value"),
        ("{path: /a, tickers: A}", "tickers: must be a list"),
        ("{path: /a, tickers: [A, ~]}", "1:41: subscriptions.0.tickers.1: has no value"),
        ("{path: /a, tickers: [[A]]}", "tickers.0: must be a single text"),
        ("{path: /a, ticker: A, tickers: [B]}", 'tickers: names tickers, and so does "ticker"'),
        ("{path: /a, ticker: A, params: {ticker: B}}", 'ticker: names tickers, and so does "params"'),
        ("{path: /a, params: {ticker: A B}}", "1:45: subscriptions.0.params.ticker: a ticker must not contain spaces"),
        (f"{{path: /a, params: {{user_id: {'9' * 65}}}}}", "params.user_id: a user_id may have at most 64"),
        ("{path: /a, params: {p: [1]}}", "params.p: must be a single text"),
        ("{path: /a, params: {p: }}", "params.p: has no value"),
        ("{path: /a, params: x}", "params: must be a mapping"),
        (f"{{path: /a, params: {{p: {'x' * 510}}}}}", "params: is longer than 512 characters"),
        ("{ticker: A}", "1:17: subscriptions.0.path: is missing"),
        ("{path: }", "path: has no value"),
        ("{path: /a b}", "path: must not contain spaces"),
        ("{path: '/a?ticker=X'}", "write what follows the ? under params"),
        ("{path: 'https://h/a'}", "path: must be the path alone"),
        (f"{{path: /{'a' * 80}}}", "path: has 81 characters; at most 76"),
        ("{path: /a, method: fetch}", "method: must be one of get, post"),
        ("{pth: /a, path: /a}", 'pth: unknown key; did you mean "path"?'),
        ("/a", "subscriptions.0: must be a mapping"),
        ("~", "subscriptions.0.path: is missing"),
    ],
)
def test_invalid_item_is_reported_with_location(refused: Refused, item: str, expected: str) -> None:
    (problem,) = refused(f"subscriptions: [{item}]")
    assert problem.startswith("config.yaml:1:")
    assert expected in problem


def test_duplicate_with_other_method_is_rejected(refused: Refused) -> None:
    (problem,) = refused("subscriptions:\n  - {path: /a, tickers: [X, Y]}\n  - {path: /a, method: post, ticker: Y}\n")
    assert problem.startswith("config.yaml:3:38: subscriptions.1.ticker: differs from config.yaml:2:29 only in the")
    assert '("post" here and "get" there)' in problem


LONG = "x" * 60


@pytest.mark.parametrize(
    ("item", "place"),
    [
        pytest.param(f"{{path: /{LONG}12345}}", "1:24", id="the path is too long"),
        pytest.param(f"{{path: /a, params: {{p: {LONG}1}}}}", "1:24", id="the params are"),
        pytest.param(f"{{tickers: [X, Y], params: {{p: {LONG}1}}, path: /a}}", "1:117", id="once for all tickers"),
    ],
)
def test_too_long_feed_name_is_rejected(folder: Path, item: str, place: str) -> None:
    (folder / "config.yaml").write_text(f"subscriptions: [{item}]")
    with pytest.raises(ConfigError) as raised:
        load(None, {}, feed_name=feed_name)
    (problem,) = raised.value.problems
    assert str(problem).startswith(f"config.yaml:{place}: subscriptions.0.path: makes a feed name of 65 characters, ")
    assert "of which 64 can be stored" in problem.message


def test_ticker_and_user_id_are_not_part_of_feed_name(folder: Path) -> None:
    item = f"{{path: /real-time/{LONG}1234, params: {{user_id: '{LONG}', ticker: {LONG}}}}}"
    (folder / "config.yaml").write_text(f"subscriptions: [{item}]")
    assert len(load(None, {}, feed_name=feed_name).subscriptions) == 1


def test_duplicate_is_reported_with_both_locations(refused: Refused) -> None:
    assert refused(
        "subscriptions:\n"
        "  - {path: /a, tickers: [X, Y, X]}\n"
        "  - {path: /a, params: {ticker: Y}}\n"
        "  - {path: /b}\n"
        "  - {path: /b, method: GET, params: {}}\n"
    ) == [
        "config.yaml:2:32: subscriptions.0.tickers.2: is a duplicate of config.yaml:2:26; keep one",
        "config.yaml:3:5: subscriptions.1: is a duplicate of config.yaml:2:29; keep one",
        "config.yaml:5:5: subscriptions.3: is a duplicate of config.yaml:4:5; keep one",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("provider: {}", "is empty; add at least one"),
        ("subscriptions:", "is empty; add at least one"),
        ("subscriptions: []", "is empty; add at least one"),
        ("subscriptions: {path: /a}", "must be a list"),
        ("subscriptions: /a", "must be a list"),
    ],
)
def test_missing_subscriptions_are_rejected(refused: Refused, text: str, says: str) -> None:
    (problem,) = refused(text)
    assert "subscriptions: " in problem
    assert says in problem


def test_ten_thousand_subscriptions_load_quickly(loaded: Loaded) -> None:
    items = "".join(f"  - {{path: /a, params: {{ticker: T{n}}}}}\n" for n in range(10_000))
    began = time.process_time()
    assert len(loaded("subscriptions:\n" + items).subscriptions) == 10_000
    assert time.process_time() - began < 5, "it takes half a second; quadratic work takes minutes"
