"""From the list that was written to the subscriptions it stands for. Knows no endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from ingestor.config import validators
from ingestor.config.model import ANY_SCALAR, ConfigSection, Settings, Subscription, Text, Ticker
from ingestor.config.validation_errors import ValidationIssue, to_issues
from ingestor.config.yaml_document import Loc

MAX_PATH_LENGTH = 76  # "/historical/" and a feed's name of 64 characters, the longest that the database takes
METHODS = ("get", "post", "put", "patch", "delete")
MAX_PARAMS_LENGTH = 512  # characters of canonical JSON

ReportIssue = Callable[[ValidationIssue], None]
LocationOf = Callable[[Loc], str]
FeedNamer = Callable[[str, Mapping[str, str]], str]  # of a path and params; the provider package knows it


def validate_endpoint(value: Any) -> str:
    """A path that may be subscribed to. Raises ValueError with a message for the operator."""
    path = validators.text(value)
    if "://" in path:
        raise ValueError("must be the path alone, without the server: /real-time/crowd-sentiment")
    if re.search(r"[\s?#]", path):
        raise ValueError("must have no blanks, ? or #; what follows a ? belongs into params")
    if len(path) > MAX_PATH_LENGTH:
        raise ValueError(f"has {len(path)} characters; at most {MAX_PATH_LENGTH} can be stored")
    return path


def _method(value: Any) -> str:
    verb = validators.text(value).lower()
    if verb not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}")
    return verb


class SubscriptionEntry(ConfigSection):
    """One item of ``subscriptions``, which may stand for several."""

    path: Annotated[
        str,
        BeforeValidator(validate_endpoint),
        WithJsonSchema({"type": "string", "maxLength": MAX_PATH_LENGTH}),
    ] = Field(description="Endpoint, such as /real-time/crowd-sentiment")
    method: Annotated[
        str,
        BeforeValidator(_method),
        WithJsonSchema({"enum": [*METHODS, *map(str.upper, METHODS)]}),
    ] = Field(default="get", description="HTTP verb that the endpoint is asked with")
    params: dict[Text, Annotated[Text, WithJsonSchema(ANY_SCALAR)]] = Field(
        default={}, description="Parameters of the endpoint"
    )
    ticker: Ticker = Field(default="", description="Short for params: {ticker: …}")
    tickers: Annotated[list[Ticker], Field(min_length=1)] = Field(
        default=[], description="Short for one subscription each"
    )


class ConfigFile(Settings):
    """The whole document as it is written: what the JSON Schema describes."""

    subscriptions: Annotated[list[SubscriptionEntry], Field(min_length=1)] = Field(description="What is collected")


def expand_subscriptions(
    written: Any, where: LocationOf, report: ReportIssue, feed_name: FeedNamer | None = None
) -> tuple[Subscription, ...]:
    """Every subscription that the list stands for, in its order; what is wrong goes to ``report``.

    With ``feed_name`` also refuses those whose feed has a name that the database has no room for.
    """
    if not written:
        report(ValidationIssue(("subscriptions",), "nothing to do; name at least one: - {path: /real-time/…}"))
        return ()
    if not isinstance(written, list):
        report(ValidationIssue(("subscriptions",), 'must be a list; begin each item with "- path:"'))
        return ()
    first: dict[tuple[str, str], tuple[Subscription, Loc]] = {}
    for index, item in enumerate(written):
        for place, subscription in _of_item(item, ("subscriptions", index), where, report, feed_name):
            # Not the method: the tables tell one from another by path and params.
            other, at = first.setdefault((subscription.path, subscription.key[2]), (subscription, place))
            if other is not subscription:
                report(ValidationIssue(place, _twice(subscription, other, where(at))))
    return tuple(subscription for subscription, _ in first.values())


def _twice(subscription: Subscription, other: Subscription, at: str) -> str:
    if subscription == other:
        return f"asks for the same as {at}; keep one"
    differs = f'"{subscription.method}" and there "{other.method}"'
    return f"asks for the same as {at} but for the method, here {differs}, and would be stored as one with it; keep one"


def _of_item(
    item: Any, loc: Loc, where: LocationOf, report: ReportIssue, feed_name: FeedNamer | None
) -> Iterator[tuple[Loc, Subscription]]:
    try:
        entry = SubscriptionEntry.model_validate(item)
    except ValidationError as error:
        for complaint in to_issues(error, SubscriptionEntry, at=loc):
            report(complaint)
        return
    problems = [*_contradictions(entry, loc), *_misnamed(entry, loc)]
    if feed_name:
        problems += _check_feed_name(feed_name(entry.path, entry.params), loc)
    for problem in problems:
        report(problem)
    if not problems:
        yield from _each(entry, loc, where((*loc, "path")), report)


def _each(entry: SubscriptionEntry, loc: Loc, place: str, report: ReportIssue) -> Iterator[tuple[Loc, Subscription]]:
    name = ".".join(map(str, loc))
    for at, params in _params(entry, loc):
        subscription = Subscription(entry.path, entry.method, params, location=place, config_path=name)
        if len(subscription.key[2]) > MAX_PARAMS_LENGTH:
            report(
                ValidationIssue((*loc, "params"), f"is longer than {MAX_PARAMS_LENGTH} characters as JSON; shorten it")
            )
            return
        yield at, subscription


def _params(entry: SubscriptionEntry, loc: Loc) -> Iterator[tuple[Loc, Mapping[str, str]]]:
    for index, name in enumerate(entry.tickers):
        yield (*loc, "tickers", index), {**entry.params, "ticker": name}
    if entry.ticker:
        yield (*loc, "ticker"), {**entry.params, "ticker": entry.ticker}
    elif not entry.tickers:
        yield loc, entry.params


def _contradictions(entry: SubscriptionEntry, loc: Loc) -> Iterator[ValidationIssue]:
    """What is wrong between keys of one item that are right by themselves."""
    given = {"params": "ticker" in entry.params, "ticker": bool(entry.ticker), "tickers": bool(entry.tickers)}
    named = [key for key, is_given in given.items() if is_given]
    if len(named) > 1:
        yield ValidationIssue((*loc, named[-1]), f'names tickers, and so does "{named[0]}"; keep one of the two')


def _misnamed(entry: SubscriptionEntry, loc: Loc) -> Iterator[ValidationIssue]:
    for name, check in (("ticker", validators.ticker), ("user_id", validators.user_id)):
        if name in entry.params:
            try:
                check(entry.params[name])
            except ValueError as error:
                yield ValidationIssue((*loc, "params", name), str(error))


def _check_feed_name(feed: str, loc: Loc) -> Iterator[ValidationIssue]:
    limit = validators.MAX_KEY_LENGTH
    if len(feed) > limit:
        message = (
            f'makes a feed named "{feed[:24]}…" with {len(feed)} characters, of which {limit} can be stored; '
            "shorten the path, or the params other than ticker and user_id"
        )
        yield ValidationIssue((*loc, "path"), message)
