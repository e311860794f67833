"""Files of tickers that subscriptions name: what they mean, where their errors are, and how they are edited."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestor.config import list_files, load
from ingestor.config.edit import add_tickers, remove_tickers
from ingestor.config.loader import parse_config, ticker_files
from ingestor.config.render import render_yaml
from ingestor.config.rewrite import rewrite_file
from ingestor.config.ticker_file import MAX_BYTES, TickerFiles
from ingestor.errors import ConfigError

from .conftest import Loaded, Refused

ONE_FILE = "subscriptions: [{path: /a, tickers_file: t.txt}]\n"
AT = "config.yaml:1:42: subscriptions.0.tickers_file: "


def test_file_is_one_ticker_a_line_with_comments(folder: Path, loaded: Loaded) -> None:
    (folder / "t.txt").write_text("\ufeffAAPL\r\n# all of them\n\n  ON  # in brackets\n007\n^GSPC#index\n6E_F")
    config = loaded(ONE_FILE)
    assert [subscription.ticker for subscription in config.subscriptions] == ["AAPL", "ON", "007", "^GSPC", "6E_F"]
    assert {subscription.config_path for subscription in config.subscriptions} == {"subscriptions.0"}
    assert config.warnings == ()
    assert "tickers: [AAPL, 'ON', '007', ^GSPC, 6E_F]" in render_yaml(config)


def test_relative_path_starts_from_state_directory_as_others_do(folder: Path, loaded: Loaded) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "t.txt").write_text("ON\n")
    config = loaded(ONE_FILE, {"STATE_DIRECTORY": str(folder / "state")})
    assert config.subscriptions[0].ticker == "ON"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        pytest.param(b"A\n# c\n  B C\n", "t.txt:3:3: a ticker must not contain spaces; write one", id="two words"),
        pytest.param(b"A\nB\x1b[2J\n", "t.txt:2:1: contains a control character", id="control character"),
        pytest.param(b"A\n" + b"x" * 65, "t.txt:2:1: a ticker may have at most 64 characters", id="long"),
        pytest.param(b"A\nB\0C\n", AT + "t.txt:2:2: is not text in UTF-8", id="binary"),
        pytest.param(b"A\nB\xff", AT + "t.txt:2:2: is not text in UTF-8", id="encoding"),
        pytest.param(b"# none\n\n", AT + "t.txt contains no ticker; write one ticker a line", id="no ticker"),
        pytest.param(b"#" * (MAX_BYTES + 1), AT + "t.txt is larger than 1 MiB", id="large"),
    ],
)
def test_error_in_file_has_its_line_and_column(folder: Path, refused: Refused, contents: bytes, expected: str) -> None:
    (folder / "t.txt").write_bytes(contents)
    (problem,) = refused(ONE_FILE)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda path: None, "the file t.txt does not exist; create it", id="missing"),
        pytest.param(Path.mkdir, "t.txt cannot be read (Is a directory); correct the path", id="folder"),
        pytest.param(os.mkfifo, "t.txt is not a regular file", id="pipe"),
        pytest.param(lambda path: path.symlink_to(path), "t.txt cannot be read (Too many levels", id="loop"),
    ],
)
def test_unreadable_file_is_error_at_the_key(
    folder: Path, refused: Refused, make: Callable[[Path], object], expected: str
) -> None:
    make(folder / "t.txt")
    (problem,) = refused(ONE_FILE)
    assert problem.startswith(AT + expected)


def test_wrong_file_is_reported_in_few_lines_after_other_problems(folder: Path, refused: Refused) -> None:
    (folder / "t.txt").write_text("not a ticker\n" * 500)
    problems = refused(
        "watch: perhaps\nsubscriptions:\n- {path: /a, tickers_file: t.txt}\n- {path: /b, tickers_file: t.txt}\n"
    )
    assert problems[0].startswith("config.yaml:1:8: watch")
    assert problems[-1] == "t.txt:21:1: 480 more from here on"
    assert len(problems) == 22


def test_file_and_list_in_one_entry_are_rejected(folder: Path, refused: Refused) -> None:
    (folder / "t.txt").write_text("A\n")
    (problem,) = refused("subscriptions: [{path: /a, tickers: [B], tickers_file: t.txt}]")
    assert 'tickers_file: names tickers, and so does "tickers"' in problem


def test_duplicates_of_a_file_are_warnings(folder: Path, loaded: Loaded, refused: Refused) -> None:
    (folder / "t.txt").write_text("A\nB\nA\n")
    config = loaded("subscriptions:\n- {path: /a, tickers: [B, C]}\n- {path: /a, tickers_file: t.txt}\n")
    assert [subscription.ticker for subscription in config.subscriptions] == ["B", "C", "A"]
    assert [str(warning) for warning in config.warnings] == [
        "t.txt:2:1: is a duplicate of config.yaml:2:24; keep one",
        "t.txt:3:1: is a duplicate of t.txt:1:1; keep one",
    ]
    assert "is a duplicate of" in refused("subscriptions: [{path: /a, tickers: [B, B]}]")[0]


def test_doubtful_tickers_are_warnings_with_their_place(folder: Path, loaded: Loaded) -> None:
    (folder / "t.txt").write_text("AAPL\n“TSLA”\n")
    config = loaded("subscriptions:\n- {path: /a, tickers_file: t.txt}\n- {path: /b, tickers: [AAPL, aapl, '*']}\n")
    assert len(config.subscriptions) == 5
    assert [str(warning) for warning in config.warnings] == [
        't.txt:2:1: "“TSLA”" is no ticker; did you mean "TSLA"?',
        'config.yaml:3:30: subscriptions.1.tickers.1: "aapl" differs from config.yaml:3:24 only in case; '
        "keep one if they are the same",
        'config.yaml:3:36: subscriptions.1.tickers.2: "*" is no ticker; name each one',
    ]


def test_hundreds_of_warnings_are_few_lines(folder: Path, loaded: Loaded) -> None:
    (folder / "t.txt").write_text("".join(f"A{i},B\n" for i in range(500)))
    warnings = loaded(ONE_FILE).warnings
    assert len(warnings) == 21
    assert str(warnings[-1]) == "t.txt:21:1: 480 more from here on"


def test_sha256_covers_the_files(folder: Path, loaded: Loaded) -> None:
    (folder / "t.txt").write_text("A\n")
    first = loaded(ONE_FILE).sha256
    (folder / "t.txt").write_text("A\nB\n")
    assert loaded(ONE_FILE).sha256 != first
    plain = "subscriptions: [{path: /a}]\n"
    assert loaded(plain).sha256 == hashlib.sha256(plain.encode()).hexdigest()


@pytest.mark.parametrize("text", [ONE_FILE, ONE_FILE + "watch: perhaps\n", "subscriptions: [7, {tickers_file: t.txt}]"])
def test_files_are_listed_even_if_the_config_is_invalid(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    assert list_files(Path("config.yaml"), {}) == (Path("config.yaml"), Path("t.txt"))


# Editing.


@pytest.fixture
def files(folder: Path) -> TickerFiles:
    (folder / "t.txt").write_text("# ours\nA\nB # b\n")
    return ticker_files(Path("config.yaml"), {})


def new_text(files: TickerFiles) -> str:
    assert list(files.original) == [Path("t.txt")]
    return files.lists[Path("t.txt")].text


def test_add_appends_to_the_file_of_the_path(files: TickerFiles) -> None:
    assert add_tickers(ONE_FILE, "c.yaml", "/a", ["B", "C", "C"], files) == (ONE_FILE, ["C"])
    assert new_text(files) == "# ours\nA\nB # b\nC\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [("A", "A\nT\n"), ("A\r\n", "A\r\nT\r\n"), ("\ufeffA\n", "\ufeffA\nT\n"), ("A\n#", "A\n#\nT\n")],
)
def test_add_keeps_the_files_layout(folder: Path, files: TickerFiles, before: str, after: str) -> None:
    (folder / "t.txt").write_bytes(before.encode())
    add_tickers(ONE_FILE, "c.yaml", "/a", ["T"], files)
    assert new_text(files) == after


def test_remove_takes_lines_out_of_the_file(files: TickerFiles) -> None:
    assert remove_tickers(ONE_FILE, "c.yaml", "/a", ["X", "B"], files) == (ONE_FILE, ["B"])
    assert new_text(files) == "# ours\nA\n"


def test_removing_all_tickers_removes_the_entry_and_keeps_the_file(files: TickerFiles) -> None:
    text = "subscriptions:\n- path: /b\n- path: /a\n  tickers_file: t.txt\n"
    assert remove_tickers(text, "c.yaml", "/a", ["A", "B"], files) == ("subscriptions:\n- path: /b\n", ["A", "B"])
    assert not files.original


def test_ticker_in_list_and_file_is_removed_from_both(files: TickerFiles) -> None:
    text = "subscriptions:\n- {path: /a, tickers: [A, C]}\n- {path: /a, tickers_file: t.txt}\n"
    changed = text.replace("A, C", "C")
    assert remove_tickers(text, "c.yaml", "/a", ["A"], files) == (changed, ["A"])
    assert new_text(files) == "# ours\nB # b\n"


@pytest.mark.parametrize("edit", [add_tickers, remove_tickers])
def test_shared_file_is_not_edited(edit: Callable[..., object], files: TickerFiles) -> None:
    text = "subscriptions:\n- {path: /a, tickers_file: t.txt}\n- {path: /b, tickers_file: ./t.txt}\n"
    with pytest.raises(ConfigError, match=r"c.yaml:2:3: .* other subscriptions use t.txt too; edit that file by hand"):
        edit(text, "c.yaml", "/a", ["A" if edit is remove_tickers else "C"], files)


def test_add_to_shared_file_and_list_uses_the_list(files: TickerFiles) -> None:
    head = "subscriptions:\n- {path: /a, tickers: [X]}\n"
    text = head + "- {path: /a, tickers_file: t.txt}\n- {path: /b, tickers_file: t.txt}\n"
    assert add_tickers(text, "c.yaml", "/a", ["C"], files) == (text.replace("[X]", "[X, C]"), ["C"])


def test_edited_file_keeps_its_mode_and_the_config_is_untouched(folder: Path, files: TickerFiles) -> None:
    config, list_ = folder / "config.yaml", folder / "t.txt"
    config.write_text(ONE_FILE)
    list_.chmod(0o640)
    inode = config.stat().st_ino

    def edit(text: str, name: str) -> str:
        return add_tickers(text, name, "/a", ["C"], files)[0]

    new, before, after = rewrite_file(edit, Path("config.yaml"), {}, files=files)
    assert before == after and config.stat().st_ino == inode
    assert (list_.read_text(), list_.stat().st_mode & 0o777) == ("# ours\nA\nB # b\nC\n", 0o640)
    assert new.sha256 == load(None, {}).sha256


def test_file_changed_by_somebody_else_is_not_replaced(folder: Path, files: TickerFiles) -> None:
    (folder / "config.yaml").write_text(ONE_FILE)

    def edit(text: str, name: str) -> str:
        (folder / "t.txt").write_text("A\nZ\n")
        return add_tickers(text, name, "/a", ["C"], files)[0]

    with pytest.raises(ConfigError, match=r"t.txt: was changed by somebody else; repeat the command"):
        rewrite_file(edit, Path("config.yaml"), {}, files=files)
    assert (folder / "t.txt").read_text() == "A\nZ\n"


def test_config_reads_each_file_once(folder: Path, files: TickerFiles) -> None:
    text = ONE_FILE.replace("]", ", {path: /b, tickers_file: t.txt}]")
    parse_config(Path("config.yaml"), text.encode(), True, {}, files=files)
    (folder / "t.txt").unlink()
    assert len(parse_config(Path("config.yaml"), text.encode(), True, {}, files=files).subscriptions) == 4
