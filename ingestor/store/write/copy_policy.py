"""Decide when a batch's samples are copied straight into their table. Pure.

COPY into `samples` takes PostgreSQL less than half of what COPY into a temporary table and a merge take, 1.8 instead of
4.1 µs a row. But one row that is there already fails it, and then the merge follows: half of the gain is lost, and the
rows copied so far stay in the table until it is vacuumed.
"""

from __future__ import annotations

FIRST_WAIT = 2  # all-new batches in a row that are merged before one is copied
LONGEST_WAIT = 64


class CopyPolicy:
    """Whether the next batch is copied: all rows of the last ones were new.

    It waits twice as long after a copy that failed, unless at least as many batches were copied as had been waited for.
    """

    def __init__(self) -> None:
        self._wait = FIRST_WAIT
        self._all_new = 0  # batches in a row, merged and copied

    @property
    def is_due(self) -> bool:
        return self._all_new >= self._wait

    def note_written(self, *, all_new: bool) -> None:
        """Note a batch with rows that was committed."""
        self._all_new = self._all_new + 1 if all_new else 0

    def note_failed(self) -> None:
        """Note a batch that could not be copied: it is merged, and so are the next ones."""
        has_paid = self._all_new >= 2 * self._wait
        self._wait = FIRST_WAIT if has_paid else min(2 * self._wait, LONGEST_WAIT)
        self._all_new = 0
