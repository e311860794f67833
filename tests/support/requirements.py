"""Skip tests whose requirements the machine does not meet, visibly, or fail them if everything is required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

SKIP_PREFIX = "NOT TESTED: "


def skip_missing(what: str) -> NoReturn:
    """Skip the test; with INGESTOR_TEST_REQUIRE=1, fail it. ``what`` names what is missing and how to install it."""
    if os.environ.get("INGESTOR_TEST_REQUIRE") == "1":
        pytest.fail(f"{what} (INGESTOR_TEST_REQUIRE=1)", pytrace=False)
    pytest.skip(SKIP_PREFIX + what)
