"""The seeded bugs still fit the code: each text stands exactly once, and the tests that must notice it exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..tools.seeded_bugs import BUGS, Bug

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.name) for bug in BUGS])
def test_seeded_bug_matches_one_place_and_names_existing_tests(bug: Bug) -> None:
    assert (TOP / "ingestor" / bug.file).read_text(encoding="utf-8").count(bug.right) == 1
    files = [word.partition("::")[0] for word in bug.tests.split() if word.startswith("tests/")]
    assert files
    assert [file for file in files if not (TOP / file).exists()] == []
