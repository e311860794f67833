"""Expand the list of subscriptions in the file. Knows nothing about which endpoints exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema

from ingestor.config import validators
from ingestor.config.model import ANY_SCALAR, ConfigSection, Settings, Subscription, Text, Ticker
from ingestor.config.ticker_file import TickerFiles
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
    tickers_file: Text = Field(default="", description="Text file with the tickers, one a line; # begins a comment")


class ConfigFile(Settings):
    """The whole document as written, which the JSON Schema describes."""

    subscriptions: Annotated[list[SubscriptionEntry], Field(min_length=1)] = Field(description="What to collect")


class WrittenAt(NamedTuple):
    """Where a subscription is written: in the document, or at a location in a file of tickers."""

    loc: Loc
    location: str = ""


def expand_subscriptions(
    written: Any,
    location_of: LocationOf,
    report: ReportIssue,
    feed_name: FeedNamer | None = None,
    files: TickerFiles | None = None,
) -> tuple[Subscription, ...]:
    """Return every subscription that the list stands for, in order. Report what is invalid or doubtful.

    With ``feed_name``, also reports feeds whose name is too long for the database. ``files`` reads the files of
    tickers.
    """
    if not written:
        report(ValidationIssue(("subscriptions",), "is empty; add at least one: - {path: /real-time/…}"))
        return ()
    if not isinstance(written, list):
        report(ValidationIssue(("subscriptions",), 'must be a list; begin each item with "- path:"'))
        return ()
    seen = _Seen(location_of, report)
    expander = _Expander(location_of, report, feed_name, files or TickerFiles())
    for index, item in enumerate(written):
        for origin, subscription in expander.expand(item, ("subscriptions", index)):
            seen.add(origin, subscription)
    return seen.subscriptions


class _Seen:
    """The subscriptions so far. Reports duplicates, and tickers that are probably mistakes."""

    def __init__(self, location_of: LocationOf, report: ReportIssue) -> None:
        self._location_of = location_of
        self._report = report
        # Without the method, because the tables identify a subscription by path and params.
        self._first: dict[tuple[str, str], tuple[Subscription, WrittenAt]] = {}
        self._folded: dict[tuple[str, str], tuple[Subscription, WrittenAt]] = {}

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        return tuple(subscription for subscription, _ in self._first.values())

    def add(self, origin: WrittenAt, subscription: Subscription) -> None:
        key = subscription.path, subscription.key[2]
        other, other_origin = self._first.setdefault(key, (subscription, origin))
        if other is not subscription:
            # A list that a program wrote may overlap with another.
            is_harmless = subscription == other and bool(origin.location or other_origin.location)
            message = _duplicate_message(subscription, other, self._locate(other_origin))
            self._report(ValidationIssue(origin.loc, message, warning=is_harmless, location=origin.location))
        elif subscription.ticker:
            self._doubt(origin, subscription)

    def _doubt(self, origin: WrittenAt, subscription: Subscription) -> None:
        ticker = subscription.ticker
        folded = subscription.path, subscription.key[2].casefold()
        other, other_origin = self._folded.setdefault(folded, (subscription, origin))
        message = validators.doubt_ticker(ticker)
        if other.ticker != ticker:
            message = (
                f'"{ticker}" differs from {self._locate(other_origin)} only in case; keep one if they are the same'
            )
        if message:
            self._report(ValidationIssue(origin.loc, message, warning=True, location=origin.location))

    def _locate(self, origin: WrittenAt) -> str:
        return origin.location or self._location_of(origin.loc)


def _duplicate_message(subscription: Subscription, other: Subscription, location: str) -> str:
    if subscription == other:
        return f"is a duplicate of {location}; keep one"
    methods = f'"{subscription.method}" here and "{other.method}" there'
    return f"differs from {location} only in the method ({methods}), and both would be stored as one; keep one"


class _Expander:
    """Validates the items of the list, and makes the subscriptions that each stands for."""

    def __init__(
        self, location_of: LocationOf, report: ReportIssue, feed_name: FeedNamer | None, files: TickerFiles
    ) -> None:
        self._location_of = location_of
        self._report = report
        self._feed_name = feed_name
        self._files = files
        self._reported: set[str] = set()  # files of tickers whose problems are reported

    def expand(self, item: Any, loc: Loc) -> Iterator[tuple[WrittenAt, Subscription]]:
        try:
            entry = SubscriptionEntry.model_validate(item)
        except ValidationError as error:
            for issue in to_issues(error, SubscriptionEntry, at=loc):
                self._report(issue)
            return
        issues = [*_check_exclusive_keys(entry, loc), *_check_params(entry, loc)]
        if self._feed_name:
            issues += _check_feed_name(self._feed_name(entry.path, entry.params), loc)
        for issue in issues:
            self._report(issue)
        if not issues:
            yield from self._expand_entry(entry, loc)

    def _expand_entry(self, entry: SubscriptionEntry, loc: Loc) -> Iterator[tuple[WrittenAt, Subscription]]:
        location, config_path = self._location_of((*loc, "path")), ".".join(map(str, loc))
        for origin, params in self._expand_params(entry, loc):
            subscription = Subscription(entry.path, entry.method, params, location=location, config_path=config_path)
            if len(subscription.key[2]) > MAX_PARAMS_LENGTH:
                message = f"is longer than {MAX_PARAMS_LENGTH} characters as JSON; shorten it"
                self._report(ValidationIssue((*loc, "params"), message))
                return
            yield origin, subscription

    def _expand_params(self, entry: SubscriptionEntry, loc: Loc) -> Iterator[tuple[WrittenAt, Mapping[str, str]]]:
        for index, ticker in enumerate(entry.tickers):
            yield WrittenAt((*loc, "tickers", index)), {**entry.params, "ticker": ticker}
        if entry.tickers_file:
            for origin, ticker in self._read_tickers(entry.tickers_file, (*loc, "tickers_file")):
                yield origin, {**entry.params, "ticker": ticker}
        elif entry.ticker:
            yield WrittenAt((*loc, "ticker")), {**entry.params, "ticker": entry.ticker}
        elif not entry.tickers:
            yield WrittenAt(loc), entry.params

    def _read_tickers(self, written: str, loc: Loc) -> Iterator[tuple[WrittenAt, str]]:
        try:
            found = self._files.read(written)
        except ValueError as error:
            self._report(ValidationIssue(loc, str(error)))
            return
        for problem in () if written in self._reported else found.problems:
            self._report(ValidationIssue(loc, problem.message, location=problem.location))
        self._reported.add(written)
        for listed in found.tickers:
            yield WrittenAt(loc, listed.location), listed.ticker


def _check_exclusive_keys(entry: SubscriptionEntry, loc: Loc) -> Iterator[ValidationIssue]:
    """Report tickers that are named by more than one key of the item."""
    keys = ["params"] if "ticker" in entry.params else []
    keys += [key for key in ("ticker", "tickers", "tickers_file") if getattr(entry, key)]
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
