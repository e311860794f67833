"""The table of messages in docs/operations.md: each is logged as written there, and each warning is in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ingestor
from ingestor.core.entries import Fact
from ingestor.monitoring import fact_messages, status
from ingestor.store import failures

PACKAGE = Path(ingestor.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "operations.md").read_text()
SECTION = PAGE[PAGE.index("\n## Messages\n") : PAGE.index("\n## States of a subscription\n")]
FIRST_COLUMN = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)
MESSAGES, REASONS = (
    FIRST_COLUMN.findall(part) for part in SECTION.split("### Reasons why the database is unavailable", maxsplit=1)
)
LEVELS = {"warning", "error", "critical", "exception"}


def logged(levels: set[str]) -> Iterator[str]:
    """Yield the message of each call of a logger with one of these levels, ``…`` in place of its arguments."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels:
                name, message = node.func.value, node.args[0] if node.args else None
                if isinstance(name, ast.Name) and name.id == "log" and isinstance(message, ast.Constant):
                    yield re.sub(r"%[.\d]*[a-z]", "…", str(message.value))


def facts_of_severity(*severities: str) -> Iterator[str]:
    """Yield the message of each kind of fact, and of its variants, that has one of these severities."""
    for name in fact_messages._MESSAGES:
        kind, _, variant = name.partition(": ")
        fact = Fact(
            kind, 0, {"cause": variant} if variant else {}, "silent" if kind == "silent" and not variant else None
        )
        if status.severity(fact) in severities:
            yield fact_messages.message_of(fact)


def kinds_of_failure(value: object) -> Iterator[str]:
    if isinstance(value, failures.Failure):
        yield value.what
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from kinds_of_failure(item)


def test_each_message_of_the_table_is_logged() -> None:
    known = {*logged(LEVELS | {"info"}), *facts_of_severity("info", "warning", "error")}
    assert len(MESSAGES) >= 20
    assert [message for message in MESSAGES if message not in known] == []


def test_each_warning_is_in_the_table() -> None:
    assert sorted({*logged(LEVELS), *facts_of_severity("warning", "error")} - {*MESSAGES}) == []


def test_each_reason_of_the_database_is_in_the_table_and_no_other() -> None:
    assert {*REASONS} == {what for value in vars(failures).values() for what in kinds_of_failure(value)}


def test_no_message_is_listed_twice() -> None:
    assert len({*MESSAGES, *REASONS}) == len(MESSAGES) + len(REASONS)
