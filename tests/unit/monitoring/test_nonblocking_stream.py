from __future__ import annotations

import io
import threading

import pytest

from ingestor.monitoring import nonblocking_stream
from ingestor.monitoring.nonblocking_stream import NonBlockingWriter


class GatedStream(io.StringIO):
    """A stream that lets one line pass for each release of ``passes``, like a pipe with a slow reader."""

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
        pytest.param([], ["0", "1", "2", "2 missing"], id="no further line"),
        pytest.param(["5"], ["0", "1", "2", "2 missing", "5"], id="a further line"),
        pytest.param(["5", "6"], ["0", "1", "2", "2 missing", "5", "1 missing"], id="further lines than fit"),
    ],
)
def test_notice_stands_where_dropped_lines_are_missing(
    monkeypatch: pytest.MonkeyPatch, later: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr(nonblocking_stream, "MAX_QUEUED_CHARACTERS", 6)
    stream = GatedStream()
    writer = NonBlockingWriter(stream, lambda count: f"{count} missing\n")
    for number in range(5):
        writer.write(f"{number}\n")
    stream.arrived.acquire()
    stream.passes.release()
    stream.arrived.acquire()  # the second line is being written, so there is room for another one
    for line in later:
        writer.write(f"{line}\n")
    stream.passes.release(10)
    writer.flush()
    writer.close()
    assert stream.getvalue().splitlines() == expected


def test_line_longer_than_the_queue_is_written_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonblocking_stream, "MAX_QUEUED_CHARACTERS", 6)
    stream = io.StringIO()
    writer = NonBlockingWriter(stream, str)
    writer.write("x" * 100)
    writer.flush()
    writer.close()
    assert stream.getvalue() == "x" * 100
