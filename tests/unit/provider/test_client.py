from __future__ import annotations

import json

import pytest

from ingestor.provider.socket.client import raw_text
from ingestor.provider.socket.engineio_client import SessionWrapper, event_prefixes, event_text
from ingestor.provider.transport import http_session


def test_event_prefix_matches_text_before_payload() -> None:
    assert event_prefixes(["res", "data"]) == (('42["res",', "res"), ('42["data",', "data"))


@pytest.mark.parametrize("event", ['qu"ote', "ümlaut", "back\\slash"])
def test_event_prefix_is_quoted_as_json(event: str) -> None:
    (prefix, name), *_ = event_prefixes([event])
    assert name == event
    assert json.loads(prefix[2:-1] + "]") == [event]


def test_raw_text_encodes_binary_as_engine_io_does() -> None:
    assert raw_text(b"\x00\xff") == "bAP8="
    assert raw_text("as it is") == "as it is"


def test_event_text_encodes_parsed_event() -> None:
    assert event_text("res", ["ü", {"a": b"\x01"}]) == '42["res","ü",{"a":{"base64":"AQ=="}}]'


async def test_session_wrapper_passes_other_attributes_on() -> None:
    session = http_session(None)
    wrapper = SessionWrapper(session)
    assert wrapper.cookie_jar is session.cookie_jar
    assert not wrapper.closed
    await wrapper.close(timeout_seconds=1)
    assert wrapper.closed
