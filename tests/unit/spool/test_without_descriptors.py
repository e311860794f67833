from __future__ import annotations

from pathlib import Path

from ingestor.spool.ballast import Ballast
from ingestor.spool.mark import Mark, read_mark, write_mark
from tests.support.descriptors import only_descriptors


def test_mark_without_a_descriptor_keeps_the_older_one(tmp_path: Path) -> None:
    write_mark(tmp_path / "mark", Mark("a", 1, 2))
    with only_descriptors(0):
        write_mark(tmp_path / "mark", Mark("a", 3, 4))
    assert read_mark(tmp_path / "mark") == Mark("a", 1, 2)


def test_ballast_without_a_descriptor_is_not_held(tmp_path: Path) -> None:
    with only_descriptors(0):
        ballast = Ballast(tmp_path / "ballast")
    assert not ballast.held
    ballast.reserve()
    assert ballast.held
