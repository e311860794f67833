"""Expand the list of subscriptions in the file. Knows nothing about which endpoints exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from ingestor.config import validators
from ingestor.config.model import ANY_SCALAR, ConfigSection, Settings, Subscription, Text, Ticker
from ingestor.config.validation_errors import ValidationIssue, to_issues
from ingestor.config.yaml_document import Loc

MAX_PATH_LENGTH = 76  # "/historical/" and a feed name of 64 characters, the longest that the database stores
METHODS = ("get", "post", "put", "patch", "delete")
MAX_PARAMS_LENGTH = 512  # characters of canonical JSON

ReportIssue = Callable[[ValidationIssue], None]
LocationOf = Callable[[Loc], str]
FeedNamer = Callable[[str, Mapping[str, str]], str]  # takes path and params; the provider package has one


def validate_endpoint(value: Any) -> str:
    """Return a path that can be subscribed to. Raises ValueError with a message for the operator."""
    path = validators.text(value)
    if "://" in path:
        raise ValueError("must be the path alone, without the server: /real-time/crowd-sentiment")
    if re.search(r"[\s?#]", path):
        raise ValueError("must not contain spaces, ? or #; write what follows the ? under params")
    if len(path) > MAX_PATH_LENGTH:
        raise ValueError(f"has {len(path)} characters; at most {MAX_PATH_LENGTH} can be stored")
    return path


def _validate_method(value: Any) -> str:
    method = validators.text(value).lower()
    if method not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}")
    return method


class SubscriptionEntry(ConfigSection):
    """One item of ``subscriptions``, which may stand for several subscriptions."""

    path: Annotated[
        str, BeforeValidator(validate_endpoint), WithJsonSchema({"type": "string", "maxLength": MAX_PATH_LENGTH})
    ] = Field(description="Endpoint, such as /real-time/crowd-sentiment")
    method: Annotated[
        str, BeforeValidator(_validate_method), WithJsonSchema({"enum": [*METHODS, *map(str.upper, METHODS)]})
    ] = Field(default="get", description="HTTP method of the endpoint")
    params: dict[Text, Annotated[Text, WithJsonSchema(ANY_SCALAR)]] = Field(
        default={}, description="Parameters of the endpoint"
    )
    ticker: Ticker = Field(default="", description="Short for params: {ticker: …}")
    tickers: Annotated[list[Ticker], Field(min_length=1)] = Field(
        default=[], description="Short for one subscription per ticker"
    )


class ConfigFile(Settings):
    """The whole document as written, which the JSON Schema describes."""

    subscriptions: Annotated[list[SubscriptionEntry], Field(min_length=1)] = Field(description="What to collect")


def expand_subscriptions(
    written: Any, location_of: LocationOf, report: ReportIssue, feed_name: FeedNamer | None = None
) -> tuple[Subscription, ...]:
    """Return every subscription that the list stands for, in order. Report what is invalid.

    With ``feed_name``, also reports feeds whose name is too long for the database.
    """
    if not written:
        report(ValidationIssue(("subscriptions",), "is empty; add at least one: - {path: /real-time/…}"))
        return ()
    if not isinstance(written, list):
        report(ValidationIssue(("subscriptions",), 'must be a list; begin each item with "- path:"'))
        return ()
    first: dict[tuple[str, str], tuple[Subscription, Loc]] = {}
    for index, item in enumerate(written):
        for loc, subscription in _expand_item(item, ("subscriptions", index), location_of, report, feed_name):
            # Without the method, because the tables identify a subscription by path and params.
            other, other_loc = first.setdefault((subscription.path, subscription.key[2]), (subscription, loc))
            if other is not subscription:
                report(ValidationIssue(loc, _duplicate_message(subscription, other, location_of(other_loc))))
    return tuple(subscription for subscription, _ in first.values())


def _duplicate_message(subscription: Subscription, other: Subscription, location: str) -> str:
    if subscription == other:
        return f"is a duplicate of {location}; keep one"
    methods = f'"{subscription.method}" here and "{other.method}" there'
    return f"differs from {location} only in the method ({methods}), and both would be stored as one; keep one"


def _expand_item(
    item: Any, loc: Loc, location_of: LocationOf, report: ReportIssue, feed_name: FeedNamer | None
) -> Iterator[tuple[Loc, Subscription]]:
    try:
        entry = SubscriptionEntry.model_validate(item)
    except ValidationError as error:
        for issue in to_issues(error, SubscriptionEntry, at=loc):
            report(issue)
        return
    issues = [*_check_exclusive_keys(entry, loc), *_check_params(entry, loc)]
    if feed_name:
        issues += _check_feed_name(feed_name(entry.path, entry.params), loc)
    for issue in issues:
        report(issue)
    if issues:
        return
    location, config_path = location_of((*loc, "path")), ".".join(map(str, loc))
    for params_loc, params in _expand_params(entry, loc):
        subscription = Subscription(entry.path, entry.method, params, location=location, config_path=config_path)
        if len(subscription.key[2]) > MAX_PARAMS_LENGTH:
            message = f"is longer than {MAX_PARAMS_LENGTH} characters as JSON; shorten it"
            report(ValidationIssue((*loc, "params"), message))
            return
        yield params_loc, subscription


def _expand_params(entry: SubscriptionEntry, loc: Loc) -> Iterator[tuple[Loc, Mapping[str, str]]]:
    for index, ticker in enumerate(entry.tickers):
        yield (*loc, "tickers", index), {**entry.params, "ticker": ticker}
    if entry.ticker:
        yield (*loc, "ticker"), {**entry.params, "ticker": entry.ticker}
    elif not entry.tickers:
        yield loc, entry.params


def _check_exclusive_keys(entry: SubscriptionEntry, loc: Loc) -> Iterator[ValidationIssue]:
    """Report tickers that are named by more than one key of the item."""
    given = {"params": "ticker" in entry.params, "ticker": bool(entry.ticker), "tickers": bool(entry.tickers)}
    keys = [key for key, is_given in given.items() if is_given]
    if len(keys) > 1:
        yield ValidationIssue((*loc, keys[-1]), f'names tickers, and so does "{keys[0]}"; keep one of the two')


def _check_params(entry: SubscriptionEntry, loc: Loc) -> Iterator[ValidationIssue]:
    for name, validate in (("ticker", validators.ticker), ("user_id", validators.user_id)):
        if name in entry.params:
            try:
                validate(entry.params[name])
            except ValueError as error:
                yield ValidationIssue((*loc, "params", name), str(error))


def _check_feed_name(feed: str, loc: Loc) -> Iterator[ValidationIssue]:
    limit = validators.MAX_KEY_LENGTH
    if len(feed) > limit:
        message = (
            f'makes a feed name of {len(feed)} characters, "{feed[:24]}…", of which {limit} can be stored; '
            "shorten the path, or the params other than ticker and user_id"
        )
        yield ValidationIssue((*loc, "path"), message)
