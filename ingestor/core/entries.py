"""The entries of the spool: frames (what the provider sent) and facts (what happened to the daemon)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct

Source = Literal["stream", "snapshot", "backfill"]

State = Literal[
    "pending",
    "live",
    "silent",
    "refused",
    "disconnected",
    "token_failed",
    "spool_full",
    "standby",
    "stopped",
    "crashed",
    "lost",
]

SeriesKey: TypeAlias = tuple[str, str, str, str]  # (feed, metric, ticker, user_id)

# (path, method, params as canonical JSON): identifies a subscription.
SubscriptionKey: TypeAlias = tuple[str, str, str]

# (path, connection params): identifies the subscriptions that share a connection, and that connection.
GroupKey: TypeAlias = tuple[str, str]

# (path and params of a connection, ticker): what a frame has data for. Ticker "": any data of the connection.
Channel: TypeAlias = tuple[str, str, str]
UNNAMED = "\0"  # in a channel: no rows and no ticker, such as an empty list. No ticker contains it

BACKFILL_REQUESTED = "backfill_requested"  # the kind of a fact; its detail has the requests

ROW_PARAMS = frozenset({"ticker", "user_id"})  # that each row names: columns of their own


class LetterOrigin(NamedTuple):
    """What a dead letter was made from. Its id may be another letter's, after the database went back in time."""

    instance_id: int
    seq: int
    row_index: int | None


class Frame(Struct, frozen=True, array_like=True, tag="f"):
    """The raw text of one data event or REST response, before decoding.

    Times are µs since the epoch (UTC) of our clock: an integer costs a tenth of a datetime on the receive path.
    For REST: when the request was sent, because the response may reflect the state at that moment.
    """

    received_us: int
    connection_id: str  # 12 hex digits, new for each socket
    source: Source
    event: str  # name of the Socket.IO event; "" if the text is not a readable event
    path: str  # the path of the connection's subscriptions, or of the request
    params: str  # canonical JSON; without ticker, for REST with all params
    text: str  # socket: the message as received, `42["res",[…]]`; REST: the body
    retry_of: int | None = None  # the id of the dead letter that this frame retries
    retry_origin: LetterOrigin | None = None  # of that letter; None in entries of older programs


class FrameRun(Struct, frozen=True, array_like=True, tag="r"):
    """Consecutive frames of one connection: what they have in common is stored and decoded once."""

    connection_id: str
    source: Source
    event: str
    path: str
    params: str
    received_us: list[int]
    texts: list[str]

    def continues_with(self, other: Frame | FrameRun) -> bool:
        return (
            other.connection_id == self.connection_id
            and other.event == self.event
            and other.source == self.source
            and other.path == self.path
            and other.params == self.params
        )

    def frame(self, number: int) -> Frame:
        common = self.connection_id, self.source, self.event, self.path, self.params
        return Frame(self.received_us[number], *common, self.texts[number])

    def frames(self) -> list[Frame]:
        return [self.frame(number) for number in range(len(self.texts))]

    def part(self, start: int, count: int = sys.maxsize) -> FrameRun:
        """Return a run of at most ``count`` of the frames, from number ``start`` on."""
        if start == 0 and count >= len(self.texts):
            return self
        stamps, texts = self.received_us[start : start + count], self.texts[start : start + count]
        return FrameRun(self.connection_id, self.source, self.event, self.path, self.params, stamps, texts)


class Fact(Struct, frozen=True, array_like=True, tag="e"):
    """An event of the daemon itself.

    With a ``state``, ``subscriptions`` have been in that state since ``since_us`` (default ``at_us``). With
    ``until_us``, the clock was set: every state ended then by the old clock, and goes on from ``since_us`` by the new
    one. Coverage is made from these facts only.
    """

    kind: str
    at_us: int
    detail: dict[str, Any]
    state: State | None = None
    subscriptions: tuple[SubscriptionKey, ...] = ()
    since_us: int | None = None
    others: bool = False  # the state is that of all subscriptions that are *not* named
    group: GroupKey | None = None  # the state is that of all subscriptions of this connection
    until_us: int | None = None


Item: TypeAlias = FrameRun | Frame | Fact  # a frame or fact, or several frames at once
Entry: TypeAlias = tuple[int, Frame | Fact]  # (seq, frame or fact)
SpooledItem: TypeAlias = tuple[int, Item]  # (seq of its first entry, item)


def recorded_us(item: Item) -> int:
    """Return when a fact was recorded, or the first frame received."""
    if isinstance(item, FrameRun):
        return item.received_us[0]
    return item.received_us if isinstance(item, Frame) else item.at_us


def count_entries(item: Item) -> int:
    return len(item.texts) if isinstance(item, FrameRun) else 1


def split_into_entries(items: Iterable[SpooledItem]) -> Iterator[Entry]:
    for seq, item in items:
        if isinstance(item, FrameRun):
            yield from enumerate(item.frames(), seq)
        else:
            yield seq, item


def items_after(seq: int, items: Iterable[SpooledItem]) -> Iterator[SpooledItem]:
    """Leave out the entries up to ``seq``."""
    for first_seq, item in items:
        if first_seq > seq:
            yield first_seq, item
        elif isinstance(item, FrameRun) and first_seq + len(item.texts) > seq + 1:
            yield seq + 1, item.part(seq + 1 - first_seq)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(params: Mapping[str, str]) -> str:
    """Return params as canonical JSON, which identifies them in the database: sorted, without spaces."""
    return _CANONICAL.encode(dict(params))


def connection_params(params: str) -> str:
    """Return the params of a connection for a subscription with these: all that no row names. Both canonical JSON."""
    shared = {name: value for name, value in json.loads(params).items() if name not in ROW_PARAMS}
    return canonical_json(shared)
