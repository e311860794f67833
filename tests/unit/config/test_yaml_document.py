from __future__ import annotations

import re
import time

import pytest
import yaml

from ingestor.config import yaml_document
from ingestor.config.yaml_document import MAX_BYTES, MAX_DEPTH, parse_yaml
from ingestor.errors import ConfigError

LOADERS = [pytest.param(yaml.CSafeLoader, id="libyaml"), pytest.param(yaml.SafeLoader, id="pure Python")]


@pytest.fixture(params=LOADERS, autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test with both parsers: not every build of PyYAML has libyaml."""
    monkeypatch.setattr(yaml_document, "_LOADER", request.param)


def failure(raw: bytes | str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(raw.encode() if isinstance(raw, str) else raw, "c.yaml")
    assert len(raised.value.problems) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["ON", "NO", "TRUE", "007", "1E5", "2024-01-01", "12:30:45", "NULL", "0x1F", "1_000", ".5", "y"],
)
def test_scalar_stays_text(text: str) -> None:
    assert parse_yaml(f"a: {text}\nb: [{text}]\n{text}: c".encode(), "c.yaml").value == {
        "a": text,
        "b": [text],
        text: "c",
    }


def test_null_is_none_unless_quoted() -> None:
    read = parse_yaml(b"a:\nb: ~\nc: null\nd: ''\ne: 'null'\nf: \"~\"\ng: !!str null", "c.yaml")
    assert read.value == {"a": None, "b": None, "c": None, "d": "", "e": "null", "f": "~", "g": "null"}


def test_values_and_keys_know_their_location() -> None:
    read = parse_yaml("# é\na: 1\nb:\n  - c: x\n    ü: [y, z]\n".encode(), "c.yaml")
    assert read.location_of(("a",)) == "c.yaml:2:4"
    assert read.location_of(("b", 0, "c")) == "c.yaml:4:8"
    assert read.location_of(("b", 0, "ü", 1)) == "c.yaml:5:12"
    assert read.location_of(("b", 0, "ü"), key=True) == "c.yaml:5:5"
    assert read.location_of(("b", 0, "missing", "deeper")) == "c.yaml:4:5", "placed where it belongs"


def test_alias_has_value_and_location_of_its_anchor() -> None:
    read = parse_yaml(b"a: &t [X, Y]\nb: *t\nc: {d: *t}", "c.yaml")
    assert read.value == {"a": ["X", "Y"], "b": ["X", "Y"], "c": {"d": ["X", "Y"]}}
    assert read.location_of(("c", "d", 1)) == "c.yaml:1:11", "where the text is written"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a: 1\nb: 2\na: 3", 'c.yaml:3:1: duplicate key "a", first in line 1', id="key twice"),
        pytest.param("a: {b: 1, b: 2}", 'c.yaml:1:11: duplicate key "b", first in line 1', id="key twice in braces"),
        pytest.param("? [x]\n: 1", "c.yaml:1:3: a key must be a single text", id="a list as key"),
        pytest.param("<<: {a: 1}", "c.yaml:1:1: merge keys (<<) are not supported", id="merge key"),
        pytest.param("a: !include x", "c.yaml:1:4: YAML tags (!name) are not supported", id="tag"),
        pytest.param("a: !!binary aGk=", "c.yaml:1:4: YAML tags", id="YAML's own tag"),
    ],
)
def test_minor_problem_does_not_stop_parsing(text: str, expected: str) -> None:
    (problem,) = parse_yaml(text.encode(), "c.yaml").problems
    assert str(problem).startswith(expected)


def test_first_of_duplicate_keys_counts() -> None:
    assert parse_yaml(b"a: 1\na: 2", "c.yaml").value == {"a": "1"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b"", "c.yaml: is empty; `ingestor init`", id="empty"),
        pytest.param(b"# only this\n", "c.yaml: is empty", id="comments only"),
        pytest.param(b"- a", "c.yaml:1:1: must be a mapping at the top level", id="a list at the top"),
        pytest.param(b"~", "c.yaml:1:1: must be a mapping at the top level", id="nothing at the top"),
        pytest.param(b"a: 1\nb:\n\t- x", "c.yaml:3:1: a tab is used for indentation", id="tab"),
        pytest.param(b"a: b\n---\nc: d", "c.yaml:2:1: a second document begins", id="two documents"),
        pytest.param("a: é".encode("latin-1"), "c.yaml:1:4: is not UTF-8; save", id="Latin-1"),
        pytest.param("a: é".encode("utf-16"), "c.yaml:1:1: is not UTF-8; save", id="UTF-16"),
        pytest.param("é: 1\na: é\x07".encode(), "c.yaml:2:5: contains the control character", id="control"),
        pytest.param(b"a: \0", "c.yaml:1:4: contains the control character U+0000", id="NUL"),
        pytest.param(b"a: 'x", "c.yaml:1:6: a quote is not closed", id="open quote"),
        pytest.param(b"a: b: c", 'c.yaml:1:5: unexpected ":"', id="stray colon"),
        pytest.param(b"a: @x", "c.yaml:1:4: a text cannot begin with this character", id="reserved"),
        pytest.param(b"a: {x: &a [*a]}", "c.yaml:1:12: an alias (*name) has no anchor", id="endless alias"),
        pytest.param(b"a:\n  b: 1\n c: 2", "c.yaml:3:2: the indentation does not match", id="indentation"),
        pytest.param(b"a" * (MAX_BYTES + 1), "c.yaml: is larger than 16 MiB", id="huge"),
    ],
)
def test_unreadable_file_is_reported_with_location(raw: bytes, expected: str) -> None:
    assert failure(raw).startswith(expected)


def test_open_bracket_is_reported_with_its_first_line() -> None:
    assert failure("a: [1,\n  2\nb: 3").endswith("(begun in line 1)")


@pytest.mark.parametrize("text", ["a: *hunter2", "a: !hunter2!x y"])
def test_error_does_not_quote_alias_or_tag(text: str) -> None:
    assert "hunter2" not in failure(text)


@pytest.mark.parametrize(("opening", "column"), [("[", 18), ("- ", 35), ("{a: ", 66), ("? ", 35)])
def test_deep_nesting_is_rejected_with_location(opening: str, column: int) -> None:
    message = "is nested more than 16 levels deep; the configuration needs four"
    assert failure(opening * (MAX_DEPTH + 2)) == f"c.yaml:1:{column}: {message}"
    start = time.monotonic()
    found = re.fullmatch(rf"c\.yaml:1:(\d+): {message}", failure(opening * 100_000))
    assert time.monotonic() - start < 5, "libyaml alone takes a minute, or crashes the process"
    # Since PyYAML 6.0.4, libyaml has a limit of its own, and stops there before we see an event.
    assert found and int(found[1]) >= column


def test_alias_bomb_is_rejected() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "aliases stand for too many values" in failure("\n".join(lines))


def test_byte_order_mark_is_skipped() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "c.yaml").value == {"a": "1"}


def test_error_has_no_context_that_quotes_the_file() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(b"key: hunter2\nbad: 'x", "c.yaml")
    assert raised.value.__context__ is None, "the parser's own error quotes the file"
