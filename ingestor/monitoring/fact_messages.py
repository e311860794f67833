"""The log message of each kind of fact: what happened, and what the daemon does next."""

from __future__ import annotations

from ingestor.core.entries import Fact

_MESSAGES = {
    "started": "daemon started, connecting to the provider",
    "stopped": "stopped receiving, coverage ends here",
    "crashed": "the previous run did not shut down cleanly; its coverage ends at its last heartbeat",
    "last_heard": "coverage of this connection ends at the last byte that the previous run heard from it",
    "lost": "received entries are lost; recorded as lost in coverage, continuing with new data",
    "rewound": "the database went back in time, writing again what the spool keeps of that time; nothing is lost",
    "copied": "another run writes with a copy of this spool; give each daemon a spool of its own. Continuing as another"
    " instance, which has everything that this spool receives",
    "connected": "connected to the provider, subscribing",
    "connect_failed": "cannot connect to the provider, retrying until it connects; further attempts are counted",
    "disconnected": "connection to the provider lost, reconnecting; the time until then is recorded as a gap",
    "disconnected: renewed": "connection closed to replace it, reconnecting; the time until then is recorded as a gap",
    "disconnected: spool_full": "connection closed because the spool is full, reconnecting when it has space",
    "disconnected: limit": "connection cut because the provider exceeds a limit, reconnecting; see the reason",
    "disconnected: standby": "connection closed because another instance receives, standing by",
    "standby": "not connecting, because another instance receives",
    "standing_by": "another instance receives, standing by; taking over when it no longer renews its lease",
    "took_over": "taking over from another instance, connecting; the time in which none received is recorded as a gap",
    "lease_expired": "the lease ended because it could not be renewed; open connections stay open, and no other one is"
    " opened until it is held again",
    "lease_regained": "the lease is held again, connecting where necessary",
    "lease_yielded": "released the lease, because this instance cannot connect; another one may take over",
    "evicted": "the provider closed one connection when another one opened; see the reason",
    "pending": "subscriptions are not receiving yet, waiting for the provider's acknowledgement",
    "subscribed": "subscriptions confirmed, receiving",
    "refused": "the provider refused subscriptions, subscribing again ever less often",
    "unsubscribed": "unsubscribed, no longer receiving",
    "silent": "no data received for longer than provider.silence, requesting it again",
    "silent: connection": "no data on the connection for longer than provider.silence, replacing it",
    "asked_again": "sent subscribe again for silent subscriptions",
    "heard_again": "data received again, subscriptions are live; the time without is repaired as a gap",
    "restated": "subscription states recorded again for a new instance",
    "provider_error": "the provider reported an error; the connection stays open",
    "paused": "reading from the socket paused until the spool has caught up",
    "resumed": "reading from the socket resumed",
    "token_renewed": "new token received, renewing it before it expires",
    "token_failed": "no token from the provider, retrying the login until there is one; further attempts are counted",
    "not_entitled": "the token does not name all subscribed paths, subscribing to them anyway",
    "key_changed": "API key changed, using the new one at the next login",
    "config_reloaded": "config reloaded, subscriptions changed accordingly",
    "config_rejected": "config rejected, keeping the current one; fix the file and reload",
    "spool_level": "fill level of the spool changed; connections are closed if it becomes full",
    "spool_full": "the spool is full, not receiving until the database has taken entries from it",
    "clock_stepped": "the wall clock was set; rescheduling jobs, and coverage of that time counts as silent",
    "clock_restarted": "coverage goes on by the clock as it is set now",
    "stood_still": "the process stood still; coverage of that time counts as silent",
    "backfill_requested": "a backfill was requested, requesting it from the provider",
    "repaired": "gap repaired, none of its data is missing any longer",
    "repair_failed": "gap could not be repaired, it stays in the view gaps",
}


def message_of(fact: Fact) -> str:
    """Return the log message of a fact: the words of its kind if it has no message."""
    variant = "connection" if fact.kind == "silent" and fact.state is None else fact.detail.get("cause")
    return _MESSAGES.get(f"{fact.kind}: {variant}") or _MESSAGES.get(fact.kind) or fact.kind.replace("_", " ")
