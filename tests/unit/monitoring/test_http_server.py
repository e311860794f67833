from __future__ import annotations

import pytest

from ingestor.monitoring.http_server import is_host_allowed


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:8642", "127.0.0.1:8642", "[::1]:8642", "[::1]", "192.168.7.9:80", "status.lan:8642"],
)
def test_own_names_and_any_address_are_allowed(header: str) -> None:
    assert is_host_allowed(header, "status.lan")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("rebound.example:8642", id="rebound name"),
        pytest.param("127.0.0.1.rebound.example", id="name with an address as prefix"),
        pytest.param("localhost.rebound.example", id="name with localhost as prefix"),
        pytest.param("x@127.0.0.1", id="user information"),
        pytest.param("[localhost]", id="name in brackets"),
        pytest.param("127.0.0.1:port", id="port is no number"),
        pytest.param("", id="empty"),
    ],
)
def test_other_names_are_not_allowed(header: str) -> None:
    assert not is_host_allowed(header, "status.lan")
