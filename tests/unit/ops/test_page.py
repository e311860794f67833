from __future__ import annotations

from dataclasses import replace

import pytest

from ingestor.ops.web import host_allowed, page

from .snapshots import SENTIMENT, status


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:8642", "127.0.0.1:8642", "[::1]:8642", "[::1]", "192.168.7.9:80", "status.lan:8642"],
)
def test_our_own_names_and_any_address_are_answered(header: str) -> None:
    assert host_allowed(header, "status.lan")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("rebound.example:8642", id="a name that somebody pointed at us"),
        pytest.param("127.0.0.1.rebound.example", id="a name that begins like an address"),
        pytest.param("localhost.rebound.example", id="a name that begins like ours"),
        pytest.param("x@127.0.0.1", id="user information"),
        pytest.param("[localhost]", id="a name in brackets"),
        pytest.param("127.0.0.1:port", id="no port number"),
        pytest.param("", id="nothing"),
    ],
)
def test_other_names_are_not_answered(header: str) -> None:
    assert not host_allowed(header, "status.lan")


def test_the_page_escapes_what_comes_from_outside() -> None:
    hostile = replace(SENTIMENT, path="<script>alert(1)</script>", connected=False)
    text = page(status(instance="<b>", connections=(hostile,)))
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: not connected" in text
