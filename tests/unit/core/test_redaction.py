from __future__ import annotations

import base64
import json
import threading

import pytest

from ingestor.core.redaction import Redactor, redactor

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJhcGkiOiJzZWNyZXQifQ.c2lnbmF0dXJlLW9mLXRoaXM"
KEY = 'k/3y"with+odd=signs'


@pytest.fixture
def known_key() -> Redactor:
    redactor = Redactor()
    redactor.add(KEY)
    return redactor


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(KEY, id="plain"),
        pytest.param("k%2F3y%22with%2Bodd%3Dsigns", id="URL query"),
        pytest.param("k/3y%22with%2Bodd%3Dsigns", id="URL path"),
        pytest.param('k/3y\\"with+odd=signs', id="JSON"),
        pytest.param(base64.b64encode(f"{KEY}:".encode()).decode(), id="Basic header"),
    ],
)
def test_scrub_masks_known_secret_in_every_encoding(known_key: Redactor, encoded: str) -> None:
    assert known_key.scrub(f"before <{encoded}> after") == "before <***> after"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        pytest.param(f"got {JWT}.", "got ***.", id="token"),
        pytest.param(f"got {JWT[:30]}", "got ***", id="truncated token"),
        pytest.param(f"%22{JWT}%22", "%22***%22", id="quoted token"),
        pytest.param("/socket.io/?token=opaque&EIO=4", "/socket.io/?token=***&EIO=4", id="query value"),
        pytest.param("x?token%3Dopaque&y", "x?token%3D***&y", id="quoted query"),
        pytest.param('{"token": "opaque"}', '{"token": "***"}', id="JSON"),
        pytest.param('{\\"token\\":\\"opaque\\"}', '{\\"token\\":\\"***\\"}', id="JSON inside JSON"),
        pytest.param("Authorization: Basic a2V5Og==", "Authorization: Basic ***", id="header"),
        pytest.param("{'Authorization': 'Basic a2V5Og=='}", "{'Authorization': 'Basic ***'}", id="dict"),
        pytest.param("pg://me:p@ss:w0rd@db/x", "pg://me:***@db/x", id="password in a URL"),
    ],
)
def test_scrub_masks_text_that_matches_a_pattern(text: str, clean: str) -> None:
    assert Redactor().scrub(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "AAPL subscribed",
        "uses HTTP Basic authentication",
        "http://127.0.0.1:8642/status",
        "token renewed",
        "",
    ],
)
def test_scrub_keeps_ordinary_text(known_key: Redactor, text: str) -> None:
    assert known_key.scrub(text) == text


def test_scrub_masks_longer_secret_that_contains_another() -> None:
    redactor = Redactor()
    redactor.add("secret")
    redactor.add("secret-and-more")
    assert redactor.scrub("secret-and-more") == "***"


def test_removed_secret_is_no_longer_masked(known_key: Redactor) -> None:
    known_key.remove(KEY)
    known_key.remove("never added")
    assert known_key.scrub(KEY) == KEY


def test_secret_added_twice_is_masked_until_removed_twice(known_key: Redactor) -> None:
    known_key.add(KEY)
    known_key.remove(KEY)
    assert known_key.scrub(KEY) == "***"


def test_secret_of_three_characters_is_not_masked(known_key: Redactor) -> None:
    known_key.add("abc")
    assert known_key.scrub("abcdef") == "abcdef"


def test_secret_with_surrogates_is_masked(known_key: Redactor) -> None:
    known_key.add("odd\udcffbytes")
    assert known_key.scrub("an odd\udcffbytes key") == "an *** key"


def test_repr_does_not_contain_secrets(known_key: Redactor) -> None:
    assert KEY not in repr(known_key)
    assert isinstance(redactor, Redactor)


def test_add_is_safe_while_other_threads_scrub(known_key: Redactor) -> None:
    threads = [threading.Thread(target=known_key.add, args=(f"secret number {i}",)) for i in range(50)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert known_key.scrub(KEY) == "***"
    for thread in threads:
        thread.join()
    assert known_key.scrub("secret number 49") == "***"


@pytest.mark.parametrize(
    "text", ['token=abcdefgh"', 'Authorization: Basic abcdefgh"', "u://u:pass\\word@h", '"token": "abcdefgh"']
)
def test_scrubbed_json_is_still_json(text: str) -> None:
    scrubbed = Redactor().scrub(json.dumps([text, "next"]))
    assert "abcdefgh" not in scrubbed
    assert json.loads(scrubbed)[1] == "next"
