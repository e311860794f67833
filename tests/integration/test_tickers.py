"""`ingestor add` and `remove`: of hundreds of tickers, of files of tickers, and of what is no ticker."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from .conftest import Command

CONFIG = """\
# our tickers
subscriptions:
  - path: /real-time/crowd-sentiment   # since June
    tickers: [AAPL, ON]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


def test_add_rejects_unknown_endpoint_unless_forced(command: Command, config: Path) -> None:
    arguments = ["add", "ON", "--path", "/real-time/tweet-buz"]
    refused = command(*arguments)
    assert refused.code == 2
    assert 'unknown endpoint "/real-time/tweet-buz"; did you mean "/real-time/tweet-buzz"? (--force' in refused.err
    assert config.read_text() == CONFIG
    added = command(*arguments, "--force")
    assert added.code == 0
    assert added.err == (
        'config.yaml:5:11: subscriptions.1.path: unknown endpoint "/real-time/tweet-buz"; '
        'did you mean "/real-time/tweet-buzz"?\n'
    )
    assert config.read_text() == CONFIG.replace(
        "[AAPL, ON]\n", "[AAPL, ON]\n  - path: /real-time/tweet-buz\n    tickers: [ON]\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add", "A", "*"], 2, '"*" is no ticker; name each one (--force'),
        (["add", "AAPL,TSLA"], 2, "did you mean 2 of them: AAPL TSLA? (--force"),
        (["add", ""], 2, "is empty"),
        (["add", "A", "--path", "real-time/crowd-sentiment"], 2, 'did you mean "/real-time/crowd-sentiment"? (--force'),
        (["add", "A", "--path", "/zzz"], 2, 'unknown endpoint "/zzz" (--force'),
        (["add"], 2, "Missing argument 'TICKER': name tickers, or a file with --from"),
        (["add", "--from", "gone.txt"], 2, "the file gone.txt does not exist; create it"),
        (["add", "--from", "."], 2, ". cannot be read (Is a directory)"),
        (["remove", "--from", "config.yaml"], 2, "config.yaml:4:1: has 2 columns, the first line 1"),
    ],
)
def test_rejected_change_leaves_the_file_unchanged(
    command: Command, config: Path, arguments: list[str], code: int, message: str
) -> None:
    result = command(*arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert config.read_text() == CONFIG


def test_hundreds_of_tickers_are_a_summary(command: Command, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.parent / "sp500.csv").write_text("Symbol,Name\n" + "".join(f'T{n:03},"N, {n}"\n' for n in range(500)))
    added = command("add", "ON", "--from", "sp500.csv")
    assert (added.code, added.err) == (
        0,
        'sp500.csv: the first of 2 columns is read, the header line "Symbol" is skipped\n',
    )
    path = "/real-time/crowd-sentiment"
    assert added.out == (f"{config}: {path}\nadded 500 tickers to {path}: T000, T001, … T499; 1 was there already\n")
    one_more = command("add", "Z")
    assert max(map(len, one_more.out.splitlines())) < 120
    assert " … " in one_more.out and ", T499, Z]\n" in one_more.out
    shown = command("config", "show").out
    assert len(shown.splitlines()) < 100 and "T499" in shown
    given = io.BytesIO("".join(f"T{n:03}\n" for n in range(500)).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
    removed = command("remove", "Z", "--from", "-")
    assert removed.out == f"{config}: {path}\nremoved 501 tickers from {path}: T000, T001, … Z\n"
    assert config.read_text() == CONFIG


def test_tickers_file_is_edited_instead_of_the_config(command: Command, config: Path) -> None:
    config.write_text(CONFIG.replace("tickers: [AAPL, ON]", "tickers_file: t.txt"))
    before, file = config.read_text(), config.parent / "t.txt"
    file.write_text("# ours\nON\n")
    added = command("add", "NO", "no")
    assert added.out == "t.txt: /real-time/crowd-sentiment\n+NO\n+no\nNO: added\nno: added\n"
    assert added.err == 't.txt:4:1: "no" differs from t.txt:3:1 only in case; keep one if they are the same\n'
    removed = command("remove", "ON", "no")
    assert removed.out == "t.txt: /real-time/crowd-sentiment\n-ON\n-no\nON: removed\nno: removed\n"
    assert (config.read_text(), file.read_text()) == (before, "# ours\nNO\n")


def test_add_and_remove_say_what_no_ticker_means(command: Command, config: Path) -> None:
    config.write_text("subscriptions:\n- path: crowd-sentiment\n- path: /real-time/crowd-sentiment\n")
    every = command("add", "ON", "--path", "crowd-sentiment")
    assert every.out.splitlines()[-1] == (
        "config.yaml:2:9 names no tickers, so every ticker of crowd-sentiment is subscribed to; "
        "to narrow it, list tickers there"
    )
    path = "/real-time/crowd-sentiment"
    first = command("add", "ON", "--path", path)
    assert first.out.splitlines()[-1] == (
        f"config.yaml:3:9 named no ticker, which the provider refuses for {path}; now it names these"
    )
    assert config.read_text().endswith(f"- path: {path}\n  tickers: [ON]\n")
    last = command("remove", "ON", "--path", path)
    assert last.out.endswith(f"no ticker of {path} is left, so its subscription is removed\n")
    assert config.read_text() == "subscriptions:\n- path: crowd-sentiment\n"
