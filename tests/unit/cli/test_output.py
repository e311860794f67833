from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from ingestor.cli.options import parse_time
from ingestor.cli.output import echo, printable, to_json
from ingestor.core.redaction import redactor
from tests.support.repairs import at

HOSTILE = "\x1b[2J\x9b31mhacked\nfake line\u202e\x7f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("ΑΒΓ – 6E_F é", "ΑΒΓ – 6E_F é", id="printable"),
        pytest.param("\x1b[2Jgone", "\\u001b[2Jgone", id="escape sequence"),
        pytest.param("one\ntwo\r", "one\\ntwo\\r", id="line breaks"),
        pytest.param("a\u202eb", "a\\u202eb", id="right to left"),
        pytest.param("\ud800", "\\ud800", id="lone surrogate"),
        pytest.param(None, "None", id="None"),
    ],
)
def test_printable_escapes_control_characters(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_json_is_valid_and_printable() -> None:
    data = {"said": HOSTILE, "half": "\ud800", "fine": "é ✓"}
    text = to_json(data)
    assert json.loads(text) == data
    assert all(line.isprintable() for line in text.split("\n"))
    assert "é ✓" in text


def test_echo_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    redactor.add("hunter2secret")
    try:
        echo("the password is hunter2secret")
    finally:
        redactor.remove("hunter2secret")
    assert capsys.readouterr().out == "the password is ***\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24h", at(5)), ("1h30m", at(5, 22, 30)), ("2026-01-02", at(2)), ("2026-01-02T10:00+02:00", at(2, 8))],
)
def test_parse_time_accepts_duration_or_time(text: str, expected: object) -> None:
    assert parse_time(text, at(6), "--since") == expected


@pytest.mark.parametrize("text", ["tomorrow", "0001-01-01T00:00+14:00", "9" * 400 + "d"])
def test_parse_time_rejects_other_text_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r'" is neither a duration \(7d\) nor a time'):
        parse_time(text, at(6), "--since")


INTERRUPTED_WRITE = """
import typer
from ingestor.cli import output, standard_streams

def interrupt(*_):
    standard_streams._written = written
    raise KeyboardInterrupt

standard_streams.open_standard_streams()
written, standard_streams._written = standard_streams._written, interrupt
try:
    with output.exit_on_interrupt():
        output.echo("once")
except typer.Exit:
    print("not printed")
"""


def test_line_that_was_printed_when_ctrl_c_came_is_not_printed_again() -> None:
    result = subprocess.run([sys.executable, "-c", INTERRUPTED_WRITE], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("once\n", "")
