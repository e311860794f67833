"""Short ids for long names. Interned in a committed transaction of its own: an id from a rolled back one is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table, select

from ingestor.store.engine import insert_or_ignore
from ingestor.store.key_lookup import KEYS_PER_QUERY, keys_in

Key = TypeVar("Key", bound=tuple[str, ...])


class InternTable(Generic[Key]):
    """key → id of one table, through a bounded memory. Only ids that were committed are remembered."""

    def __init__(self, table: Table, key: Sequence[str], capacity: int) -> None:
        self._table = table
        self._key = [table.c[name] for name in key]
        self._id = next(iter(table.primary_key))
        self._capacity = capacity
        self._ids: dict[Key, int] = {}

    def intern(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        keys: Iterable[Key],
        columns: Callable[[Key], dict[str, Any]],
    ) -> dict[Key, int]:
        """Return the ids of ``keys``, in a transaction that ``begin`` opens if any of them has to be written."""
        wanted = set(keys)
        missing = sorted(wanted - self._ids.keys())
        self._make_room(len(missing), wanted)
        if missing:
            with begin() as connection:
                found = self._select(connection, missing)
                self._insert(connection, [columns(key) for key in missing if key not in found])
                found |= self._select(connection, [key for key in missing if key not in found])
            self._ids |= found
        return {key: self._ids[key] for key in wanted}

    def clear(self) -> None:
        """The database may be another one now."""
        self._ids.clear()

    def _make_room(self, count: int, wanted: set[Key]) -> None:
        # The oldest half goes: a dict keeps the order of entry, and no bookkeeping per look-up pays here.
        if len(self._ids) + count > self._capacity:
            stale = set(list(self._ids)[: len(self._ids) // 2]) - wanted
            self._ids = {key: id_ for key, id_ in self._ids.items() if key not in stale}

    def _select(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, int]:
        found: dict[Key, int] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            query = select(self._id, *self._key).where(keys_in(connection, self._key, some))
            found |= {tuple(row[1:]): row[0] for row in connection.execute(query)}
        return found

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        if rows:
            connection.execute(insert_or_ignore(connection, self._table), rows)
