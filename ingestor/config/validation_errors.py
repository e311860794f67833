"""Translate pydantic's errors to messages that say what is wrong and what to do.

A rejected value is quoted only where it cannot be a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ingestor.config.yaml_document import Loc
from ingestor.errors import ConfigProblem

MAX_LISTED = 20  # names in a message, problems of a file of tickers


@dataclass(frozen=True, slots=True)
class ValidationIssue:
    """Something wrong at a location in the document, wherever its value comes from."""

    loc: Loc
    message: str
    key: bool = False  # the key is wrong, not its value
    warning: bool = False
    location: str = ""  # file:line:column, if it is not the document's


_MESSAGES = {
    "missing": "is missing; add it",
    "bool_parsing": "is neither true nor false; write one of the two",
    "bool_type": "must be true or false",
    "int_parsing": "is not a whole number; write only digits",
    "int_type": "must be a whole number",
    "model_type": "must be a mapping; write its keys as {key: value}, or indented on the lines below",
    "dict_type": "must be a mapping; write {name: value}",
    "list_type": "must be a list; write [first, second]",
    "tuple_type": "must be a list; write [first, second]",
    "too_short": "is empty; add at least one, or remove the line",
}


def limit_problems(problems: list[ConfigProblem]) -> tuple[ConfigProblem, ...]:
    """Return the first problems, and how many more there are."""
    more = len(problems) - MAX_LISTED
    if more <= 0:
        return tuple(problems)
    return (*problems[:MAX_LISTED], ConfigProblem(problems[MAX_LISTED].location, "", f"{more:,} more from here on"))


def to_issues(error: ValidationError, model: type[BaseModel], at: Loc = ()) -> Iterator[ValidationIssue]:
    """Yield an issue for each error. ``at`` is the location of the model in the document."""
    for details in error.errors(include_url=False):
        loc = (*at, *details["loc"])
        if details["type"] == "extra_forbidden":
            *parent, name = details["loc"]
            yield ValidationIssue(loc, f"unknown key{suggest(str(name), _keys(model, parent))}", key=True)
        elif details["type"] == "sibling":
            yield ValidationIssue((*loc[:-1], details["ctx"]["sibling"]), details["msg"])
        else:
            yield ValidationIssue(loc, _message(details))


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "x"?`` with the most similar known name, or a list of the first if none is similar."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=1)
    more = ", …" if len(names) > MAX_LISTED else ""
    listed = f"; write one of {', '.join(names[:MAX_LISTED])}{more}" if names else ""
    return f'; did you mean "{similar[0]}"?' if similar else listed


def _message(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if details["input"] is None:
        return "has no value; write one, or remove the line"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")]
        value = details["input"]
        shown = f'"{value[:40]}"' if isinstance(value, str) else "a list or mapping"
        return f"{shown} is not one of the choices{suggest(str(value), choices)}"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be at {'least' if 'ge' in context else 'most'} {context.get('ge', context.get('le')):,}"
    return _MESSAGES.get(kind, details["msg"])


def _keys(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """Return the keys allowed at this location of the model."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
        model = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return [name for name, field in model.model_fields.items() if not field.exclude]
