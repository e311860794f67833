"""Count over all connections of a group, for status and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ingestor.core.clock import wall_us
from ingestor.provider.socket.connection import CloseReason, Connection, ConnectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """The status of one connection group."""

    path: str
    params: str
    connection_id: str  # empty without a connection
    protocol: str  # "4", "3" or "0.9"; empty without a connection
    connected: bool
    since_us: int | None  # when it connected or disconnected; None before the first connection
    frames: int  # over all its connections
    last_frame_us: int | None
    reconnects: Mapping[str, int]  # by cause
    last_error: str
    failed_attempts: int  # to connect, in a row
    retry_boottime: float  # when the next attempt begins, if ``failed_attempts``


class GroupCounters:
    """Counters of one group, kept across its connections."""

    def __init__(self) -> None:
        self.last_error = ""
        self.failed_attempts = 0
        self.retry_boottime = 0.0
        self._frames = 0  # of closed connections
        self._last_frame_us: int | None = None
        self._since_us: int | None = None
        self._reconnects: Counter[str] = Counter()

    def on_connected(self) -> None:
        self._since_us = wall_us()
        self.last_error = ""
        self.failed_attempts = 0

    def on_disconnected(self) -> None:
        self._since_us = wall_us()

    def note_failure(self, error: str, attempts: int, retry_boottime: float) -> None:
        self.last_error, self.failed_attempts, self.retry_boottime = error, attempts, retry_boottime

    def count_reconnect(self, closed: CloseReason) -> None:
        self._reconnects[closed.cause] += 1
        self.last_error = closed.reason

    def add_closed(self, connection: Connection) -> None:
        """Add the frames of a connection that is closed, whether it was ever in use or not."""
        self._frames += connection.frames
        self._last_frame_us = connection.last_frame_us or self._last_frame_us

    def status(
        self, settings: ConnectionSettings, current: Connection | None, open_connections: Collection[Connection]
    ) -> GroupStatus:
        """Return the status. ``open_connections`` are those that were not passed to ``add_closed``."""
        frame_times = [connection.last_frame_us for connection in open_connections]
        return GroupStatus(
            path=settings.path,
            params=settings.params,
            connection_id=current.id if current else "",
            protocol=current.protocol_version.value if current else "",
            connected=current is not None,
            since_us=self._since_us,
            frames=self._frames + sum(connection.frames for connection in open_connections),
            last_frame_us=max((at for at in [*frame_times, self._last_frame_us] if at is not None), default=None),
            reconnects=dict(self._reconnects),
            last_error=self.last_error,
            failed_attempts=self.failed_attempts,
            retry_boottime=self.retry_boottime,
        )
