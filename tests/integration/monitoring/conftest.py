from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.logging_state import preserved_logging


@pytest.fixture(autouse=True)
def _preserve_logging() -> Iterator[None]:
    with preserved_logging():
        yield
