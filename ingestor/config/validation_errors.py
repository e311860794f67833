"""What pydantic found wrong, said to a person: what is wrong, and what to do.

A refused value is quoted only where it cannot be a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ingestor.config.yaml_document import Loc


@dataclass(frozen=True, slots=True)
class ValidationIssue:
    """One thing wrong at a place in the document, wherever that was written."""

    loc: Loc
    message: str
    key: bool = False  # the key is wrong, not its value


_MESSAGES = {
    "missing": "is missing; write it",
    "bool_parsing": "is neither true nor false; write one of the two",
    "bool_type": "must be true or false",
    "int_parsing": "is not a whole number; write digits alone",
    "int_type": "must be a whole number",
    "model_type": "must be a mapping; write its keys as {key: value}, or below it and indented",
    "dict_type": "must be a mapping; write {name: value}",
    "list_type": "must be a list; write [first, second]",
    "tuple_type": "must be a list; write [first, second]",
    "too_short": "is empty; name at least one, or remove the line",
}


def to_issues(error: ValidationError, model: type[BaseModel], at: Loc = ()) -> Iterator[ValidationIssue]:
    """Each of a validation's errors; ``at`` is where the model stands in the document."""
    for found in error.errors(include_url=False):
        loc = (*at, *found["loc"])
        if found["type"] == "extra_forbidden":
            *above, name = found["loc"]
            yield ValidationIssue(loc, f"unknown key{suggest(str(name), _keys(model, above))}", key=True)
        elif found["type"] == "sibling":
            yield ValidationIssue((*loc[:-1], found["ctx"]["sibling"]), found["msg"])
        else:
            yield ValidationIssue(loc, _message(found))


def suggest(name: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?``, or all that is known if nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; write one of {', '.join(names)}"


def _message(found: ErrorDetails) -> str:
    kind, context = found["type"], found.get("ctx", {})
    if found["input"] is None:
        return "has no value; write one, or remove the line"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")]
        hint = suggest(str(found["input"]), choices)
        return f"{_quoted(found['input'])} is not one of the choices{hint}"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"must be at {'least' if 'ge' in context else 'most'} {context.get('ge', context.get('le')):,}"
    return _MESSAGES.get(kind, found["msg"])


def _quoted(value: Any) -> str:
    return f'"{value[:40]}"' if isinstance(value, str) else "a list or mapping"


def _keys(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """The keys that may stand at this place of the model."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if _is_section(kind))
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
