"""What tests of processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks daemons that need not import anything any more."""
    with Nursery() as running:
        yield running
