from __future__ import annotations

import time

import pytest
import yaml

from ingestor.config import yaml_document
from ingestor.config.yaml_document import MAX_BYTES, parse_yaml
from ingestor.errors import ConfigError

LOADERS = [pytest.param(yaml.CSafeLoader, id="libyaml"), pytest.param(yaml.SafeLoader, id="pure Python")]


@pytest.fixture(params=LOADERS, autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either parser: libyaml is not built in everywhere."""
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
def test_every_scalar_is_the_text_that_was_written(text: str) -> None:
    assert parse_yaml(f"a: {text}\nb: [{text}]\n{text}: c".encode(), "c.yaml").value == {
        "a": text,
        "b": [text],
        text: "c",
    }


def test_nothing_is_null_only_where_it_is_not_quoted() -> None:
    read = parse_yaml(b"a:\nb: ~\nc: null\nd: ''\ne: 'null'\nf: \"~\"\ng: !!str null", "c.yaml")
    assert read.value == {"a": None, "b": None, "c": None, "d": "", "e": "null", "f": "~", "g": "null"}


def test_every_value_and_key_knows_its_place() -> None:
    read = parse_yaml("# é\na: 1\nb:\n  - c: x\n    ü: [y, z]\n".encode(), "c.yaml")
    assert read.location_of(("a",)) == "c.yaml:2:4"
    assert read.location_of(("b", 0, "c")) == "c.yaml:4:8"
    assert read.location_of(("b", 0, "ü", 1)) == "c.yaml:5:12"
    assert read.location_of(("b", 0, "ü"), key=True) == "c.yaml:5:5"
    assert read.location_of(("b", 0, "missing", "deeper")) == "c.yaml:4:5", "placed where it belongs"


def test_an_alias_stands_for_what_its_anchor_holds() -> None:
    read = parse_yaml(b"a: &t [X, Y]\nb: *t\nc: {d: *t}", "c.yaml")
    assert read.value == {"a": ["X", "Y"], "b": ["X", "Y"], "c": {"d": ["X", "Y"]}}
    assert read.location_of(("c", "d", 1)) == "c.yaml:1:11", "where the text is written"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a: 1\nb: 2\na: 3", 'c.yaml:3:1: the key "a" stands already in line 1', id="key twice"),
        pytest.param("a: {b: 1, b: 2}", 'c.yaml:1:11: the key "b" stands already', id="key twice in braces"),
        pytest.param("? [x]\n: 1", "c.yaml:1:3: a key must be one text", id="a list as key"),
        pytest.param("<<: {a: 1}", "c.yaml:1:1: merge keys (<<) are not used", id="merge key"),
        pytest.param("a: !include x", "c.yaml:1:4: YAML tags (!name) are not used", id="tag"),
        pytest.param("a: !!binary aGk=", "c.yaml:1:4: YAML tags", id="YAML's own tag"),
    ],
)
def test_a_problem_that_hides_nothing_else_is_kept_for_later(text: str, expected: str) -> None:
    (problem,) = parse_yaml(text.encode(), "c.yaml").problems
    assert str(problem).startswith(expected)


def test_of_two_equal_keys_the_first_counts() -> None:
    assert parse_yaml(b"a: 1\na: 2", "c.yaml").value == {"a": "1"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b"", "c.yaml: is empty; `ingestor init`", id="empty"),
        pytest.param(b"# only this\n", "c.yaml: is empty", id="comments only"),
        pytest.param(b"- a", "c.yaml:1:1: must be a mapping at the top", id="a list at the top"),
        pytest.param(b"~", "c.yaml:1:1: must be a mapping at the top", id="nothing at the top"),
        pytest.param(b"a: 1\nb:\n\t- x", "c.yaml:3:1: a tab stands where", id="tab"),
        pytest.param(b"a: b\n---\nc: d", "c.yaml:2:1: a second document begins", id="two documents"),
        pytest.param("a: é".encode("latin-1"), "c.yaml:1:4: is not UTF-8 text", id="Latin-1"),
        pytest.param("a: é".encode("utf-16"), "c.yaml:1:1: is not UTF-8 text", id="UTF-16"),
        pytest.param("é: 1\na: é\x07".encode(), "c.yaml:2:5: holds the control character", id="control"),
        pytest.param(b"a: \0", "c.yaml:1:4: holds the control character U+0000", id="NUL"),
        pytest.param(b"a: 'x", "c.yaml:1:6: a quote is opened and not closed", id="open quote"),
        pytest.param(b"a: b: c", 'c.yaml:1:5: a ":" is not expected here', id="stray colon"),
        pytest.param(b"a: @x", "c.yaml:1:4: a text cannot begin with this character", id="reserved"),
        pytest.param(b"a: {x: &a [*a]}", "c.yaml:1:12: an alias (*name) without", id="endless alias"),
        pytest.param(b"a:\n  b: 1\n c: 2", "c.yaml:3:2: the indentation does not fit", id="indentation"),
        pytest.param(b"a" * (MAX_BYTES + 1), "c.yaml: is larger than 16 MiB", id="huge"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(raw: bytes, expected: str) -> None:
    assert failure(raw).startswith(expected)


def test_brackets_left_open_name_the_line_where_they_began() -> None:
    assert failure("a: [1,\n  2\nb: 3").endswith("(begun in line 1)")


@pytest.mark.parametrize("text", ["a: *hunter2", "a: !hunter2!x y"])
def test_a_text_that_yaml_takes_for_its_own_is_not_quoted_back(text: str) -> None:
    assert "hunter2" not in failure(text)


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? "])
def test_deep_nesting_is_refused_at_once(opening: str) -> None:
    began = time.monotonic()
    assert "deep; the configuration needs four" in failure(opening * 100_000)
    assert time.monotonic() - began < 5, "libyaml alone takes a minute, or the whole process with it"


def test_a_few_aliases_that_stand_for_billions_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "aliases stand for too many values" in failure("\n".join(lines))


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "c.yaml").value == {"a": "1"}


def test_no_text_of_the_file_hides_in_the_error_that_is_raised() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(b"key: hunter2\nbad: 'x", "c.yaml")
    assert raised.value.__context__ is None, "the parser's own error quotes the file"
