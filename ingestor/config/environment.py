"""``INGESTOR_<SECTION>__<KEY>`` variables over the document. An unknown one is a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import get_args, get_origin

from pydantic import BaseModel

from ingestor.config.draft import Draft
from ingestor.config.model import Settings
from ingestor.errors import ConfigProblem

FILE_VARIABLE = "INGESTOR_CONFIG"
_PREFIX = "INGESTOR_"
_FOR_TESTS = "INGESTOR_TEST_"


def variable_name(*loc: str) -> str:
    """The variable that sets a place: ``("http", "listen")`` → ``INGESTOR_HTTP__LISTEN``."""
    return _PREFIX + "__".join(loc).upper()


def apply_environment(draft: Draft, env: Mapping[str, str], secrets: frozenset[tuple[str, str]]) -> None:
    """Put each known variable over the document's value. ``secrets`` are left to who weighs their sources."""
    known = {variable_name(*loc): (loc, is_list) for loc, is_list in _places(Settings)}
    for name, text in sorted(env.items()):
        if name not in known:
            if name.startswith(_PREFIX) and not name.startswith(_FOR_TESTS) and name != FILE_VARIABLE:
                draft.report(ConfigProblem(name, "", _unknown(name, [*known, FILE_VARIABLE])))
            continue
        loc, is_list = known[name]
        if loc not in secrets:
            value = [item.strip() for item in text.split(",")] if is_list else text
            draft.put(loc, value if text else None, name)


def _unknown(name: str, known: list[str]) -> str:
    if name.startswith(variable_name("subscriptions")):
        return "subscriptions cannot come from the environment; write them in the file"
    # Without the prefix, which would make every name look like every other.
    bare = {other.removeprefix(_PREFIX): other for other in known}
    near = [bare[match] for match in difflib.get_close_matches(name.removeprefix(_PREFIX), bare, n=1)]
    return f"unknown variable; {f'did you mean {near[0]}?' if near else 'unset it'}"


def _places(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Every place that holds one value or a list of texts, and whether it is a list."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _places(kind, (*above, name))
        else:
            yield (*above, name), tuple in {get_origin(kind), *map(get_origin, get_args(kind))}
