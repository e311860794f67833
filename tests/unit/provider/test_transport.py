from __future__ import annotations

import pytest

from ingestor.provider.transport import with_remedy

REMEDIES = {
    "connection refused": "correct provider.url, or see network, firewall and proxy",
    "no complete response within 120 s": "correct provider.url, or see network, firewall and proxy",
    "name or service not known": "correct provider.url, or let this machine resolve the name",
    "temporary failure in name resolution": "correct provider.url, or let this machine resolve the name",
    "the server's certificate was not accepted: self-signed certificate": "name the authority that signed it in"
    " provider.ca_file, or correct provider.url",
    "the proxy from the environment: connection refused": "see whether the proxy runs, or correct HTTPS_PROXY and"
    " NO_PROXY",
    "HTTP 503": "the provider is at fault, or busy",
}


HAVE_ONE = [
    "too many open files: raise LimitNOFILE= of the service, or `ulimit -n`",
    "it redirects; check provider.url",
]


@pytest.mark.parametrize(("reason", "remedy"), REMEDIES.items(), ids=REMEDIES)
def test_reason_has_its_remedy(reason: str, remedy: str) -> None:
    assert with_remedy(reason) == f"{reason}; {remedy}"


@pytest.mark.parametrize("reason", HAVE_ONE)
def test_reason_that_has_a_remedy_stays_as_it_is(reason: str) -> None:
    assert with_remedy(reason) == reason
