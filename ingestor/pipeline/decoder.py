"""From the raw text of a frame to its values. Pure: no clock, no file, no database, and no exception for any input.

The decoder rejects what a database would reject (length, NUL, range), so that a rejected insert is the exception.
What cannot be read is rejected with a reason, row by row where the rows can be told apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from ingestor.core.entries import Frame
from ingestor.core.times import EPOCH, parse_time
from ingestor.pipeline import json_spans
from ingestor.pipeline.plain_rows import DecodedValue, PlainReader, PlainTimes, is_short

KEY_CHARACTERS = 64  # of a feed, metric, ticker or user_id
DEAD_ROWS_PER_FRAME = 1_000  # beyond these four limits the whole frame or row is one dead letter
CHARACTERS_PER_FRAME = 12 << 20  # in the smallest rows, they take up some 300 MB until they are stored
VALUES_PER_FRAME = 400_000  # 400 MB; the service has 512, and what does not fit would be retried again and again
FIELDS_PER_ROW = 1_000
CACHED_FEEDS = 1_000
CACHED_TEXT_CHARACTERS = 1_000  # longer texts from outside are not cached
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_KEY_FIELDS = frozenset({"ts", "ticker", "user_id"})
_decode = msgspec.json.Decoder().decode
_LATEST_US = (datetime(9999, 1, 1, tzinfo=UTC) - EPOCH).total_seconds() * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row (without ``row_index``: the whole frame) that could not be read, and its original text."""

    reason: str  # a few fixed texts, to be counted
    detail: str
    body: str
    row_index: int | None = None


class DecodedFrame(msgspec.Struct, kw_only=True):
    """The content of one frame. A msgspec struct, because one is made for each frame, in a third of the time."""

    event: str
    body: str  # the provider's own text: the event's argument, or the REST response
    path: str = ""  # of the envelope, else of the frame
    params: str = ""
    feed: str = ""
    observations: list[DecodedValue] = []
    rows: int = 0  # rows of the response, rejected ones included
    published_us: int | None = None  # the envelope's timestamp: not to be trusted
    dead: list[RejectedRow] = []
    unknown_fields: dict[str, int] = {}  # and how many rows have them

    @property
    def dead_frame(self) -> RejectedRow | None:
        return next((row for row in self.dead if row.row_index is None), None) if self.dead else None


class _FeedSchema(msgspec.Struct):
    name: str
    metrics: Mapping[str, str] | None  # field → metric; None for a path that is not documented
    reader: PlainReader | None = None  # of rows with the same fields as the last row that was read by itself


class _Rejected(Exception):
    """A row or frame that cannot be stored. Never leaves this module."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        # Text from outside may hold anything, and people read the detail.
        is_plain = isinstance(detail, str) and detail.isascii() and detail.isprintable()
        self.detail = str(detail) if is_plain else _shorten(detail)


class Decoder:
    """Decodes frames. ``metrics_of(path)``: field → metric of a documented path; ``feed_name``: the feed of a path."""

    def __init__(
        self,
        metrics_of: Callable[[str], Mapping[str, str] | None],
        feed_name: Callable[[str, Mapping[str, str]], str],
        *,
        fast: bool = True,
    ) -> None:
        """``fast=False`` reads every row by itself, to compare with."""
        self._fast = fast
        self._metrics_of = metrics_of
        self.feed_name = feed_name
        self._feeds: dict[tuple[str, str], _FeedSchema] = {}
        self._times = PlainTimes(_parse_ts, int(_LATEST_US))

    def decode(self, frame: Frame) -> DecodedFrame:
        event, body = split_event(frame)
        path, params = frame.path, frame.params
        feed = self._feeds.get((path, params)) if event else None
        if feed and feed.reader and (values := feed.reader.read(body)) is not None:
            rows = len(values) // len(feed.reader.fields)
            return DecodedFrame(
                event=event, body=body, path=path, params=params, feed=feed.name, observations=values, rows=rows
            )
        return self.decode_any(frame, event, body)

    def reader_of(self, path: str, params: str) -> PlainReader | None:
        """Return what reads the plain rows of this origin, if any were decoded."""
        feed = self._feeds.get((path, params))
        return feed.reader if feed else None

    def decode_any(self, frame: Frame, event: str, body: str) -> DecodedFrame:
        """Decode a frame whose rows need not be plain, with its event and body."""
        decoded = DecodedFrame(event=event, body=body, path=frame.path, params=frame.params)
        try:
            self._read(frame, decoded)
        except _Rejected as rejected:
            _reject(decoded, rejected.reason, rejected.detail)
        except RecursionError:
            _reject(decoded, "nested too deep", "")
        except Exception as error:
            # A frame that exposes a bug here must not stop the frames after it: it can be retried once that is fixed.
            _reject(decoded, "error in the decoder", repr(error)[:200])
        return decoded

    def feed_of(self, path: str, params: str) -> str:
        """Return the feed of a connection's path and params; "" if its name cannot be stored."""
        try:
            return (self._feeds.get((path, params)) or self._feed(path, params)).name
        except _Rejected:
            return ""

    def _read(self, frame: Frame, decoded: DecodedFrame) -> None:
        if not frame.event:
            raise _Rejected("not an event", "the text is not a Socket.IO event that can be read")
        if len(decoded.body) > CHARACTERS_PER_FRAME:
            raise _Rejected("too long", f"{len(decoded.body)} characters, {CHARACTERS_PER_FRAME} are read")
        try:
            payload = _decode(decoded.body)
        except (msgspec.DecodeError, RecursionError, ValueError):
            try:
                payload = json_spans.loads_leniently(decoded.body)
            except ValueError as error:  # also if the event has no argument, or several
                raise _Rejected("not JSON", str(error)) from None
        if type(payload) is not list:
            payload = self._unwrap(payload, frame, decoded)
        feed = self._feeds.get((decoded.path, decoded.params)) or self._feed(decoded.path, decoded.params)
        decoded.feed = feed.name
        decoded.rows = len(payload)
        self._read_rows(payload, feed, decoded)

    def _unwrap(self, payload: Any, frame: Frame, decoded: DecodedFrame) -> list[Any]:
        """Return the rows of an envelope, or the only row as a list."""
        if isinstance(payload, dict) and "results" in payload:
            decoded.path, decoded.params = _envelope_origin(payload, frame)
            decoded.published_us = self._parse_published(payload.get("timestamp"))
            payload = payload["results"] if payload["results"] is not None else []
        if isinstance(payload, dict):
            return [payload]
        if not isinstance(payload, list):
            raise _Rejected("not a list of rows", f"found {type(payload).__name__}")
        return payload

    def _feed(self, path: str, params: str) -> _FeedSchema:
        name = _check_key("feed", self.feed_name(path, json.loads(params or "{}")))
        feed = _FeedSchema(name, self._metrics_of(path))
        if len(self._feeds) >= CACHED_FEEDS:  # an envelope may name anything
            self._feeds.clear()
        if len(path) + len(params) <= CACHED_TEXT_CHARACTERS:
            self._feeds[path, params] = feed
        return feed

    def _read_rows(self, rows: list[Any], feed: _FeedSchema, decoded: DecodedFrame) -> None:
        values = decoded.observations
        rejected: list[tuple[int, _Rejected]] = []
        may_be_plain = is_short(decoded.body)
        index = 0
        while index < len(rows):
            if feed.reader and may_be_plain:
                plain = feed.reader.read_rows(rows, index)
                values += plain
                index += len(plain) // len(feed.reader.fields)
            if index < len(rows):
                try:
                    values += self._read_row(index, rows[index], feed, decoded)
                except _Rejected as error:
                    rejected.append((index, error))
                index += 1
            if len(values) > VALUES_PER_FRAME:
                raise _Rejected("too many values", f"more than {VALUES_PER_FRAME}")
        if len(rejected) > DEAD_ROWS_PER_FRAME:
            raise _Rejected("too many bad rows", f"{len(rejected)} of {len(rows)}, the first: {rejected[0][1].reason}")
        if rejected:
            texts = json_spans.row_texts(decoded.body, rows, rejected[-1][0] + 1)
            decoded.dead = [
                RejectedRow(reason=error.reason, detail=error.detail, body=texts(index), row_index=index)
                for index, error in rejected
            ]

    def _read_row(self, index: int, row: Any, feed: _FeedSchema, decoded: DecodedFrame) -> list[DecodedValue]:
        if not isinstance(row, dict):
            raise _Rejected("not an object", f"found {type(row).__name__}")
        if len(row) > FIELDS_PER_ROW:
            raise _Rejected("too many fields", f"{len(row)}, {FIELDS_PER_ROW} are read")
        ts = _parse_stored_time(row.get("ts"))
        ticker = _check_key("ticker", row.get("ticker"))
        user_id = _parse_user_id(row.get("user_id"))
        found: dict[str, float] = {}
        metrics = feed.metrics
        for field, value in row.items():
            if field in _KEY_FIELDS:
                continue
            metric = metrics.get(field) if metrics is not None else _undocumented_metric(field, value)
            if metric is None:
                short = field[:KEY_CHARACTERS]
                decoded.unknown_fields[short] = decoded.unknown_fields.get(short, 0) + 1
            elif value is not None:
                found[metric] = _parse_number(field, value)
        if not found:
            raise _Rejected("no value", f"fields: {', '.join(map(_shorten, row))}")
        values = [((feed.name, metric, ticker, user_id), ts, value, index) for metric, value in found.items()]
        if self._fast and metrics is not None and len(row) == len(values) + 2 and "user_id" not in row:
            self._expect_more(feed, tuple(field for field in row if field not in _KEY_FIELDS), values)
        return values

    def _expect_more(self, feed: _FeedSchema, fields: tuple[str, ...], values: list[DecodedValue]) -> None:
        """Expect that the next rows have the same fields: values only, and no user."""
        if feed.reader is None or feed.reader.fields != fields:
            name, metrics = feed.name, [series[1] for series, *_ in values]
            feed.reader = PlainReader(
                fields,
                lambda ticker: tuple((name, metric, _check_key("ticker", ticker), "") for metric in metrics),
                self._times,
            )

    def _parse_published(self, text: Any) -> int | None:
        # Printed samples are hours off, so an unreadable timestamp is NULL and rejects no row.
        with suppress(Exception):  # whatever it is: the next line finds out
            return self._times[text]
        with suppress(_Rejected):
            return _parse_stored_time(text)
        return None


def _reject(decoded: DecodedFrame, reason: str, detail: str) -> None:
    decoded.observations.clear()
    decoded.dead = [RejectedRow(reason=reason, detail=detail, body=decoded.body)]


def split_event(frame: Frame) -> tuple[str, str]:
    """Return (event, body): the text of the argument in ``42["event",body]``, or the whole REST response."""
    text, event = frame.text, frame.event
    if frame.source != "stream" or not event:
        return event, text
    prefix = f'42["{event}",'
    if text.startswith(prefix) and text.endswith("]"):
        return event, text[len(prefix) : -1]
    try:
        return event, json_spans.first_argument(text)  # with blanks, or escapes in the name
    except (ValueError, IndexError, RecursionError):
        return event, text


def _envelope_origin(payload: dict[str, Any], frame: Frame) -> tuple[str, str]:
    """Return an envelope's own path and params (JSON), or the frame's if it names none."""
    path = payload.get("path")
    if not isinstance(path, str) or not path:
        return frame.path, frame.params
    params = payload.get("params")
    if not isinstance(params, dict):
        return path, "{}"
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}
    return path, json.dumps(texts, sort_keys=True)


def _undocumented_metric(field: str, value: Any) -> str | None:
    """Return the metric of a field of an undocumented path: the field's name, if the value is a number."""
    if isinstance(value, bool) or len(field) > KEY_CHARACTERS or _is_unstorable(field):
        return None
    is_number = isinstance(value, int | float) or (isinstance(value, str) and _DECIMAL.fullmatch(value))
    return field if is_number else None


def _check_key(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise _Rejected(f"no {name}" if text in (None, "") else f"{name} is not text", text)
    if len(text) > KEY_CHARACTERS:
        raise _Rejected(f"{name} too long", f"{len(text)} characters, {KEY_CHARACTERS} fit")
    if _is_unstorable(text):
        raise _Rejected(f"{name} has characters that cannot be stored", text)
    return text


def _is_unstorable(text: str) -> bool:
    # PostgreSQL rejects NUL, both databases reject lone surrogates.
    return "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text))


def _parse_user_id(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            value = str(value)
        except ValueError:  # more digits than the interpreter prints
            raise _Rejected("user_id too long") from None
    return _check_key("user_id", value)


def _parse_number(field: str, value: Any) -> float:
    if isinstance(value, str) and len(value) <= 400 and _DECIMAL.fullmatch(value):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise _Rejected("value out of range", field) from None
    else:
        raise _Rejected("value is not a number", f"{_shorten(field)}: {_shorten(value)}")
    if not math.isfinite(number):
        raise _Rejected("value is not finite", f"{_shorten(field)}: {_shorten(value)}")
    return number + 0.0  # -0.0 becomes 0.0: SQLite does not store the sign, PostgreSQL does


def _parse_stored_time(text: Any) -> int:
    if not isinstance(text, str):
        raise _Rejected("no ts" if text is None else "ts is not text", text)
    ts_us = _parse_ts(text)
    if not 0 <= ts_us <= _LATEST_US:
        raise _Rejected("ts out of range", text)
    return ts_us


def _parse_ts(text: str) -> int:
    try:
        delta = parse_time(text) - EPOCH
    except (ValueError, OverflowError):
        raise _Rejected("ts is not a time", text) from None
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _shorten(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 1_000:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = ascii(value)
    except RecursionError:
        return "a value that is nested too deep"
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
