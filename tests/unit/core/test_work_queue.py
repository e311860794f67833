from __future__ import annotations

from concurrent.futures import CancelledError

import pytest

from ingestor.core.errands import Errands
from ingestor.errors import DatabaseUnavailable


def test_an_errand_waits_until_what_it_follows_is_committed() -> None:
    errands = Errands()
    first, second = errands.ask(lambda me: f"first of {me}", 10), errands.ask(lambda me: f"second of {me}", 5)
    errands.run(7, position=9)
    assert (first.done(), second.result(0)) == (False, "second of 7")
    errands.run(8, position=10)
    assert first.result(0) == "first of 8"


def test_what_goes_wrong_is_told_to_who_asked_and_the_others_are_done() -> None:
    errands = Errands()

    def fail(_: int) -> None:
        raise DatabaseUnavailable("away")

    wrong, right = errands.ask(fail, 0), errands.ask(lambda _: 1, 0)
    errands.run(1, 0)
    with pytest.raises(DatabaseUnavailable):
        wrong.result(0)
    assert right.result(0) == 1


def test_nobody_waits_for_a_writer_that_has_ended() -> None:
    errands = Errands()
    done: list[int] = []
    before, withdrawn = errands.ask(done.append, 0), errands.ask(done.append, 0)
    withdrawn.cancel()
    errands.run(1, 0)
    assert (before.result(0), done) == (None, [1])
    waiting = errands.ask(done.append, 99)
    errands.close()
    for late in (waiting, errands.ask(done.append, 0)):
        with pytest.raises(CancelledError):
            late.result(0)
