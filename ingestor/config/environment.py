"""Override the document with ``INGESTOR_<SECTION>__<KEY>`` variables. An unknown variable is an error."""

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
_TEST_PREFIX = "INGESTOR_TEST_"


def variable_name(*loc: str) -> str:
    """Return the variable that sets a key: ``("http", "listen")`` → ``INGESTOR_HTTP__LISTEN``."""
    return _PREFIX + "__".join(loc).upper()


def apply_environment(draft: Draft, env: Mapping[str, str], secrets: frozenset[tuple[str, str]]) -> None:
    """Override the document's values. Skips ``secrets``, which ``place_secrets`` resolves."""
    known = {variable_name(*loc): (loc, is_list) for loc, is_list in _keys(Settings)}
    for name, text in sorted(env.items()):
        if name not in known:
            if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name != FILE_VARIABLE:
                draft.add_problem(ConfigProblem(name, "", _unknown_message(name, [*known, FILE_VARIABLE])))
            continue
        loc, is_list = known[name]
        if loc not in secrets:
            value = [item.strip() for item in text.split(",")] if is_list else text
            draft.set(loc, value if text else None, name)


def _unknown_message(name: str, known: list[str]) -> str:
    if name.startswith(variable_name("subscriptions")):
        return "subscriptions cannot be set from the environment; write them in the file"
    # Without the common prefix, which would make all names similar.
    by_suffix = {other.removeprefix(_PREFIX): other for other in known}
    similar = difflib.get_close_matches(name.removeprefix(_PREFIX), by_suffix, n=1)
    return f"unknown variable; {f'did you mean {by_suffix[similar[0]]}?' if similar else 'unset it'}"


def _keys(model: type[BaseModel], parent: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the location of every key with a single value or a list of texts, and whether it is a list."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, (*parent, name))
        else:
            yield (*parent, name), tuple in {get_origin(kind), *map(get_origin, get_args(kind))}
