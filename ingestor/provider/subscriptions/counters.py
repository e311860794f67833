"""What a group's connections have come to so far, for status and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ingestor.core.clock import wall_us
from ingestor.provider.socket.connection import CloseReason, Connection, ConnectionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A group as status and metrics show it."""

    path: str
    params: str
    connection_id: str  # empty without a connection
    protocol: str  # "4" or "3"; empty without a connection
    connected: bool
    since_us: int | None  # when it was connected, or lost; None before the first connection
    frames: int  # of all its connections so far
    last_frame_us: int | None
    reconnects: Mapping[str, int]  # by cause
    last_error: str


class GroupCounters:
    """Counts on over all connections that a group has had."""

    def __init__(self) -> None:
        self.last_error = ""
        self._frames = 0  # of connections that are over
        self._last_frame_us: int | None = None
        self._since_us: int | None = None
        self._reconnects: Counter[str] = Counter()

    def connected(self) -> None:
        """There is a connection that counts."""
        self._since_us = wall_us()
        self.last_error = ""

    def disconnected(self) -> None:
        """There is none any more."""
        self._since_us = wall_us()

    def ended(self, ended: CloseReason) -> None:
        """Why."""
        self._reconnects[ended.cause] += 1
        self.last_error = ended.reason

    def retired(self, connection: Connection) -> None:
        """One is cleared up, whether it counted or not."""
        self._frames += connection.frames
        self._last_frame_us = connection.last_frame_us or self._last_frame_us

    def status(self, line: ConnectionSettings, now: Connection | None, still: Iterable[Connection]) -> GroupStatus:
        """A snapshot. ``now`` is the connection that counts; ``still`` are all that are not retired."""
        connections = list(still)
        frame_times = [connection.last_frame_us for connection in connections]
        return GroupStatus(
            path=line.path,
            params=line.params,
            connection_id=now.id if now else "",
            protocol=now.protocol_version.value if now else "",
            connected=now is not None,
            since_us=self._since_us,
            frames=self._frames + sum(connection.frames for connection in connections),
            last_frame_us=max((at for at in [*frame_times, self._last_frame_us] if at is not None), default=None),
            reconnects=MappingProxyType(dict(self._reconnects)),
            last_error=self.last_error,
        )
