from __future__ import annotations

import io
import threading

import pytest

from ingestor.monitoring import nonblocking_stream
from ingestor.monitoring.nonblocking_stream import NonBlockingWriter


class Turnstile(io.StringIO):
    """A stream that lets one line through for each ``passes``, as a pipe does whose reader comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def write(self, text: str) -> int:
        self.arrived.release()
        self.passes.acquire()
        return super().write(text)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("later", "expected"),
    [
        pytest.param([], ["0", "1", "2", "2 missing"], id="nothing more"),
        pytest.param(["5"], ["0", "1", "2", "2 missing", "5"], id="more"),
        pytest.param(["5", "6"], ["0", "1", "2", "2 missing", "5", "1 missing"], id="more than there is room for"),
    ],
)
def test_the_number_of_lines_that_found_no_room_stands_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, later: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr(nonblocking_stream, "WAITING_CHARACTERS", 6)
    stream = Turnstile()
    made = NonBlockingWriter(stream, lambda count: f"{count} missing\n")
    for number in range(5):
        made.write(f"{number}\n")
    stream.arrived.acquire()
    stream.passes.release()
    stream.arrived.acquire()  # the second line is on its way, so the first one's room is free
    for line in later:
        made.write(f"{line}\n")
    stream.passes.release(10)
    made.flush()
    made.close()
    assert stream.getvalue().splitlines() == expected


def test_a_line_longer_than_all_the_room_is_written_when_nothing_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonblocking_stream, "WAITING_CHARACTERS", 6)
    stream = io.StringIO()
    made = NonBlockingWriter(stream, str)
    made.write("x" * 100)
    made.flush()
    made.close()
    assert stream.getvalue() == "x" * 100
