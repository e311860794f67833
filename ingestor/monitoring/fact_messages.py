"""The log message of each kind of fact: what happened, and what the daemon does next."""

from __future__ import annotations

from ingestor.core.entries import Fact

_MESSAGES = {
    "started": "daemon started, connecting to the provider",
    "stopped": "stopped receiving",
    "crashed": "the previous run did not shut down cleanly; its coverage ends at its last heartbeat",
    "lost": "received entries are lost; the time is recorded as lost in coverage",
    "connected": "connected to the provider, subscribing",
    "connect_failed": "cannot connect to the provider, retrying",
    "disconnected": "connection to the provider lost, reconnecting",
    "evicted": "the provider closed one connection when another one opened",
    "pending": "subscriptions are waiting for the provider's confirmation",
    "subscribed": "subscriptions confirmed, receiving",
    "refused": "the provider refused subscriptions, retrying them later",
    "unsubscribed": "unsubscribed",
    "silent": "no data received for too long, subscribing again",
    "asked_again": "subscribed again after a silence",
    "heard_again": "data received again, subscriptions are live",
    "restated": "subscription states recorded again for a new instance",
    "provider_error": "the provider reported an error; the connection stays open",
    "paused": "reading from the socket paused until the spool has caught up",
    "resumed": "reading from the socket resumed",
    "token_renewed": "token renewed",
    "token_failed": "no token from the provider, retrying the login",
    "not_entitled": "the token does not name all subscribed paths, subscribing to them anyway",
    "key_changed": "API key changed, using the new one at the next login",
    "config_reloaded": "config reloaded",
    "config_rejected": "config rejected, keeping the current one",
    "spool_level": "fill level of the spool changed",
    "spool_full": "the spool is full, not receiving until the database has taken entries from it",
    "clock_stepped": "the wall clock was set; rescheduling jobs, and coverage of that time counts as silent",
    "stood_still": "the process stood still; coverage of that time counts as silent",
    "repaired": "gap repaired",
    "repair_failed": "gap could not be repaired, it stays in the view gaps",
}


def message_of(fact: Fact) -> str:
    """Return the log message of a fact: the words of its kind if it has no message."""
    return _MESSAGES.get(fact.kind) or fact.kind.replace("_", " ")
