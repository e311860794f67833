"""What the spool holds: frames (what the provider sent) and facts (what happened to us). Knows neither's meaning."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

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
    "stopped",
    "crashed",
    "lost",
]

SeriesKey: TypeAlias = tuple[str, str, str, str]  # (feed, metric, ticker, user_id)

# (path, method, params as canonical JSON): what a subscription is called wherever it is stored.
SubscriptionKey: TypeAlias = tuple[str, str, str]

# (path and params of a connection, ticker): what data is for, as far as the frame tells; "" stands for any data of it.
Channel: TypeAlias = tuple[str, str, str]


class Frame(Struct, frozen=True, array_like=True, tag="f"):
    """The raw text of one data event, or of one REST answer, before anyone looked inside.

    Stamps are microseconds since the epoch (UTC) of our clock: integers cost a tenth of a datetime on the receive path.
    For REST it is when the request was sent, since an answer is as old as its question.
    """

    received_us: int
    connection_id: str  # 12 hex digits, new for every socket
    source: Source
    event: str  # the Socket.IO event's name; "" where the text is not an event that can be read
    path: str  # the path of the connection's subscriptions, or of the request
    params: str  # its params other than ticker (REST: all), canonical JSON
    text: str  # socket: the message as it came, `42["res",[…]]`; REST: the body
    retry_of: int | None = None  # the id of the dead letter that this frame retries


class Fact(Struct, frozen=True, array_like=True, tag="e"):
    """Something that happened to the daemon itself.

    With a ``state``, the named subscriptions have been in that state since ``since_us`` (default ``at_us``): coverage
    is made from these and from nothing else.
    """

    kind: str
    at_us: int
    detail: dict[str, Any]
    state: State | None = None
    subscriptions: tuple[SubscriptionKey, ...] = ()
    since_us: int | None = None
    others: bool = False  # the state is that of every subscription that is *not* named


Entry: TypeAlias = tuple[int, Frame | Fact]  # (seq, what)
