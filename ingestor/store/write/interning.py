"""Intern names as integer ids.

New ids are committed before they are used, because an id from a rolled-back transaction does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Table, select

from ingestor.store.engine import insert_or_ignore
from ingestor.store.key_lookup import select_by_keys

Key = TypeVar("Key", bound=tuple[str, ...])


class InternTable(Generic[Key]):
    """Maps keys to the ids of a table, with a bounded cache of committed ids."""

    def __init__(self, table: Table, key_columns: Sequence[str], capacity: int) -> None:
        self._table = table
        self._key_columns = [table.c[name] for name in key_columns]
        self._id_column = next(iter(table.primary_key))
        self._capacity = capacity
        self._ids: dict[Key, int] = {}

    def intern(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        keys: Iterable[Key],
        columns: Callable[[Key], dict[str, Any]],
    ) -> dict[Key, int]:
        """Return the ids of ``keys``. Insert new keys with ``columns(key)``, in a transaction that ``begin`` opens."""
        wanted = set(keys)
        missing = sorted(wanted - self._ids.keys())
        self._make_room(len(missing), wanted)
        if missing:
            with begin() as connection:
                found = self._select(connection, missing)
                if new := [key for key in missing if key not in found]:
                    connection.execute(insert_or_ignore(connection, self._table), [columns(key) for key in new])
                    found |= self._select(connection, new)
            self._ids |= found
        return {key: self._ids[key] for key in wanted}

    def clear(self) -> None:
        """Forget all ids, because the database may be another one now."""
        self._ids.clear()

    def _make_room(self, count: int, wanted: set[Key]) -> None:
        # Drop the oldest half: a dict keeps insertion order, and LRU bookkeeping per lookup would cost more.
        if len(self._ids) + count > self._capacity:
            stale = set(list(self._ids)[: len(self._ids) // 2]) - wanted
            self._ids = {key: id_ for key, id_ in self._ids.items() if key not in stale}

    def _select(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, int]:
        query = select(self._id_column, *self._key_columns)
        return {row[1:]: row[0] for row in select_by_keys(connection, query, self._key_columns, keys)}
