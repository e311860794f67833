"""Find the items that the database rejects: the only bisection, for entries, samples and names alike. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ingestor.errors import BatchRejected

T = TypeVar("T")


def bisect_rejected(
    items: Sequence[T], attempt: Callable[[Sequence[T]], object], reject: Callable[[T, BatchRejected], object]
) -> None:
    """Call ``attempt`` with all items. If it raises BatchRejected, do the same with each half, in order.

    An item that is rejected on its own goes to ``reject``. One bad item of n costs about 2 log2(n) more attempts.
    """
    try:
        attempt(items)
    except BatchRejected as error:
        if len(items) == 1:
            reject(items[0], error)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            bisect_rejected(half, attempt, reject)
