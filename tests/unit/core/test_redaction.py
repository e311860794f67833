from __future__ import annotations

import base64
import json
import threading

import pytest

from ingestor.core.redaction import Redactor, redactor

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJhcGkiOiJzZWNyZXQifQ.c2lnbmF0dXJlLW9mLXRoaXM"
KEY = 'k/3y"with+odd=signs'


@pytest.fixture
def scrub() -> Redactor:
    one = Redactor()
    one.add(KEY)
    return one


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(KEY, id="as it is"),
        pytest.param("k%2F3y%22with%2Bodd%3Dsigns", id="quoted in a query"),
        pytest.param("k/3y%22with%2Bodd%3Dsigns", id="quoted in a path"),
        pytest.param('k/3y\\"with+odd=signs', id="in JSON"),
        pytest.param(base64.b64encode(f"{KEY}:".encode()).decode(), id="in a Basic header"),
    ],
)
def test_a_known_secret_is_masked_in_every_spelling(scrub: Redactor, spelling: str) -> None:
    assert scrub.scrub(f"before <{spelling}> after") == "before <***> after"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        pytest.param(f"got {JWT}.", "got ***.", id="a token"),
        pytest.param(f"got {JWT[:30]}", "got ***", id="a token cut off"),
        pytest.param(f"%22{JWT}%22", "%22***%22", id="a quoted token"),
        pytest.param("/socket.io/?token=opaque&EIO=4", "/socket.io/?token=***&EIO=4", id="a query value"),
        pytest.param("x?token%3Dopaque&y", "x?token%3D***&y", id="a quoted query"),
        pytest.param('{"token": "opaque"}', '{"token": "***"}', id="a JSON answer"),
        pytest.param('{\\"token\\":\\"opaque\\"}', '{\\"token\\":\\"***\\"}', id="a JSON answer inside JSON"),
        pytest.param("Authorization: Basic a2V5Og==", "Authorization: Basic ***", id="a header"),
        pytest.param("{'Authorization': 'Basic a2V5Og=='}", "{'Authorization': 'Basic ***'}", id="a dict"),
        pytest.param("pg://me:p@ss:w0rd@db/x", "pg://me:***@db/x", id="a password in a URL"),
    ],
)
def test_what_looks_like_a_secret_is_masked_whoever_wrote_it(text: str, clean: str) -> None:
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
def test_ordinary_text_is_left_alone(scrub: Redactor, text: str) -> None:
    assert scrub.scrub(text) == text


def test_a_secret_inside_a_longer_one_does_not_leave_the_rest_behind() -> None:
    one = Redactor()
    one.add("secret")
    one.add("secret-and-more")
    assert one.scrub("secret-and-more") == "***"


def test_a_forgotten_secret_is_no_longer_masked_by_value(scrub: Redactor) -> None:
    scrub.forget(KEY)
    scrub.forget("never added")
    assert scrub.scrub(KEY) == KEY


def test_a_secret_added_twice_stays_masked_until_both_have_forgotten_it(scrub: Redactor) -> None:
    scrub.add(KEY)
    scrub.forget(KEY)
    assert scrub.scrub(KEY) == "***"


def test_a_secret_of_three_characters_is_not_masked_by_value(scrub: Redactor) -> None:
    scrub.add("abc")
    assert scrub.scrub("abcdef") == "abcdef"


def test_a_secret_that_no_encoding_likes_is_still_masked(scrub: Redactor) -> None:
    scrub.add("odd\udcffbytes")
    assert scrub.scrub("an odd\udcffbytes key") == "an *** key"


def test_the_redactor_itself_tells_nothing(scrub: Redactor) -> None:
    assert KEY not in repr(scrub)
    assert isinstance(redactor, Redactor)


def test_secrets_may_be_added_while_others_scrub(scrub: Redactor) -> None:
    threads = [threading.Thread(target=scrub.add, args=(f"secret number {i}",)) for i in range(50)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert scrub.scrub(KEY) == "***"
    for thread in threads:
        thread.join()
    assert scrub.scrub("secret number 49") == "***"


@pytest.mark.parametrize(
    "said", ['token=abcdefgh"', 'Authorization: Basic abcdefgh"', "u://u:pass\\word@h", '"token": "abcdefgh"']
)
def test_what_is_scrubbed_out_of_json_leaves_json(said: str) -> None:
    text = Redactor().scrub(json.dumps([said, "next"]))
    assert "abcdefgh" not in text
    assert json.loads(text)[1] == "next"
