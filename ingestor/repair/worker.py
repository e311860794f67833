"""One thread that finds gaps, asks about them, and notes what is proven. The event loop waits for none of it.

What it knows is in the table ``repairs``, so it may be killed at any moment: a question whose answer was not noted is
asked again, and rows that came twice are known. Only who has the lease works, one daemon of those that share a
database.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from ingestor.config.model import canonical_json
from ingestor.core.backoff import Backoff, chance
from ingestor.core.clock import boottime, wall_us
from ingestor.core.entries import Fact, Frame
from ingestor.errors import DatabaseUnavailable, ResponseTooLarge, RestRefused, RestUnavailable, TokenRefused
from ingestor.pipeline.batch_builder import escape_unstorable
from ingestor.pipeline.decoder import DecodedFrame, Decoder
from ingestor.pipeline.writer import Writer
from ingestor.provider.rest_api import RestClient, RestRequest, bucket_length, current_request, history_request
from ingestor.repair import plan, verification, window_scan
from ingestor.spool.spool import Spool
from ingestor.store.engine import Engine
from ingestor.store.maintenance import repairs as store
from ingestor.store.maintenance.repairs import BackfillRequest, LeaseHeldElsewhere, Repair, RepairKind, RepairTable

MAX_GAPS = 10_000
PAGE_ROWS = 200  # of repairs written together
MAX_TICKERS = 1_000  # of a subscription without one, that are asked for
MAX_ATTEMPTS = 20  # in vain, in a row: with the pauses between, more than half a day
RETRY_BACKOFF = Backoff(first_seconds=60.0, cap_seconds=6 * 3600.0)  # for what was answered and not proven
GAP_SEARCH_RATIO = 20  # looking for gaps reads all of coverage: it takes this share of the time at most
PAGE_PAUSE_SECONDS = 0.02  # between two pages of what came off the socket
SHORT_PAUSE_SECONDS = 5.0  # is waited for on the spot
SPOOL_RATIO = 2  # of the spool, that healing leaves to what is live
JOIN_SECONDS = 2.0
REQUEST_TIMEOUT_SECONDS = 30.0  # less than a command waits for its answer

T = TypeVar("T")

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Nobody waits for the outcome any more. Never leaves this module."""


class Inconclusive(Exception):
    """There was an answer, and it proves nothing. Ask again later. Never leaves this module."""


class RepairWorker:
    """Repairs gaps until stopped; with ``only``, nothing but these repairs."""

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
    ) -> None:
        """Must be made inside the running loop. ``write_to`` is used in the writer's thread only."""
        self._loop = asyncio.get_running_loop()
        self._rest = rest
        self._spool = spool
        self._writer = writer
        self._decoder = decoder
        self._record = record
        self._table = RepairTable(write_to)
        self._read = read_from
        self.only: frozenset[int] | None = None
        self._wake = threading.Event()
        self._looking = threading.Event()  # for gaps, at the next opportunity
        self._stopping = threading.Event()
        self._awaited: Future[Any] | None = None
        self._look_not_before = 0.0
        self._not_before: dict[int, float] = {}  # repair → boottime of its next try
        self._looked: dict[tuple[int, int], int] = {}  # (repair, instance) → up to which seq its answers are known
        self._longest: dict[int, timedelta] = {}  # repair → of its pieces, where answers were too long
        self._thread = threading.Thread(target=self._run, name="healing", daemon=True)

    def start(self) -> None:
        """Begin. Nothing is done before the first ``look``."""
        self._thread.start()

    def wake(self) -> None:
        """See what there is to be repaired, and do it. Returns at once; from any thread."""
        self._looking.set()
        self._wake.set()

    async def request(self, wishes: Sequence[BackfillRequest]) -> list[int]:
        """Begin what a person asks for, and return its repairs. Raises DatabaseUnavailable."""
        booked = asyncio.wrap_future(self._writer.run_in_writer(lambda _: self._table.request(wishes, _now())))
        await asyncio.wait({booked}, timeout=REQUEST_TIMEOUT_SECONDS)
        if booked.cancelled() or not booked.done():
            booked.cancel()
            raise DatabaseUnavailable("the database is away; once it is back, the same command does it")
        self.wake()
        return booked.result()

    async def stop(self) -> None:
        """End what is under way; what was not noted is done again by whoever heals next."""
        self._stopping.set()
        self._wake.set()
        self._rest.cancel()
        if awaited := self._awaited:
            awaited.cancel()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    # -- the thread's life

    def _run(self) -> None:
        pause: float | None = None
        while not self._stopping.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._try_round()
        self._read.dispose()

    def _try_round(self) -> float | None:
        try:
            return self._round()
        except (Cancelled, LeaseHeldElsewhere):
            pass  # whoever heals now, it is not us
        except DatabaseUnavailable as error:
            level = logging.WARNING if self._writer.status.database_up else logging.DEBUG  # the writer has warned of it
            log.log(level, "healing waits for the database", extra={"reason": str(error)})
        except Exception:
            # A mistake here must cost nothing that is received; the next look tries again.
            log.exception("healing fell over")
        finally:
            self._read.dispose()  # its cache is large, and it may be long until the next round
        return None

    def _round(self) -> float | None:
        """Repair what is due; looks for gaps come between. Returns seconds to wait before the next one, if known."""
        while not self._stopping.is_set():
            if self._looking.is_set():
                self._looking.clear()
                self._look()
            if self._crowded():
                return SHORT_PAUSE_SECONDS
            repair = self._next()
            if repair is None:
                return None
            if self._rest.pause_seconds > SHORT_PAUSE_SECONDS:
                return self._rest.pause_seconds
            self._stopping.wait(self._rest.pause_seconds)
            self._work(repair)
        return None

    def _crowded(self) -> bool:
        return self._spool.disk_full or self._spool.live_bytes * SPOOL_RATIO > self._spool.max_bytes

    def _next(self) -> Repair | None:
        now = boottime()
        with closing(store.due_repairs(self._read, plan.midnight(_now()))) as due:
            for repair in due:
                wanted = self.only is None or repair.repair_id in self.only
                if wanted and self._not_before.get(repair.repair_id, 0.0) <= now:
                    return repair
        return None

    # -- gaps, and what came when we listened again

    def _look(self) -> None:
        self._do(self._table.acquire_lease)
        if self.only is not None:
            return
        started = boottime()
        if started >= self._look_not_before:
            gaps = store.find_gaps(self._read, MAX_GAPS)
            self._look_not_before = boottime() + GAP_SEARCH_RATIO * (boottime() - started)
            for some in _pages(gaps):
                self._do(partial(self._table.open, gaps=some, now=_now()))
        self._prove_windows()

    def _prove_windows(self) -> None:
        """Repair what the answers that followed have repaired; what waited for them long enough is tried otherwise."""
        resumed, unheard = store.resumed_repairs(self._read, MAX_GAPS)
        done: dict[int, Repair] = {}
        for instance_id in sorted({one.instance_id for one in resumed}):
            found = window_scan.find_repaired(
                self._read, self._decoder, instance_id, resumed, self._looked, self._rested
            )
            done |= {one.repair_id: one for one in found}
        self._finish(list(done.values()))
        self._turn([*unheard, *(repair for repair, _, _ in resumed if _over(repair) and repair.repair_id not in done)])

    def _rested(self) -> bool:
        """Leave the processor to those who receive, for a moment; whether it is time to stop."""
        return self._stopping.wait(PAGE_PAUSE_SECONDS)

    # -- questions

    def _work(self, repair: Repair) -> None:
        """One question about one repair."""
        self._do(self._table.acquire_lease)
        try:
            if repair.kind == "snapshot":
                self._ask_now(repair)
            else:
                self._ask_then(repair)
        except RestRefused as error:
            self._refused(repair, error)
        except (RestUnavailable, TokenRefused, Inconclusive) as error:
            self._put_off(repair, error)

    def _ask_now(self, repair: Repair) -> None:
        question = current_request(repair.path, repair.parsed_params)
        if question is None or _now() - repair.from_ts > plan.MAX_WINDOW_AGE:
            self._turn([repair])
            return
        asked_us = wall_us()
        if verification.covers_start(self._ask(repair, question), repair, asked_us):
            self._finish([repair])
        else:
            self._turn([repair])

    def _ask_then(self, repair: Repair) -> None:
        tickers = self._tickers(repair)
        if isinstance(tickers, str):
            self._fail([repair], tickers)
            return
        steps = plan.remaining_queries(repair, tickers, self._longest.get(repair.repair_id))
        step, following = next(steps, None), next(steps, None)
        repaired = [repair, *self._inside(repair)]
        if step is not None:
            try:
                self._ask_step(repair, step, max(one.to_ts for one in repaired))
            except ResponseTooLarge as error:
                self._ask_for_less(repair, step, error)
                return
        if step is None or following is None:
            self._finish(repaired)
        else:
            self._do(partial(self._table.advance, repair_id=repair.repair_id, cursor=step.cursor))

    def _ask_for_less(self, repair: Repair, step: plan.HistoryQuery, error: ResponseTooLarge) -> None:
        """At the next opportunity. What was done in longer pieces stays done."""
        longest = plan.halved_length(repair.path, step)
        if longest is None:
            raise RestRefused(f"{error}, and less than that cannot be asked for", error.status) from None
        self._longest[repair.repair_id] = longest

    def _ask_step(self, repair: Repair, step: plan.HistoryQuery, until: datetime) -> None:
        params = repair.parsed_params | ({"ticker": step.ticker} if step.ticker else {})
        question = history_request(repair.path, params, step.start, step.end)
        if question is None:
            raise RestRefused(plan.why_unrepairable(repair), 404)
        # Read before the request, so that its own rows do not count.
        held = store.sample_range(self._read, repair.feed, step.ticker, repair.user_id, step.start, step.end)
        decoded = self._ask(repair, question, can_split=plan.halved_length(repair.path, step) is not None)
        if doubt := verification.why_inconclusive(decoded, repair, step, held, until):
            raise Inconclusive(doubt)

    def _tickers(self, repair: Repair) -> list[str] | str:
        """Which to ask for; or why that cannot be said."""
        if repair.ticker or repair.user_id:
            return [repair.ticker]
        known = sorted(store.known_tickers(self._read, repair.feed, MAX_TICKERS + 1))
        remedy = "name those that matter: `ingestor backfill --ticker`"
        if len(known) > MAX_TICKERS:
            return f"more than {MAX_TICKERS:,} tickers are known of {repair.feed}; {remedy}"
        return known or f"nothing was ever stored of {repair.feed}, so its tickers are not known; {remedy}"

    def _inside(self, repair: Repair) -> list[Repair]:
        """Other repairs of the same names which what was asked for repairs as well."""
        return store.repairs_inside(self._read, repair, plan.history_range(repair)[1])

    def _ask(self, repair: Repair, question: RestRequest, *, can_split: bool = False) -> DecodedFrame:
        """Ask, and have the answer committed. Raises RestUnavailable if it is no answer."""
        reply = self._rest.get(question, can_split=can_split)
        frame = Frame(
            reply.sent_us,
            f"repair {repair.repair_id}",
            "snapshot" if repair.kind == "snapshot" else "backfill",
            "get",
            question.path,
            canonical_json(question.params),
            reply.text,
        )
        decoded = self._decoder.decode(frame)
        if why := verification.why_unreadable(decoded):
            raise RestUnavailable(f"{question.path}: {why}")
        if self._spool.live_bytes + len(reply.text) > self._spool.max_bytes:
            raise RestUnavailable(f"the spool has no room for an answer of {len(reply.text):,} characters")
        seq = self._append(frame)
        self._do(lambda _: None, after=seq)
        if decoded.dead:
            raise RestRefused(f"{len(decoded.dead)} rows of the answer cannot be read: see dead letters", 200)
        return decoded

    # -- what becomes of them

    def _finish(self, done: Sequence[Repair]) -> None:
        for some in _pages(done):
            counts = {one.repair_id: store.count_new_rows(self._read, one, bucket_length(one.path)) for one in some}
            self._do(partial(self._table.finish, new_rows=counts, now=_now()))
            for one in some:
                self._tell("repaired", one, new_rows=counts[one.repair_id])

    def _fail(self, repairs: Sequence[Repair], reason: str) -> None:
        self._do(partial(self._table.fail, repair_ids=_ids(repairs), error=escape_unstorable(reason), now=_now()))
        for one in repairs:
            self._tell("repair_failed", one, reason=reason)

    def _turn(self, repairs: Sequence[Repair]) -> None:
        """Try them in the next way; those that have none left have failed."""
        ways: dict[RepairKind | str, list[Repair]] = {}
        for one in repairs:
            ways.setdefault(plan.next_kind(one, _now()) or plan.why_unrepairable(one), []).append(one)
        for way, same in ways.items():
            for some in _pages(same):
                if way in ("snapshot", "historical"):
                    self._do(partial(self._table.change_kind, repair_ids=_ids(some), kind=way))
                else:
                    self._fail(some, way)

    def _refused(self, repair: Repair, error: RestRefused) -> None:
        if repair.kind == "snapshot":
            self._turn([repair])
        elif plan.may_be_too_early(repair, error.status, _now()):
            self._put_off(repair, error)
        else:
            self._fail([repair], str(error))

    def _put_off(self, repair: Repair, error: Exception) -> None:
        attempts = repair.attempts + 1
        if attempts >= MAX_ATTEMPTS or (repair.kind == "manual" and isinstance(error, TokenRefused)):
            self._fail([repair], f"given up after {attempts} tries: {error}")
            return
        self._do(partial(self._table.postpone, repair_id=repair.repair_id, error=escape_unstorable(str(error))))
        self._not_before[repair.repair_id] = boottime() + RETRY_BACKOFF.equal_jitter(attempts, chance())

    def _tell(self, kind: str, repair: Repair, **more: object) -> None:
        detail = {
            "feed": repair.feed,
            "ticker": repair.ticker,
            "from": repair.from_ts.isoformat(),
            "to": repair.to_ts.isoformat(),
            "way": repair.kind,
            **more,
        }
        self._not_before.pop(repair.repair_id, None)
        self._longest.pop(repair.repair_id, None)
        self._loop.call_soon_threadsafe(self._record, Fact(kind, wall_us(), detail))

    # -- other threads

    def _append(self, frame: Frame) -> int:
        """Into the spool, whose front is the loop's."""
        landed: Future[int] = Future()

        def put() -> None:
            if landed.set_running_or_notify_cancel():
                landed.set_result(self._spool.append(frame))

        self._loop.call_soon_threadsafe(put)
        return self._outcome(landed)

    def _do(self, work: Callable[[int], T], after: int = 0) -> T:
        """In the writer's thread, once all up to entry ``after`` is committed."""
        return self._outcome(self._writer.run_in_writer(work, after))

    def _outcome(self, future: Future[T]) -> T:
        self._awaited = future
        if self._stopping.is_set():
            future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise Cancelled from None


def _now() -> datetime:
    return datetime.now(UTC)


def _over(repair: Repair) -> bool:
    """Whether no answer will come any more that proves it by itself."""
    return not window_scan.has_rolling_window(repair) or _now() > repair.to_ts + plan.RESPONSE_TIMEOUT


def _ids(repairs: Iterable[Repair]) -> list[int]:
    return [one.repair_id for one in repairs]


def _pages(everything: Sequence[T]) -> Iterator[Sequence[T]]:
    return (everything[start : start + PAGE_ROWS] for start in range(0, len(everything), PAGE_ROWS))
