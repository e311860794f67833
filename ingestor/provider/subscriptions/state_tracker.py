"""Turn what happens on one group's connection into state changes: answers, silences and interruptions.

Free of I/O and timers: time and chance are arguments. The clock shows in each name:

    ``*_us``        our wall clock, microseconds since the epoch: the times that facts carry
    ``*_boottime``  seconds since boot, suspend included: durations and deadlines
    ``now``         a reading of both
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from ingestor.config.model import Subscription
from ingestor.core.clock import ClockReading
from ingestor.core.entries import UNNAMED, Channel, SubscriptionKey
from ingestor.provider.socket.connection import ConnectionSettings
from ingestor.provider.subscriptions.activity import ActivitySpan
from ingestor.provider.subscriptions.session import SubscriptionSession
from ingestor.provider.subscriptions.silence import SilenceDetector
from ingestor.provider.subscriptions.states import Event, SubscriptionStates

PUBLISH_SECONDS = 0.1  # from the last answer to its fact: answers that are this close together make one fact
ROUND_PUBLISH_SECONDS = 1.0  # the same, while more answers are due
PUBLISH_LIMIT_SECONDS = 10.0  # from the first answer to its fact
CONFIRM_SECONDS = 0.1  # between two checks whether an unconfirmed connection has shown a sign of life
UNPROVEN = "the old connection was not heard after its replacement was subscribed"
SAME_TIME_US = 5_000_000  # silences that began this close together make one fact, as of the earliest


class StateTracker:
    """Follows one session at a time: the one whose answers count.

    The caller must call ``on_timer`` at ``timer_boottime``, which any other call may change.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        subscriptions: Mapping[SubscriptionKey, Subscription],
        states: SubscriptionStates,
        silence_seconds: float,
        max_late_us: int = 0,
    ) -> None:
        """``subscriptions`` is the group's own mapping. Call ``rebuild_channels`` after changing it.

        ``max_late_us``: for how long data may have waited in its socket before it was received.
        """
        self.session: SubscriptionSession | None = None
        self._settings = settings
        self._subscriptions = subscriptions
        self._states = states
        self._silence_seconds = silence_seconds
        self._silence = SilenceDetector(silence_seconds)
        self._last_data_us: dict[SubscriptionKey, int] = {}  # or somewhat before
        self._max_late_us = max_late_us
        self._unconfirmed: set[SubscriptionKey] = set()  # live before an interruption, without a sign of life since
        self._interrupted_until = ClockReading(0, 0.0)
        self._publish_boottime = math.inf  # when the answers so far are published
        self._publish_limit_boottime = 0.0  # and when at the latest, however many follow
        self._confirm_boottime = math.inf  # the next check of an unconfirmed connection
        self.rebuild_channels()

    def rebuild_channels(self) -> None:
        """Determine which data counts for a subscription: that of its ticker, or any if it is to all tickers.

        An answer without rows that names no ticker counts if there is no other subscription that it can belong to.
        """
        path, params = self._settings.path, self._settings.params
        unnamed = ((path, params, UNNAMED),) if len(self._subscriptions) == 1 else ()
        self.channels: dict[SubscriptionKey, tuple[Channel, ...]] = {
            key: ((path, params, subscription.ticker), *unnamed) for key, subscription in self._subscriptions.items()
        }

    # --- answers ---

    def follow(self, session: SubscriptionSession, now: ClockReading) -> None:
        """Let this session's answers count from now on."""
        previous, self.session = self.session, session
        self._end_unconfirmed()
        if previous is not None:
            self._end_at_handover(previous, session, now)
        self.publish(now)

    def _end_at_handover(self, previous: SubscriptionSession, session: SubscriptionSession, now: ClockReading) -> None:
        """End what was live on the previous connection, unless that was heard after the new one had its answer."""
        heard_at, since_us = previous.connection.last_activity_at, now.wall_us_at(previous.connection.last_activity_at)
        for reason, keys in _by_reason(session.refused).items():
            live = self._states.in_state("live", keys)
            self._silence.ignore(live)
            self._apply("rejected", live, now, since_us, connection=session.connection.id, reason=reason)
        live = self._states.in_state("live", self._subscriptions)
        unproven = [key for key in live if session.acknowledged.get(key, math.inf) > heard_at]
        self._apply("disconnected", unproven, now, since_us, connection=previous.connection.id, reason=UNPROVEN)

    def heard_us(self, now: ClockReading) -> int | None:
        """Return when the connection in use was last heard, by the wall clock as it is set now; None without one."""
        return now.wall_us_at(self.session.connection.last_activity_at) if self.session else None

    def detach(self, now: ClockReading) -> None:
        """End the session, after publishing its remaining answers."""
        self.publish(now)
        self.session = None
        self._end_unconfirmed()
        self._silence.ignore(self._subscriptions)

    def remove(self, keys: Collection[SubscriptionKey], reason: str, now: ClockReading) -> None:
        """Remove subscriptions. Those that were live count as live until the connection's last sign of life."""
        since_us = self.heard_us(now)
        self._apply("stopped", keys, now, since_us, reason=reason, count=len(keys))
        self._states.forget(keys)
        self._silence.ignore(keys)
        for key in keys:
            self._last_data_us.pop(key, None)

    def note_answer(self, session: SubscriptionSession, now: ClockReading) -> None:
        """Schedule ``publish``: when no more answers follow, or the first one has waited for long enough."""
        if session is not self.session:
            return
        if self._publish_boottime == math.inf:
            self._publish_limit_boottime = now.boottime + PUBLISH_LIMIT_SECONDS
        wait = ROUND_PUBLISH_SECONDS if session.open_rounds else PUBLISH_SECONDS
        self._publish_boottime = min(now.boottime + wait, self._publish_limit_boottime)

    @property
    def timer_boottime(self) -> float:
        """When to call ``on_timer``; infinite if nothing is scheduled."""
        return min(self._publish_boottime, self._confirm_boottime)

    def on_timer(self, now: ClockReading) -> None:
        """Do what is due."""
        if self._publish_boottime <= now.boottime:
            self.publish(now)
        if self._confirm_boottime <= now.boottime:
            self._confirm(now)

    def publish(self, now: ClockReading) -> None:
        """Record the answers so far: one fact for all acknowledged subscriptions, one for each reason of a refusal."""
        self._publish_boottime = math.inf
        session = self.session
        if session is None:
            return
        connection, answered = session.connection.id, session.acknowledged.keys() | session.refused.keys()
        unanswered = [key for key in self._subscriptions if key not in answered]
        reason = "subscribe sent, not yet acknowledged"
        self._apply("requested", unanswered, now, connection=connection, reason=reason)
        # A silent subscription stays silent until data arrives: an acknowledgement proves nothing. An unconfirmed one
        # stays silent until its connection shows a sign of life.
        proven = [key for key in session.acknowledged if key not in self._silence and key not in self._unconfirmed]
        if live := self._states.affected("acknowledged", proven):
            self._silence.expect(live, now.boottime)
            # As of the last of them: a state may begin late, never early.
            since_us = now.wall_us_at(max(session.acknowledged[key] for key in live))
            self._apply("acknowledged", live, now, since_us, connection=connection, count=len(live))
        for reason, keys in _by_reason(session.refused).items():
            refused = self._apply("rejected", keys, now, connection=connection, reason=reason)
            self._silence.ignore(refused)

    # --- silences ---

    def note_activity(self, activity: Mapping[Channel, ActivitySpan], now: ClockReading) -> None:
        """Note that data was received. Silent subscriptions are live again as of their first data."""
        first_us: dict[SubscriptionKey, int] = {}
        for key, channels in self.channels.items():
            if spans := [activity[channel] for channel in channels if channel in activity]:
                self._last_data_us[key] = max(span.last_us for span in spans) - self._max_late_us
                if self._silence.note_data(key, now.boottime):
                    first_us[key] = min(span.first_us for span in spans)
        # Data that was received before the clock was set seems to lie before that, or ahead of now.
        since = {key: min(max(at_us, self._interrupted_until.wall_us), now.wall_us) for key, at_us in first_us.items()}
        for since_us, keys in grouped_by_time(since, latest=True):
            live = self._states.affected("confirmed", keys)
            self._apply("confirmed", live, now, since_us, count=len(live))

    def detect_silence(self, until_boottime: float, now: ClockReading, chance: float) -> list[Subscription]:
        """Record which subscriptions had no data for too long, and return those to resubscribe.

        All data that was received up to ``until_boottime`` must have been passed to ``note_activity`` before.
        """
        if self.session is None:
            return []
        connection, reason = self.session.connection.id, f"no data for {self._silence_seconds:g} s"
        silent = self._states.affected("no_data", self._silence.detect(until_boottime))
        last_us = {key: max(self._last_data_time_us(key, now), self._states.since_us(key)) for key in silent}
        for since_us, keys in grouped_by_time(last_us, latest=False):
            self._apply("no_data", keys, now, since_us, connection=connection, reason=reason, count=len(keys))
        return [self._subscriptions[key] for key in self._silence.due(now.boottime, chance)]

    def _last_data_time_us(self, key: SubscriptionKey, now: ClockReading) -> int:
        # Not after it was noted: what was received before the clock was set back seems to lie ahead.
        return min(self._last_data_us.get(key, 0), now.wall_us_at(self._silence.last_data_boottime(key)))

    # --- interruptions ---

    def mark_unconfirmed(self, now: ClockReading) -> None:
        """Note an interruption that ends now. Live subscriptions are so as of now, once the connection shows life.

        Must be called before these subscriptions are recorded as silent.
        """
        if self.session is None:
            return
        self._last_data_us.clear()  # the clock may have been set
        self._silence.expect(self.session.acknowledged, now.boottime)
        self._unconfirmed |= set(self._states.in_state("live", self._subscriptions))
        self._interrupted_until = now
        self._confirm(now)

    def _confirm(self, now: ClockReading) -> None:
        """Make unconfirmed subscriptions live if the connection has shown a sign of life, else check again later."""
        self._confirm_boottime = math.inf
        if self.session is None or not self.session.connection.alive:
            return  # a connection that has ended is about to be detached
        connection, since = self.session.connection, self._interrupted_until
        if connection.last_activity_at <= since.boottime:
            self._confirm_boottime = now.boottime + CONFIRM_SECONDS
            return
        keys = [key for key in self._subscriptions if key in self._unconfirmed]
        self._end_unconfirmed()
        self._apply("confirmed", keys, now, since.wall_us, connection=connection.id)
        self.publish(now)

    def _end_unconfirmed(self) -> None:
        self._unconfirmed, self._confirm_boottime = set(), math.inf

    def _apply(
        self,
        event: Event,
        keys: Iterable[SubscriptionKey],
        now: ClockReading,
        since_us: int | None = None,
        **detail: object,
    ) -> list[SubscriptionKey]:
        """Apply the event to those ``keys`` that it affects, if any. Return them."""
        if affected := self._states.affected(event, keys):
            self._states.apply(event, affected, {"path": self._settings.path, **detail}, now.wall_us, since_us)
        return affected


def _by_reason(refused: Mapping[SubscriptionKey, str]) -> dict[str, list[SubscriptionKey]]:
    reasons: dict[str, list[SubscriptionKey]] = {}
    for key, reason in refused.items():
        reasons.setdefault(reason, []).append(key)
    return reasons


def grouped_by_time(
    times_us: Mapping[SubscriptionKey, int], *, latest: bool
) -> list[tuple[int, list[SubscriptionKey]]]:
    """Group keys whose times are a few seconds apart at most. Return each with its latest or its earliest time."""
    groups: list[list[SubscriptionKey]] = []
    for key in sorted(times_us, key=times_us.__getitem__):
        if not groups or times_us[key] - times_us[groups[-1][0]] > SAME_TIME_US:
            groups.append([])
        groups[-1].append(key)
    return [(times_us[group[-1 if latest else 0]], group) for group in groups]
