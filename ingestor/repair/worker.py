"""The thread that finds gaps, requests what is missing, and records what is repaired.

All its state is in the table ``repairs``, so it can be killed at any moment: a request whose outcome was not recorded
is sent again, and rows that arrive twice are duplicates. Of the daemons that share a database, only the holder of the
lease works.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import BACKFILL_REQUESTED, Fact, Frame, Source, canonical_json
from ingestor.errors import (
    BatchRejected,
    DatabaseUnavailable,
    ResponseTooLarge,
    RestRefused,
    RestUnavailable,
    TokenRefused,
)
from ingestor.pipeline.batch_builder import escape_unstorable
from ingestor.pipeline.decoder import DecodedFrame, Decoder
from ingestor.pipeline.writer import Writer
from ingestor.provider.rest_api import RestClient, RestRequest, bucket_length, current_request, history_request
from ingestor.repair import backfill_requests, plan, verification, window_scan
from ingestor.spool.spool import Spool
from ingestor.store.engine import Engine
from ingestor.store.maintenance import repairs as store
from ingestor.store.maintenance.repairs import BackfillRequest, LeaseHeldElsewhere, Repair, RepairKind, RepairTable

MAX_GAPS = 10_000  # per search
PAGE_ROWS = 200  # repairs per transaction
MAX_TICKERS = 1_000  # to request for a subscription without ticker
MAX_ATTEMPTS = 20  # failed in a row: with the pauses between them, a week or more, for a feed that is quiet for days
RETRY_BACKOFF = Backoff(first_seconds=60.0, cap_seconds=24 * 3600.0)  # after a response that proved nothing
GAP_SEARCH_RATIO = 20  # a search reads all of coverage, so it may take at most 1/20 of the time
PAGE_PAUSE_SECONDS = 0.02  # between two pages of payloads, for the threads that receive and write
SHORT_PAUSE_SECONDS = 5.0  # up to which a pause between requests is slept through
SPOOL_RATIO = 2  # repairs pause while the spool is more than half full: the rest is for live data
NO_LATER_ROW = f"{plan.UNPROVEN}there is no row from its end or after; the feed is quiet, or the provider is behind"
JOIN_SECONDS = 2.0
REQUEST_TIMEOUT_SECONDS = 30.0  # less than a command waits for its response

T = TypeVar("T")

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The worker stops or stands by; the outcome is not needed. Never leaves this module."""


class Inconclusive(Exception):
    """The response proves nothing; request it again later. Never leaves this module."""


def repeat_backfill(engine: Engine, detail: str) -> None:
    """Request a backfill again, if the database has lost that: ``detail`` of the fact that it was requested.

    Must be called in the writer's thread. A repair that is there and not failed does not change. Raises
    DatabaseUnavailable.
    """
    try:
        RepairTable(engine).request(backfill_requests.from_json(json.loads(detail)["requests"]), _now())
    except (ValueError, KeyError, BatchRejected) as error:  # of another release, or what the database cannot store
        log.warning("a backfill may be lost with the database's rows, request it again", extra={"reason": str(error)})


class DatabaseReplaced(Exception):
    """The writer has registered again: the ids that were read may be others' ids. Never leaves this module."""


class RepairWorker:
    """Repairs gaps until stopped. If ``only`` is set, works on these repairs only and does not search for gaps."""

    def __init__(
        self,
        rest: RestClient,
        spool: Spool,
        writer: Writer,
        decoder: Decoder,
        record: Callable[[Fact], object],
        *,
        write_to: Engine,
        read_from: Engine,
        may_request: Callable[[], bool] = lambda: True,
    ) -> None:
        """Must be created inside the running loop. ``write_to`` is used in the writer's thread only.

        While ``may_request`` returns False, nothing is requested and no lease is held: another daemon may do the work.
        """
        self._loop = asyncio.get_running_loop()
        self._rest = rest
        self._spool = spool
        self._writer = writer
        self._decoder = decoder
        self._record = record
        self._may_request = may_request
        self._table = RepairTable(write_to)
        self._engine = read_from
        self.only_repair_ids: frozenset[int] | None = None
        self._wake = threading.Event()
        self._search_requested = threading.Event()
        self._stopping = threading.Event()
        self._awaited: Future[Any] | None = None
        self._next_search_at = 0.0  # boottime
        self._registrations = 0  # of the writer, when this round began: what follows rests on the ids of that database
        self._retry_at: dict[int, float] = {}  # repair → boottime of its next attempt
        self._scanned: dict[tuple[int, int], int] = {}  # (repair, instance) → seq up to which payloads were scanned
        self._max_length: dict[int, timedelta] = {}  # repair → range per request, after a response was too large
        self._thread = threading.Thread(target=self._run, name="repair", daemon=True)

    def start(self) -> None:
        """Start the thread. It does nothing until the first ``wake``."""
        self._thread.start()

    def wake(self) -> None:
        """Search for gaps and repair what is due. Returns at once; may be called from any thread."""
        self._search_requested.set()
        self._wake.set()

    async def request(self, requests: Sequence[BackfillRequest]) -> list[int]:
        """Start repairs that a person requested, and return their ids. Raises DatabaseUnavailable.

        The spool has the request first, so that it can be repeated if the database goes back in time.
        """
        detail = {"requests": backfill_requests.to_json(requests)}
        self._record(Fact(BACKFILL_REQUESTED, wall_us(), detail))
        await self._spool.durable(self._spool.head)
        stored = asyncio.wrap_future(self._writer.run_in_writer(lambda _: self._table.request(requests, _now())))
        await asyncio.wait({stored}, timeout=REQUEST_TIMEOUT_SECONDS)
        if stored.cancelled() or not stored.done():
            stored.cancel()
            raise DatabaseUnavailable("the database is unavailable; run the same command again when it is back")
        for repair_id in stored.result():
            self._retry_at.pop(repair_id, None)
        self.wake()
        return stored.result()

    async def stop(self) -> None:
        """Stop the thread. Work that was not recorded is repeated by the next daemon to hold the lease."""
        self._stopping.set()
        self._wake.set()
        self._rest.cancel()
        if awaited := self._awaited:
            awaited.cancel()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    # -- the thread

    def _run(self) -> None:
        pause: float | None = None
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._try_round()
        self._engine.dispose()

    def _try_round(self) -> float | None:
        try:
            return self._round()
        except (Cancelled, LeaseHeldElsewhere):
            pass  # another daemon does the repairs, or this one stops or stands by
        except DatabaseReplaced:
            return SHORT_PAUSE_SECONDS
        except DatabaseUnavailable as error:
            level = logging.WARNING if self._writer.status.database_up else logging.DEBUG  # else the writer has warned
            log.log(level, "the database is unavailable, repairs wait for it", extra={"reason": str(error)})
        except Exception:
            # An error here must not stop the daemon from receiving.
            log.exception("unexpected error in the repair worker, retrying at the next search for gaps")
        finally:
            self._engine.dispose()  # the connection's cache is large, and the next round may be far away
        return None

    def _round(self) -> float | None:
        """Repair what is due, and search for gaps in between. Return the seconds until the next round, if known."""
        if not self._may_request():
            return None
        self._begin_round()
        while not self._stopping.is_set():
            if self._writer.status.rewound_to:  # what seems to be missing may be about to be written again
                return SHORT_PAUSE_SECONDS
            if self._search_requested.is_set():
                self._search_requested.clear()
                self._search()
            if self._spool.disk_full or self._spool.live_bytes * SPOOL_RATIO > self._spool.max_bytes:
                return SHORT_PAUSE_SECONDS
            repair = self._next_due()
            if repair is None:
                return None
            if self._rest.pause_seconds > SHORT_PAUSE_SECONDS:
                return self._rest.pause_seconds
            self._stopping.wait(self._rest.pause_seconds)
            self._attempt(repair)
        return None

    def _begin_round(self) -> None:
        """Forget what is remembered by ids if the database may be another one now."""
        registrations = self._wait_for(self._writer.run_in_writer(lambda _: self._writer.registrations))
        if registrations != self._registrations:
            self._registrations = registrations
            for remembered in (self._retry_at, self._scanned, self._max_length):
                remembered.clear()

    def _next_due(self) -> Repair | None:
        now = boottime()
        with closing(store.due_repairs(self._engine, plan.midnight(_now()))) as due:
            for repair in due:
                selected = self.only_repair_ids is None or repair.repair_id in self.only_repair_ids
                if selected and self._retry_at.get(repair.repair_id, 0.0) <= now:
                    return repair
        return None

    # -- gaps, and the responses that followed them

    def _search(self) -> None:
        self._in_writer(self._table.acquire_lease)
        if self.only_repair_ids is not None:
            return
        started_at = boottime()
        if started_at >= self._next_search_at:
            gaps = store.find_gaps(self._engine, MAX_GAPS)
            self._next_search_at = boottime() + GAP_SEARCH_RATIO * (boottime() - started_at)
            for page in _pages(gaps):
                self._in_writer(partial(self._table.open, gaps=page, now=_now()))
        self._check_windows()

    def _check_windows(self) -> None:
        """Finish the repairs that a later response covered. Try the others another way once such responses are over."""
        pause_scan = partial(self._stopping.wait, PAGE_PAUSE_SECONDS)  # which returns whether to stop
        resumed, never_resumed = store.resumed_repairs(self._engine, MAX_GAPS)
        repaired: dict[int, Repair] = {}
        for instance_id in sorted({item.instance_id for item in resumed}):
            found = window_scan.find_repaired(
                self._engine, self._decoder, instance_id, resumed, self._scanned, pause_scan
            )
            repaired |= {repair.repair_id: repair for repair in found}
        self._finish(list(repaired.values()))
        missed = [item.repair for item in resumed if item.repair.repair_id not in repaired and _is_over(item.repair)]
        self._try_next_kind([*never_resumed, *missed])

    # -- requests

    def _attempt(self, repair: Repair) -> None:
        self._in_writer(self._table.acquire_lease)
        try:
            if repair.kind == "snapshot":
                self._request_current(repair)
            else:
                self._request_history(repair)
        except RestRefused as error:
            self._on_refused(repair, error)
        except (RestUnavailable, TokenRefused, Inconclusive) as error:
            self._postpone(repair, error)

    def _request_current(self, repair: Repair) -> None:
        in_window = _now() - repair.from_ts <= plan.MAX_WINDOW_AGE
        request = current_request(repair.path, repair.parsed_params) if in_window else None
        if request is None:
            self._try_next_kind([repair])
            return
        self._require_later_sample(repair, _now() + verification.MAX_AHEAD)
        sent_us = wall_us()
        decoded = self._fetch(repair, request)
        if not verification.covers_start(decoded, repair, sent_us):
            self._try_next_kind([repair])
        elif not verification.covers_end(decoded, repair, sent_us):
            raise Inconclusive(NO_LATER_ROW)
        else:
            self._finish([repair])

    def _request_history(self, repair: Repair) -> None:
        if repair.kind == "historical":
            self._require_later_sample(repair, plan.midnight(_now()))
        tickers = self._tickers(repair)
        if isinstance(tickers, str):
            self._fail([repair], tickers)
            return
        queries = plan.remaining_queries(repair, tickers, self._max_length.get(repair.repair_id))
        query, following = next(queries, None), next(queries, None)
        covered = [repair, *store.repairs_inside(self._engine, repair, plan.history_range(repair)[1])]
        if query is not None:
            try:
                proven_until = self._run_query(repair, query, max(repair.to_ts for repair in covered))
            except ResponseTooLarge as error:
                self._shorten_queries(repair, query, error)
                return
            covered = [repair for repair in covered if repair.to_ts <= proven_until]
        if query is None or following is None:
            self._finish(covered)
        else:
            self._in_writer(partial(self._table.advance, repair_id=repair.repair_id, cursor=query.cursor))

    def _shorten_queries(self, repair: Repair, query: plan.HistoryQuery, error: ResponseTooLarge) -> None:
        """Use shorter ranges from the next request on. Ranges that are done stay done."""
        max_length = plan.halved_length(repair.path, query)
        if max_length is None:
            raise RestRefused(f"{error}, and a smaller range cannot be requested", error.status) from None
        self._max_length[repair.repair_id] = max_length

    def _run_query(self, repair: Repair, query: plan.HistoryQuery, gap_end: datetime) -> datetime:
        """Request a part of the history. Return up to when it is proven: at least to the end of the gap or the part.

        ``gap_end``: of the last gap that this repair may cover. Raises Inconclusive.
        """
        # Read before the request, so that its own rows do not count.
        stored = store.sample_range(self._engine, repair.feed, query.ticker, repair.user_id, query.start, query.end)
        decoded = self._fetch_history(repair, query, can_split=plan.halved_length(repair.path, query) is not None)
        if why := verification.why_inconclusive(decoded, repair, query, stored, gap_end):
            raise Inconclusive(why)
        proven_until = verification.proven_until(decoded, repair, query, gap_end)
        if proven_until < min(repair.to_ts, query.end) or (proven_until < query.end and not _is_of_one(repair)):
            self._prove_quiet(repair, query, min(gap_end, query.end))
            return query.end
        return proven_until

    def _prove_quiet(self, repair: Repair, query: plan.HistoryQuery, end: datetime) -> None:
        """Raise Inconclusive unless a response without rows from ``end`` or after is complete, because none exist.

        It is if the provider's history already has what was received later. A range that a person requested, or one of
        many tickers, is complete once its history is final: nothing may ever have been received later.
        """
        if (repair.kind == "manual" or not _is_of_one(repair)) and plan.is_final(end, _now()):
            return
        midnight = plan.midnight(_now())
        later = store.sample_range(self._engine, repair.feed, query.ticker, repair.user_id, end, midnight)
        if later is None:
            raise Inconclusive(NO_LATER_ROW)
        bucket = bucket_length(repair.path)
        proof = plan.HistoryQuery(start=later.first, end=min(later.first + bucket, midnight), ticker=query.ticker)
        self._stopping.wait(self._rest.pause_seconds)
        decoded = self._fetch_history(repair, proof)
        if verification.newest_row(decoded, repair, proof) is None:
            raise Inconclusive(f"{plan.UNPROVEN}the provider's history does not reach {later.first:%Y-%m-%d %H:%M:%S}")

    def _require_later_sample(self, repair: Repair, before: datetime) -> None:
        """Raise Inconclusive if no response can prove the gap yet, as far as the database tells.

        The first attempt is made nevertheless, for the rows that it brings.
        """
        if repair.attempts and _is_of_one(repair):
            names = repair.feed, repair.ticker, repair.user_id
            if store.sample_range(self._engine, *names, repair.to_ts, before) is None:
                raise Inconclusive(NO_LATER_ROW)

    def _fetch_history(self, repair: Repair, query: plan.HistoryQuery, *, can_split: bool = False) -> DecodedFrame:
        params = repair.parsed_params | ({"ticker": query.ticker} if query.ticker else {})
        request = history_request(repair.path, params, query.start, query.end)
        if request is None:
            raise RestRefused(plan.why_unrepairable(repair), 404)
        return self._fetch(repair, request, can_split=can_split)

    def _tickers(self, repair: Repair) -> list[str] | str:
        """Return the tickers to request, or why they cannot be determined."""
        if repair.ticker or repair.user_id:
            return [repair.ticker]
        known = sorted(store.known_tickers(self._engine, repair.feed, MAX_TICKERS + 1))
        remedy = "backfill those that you need: `ingestor backfill --ticker`"
        if len(known) > MAX_TICKERS:
            return f"{repair.feed} has more than {MAX_TICKERS:,} tickers; {remedy}"
        return known or f"no samples of {repair.feed} are stored, so its tickers are unknown; {remedy}"

    def _fetch(self, repair: Repair, request: RestRequest, *, can_split: bool = False) -> DecodedFrame:
        """Send a request, and wait until its response is committed. Raises RestUnavailable if it is no list of rows."""
        if not self._may_request():
            raise Cancelled
        response = self._rest.get(request, can_split=can_split)
        connection, params = f"repair {repair.repair_id}", canonical_json(request.params)
        source: Source = "snapshot" if repair.kind == "snapshot" else "backfill"
        frame = Frame(response.sent_us, connection, source, "get", request.path, params, response.text)
        decoded = self._decoder.decode(frame)
        if why := verification.why_unreadable(decoded):
            raise RestUnavailable(f"{request.path}: {why}")
        if self._spool.live_bytes + len(response.text) > self._spool.max_bytes:
            raise RestUnavailable(f"the spool has no space for a response of {len(response.text):,} characters")
        seq = self._append(frame)
        self._in_writer(lambda _: None, after_seq=seq)
        if decoded.dead:
            raise RestRefused(f"{len(decoded.dead)} rows of the response are unreadable, see the dead letters", 200)
        return decoded

    # -- outcomes

    def _finish(self, repairs: Sequence[Repair]) -> None:
        count = partial(store.count_new_rows, self._engine)
        for page in _pages(repairs):
            new_rows = {repair.repair_id: count(repair, bucket_length(repair.path)) for repair in page}
            self._in_writer(partial(self._table.finish, new_rows=new_rows, now=_now()))
            for repair in page:
                self._report("repaired", repair, new_rows=new_rows[repair.repair_id])

    def _fail(self, repairs: Sequence[Repair], reason: str) -> None:
        error = escape_unstorable(reason)
        self._in_writer(partial(self._table.fail, repair_ids=_ids(repairs), error=error, now=_now()))
        for repair in repairs:
            self._report("repair_failed", repair, reason=reason)

    def _try_next_kind(self, repairs: Sequence[Repair]) -> None:
        """Change the repairs to what is tried next. Those for which nothing is left have failed."""
        by_kind: dict[RepairKind | str, list[Repair]] = {}
        for repair in repairs:
            by_kind.setdefault(plan.next_kind(repair, _now()) or plan.why_unrepairable(repair), []).append(repair)
        for kind, members in by_kind.items():
            for page in _pages(members):
                if kind in ("snapshot", "historical"):
                    self._in_writer(partial(self._table.change_kind, repair_ids=_ids(page), kind=kind))
                else:
                    self._fail(page, kind)

    def _on_refused(self, repair: Repair, error: RestRefused) -> None:
        if repair.kind == "snapshot":
            self._try_next_kind([repair])
        elif plan.may_be_too_early(repair, error.status, _now()):
            self._postpone(repair, error)
        else:
            self._fail([repair], str(error))

    def _postpone(self, repair: Repair, error: Exception) -> None:
        attempts = repair.attempts + 1
        if attempts >= MAX_ATTEMPTS or (repair.kind == "manual" and isinstance(error, TokenRefused)):
            self._fail([repair], f"gave up after {attempts} attempts: {error}")
            return
        self._in_writer(partial(self._table.postpone, repair_id=repair.repair_id, error=escape_unstorable(str(error))))
        self._retry_at[repair.repair_id] = boottime() + RETRY_BACKOFF.equal_jitter(attempts, chance())

    def _report(self, kind: str, repair: Repair, **fields: object) -> None:
        span = {"from": repair.from_ts.isoformat(), "to": repair.to_ts.isoformat()}
        detail = {"feed": repair.feed, "ticker": repair.ticker, **span, "repaired_by": repair.kind, **fields}
        self._retry_at.pop(repair.repair_id, None)
        self._max_length.pop(repair.repair_id, None)
        self._loop.call_soon_threadsafe(self._record, Fact(kind, wall_us(), detail))

    # -- other threads

    def _append(self, frame: Frame) -> int:
        """Append to the spool, which is used in the event loop only."""
        appended: Future[int] = Future()

        def append() -> None:
            if appended.set_running_or_notify_cancel():
                appended.set_result(self._spool.append(frame))

        self._loop.call_soon_threadsafe(append)
        return self._wait_for(appended)

    def _in_writer(self, work: Callable[[int], T], after_seq: int = 0) -> T:
        """Run ``work`` in the writer's thread, once every entry up to ``after_seq`` is committed.

        Raises DatabaseReplaced if the writer has registered since the round began.
        """

        def run(instance_id: int) -> T:
            if self._writer.registrations != self._registrations:
                raise DatabaseReplaced
            return work(instance_id)

        return self._wait_for(self._writer.run_in_writer(run, after_seq))

    def _wait_for(self, future: Future[T]) -> T:
        self._awaited = future
        if self._stopping.is_set():
            future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise Cancelled from None


def _now() -> datetime:
    return datetime.now(UTC)


def _is_over(repair: Repair) -> bool:
    """Return whether no response to its subscription can cover the gap any longer."""
    return not window_scan.has_rolling_window(repair) or _now() > repair.to_ts + plan.RESPONSE_TIMEOUT


def _is_of_one(repair: Repair) -> bool:
    """Return whether the repair is of one ticker or one user, so that one response can prove it."""
    return bool(repair.ticker or repair.user_id)


def _ids(repairs: Sequence[Repair]) -> list[int]:
    return [repair.repair_id for repair in repairs]


def _pages(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + PAGE_ROWS] for start in range(0, len(items), PAGE_ROWS))
