from __future__ import annotations

from ingestor.core.outage import MAX_ERRORS, REMIND_SECONDS, Outage


def test_outage_of_a_day_is_reported_once_an_hour() -> None:
    outage = Outage()
    reported = [now for now in range(0, 86_400, 15) if outage.note_failure(f"refused by port {now}", now)]
    assert reported == [hour * REMIND_SECONDS for hour in range(24)]
    assert outage.end(86_400) == {"failed_attempts": 5760, "outage_seconds": 86_400}
    assert outage.end(86_400) == {}


def test_different_errors_are_reported_up_to_a_limit() -> None:
    outage = Outage()
    errors = [f"error {'x' * (number % 40)}" for number in range(200)]
    assert [number for number, error in enumerate(errors) if outage.note_failure(error, number)] == [*range(MAX_ERRORS)]


def test_next_outage_is_reported_again() -> None:
    outage = Outage()
    assert outage.note_failure("refused", 5)
    assert not outage.note_failure("refused", 6)
    assert outage.end(7.25) == {"failed_attempts": 2, "outage_seconds": 2.2}
    assert outage.note_failure("refused", 8)
