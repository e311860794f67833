"""Tickers are added to a file and removed again, in every layout that an operator may use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingestor.config.edit import add_tickers, remove_tickers
from ingestor.config.subscriptions import expand_subscriptions
from ingestor.config.yaml_document import parse_yaml
from ingestor.errors import ConfigError

CROWD = "/real-time/crowd-sentiment"


def subscribed(text: str) -> set[tuple[str, str]]:
    """Return (path, params) of every subscription in a valid text."""
    document = parse_yaml(text.encode(), "c.yaml")
    problems: list[Any] = []
    found = expand_subscriptions(document.value.get("subscriptions"), document.location_of, problems.append)
    assert all(problem.warning for problem in problems) and not document.problems
    return {(subscription.path, subscription.key[2]) for subscription in found}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("- {path: p, tickers: [A]}", "- {path: p, tickers: [A, T]}", id="brackets"),
        pytest.param("- {path: p, tickers: [A, ]} # c", "- {path: p, tickers: [A, T, ]} # c", id="trailing comma"),
        pytest.param('- path: p\n  tickers: ["A"]', '- path: p\n  tickers: ["A", "T"]', id="same quotes"),
        pytest.param("- path: p\n  tickers: ['A']", "- path: p\n  tickers: ['A', T]", id="no unnecessary quotes"),
        pytest.param(
            "- tickers:\n  - A # a\n  # b\n  path: p\n", "- tickers:\n  - A # a\n  - T\n  # b\n  path: p\n", id="dashes"
        ),
        pytest.param(
            "-   path: p\n    tickers:\n        -  A",
            "-   path: p\n    tickers:\n        -  A\n        -  T",
            id="wide",
        ),
        pytest.param(
            "- path: p\n  tickers: [A, # a\n    B  # b\n  ]",
            "- path: p\n  tickers: [A, # a\n    B, T  # b\n  ]",
            id="several lines",
        ),
        pytest.param(
            "- path: p\n  ticker: A\n# c\n", "- path: p\n  ticker: A\n- path: p\n  tickers: [T]\n# c\n", id="one ticker"
        ),
        pytest.param(
            "  - {path: p, params: {ticker: A}} # c",
            "  - {path: p, params: {ticker: A}} # c\n  - path: p\n    tickers: [T]",
            id="params",
        ),
        pytest.param("- path: q\n", "- path: q\n- path: p\n  tickers: [T]\n", id="a new path"),
        pytest.param(
            "- {path: p, params: {period: 9}, tickers: [A]}\n",
            "- {path: p, params: {period: 9}, tickers: [A]}\n- path: p\n  tickers: [T]\n",
            id="other params",
        ),
        pytest.param(
            "- {path: p, method: post, tickers: [A]}\n",
            "- {path: p, method: post, tickers: [A]}\n- path: p\n  tickers: [T]\n",
            id="another method",
        ),
        pytest.param(
            "- path: p\r\n  ticker: A\r\n",
            "- path: p\r\n  ticker: A\r\n- path: p\r\n  tickers: [T]\r\n",
            id="CRLF",
        ),
    ],
)
def test_added_ticker_keeps_layout_and_can_be_removed(before: str, after: str) -> None:
    head = "# 1\nsubscriptions: # 2\n"
    assert add_tickers(head + before, "c.yaml", "p", ["T"]) == (head + after, ["T"])
    assert remove_tickers(head + after, "c.yaml", "p", ["T"]) == (head + before, ["T"])


def test_ticker_is_added_to_flow_style_and_json() -> None:
    assert add_tickers("subscriptions: [{path: q}]\n", "c", "p", ["T", "U"])[0] == (
        "subscriptions: [{path: q}, {path: p, tickers: [T, U]}]\n"
    )
    document = {"http": {"listen": "127.0.0.1:0"}, "subscriptions": [{"path": "p", "tickers": ["A"]}]}
    for indent in (None, 1):
        text = json.dumps(document, indent=indent)
        for path in ("p", "q"):
            changed, _ = add_tickers(text, "c", path, ["é", "U"])
            assert subscribed(changed) == subscribed(text) | {(path, '{"ticker":"é"}'), (path, '{"ticker":"U"}')}
            assert json.loads(changed)["http"] == document["http"]
            assert remove_tickers(changed, "c", path, ["U", "é"])[0] == text


@pytest.mark.parametrize(
    ("before", "ticker", "after"),
    [
        pytest.param("- {path: p, tickers: [A, B, C]}", "A", "- {path: p, tickers: [B, C]}", id="the first"),
        pytest.param("- {path: p, tickers: [A, B, C]}", "B", "- {path: p, tickers: [A, C]}", id="in the middle"),
        pytest.param(
            "- path: p\n  tickers:\n  # a\n  - A # b\n  - B\n",
            "A",
            "- path: p\n  tickers:\n  # a\n  - B\n",
            id="a line of its own",
        ),
        pytest.param(
            "- path: p\n  tickers: [\n    A, # a\n    B\n  ]",
            "B",
            "- path: p\n  tickers: [\n    A # a\n  ]",
            id="a last line",
        ),
        pytest.param(
            "- path: p\n  tickers: [\n    A, # a\n    B,\n  ]",
            "B",
            "- path: p\n  tickers: [\n    A, # a\n  ]",
            id="a last line with a comma",
        ),
        pytest.param(
            "- path: p\n  tickers: [\n    A, # a, b\n    B\n  ]",
            "A",
            "- path: p\n  tickers: [\n     # a, b\n    B\n  ]",
            id="a comment stays",
        ),
        pytest.param(
            "# x\n- path: p\n  # y\n  tickers: [A]\n# z\n- path: q\n",
            "A",
            "# x\n# z\n- path: q\n",
            id="the entry with its last ticker",
        ),
        pytest.param("- path: q\n- {path: p, ticker: A} # x", "A", "- path: q", id="an entry of one"),
    ],
)
def test_removing_a_ticker_keeps_the_rest(before: str, ticker: str, after: str) -> None:
    head = "subscriptions:\n"
    assert remove_tickers(head + before, "c.yaml", "p", [ticker]) == (head + after, [ticker])


@pytest.mark.parametrize(
    ("text", "path", "ticker"),
    [
        pytest.param("[{path: p, tickers: [A, T]}]", "p", "T", id="in a list"),
        pytest.param("[{path: p, params: {ticker: T}}]", "p", "T", id="alone"),
        pytest.param("[{path: p}]", "p", "T", id="every ticker"),
    ],
)
def test_adding_existing_ticker_changes_nothing(text: str, path: str, ticker: str) -> None:
    assert add_tickers(f"subscriptions: {text}", "c", path, [ticker]) == (f"subscriptions: {text}", [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("- path: p # c\n", "- path: p # c\n  tickers: [T, 007]\n", id="block"),
        pytest.param("- path: p", "- path: p\n  tickers: [T, 007]", id="no newline at the end"),
        pytest.param(
            "- method: get\n  path: p\n\n# c", "- method: get\n  path: p\n  tickers: [T, 007]\n\n# c", id="keys"
        ),
        pytest.param("- {path: p} # c", "- {path: p, tickers: [T, 007]} # c", id="brackets"),
        pytest.param('- {"path": "p"}', '- {"path": "p", "tickers": ["T", "007"]}', id="JSON"),
        pytest.param("- path: p\r\n- path: q\r\n", "- path: p\r\n  tickers: [T, 007]\r\n- path: q\r\n", id="CR LF"),
    ],
)
def test_narrowing_gives_tickers_to_entry_without(before: str, after: str) -> None:
    head = "subscriptions:\n"
    edited = add_tickers(head + before, "c.yaml", "p", ["T", "007"], narrow=True)
    assert edited == (head + after, ["T", "007"])


def test_hundreds_of_tickers_are_added_and_removed() -> None:
    tickers = [f"T{number:03}" for number in range(500)]
    text, added = add_tickers("subscriptions:\n- path: p\n  tickers: [A]\n", "c.yaml", "p", tickers)
    assert added == tickers
    assert remove_tickers(text, "c.yaml", "p", [*tickers, "X"]) == (
        "subscriptions:\n- path: p\n  tickers: [A]\n",
        tickers,
    )


@pytest.mark.parametrize("text", ["[{path: p, tickers: [A]}]", "[{path: p}]", "[{path: q, tickers: [T]}]"])
def test_removing_unlisted_ticker_changes_nothing(text: str) -> None:
    assert remove_tickers(f"subscriptions: {text}", "c", "p", ["T"]) == (f"subscriptions: {text}", [])


@pytest.mark.parametrize(
    ("edit", "text", "said"),
    [
        pytest.param(
            remove_tickers,
            "[{path: p, tickers: [T]}]",
            "1:17: {}: no subscription would be left; stop the daemon",
            id="the last",
        ),
        pytest.param(
            add_tickers,
            "\n- {path: q, tickers: &x [A]}\n- {path: p, tickers: *x}",
            "3:22: {}: there is an alias (*name) here; {}",
            id="an alias",
        ),
        pytest.param(
            add_tickers,
            "\n- {path: q, tickers: *x}\n- {path: p, tickers: &x [A]}",
            "has no anchor",
            id="an alias before its anchor",
        ),
        pytest.param(
            add_tickers,
            "\n- {path: p, tickers: &x [A]}\n- {path: q, tickers: *x}",
            "2:1: {}: this command does not support the layout of the list; {}",
            id="an anchor that is used",
        ),
        pytest.param(
            add_tickers,
            "\n- path: p\n  tickers:\n  -\n    A",
            "5:5: {}: the item does not follow a dash in the same line; {}",
            id="a dash alone",
        ),
        pytest.param(add_tickers, "\n- path: p\n  tickers: !x [A]", "YAML tags", id="a tag"),
    ],
)
def test_unsafe_edit_is_rejected_with_location(
    edit: Callable[..., tuple[str, list[str]]], text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        changed, _ = edit(f"subscriptions: {text}", "c.yaml", "p", ["T"])
        parsed = parse_yaml(changed.encode(), "c.yaml")  # a tag is reported when the file is loaded
        if parsed.problems:
            raise ConfigError(parsed.problems)
    assert said.format("subscriptions: cannot be edited safely", "edit the file by hand") in str(refused.value)


# Property tests: any layout, any ticker.

SPELLINGS = st.sampled_from(
    ["ON", "NO", "007", "6E_F", "1e5", "null", "~", "~x", "TRUE", "2024-01-01", "-", "a:b", "#x"]
)
TICKERS = SPELLINGS | st.text(
    st.characters(exclude_categories=["Z", "C"], exclude_characters="\x85\u2028\u2029"), min_size=1, max_size=6
)
QUOTES = st.sampled_from(["plain", "plain", "double", "single"])


def written(word: str, how: str) -> str:
    if how == "single":
        return "'" + word.replace("'", "''") + "'"
    return (
        word
        if how == "plain" and re.fullmatch(r"\w+", word, re.ASCII) and word != "null"
        else json.dumps(word, ensure_ascii=False)
    )


@st.composite
def layouts(draw: st.DrawFn) -> str:
    """Draw a configuration in any layout. Each comment has a unique number."""
    numbers = iter(range(1000))

    def comment(indent: int = 0) -> str:
        return draw(st.sampled_from(["", "", "\n", f"{' ' * indent}# comment {next(numbers)}, [x: - y]\n"]))

    def end() -> str:
        return draw(st.sampled_from(["\n", "\n", f" # comment {next(numbers)}, - z\n"]))

    at = draw(st.sampled_from([0, 2, 4]))
    wide = draw(st.sampled_from([1, 3]))
    text = f"{comment()}http: {{listen: '127.0.0.1:0'}}{end()}{comment()}subscriptions:{end()}"
    used = st.lists(TICKERS, min_size=1, max_size=4, unique=True)
    for path in draw(st.lists(st.sampled_from(["p", "q", CROWD]), min_size=1, max_size=3, unique=True)):
        words = [written(ticker, draw(QUOTES)) for ticker in draw(used)]
        text += comment(at) + " " * at + "-" + " " * wide + entry(draw, path, words, at + 1 + wide, comment, end)
    text += comment() + draw(st.sampled_from(["", "log: {level: info}\n"])) + comment()
    text = text if draw(st.booleans()) else text.rstrip("\n")
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


def entry(
    draw: st.DrawFn, path: str, words: list[str], at: int, comment: Callable[..., str], end: Callable[[], str]
) -> str:
    blanks = " " * at
    match draw(st.sampled_from(["inline", "flow", "lines", "dashes", "ticker", "params", "params inline"])):
        case "inline":
            return f"{{path: {path}, tickers: [{', '.join(words)}]}}{end()}"
        case "flow":
            return f"path: {path}{end()}{comment(at)}{blanks}tickers: [{', '.join(words)}]{end()}"
        case "lines":
            listed = "".join(f"{blanks}  {word},{end()}{comment(at)}" for word in words)
            return f"path: {path}{end()}{blanks}tickers: [{end()}{listed}{blanks}]{end()}"
        case "dashes":
            inner = blanks + " " * draw(st.sampled_from([0, 2]))
            listed = "".join(f"{inner}- {word}{end()}{comment(at)}" for word in words)
            return f"path: {path}{end()}{comment(at)}{blanks}tickers:{end()}{listed}"
        case "ticker":
            return f"ticker: {words[0]}{end()}{comment(at)}{blanks}path: {path}{end()}"
        case "params":
            return f"path: {path}{end()}{blanks}params:{end()}{comment(at)}{blanks}  ticker: {words[0]}{end()}"
        case _:
            return f"{{path: {path}, params: {{ticker: {words[0]}}}}}{end()}"


def comments(text: str) -> list[str]:
    return re.findall(r"# comment \d+", text)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.sampled_from(["p", "q", CROWD]), st.lists(TICKERS, min_size=1, max_size=3, unique=True))
def test_add_and_remove_restores_the_text(text: str, path: str, tickers: list[str]) -> None:
    changed, added = add_tickers(text, "c.yaml", path, tickers)
    new = {(path, json.dumps({"ticker": ticker}, ensure_ascii=False, separators=(",", ":"))) for ticker in tickers}
    assert subscribed(changed) == subscribed(text) | new
    assert len(added) == len(subscribed(changed)) - len(subscribed(text))
    # The addition is contiguous: the text before and after it is unchanged.
    same = next((n for n, (one, two) in enumerate(zip(text, changed, strict=False)) if one != two), len(text))
    assert changed.endswith(text[same:])
    assert remove_tickers(changed, "c.yaml", path, added) == (text, added)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.data())
def test_remove_deletes_nothing_else(text: str, data: st.DataObject) -> None:
    before = subscribed(text)
    path, params = data.draw(st.sampled_from(sorted(before)))
    try:
        changed, removed = remove_tickers(text, "c.yaml", path, [json.loads(params)["ticker"]])
    except ConfigError as refused:
        assert len(before) == 1 and "no subscription would be left" in str(refused)
        return
    assert len(removed) == 1
    assert subscribed(changed) == before - {(path, params)}
    # Nothing is added, and no comments are removed but those of the entry.
    assert is_subsequence(changed, text)
    if path in {one for one, _ in subscribed(changed)}:
        assert len(comments(text)) - len(comments(changed)) <= 1


def is_subsequence(part: str, whole: str) -> bool:
    characters = iter(whole)
    return all(char in characters for char in part)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.data())
def test_damaged_file_is_edited_correctly_or_rejected(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    gone = data.draw(st.integers(0, 9))
    text = (
        text[:place]
        + data.draw(st.sampled_from(["", "\n", "  ", "-", "[", "]", "#", "&a ", "*a", "'", "\t", "{"]))
        + text[place + gone :]
    )
    try:
        subscribed(text)
    except (ConfigError, AssertionError):
        return  # rejected before the edit
    for edit in (add_tickers, remove_tickers):
        try:
            changed, done = edit(text, "c.yaml", "p", ["ON"])
        except ConfigError:
            continue
        before, after = parse_yaml(text.encode(), "c").value, parse_yaml(changed.encode(), "c").value
        assert {**before, "subscriptions": None} == {**after, "subscriptions": None}
        assert bool(done) == (before != after)
