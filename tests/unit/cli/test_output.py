from __future__ import annotations

import json

import pytest

from ingestor.cli.output import as_json, safe, say
from ingestor.redaction import redactor

HOSTILE = "\x1b[2J\x9b31mhacked\nfake line\u202e\x7f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("ΑΒΓ – 6E_F é", "ΑΒΓ – 6E_F é", id="what can be read stays"),
        pytest.param("\x1b[2Jgone", "\\u001b[2Jgone", id="a terminal's order"),
        pytest.param("one\ntwo\r", "one\\ntwo\\r", id="another line"),
        pytest.param("a\u202eb", "a\\u202eb", id="from right to left"),
        pytest.param("\ud800", "\\ud800", id="half a character"),
        pytest.param(None, "None", id="nothing"),
    ],
)
def test_text_from_outside_does_nothing_to_a_terminal(text: object, shown: str) -> None:
    assert safe(text) == shown


def test_json_means_what_it_meant_and_does_nothing_to_a_terminal() -> None:
    data = {"said": HOSTILE, "half": "\ud800", "fine": "é ✓"}
    text = as_json(data)
    assert json.loads(text) == data
    assert all(line.isprintable() for line in text.split("\n"))
    assert "é ✓" in text


def test_nothing_is_said_with_a_secret_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    redactor.add("hunter2secret")
    try:
        say("the password is hunter2secret")
    finally:
        redactor.forget("hunter2secret")
    assert capsys.readouterr().out == "the password is ***\n"
