"""From the raw text of a frame to observations. Pure: no clock, no file, no database, and no exception for any input.

It refuses what a database would refuse (length, NUL, range), so that a rejected insert is the exception.
What cannot be read is set aside with its reason, row by row where the rows can be told apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ingestor.core.entries import Frame, SeriesKey
from ingestor.core.times import DAY_US

# (series, ts, value, row index); ts: µs since the epoch (UTC), the provider's bucket
DecodedValue: TypeAlias = tuple[SeriesKey, int, float, int]

KEY_CHARACTERS = 64  # of a feed, metric, ticker or user_id
DEAD_ROWS_PER_FRAME = 1_000  # more, and the frame is one dead letter; so it is with more than these:
CHARACTERS_PER_FRAME = 12 << 20  # in the smallest rows, they take up some 300 MB until they are stored
VALUES_PER_FRAME = 400_000  # 400 MB; the service has 512, and what would not fit would be tried again and again
FIELDS_PER_ROW = 1_000
TIMES_REMEMBERED = 20_000
DAY_CHARACTERS = 10  # 2026-11-26
NUMBERS_REMEMBERED = 20_000
TICKERS_REMEMBERED = 20_000
PLAIN_FIELDS = 3  # ts, ticker and one value
FEEDS_REMEMBERED = 1_000
CHARACTERS_REMEMBERED = 1_000  # of a text from outside, by which something is remembered
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BLANK = re.compile(r"[ \t\n\r]*")
_KEY_FIELDS = frozenset({"ts", "ticker", "user_id"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.json.Decoder().decode
_LATEST_US = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds() * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row (or, with no ``row_index``, the whole frame) that could not be read: why, and its own text."""

    reason: str  # a few fixed words, to be counted
    detail: str  # what exactly
    body: str
    row_index: int | None = None


class DecodedFrame(msgspec.Struct, kw_only=True):
    """What one frame says. A struct of msgspec's: one is made for each frame, in a third of a dataclass's time."""

    event: str
    body: str  # the provider's own text: the event's argument, or the REST answer
    path: str = ""  # whose rows these are: the envelope's, else the frame's
    params: str = ""
    feed: str = ""
    observations: list[DecodedValue] = []
    rows: int = 0  # rows of the response, dead ones included
    published_us: int | None = None  # the envelope's stamp: not to be trusted
    dead: list[RejectedRow] = []
    unknown_fields: dict[str, int] = {}  # how often each was met

    @property
    def dead_frame(self) -> RejectedRow | None:
        return next((row for row in self.dead if row.row_index is None), None) if self.dead else None


class _FeedSchema(NamedTuple):
    """What is known of a path's rows."""

    name: str
    metrics: Mapping[str, str] | None  # field → metric; None for a path that is not documented
    plain: dict[str, tuple[SeriesKey, str]]  # ticker → series and field of a row that has one value, and no user


class _Rejected(Exception):
    """A row or frame that cannot be stored. Never leaves this module."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        # repr: what came from outside may hold anything, and a detail is read by people
        self.detail = (
            detail if isinstance(detail, str) and detail.isascii() and detail.isprintable() else _short(detail)
        )


class Decoder:
    """Reads frames. ``metrics_of(path)``: field → metric of a documented path; ``feed_name``: its feed."""

    def __init__(
        self,
        metrics_of: Callable[[str], Mapping[str, str] | None],
        feed_name: Callable[[str, Mapping[str, str]], str],
    ) -> None:
        self._metrics_of = metrics_of
        self.feed_name = feed_name
        self._feeds: dict[tuple[str, str], _FeedSchema] = {}
        # A rolling window repeats each row some sixty times: its parts are read once.
        self._days: dict[str, int] = {}  # 2026-11-26 → its midnight UTC
        self._clocks: dict[str, int] = {}  # T12:34:00.000Z → µs since then
        self._numbers: dict[str, float] = {}
        self._tickers = 0  # that the feeds know

    def decode(self, frame: Frame) -> DecodedFrame:
        event, body = split_event(frame)
        decoded = DecodedFrame(event=event, body=body, path=frame.path, params=frame.params)
        try:
            self._read(frame, decoded)
        except _Rejected as bad:
            _bury(decoded, bad.reason, bad.detail)
        except RecursionError:
            _bury(decoded, "nested too deep", "")
        except Exception as mistake:
            # A frame that we fail to read must not stop all that come after it: it waits for a better decoder.
            _bury(decoded, "a mistake in the decoder", repr(mistake)[:200])
        return decoded

    def _read(self, frame: Frame, decoded: DecodedFrame) -> None:
        if not frame.event:
            raise _Rejected("not an event", "the text is not a Socket.IO event that can be read")
        if len(decoded.body) > CHARACTERS_PER_FRAME:
            raise _Rejected("too long", f"{len(decoded.body)} characters, {CHARACTERS_PER_FRAME} are read")
        try:
            payload = _decode(decoded.body)
        except (msgspec.DecodeError, RecursionError, ValueError):
            payload = _loads_leniently(decoded.body)
        if type(payload) is not list:
            payload = self._opened(payload, frame, decoded)
        feed = self._feeds.get((decoded.path, decoded.params)) or self._feed(decoded.path, decoded.params)
        decoded.feed = feed.name
        decoded.rows = len(payload)
        self._read_rows(payload, feed, decoded)

    def _opened(self, payload: Any, frame: Frame, decoded: DecodedFrame) -> list[Any]:
        """The rows of an envelope, or of a row that stands alone."""
        if isinstance(payload, dict) and "results" in payload:
            decoded.path, decoded.params = _attribution(payload, frame)
            decoded.published_us = self._published(payload.get("timestamp"))
            payload = payload["results"] if payload["results"] is not None else []
        if isinstance(payload, dict):
            return [payload]
        if not isinstance(payload, list):
            raise _Rejected("not a list of rows", f"found {type(payload).__name__}")
        return payload

    def _feed(self, path: str, params: str) -> _FeedSchema:
        feed = _FeedSchema(_key("feed", self.feed_name(path, json.loads(params or "{}"))), self._metrics_of(path), {})
        if len(self._feeds) >= FEEDS_REMEMBERED:  # an envelope may name anything
            self._feeds.clear()
        if len(path) + len(params) <= CHARACTERS_REMEMBERED:
            self._feeds[path, params] = feed
        return feed

    def _read_rows(self, rows: list[Any], feed: _FeedSchema, decoded: DecodedFrame) -> None:
        bad: list[tuple[int, _Rejected]] = []
        found, plain = decoded.observations, feed.plain
        days, clocks, number_of = self._days, self._clocks, self._numbers.get
        for index, row in enumerate(rows):
            try:
                try:
                    series, name = plain[row["ticker"]]
                    ts, value = row["ts"], row[name]
                    ts_us = days[ts[:DAY_CHARACTERS]] + clocks[ts[DAY_CHARACTERS:]]
                    if len(row) == PLAIN_FIELDS and value is not None:
                        found.append((series, ts_us, number_of(value) or self._number(name, value), index))
                        continue
                except (KeyError, TypeError):
                    pass  # not as the one before it of its ticker
                found += self._row(index, row, feed, decoded)
            except _Rejected as error:
                bad.append((index, error))
            if len(decoded.observations) > VALUES_PER_FRAME:
                raise _Rejected("too many values", f"more than {VALUES_PER_FRAME}")
        if len(bad) > DEAD_ROWS_PER_FRAME:
            raise _Rejected("too many bad rows", f"{len(bad)} of {len(rows)}, the first: {bad[0][1].reason}")
        if bad:
            texts = _row_texts(decoded.body, rows)
            decoded.dead = [
                RejectedRow(reason=error.reason, detail=error.detail, body=texts(index), row_index=index)
                for index, error in bad
            ]

    def _row(self, index: int, row: Any, feed: _FeedSchema, decoded: DecodedFrame) -> list[DecodedValue]:
        if not isinstance(row, dict):
            raise _Rejected("not an object", f"found {type(row).__name__}")
        if len(row) > FIELDS_PER_ROW:
            raise _Rejected("too many fields", f"{len(row)}, {FIELDS_PER_ROW} are read")
        ts = self._time(row.get("ts"))
        ticker = _key("ticker", row.get("ticker"))
        user_id = _user(row.get("user_id"))
        found: dict[str, float] = {}
        metrics = feed.metrics
        for name, value in row.items():
            if name in _KEY_FIELDS:
                continue
            metric = metrics.get(name) if metrics is not None else _generic(name, value)
            if metric is None:
                short = name[:KEY_CHARACTERS]
                decoded.unknown_fields[short] = decoded.unknown_fields.get(short, 0) + 1
            elif value is not None:
                found[metric] = self._number(name, value)
        if not found:
            raise _Rejected("no value", f"fields: {', '.join(map(_short, row))}")
        observations = [((feed.name, metric, ticker, user_id), ts, value, index) for metric, value in found.items()]
        if metrics is not None and len(row) == PLAIN_FIELDS and "user_id" not in row:
            self._remember(feed, ticker, observations[0][0], next(name for name in row if name not in _KEY_FIELDS))
        return observations

    def _remember(self, feed: _FeedSchema, ticker: str, series: SeriesKey, name: str) -> None:
        """The next row of this ticker will be like this one: one value, and no user."""
        if self._tickers >= TICKERS_REMEMBERED:
            self._feeds.clear()
            self._tickers = 0
        self._tickers += ticker not in feed.plain
        feed.plain[ticker] = series, name

    def _number(self, name: str, value: Any) -> float:
        number = _number(name, value)
        if type(value) is str:  # no other type: 1 == 1.0 == True
            if len(self._numbers) >= NUMBERS_REMEMBERED:
                self._numbers.clear()
            self._numbers[value] = number
        return number

    def _time(self, text: Any) -> int:
        if not isinstance(text, str):
            raise _Rejected("no ts" if text is None else "ts is not text", text)
        stamp = _instant(text)
        day, clock = text[:DAY_CHARACTERS], text[DAY_CHARACTERS:]
        if clock[:1] == "T" and len(clock) <= CHARACTERS_REMEMBERED:  # a second may have a million decimals
            self._remember_time(day, clock, stamp)
        return stamp

    def _remember_time(self, day: str, clock: str, stamp: int) -> None:
        """A time is the sum of its day's beginning and its time of day: each minute is new, but both were met."""
        midnight = _microseconds(day)
        if not DAY_US <= midnight <= _LATEST_US - 2 * DAY_US:
            return  # with another time of day, or offset, it might be out of range
        for memory in (self._days, self._clocks):
            if len(memory) >= TIMES_REMEMBERED:
                memory.clear()
        self._days[day] = midnight
        self._clocks[clock] = stamp - midnight

    def _published(self, text: Any) -> int | None:
        # Printed samples are hours off, so an unreadable one costs nothing: NULL, and the rows count.
        try:
            return self._time(text)
        except _Rejected:
            return None


def _bury(decoded: DecodedFrame, reason: str, detail: str) -> None:
    decoded.observations.clear()
    decoded.dead = [RejectedRow(reason=reason, detail=detail, body=decoded.body)]


def split_event(frame: Frame) -> tuple[str, str]:
    """(event, body): the argument's own text of ``42["event",body]``; a REST answer is its own body."""
    text, event = frame.text, frame.event
    if frame.source != "stream" or not event:
        return event, text
    prefix = f'42["{event}",'
    if text.startswith(prefix) and text.endswith("]"):
        return event, text[len(prefix) : -1]
    try:
        _, (start, end, _) = _items(text, text.index("["))  # spaced or escaped in another way
    except (ValueError, IndexError, RecursionError):
        return event, text
    return event, text[start:end]


def _loads_leniently(body: str) -> Any:
    """NaN, lone surrogates and numbers of thousands of digits: the standard library takes more than the fast one."""
    try:
        return _LENIENT.decode(body)
    except RecursionError:
        raise _Rejected("nested too deep") from None
    except ValueError as error:
        # More than one argument, or none, is what a body without brackets looks like here.
        raise _Rejected("not JSON", str(error)) from None


def _integer(digits: str) -> int | float:
    # The interpreter refuses to read thousands of digits; one such value must not cost the frame's other rows.
    return int(digits) if len(digits) <= 400 else math.inf


# Takes NaN, lone surrogates and integers of any length, as long as nobody asks what they mean.
_LENIENT = json.JSONDecoder(parse_int=_integer)


def _row_texts(body: str, rows: list[Any]) -> Callable[[int], str]:
    """Each row's own text, by index."""
    try:
        spans = _row_spans(body)
        if len(spans) == len(rows):
            return lambda index: body[slice(*spans[index])]
    except (ValueError, RecursionError):
        pass  # read by a parser that takes more than this one: written anew
    return lambda index: json.dumps(rows[index])


def _row_spans(body: str) -> list[tuple[int, int]]:
    """(start, end) of each row in a list, in an envelope's ``results``, or of the one that stands alone."""
    start = _blank(body, 0)
    if body[start] == "{":
        results = _value_of("results", body, start)
        start = start if results is None else results
    if body[start] == "{":
        return [(start, _LENIENT.raw_decode(body, start)[1])]
    return [(first, last) for first, last, _ in _items(body, start)]


def _value_of(key: str, body: str, start: int) -> int | None:
    """Where the value of an object's key begins; of equal keys the last counts, as it does for parsers."""
    found, wanted = None, False
    for first, last, end in _items(body, start):
        if end == ":":
            wanted = json.loads(body[first:last]) == key
        elif wanted:
            found, wanted = first, False
    return found


def _items(body: str, start: int) -> Iterator[tuple[int, int, str]]:
    """(start, end, delimiter behind it) of what a list holds, or of an object's keys and values by turns."""
    at = _blank(body, start + 1)
    while body[at] not in "]}":
        _, end = _LENIENT.raw_decode(body, at)
        behind = _blank(body, end)
        yield at, end, body[behind]
        at = _blank(body, behind + 1) if body[behind] in ",:" else behind


def _blank(body: str, start: int) -> int:
    found = _BLANK.match(body, start)
    return found.end() if found else start


def _attribution(payload: dict[str, Any], frame: Frame) -> tuple[str, str]:
    """An envelope's own path and params (JSON); the connection's where it names none."""
    own = payload.get("path")
    if not isinstance(own, str) or not own:
        return frame.path, frame.params
    mine = payload.get("params")
    if not isinstance(mine, dict):
        return own, "{}"
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in mine.items()}
    return own, json.dumps(texts, sort_keys=True)


def _generic(name: str, value: Any) -> str | None:
    """The metric of an undocumented path's field: its own name, if the value is a number."""
    if isinstance(value, bool) or len(name) > KEY_CHARACTERS or _unstorable(name):
        return None
    numeric = isinstance(value, int | float) or (isinstance(value, str) and _DECIMAL.fullmatch(value))
    return name if numeric else None


def _key(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise _Rejected(f"no {name}" if text in (None, "") else f"{name} is not text", text)
    if len(text) > KEY_CHARACTERS:
        raise _Rejected(f"{name} too long", f"{len(text)} characters, {KEY_CHARACTERS} fit")
    if _unstorable(text):
        raise _Rejected(f"{name} has characters that cannot be stored", text)
    return text


def _unstorable(text: str) -> bool:
    # NUL is refused by PostgreSQL, a lone surrogate by both databases.
    return "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text))


def _user(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = _digits(value)
    return _key("user_id", value)


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than the interpreter prints
        raise _Rejected("user_id too long") from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) and len(value) <= 400 and _DECIMAL.fullmatch(value):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise _Rejected("value out of range", name) from None
    else:
        raise _Rejected("value is not a number", f"{_short(name)}: {_short(value)}")
    if not math.isfinite(number):
        raise _Rejected("value is not finite", f"{_short(name)}: {_short(value)}")
    return number


def _instant(text: str) -> int:
    microseconds = _microseconds(text)
    if not 0 <= microseconds <= _LATEST_US:
        raise _Rejected("ts out of range", text)
    return microseconds


def _microseconds(text: str) -> int:
    try:
        stamp = datetime.fromisoformat(text)
        if stamp.tzinfo is None:
            stamp = stamp.replace(tzinfo=UTC)  # the documentation says UTC
        delta = stamp - _EPOCH
    except (ValueError, OverflowError):
        raise _Rejected("ts is not a time", text) from None
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _short(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 1_000:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = ascii(value)
    except RecursionError:
        return "something nested too deep"
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
