"""Tickers from a text: one a line, or the first column of a CSV."""

from __future__ import annotations

import pytest

from ingestor.commands.ticker_source import check_ticker, read_tickers


@pytest.mark.parametrize(
    ("text", "tickers", "note"),
    [
        pytest.param("AAPL\n\n# c\nON # big, really\r\n 6E_F\n007", ["AAPL", "ON", "6E_F", "007"], "", id="lines"),
        pytest.param('"AAPL"\n"ON" # "x", y\n', ["AAPL", "ON"], "", id="quoted lines"),
        pytest.param("\ufeffSymbol\nAAPL\n", ["AAPL"], 'the header line "Symbol" is skipped', id="title"),
        pytest.param(
            '# S&P\nTicker,Name\n"AAPL","Apple, Inc. # 1"\nBRK.B,"Berkshire\nHathaway"\n',
            ["AAPL", "BRK.B"],
            'the first of 2 columns is read, the header line "Ticker" is skipped',
            id="header",
        ),
        pytest.param(
            "ACT Symbol|Security Name\nA|Agilent|N\n",
            ["A"],
            'the first of 3 columns is read, the header line "ACT Symbol" is skipped',
            id="exchange's list",
        ),
        pytest.param("AAPL;Apple\nON;onsemi\n", ["AAPL", "ON"], "the first of 2 columns is read", id="no header"),
        pytest.param("AAPL\tApple # x\nON\tonsemi\n", ["AAPL", "ON"], "the first of 2 columns is read", id="tabs"),
    ],
)
def test_tickers_are_found(text: str, tickers: list[str], note: str) -> None:
    found = read_tickers(text.encode(), "f.csv")
    assert (found.tickers, found.note) == (tickers, f"f.csv: {note}" if note else "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("A\nB C\n", "f.csv:2:1: a ticker must not contain spaces; write one ticker a line", id="words"),
        pytest.param(
            "A\n@x\n*\nall\n", 'f.csv:2:1: "@x" is no ticker; did you mean "x"? (--force adds', id="no ticker"
        ),
        pytest.param("AAPL,TSLA,ON\n", "f.csv:1:1: has 3 values in one line; write one ticker a line", id="one line"),
        pytest.param("A,B\nC,D,E\n", "f.csv:2:1: has 3 columns, the first line 2, and no header", id="no table"),
        pytest.param("Symbol,Name\n,Apple\n", "f.csv:2:1: is empty", id="empty cell"),
        pytest.param("\n# c\n", "f.csv contains no ticker", id="empty"),
        pytest.param("Symbol\n", "f.csv contains no ticker", id="only a header"),
        pytest.param("A\n\0", "f.csv:2:1: is not text in UTF-8", id="binary"),
        pytest.param('A,"' + "x" * 140_000 + '"\n', "f.csv:1:1: is not CSV (field larger", id="long field"),
    ],
)
def test_what_is_no_list_is_rejected_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_tickers(text.encode(), "f.csv")
    assert str(raised.value).startswith(expected)


def test_hundreds_of_mistakes_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"f.csv:1:1: .*\(and 499 more like this\)$"):
        read_tickers(b"@x\n" * 500, "f.csv")


REAL = ["6E_F", "ON", "NO", "BRK.B", "BRK/B", "BTC-USD", "^GSPC", "EURUSD=X", "ES1!", "ALL", "NULL", "M&M.NS", "007"]


@pytest.mark.parametrize("ticker", REAL)
def test_real_tickers_pass(ticker: str) -> None:
    assert check_ticker(ticker) == ticker


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("*", "name each one"),
        ("all", "name each one"),
        ("@x", 'did you mean "x"?'),
        ("$AAPL", 'did you mean "AAPL"?'),
        ("“AAPL”", 'did you mean "AAPL"?'),
        ("'AAPL'", 'did you mean "AAPL"?'),
        ("[AAPL]", 'did you mean "AAPL"?'),
        ("AAPL,TSLA", "did you mean 2 of them: AAPL TSLA?"),
        ("''", "write letters and digits"),
    ],
)
def test_what_is_surely_no_ticker_needs_force(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"is no ticker") as raised:
        check_ticker(text)
    assert hint in str(raised.value)
    assert check_ticker(text, force=True) == text


@pytest.mark.parametrize("text", ["", " ", "A B", "A\u00a0B", "A\x1b", "A\n", "x" * 65])
def test_what_cannot_be_stored_is_rejected_even_with_force(text: str) -> None:
    with pytest.raises(ValueError):
        check_ticker(text, force=True)
