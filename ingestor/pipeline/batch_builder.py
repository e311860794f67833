"""From entries to what the store is given: decode each, and sort what it says into one batch. Pure."""

from __future__ import annotations

import json

from ingestor.core.entries import Channel, Entry, Fact, Frame, SubscriptionKey
from ingestor.pipeline.decoder import DecodedFrame, Decoder, RejectedRow
from ingestor.pipeline.dedup import RecentValueCache
from ingestor.store.write.batch import (
    Batch,
    DeadLetter,
    EventRow,
    Origin,
    Payload,
    SampleRow,
    SubscriptionRow,
    Transition,
)

_new = tuple.__new__  # of a named tuple: its own constructor takes twice as long, and a batch has thousands


class BatchBuilder:
    """A batch in the making: entries in seq order go in one by one. What is ``known`` is left out of it."""

    def __init__(
        self, first_seq: int, decoder: Decoder, known: RecentValueCache | None = None, *, keep_payloads: bool = True
    ) -> None:
        self.batch = Batch(first_seq=first_seq, last_seq=first_seq - 1)
        self.entries: list[Entry] = []
        self.units = 0  # rows, and entries that have none: what bounds a batch
        self.size_bytes = 0  # of raw text, the other bound
        self.unknown_fields: set[tuple[str, str]] = set()  # (feed, field)
        self.skews_us: dict[str, int] = {}  # feed → its last envelope's stamp, less its receipt
        self.heard: dict[Channel, int] = {}  # what live data came for, and when the last of it was received
        self._names: tuple[str, ...] = ()
        self._origin = Origin("", "", "", "", "")
        self._decoder = decoder
        self._known = known
        self._keep_payloads = keep_payloads

    def add(self, entry: Entry) -> None:
        seq, what = entry
        self.entries.append(entry)
        self.batch.last_seq = seq
        if isinstance(what, Frame):
            self._add_frame(seq, what)
        else:
            self._add_fact(seq, what)

    def _add_frame(self, seq: int, frame: Frame) -> None:
        decoded = self._decoder.decode(frame)
        batch = self.batch
        published_us, received_us, source = decoded.published_us, frame.received_us, frame.source
        observations = decoded.observations
        if self._known is None:
            news = observations
        elif frame.retry_of is None:
            news = self._known.filter_new(observations)
        else:
            news = observations  # as old as its letter, it says nothing of what is current
            self._known.discard((series, ts_us) for series, ts_us, _, _ in self._known.filter_new(observations))
        rows = batch.rows
        for series, ts, value, index in news:
            rows.append(_new(SampleRow, (series, ts, value, published_us, received_us, source, seq, index)))
        batch.frames += 1
        batch.deduplicated_rows += len(observations) - len(news)
        batch.row_count += len(observations)
        dead_frame = self._bury(seq, frame, decoded) if decoded.dead else None
        origin = self._origin_of(frame, decoded.event)
        # A row's letter goes by the path that its envelope named; a frame's has the envelope in it.
        attributed = decoded.path is not frame.path and dead_frame is None
        batch.origins[seq] = origin._replace(path=decoded.path, params=decoded.params) if attributed else origin
        if frame.retry_of is not None:
            batch.retries[seq] = frame.retry_of
        if self._keep_payloads and dead_frame is None:
            body = escape_unstorable(decoded.body)
            batch.payloads.append(_new(Payload, (seq, origin, received_us, published_us, decoded.rows, body)))
        if source == "stream" and frame.retry_of is None:
            self._note(frame, decoded)
            if published_us is not None:
                self.skews_us[decoded.feed] = published_us - received_us
        if decoded.unknown_fields:
            self.unknown_fields.update((decoded.feed, name) for name in decoded.unknown_fields)
        self.units += len(news) or 1
        self.size_bytes += len(frame.text)

    def _bury(self, seq: int, frame: Frame, decoded: DecodedFrame) -> RejectedRow | None:
        """What is dead becomes letters. Returns the frame's, if it is the frame that is dead."""
        self.batch.row_count += sum(dead.row_index is not None for dead in decoded.dead)
        self.batch.dead_letters += [
            DeadLetter(
                seq, dead.row_index, frame.received_us, "decode", dead.reason, dead.detail, escape_unstorable(dead.body)
            )
            for dead in decoded.dead
        ]
        return decoded.dead_frame

    def _origin_of(self, frame: Frame, event: str) -> Origin:
        """The same object for frames that follow each other on a connection: it is made, and encoded, once."""
        names = (frame.connection_id, frame.source, event, frame.path, frame.params)
        if names != self._names:
            self._names = names
            self._origin = Origin(*names)._replace(event=escape_unstorable(event))
        return self._origin

    def _note(self, frame: Frame, decoded: DecodedFrame) -> None:
        # A connection carries one path only, so what its frames name need not be compared with it.
        heard, path, params, received_us = self.heard, frame.path, frame.params, frame.received_us
        heard[path, params, ""] = received_us
        last = None
        for series, _, _, _ in decoded.observations:
            if series is not last:
                last = series
                heard[path, params, series[2]] = received_us
        if last is None and decoded.params is not params:  # an envelope: of an empty one too we know for whom
            heard[path, params, json.loads(decoded.params).get("ticker", "")] = received_us

    def _add_fact(self, seq: int, fact: Fact) -> None:
        batch = self.batch
        batch.facts += 1
        batch.events.append(EventRow(seq, fact.at_us, fact.kind, json.dumps(fact.detail)))
        if fact.state is not None:
            since_us = fact.at_us if fact.since_us is None else fact.since_us
            reason = escape_unstorable(str(fact.detail.get("reason", "")))
            named = [self._subscription(key) for key in fact.subscriptions]
            batch.transitions.append(Transition(seq, since_us, fact.state, reason, named, fact.others))
        self.units += len(fact.subscriptions) or 1

    def _subscription(self, key: SubscriptionKey) -> SubscriptionRow:
        path, method, params = key
        names: dict[str, str] = json.loads(params)
        return SubscriptionRow(path, method, params, self._decoder.feed_name(path, names), names.get("ticker", ""))


def rejected_batch(entry: Entry, refusal: str) -> Batch:
    """A batch of one entry that the database takes, whatever it disliked: plain ASCII, and a letter that says why."""
    seq, what = entry
    batch = Batch(first_seq=seq, last_seq=seq)
    if isinstance(what, Fact):
        batch.facts = 1
        batch.events.append(EventRow(seq, what.at_us, _plain(what.kind), json.dumps({"refused": _plain(refusal)})))
        return batch
    batch.frames = 1
    batch.origins[seq] = Origin(what.connection_id, what.source, _plain(what.event), _plain(what.path), "{}")
    detail = _plain(refusal)[:1000]
    batch.dead_letters.append(
        DeadLetter(seq, None, what.received_us, "insert", "refused by the database", detail, _plain(what.text))
    )
    return batch


def _plain(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode().replace("\0", "\\u0000")


def escape_unstorable(text: str) -> str:
    """Text that every database takes: NUL as ``\\u0000``, lone surrogates as their escapes."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\u0000").encode("utf-8", "backslashreplace").decode()
