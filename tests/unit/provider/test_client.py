from __future__ import annotations

import json

import pytest

from ingestor.provider.socket.client import SessionWrapper, event_prefixes, event_text, raw_text
from ingestor.provider.transport import http_session


def test_the_prefix_of_an_event_is_what_a_server_writes_before_its_payload() -> None:
    assert event_prefixes(["res", "data"]) == (('42["res",', "res"), ('42["data",', "data"))


@pytest.mark.parametrize("event", ['qu"ote', "ümlaut", "back\\slash"])
def test_the_prefix_is_quoted_as_json_quotes(event: str) -> None:
    (prefix, name), *_ = event_prefixes([event])
    assert name == event
    assert json.loads(prefix[2:-1] + "]") == [event]


def test_binary_takes_the_form_that_engine_io_gives_it_in_text() -> None:
    assert raw_text(b"\x00\xff") == "bAP8="
    assert raw_text("as it is") == "as it is"


def test_a_parsed_event_becomes_the_text_of_a_message_again() -> None:
    assert event_text("res", ["ü", {"a": b"\x01"}]) == '42["res","ü",{"a":{"base64":"AQ=="}}]'


async def test_a_door_is_a_session_to_whoever_asks_for_more_than_a_websocket() -> None:
    session = http_session(None)
    door = SessionWrapper(session)
    assert door.cookie_jar is session.cookie_jar
    assert not door.closed
    await door.close(seconds=1)
    assert door.closed
