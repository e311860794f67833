from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config.urls import (
    find_hosts,
    find_passwords,
    find_plaintext_host,
    find_unencrypted_hosts,
    has_password,
    is_loopback,
    mask_url,
    normalize_database_url,
    normalize_provider_url,
)

BASE = Path("/var/lib/ingestor")


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://open.example.com", "https://open.example.com"),
        ("https://open.example.com/", "https://open.example.com"),
        ("https://open.example.com:8443/api/", "https://open.example.com:8443/api"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_provider_url_is_normalized(written: str, url: str) -> None:
    assert normalize_provider_url(written) == url


@pytest.mark.parametrize(
    ("written", "says"),
    [
        pytest.param("wss://example.com", "write https://", id="socket scheme"),
        pytest.param("ftp://example.com", "write https://", id="other scheme"),
        pytest.param("example.com", "is not a valid URL", id="no scheme"),
        pytest.param("https://", "is not a valid URL", id="no host"),
        pytest.param("https://example.com:99999", "is not a valid URL", id="port"),
        pytest.param("https://[::1", "is not a valid URL", id="bracket"),
        pytest.param("https://exa mple.com", "is not a valid URL", id="blank"),
        pytest.param("https://example.com/?token=hunter2", "must end before", id="query"),
        pytest.param("https://example.com/#hunter2", "must end before", id="fragment"),
        pytest.param("https://hunter2@example.com", "must not contain a user name or key", id="user"),
        pytest.param("https://u:hunter2@example.com", "must not contain a user name or key", id="password"),
        pytest.param("https://u:hunter2@exam ple:x", "must not contain", id="unreadable and a password"),
    ],
)
def test_invalid_provider_url_is_rejected_without_quoting_it(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        normalize_provider_url(written)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("example.com", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com", None),
        ("http://127.0.0.1:1", None),
        ("http://[::1]:1", None),
        ("http://example.com:1", "example.com"),
        ("http://[2001:db8::1]", "2001:db8::1"),
    ],
)
def test_find_plaintext_host(url: str, host: str | None) -> None:
    assert find_plaintext_host(url) == host


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("sqlite:///ingestor.db", "sqlite:////var/lib/ingestor/ingestor.db"),
        ("sqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("sqlite+pysqlite:///x.db", "sqlite:////var/lib/ingestor/x.db"),
        ("sqlite:///a%20b?c=d/x?.db", "sqlite:////var/lib/ingestor/a%20b?c=d/x?.db"),
        ("sqlite:///../x#1.db", "sqlite:////var/lib/ingestor/../x#1.db"),
        ("sqlite:///~root/x.db", "sqlite:////root/x.db"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://u:p%40@h:5432/d", "postgresql+psycopg://u:p%40@h:5432/d"),
        ("postgresql+psycopg:///d?host=/run/postgresql", "postgresql+psycopg:///d?host=/run/postgresql"),
        ("postgresql:///?service=market", "postgresql+psycopg:///?service=market"),
        ("postgresql://u@h/?dbname=d", "postgresql+psycopg://u@h/?dbname=d"),
        ("postgresql://u:p,w@h1:1,h2:2/d", "postgresql+psycopg://u:p,w@h1:1,h2:2/d"),
        ("postgresql://h1,[::1]:2/d", "postgresql+psycopg://h1,[::1]:2/d"),
        ("postgresql://h1,h2/d?hostaddr=10.0.0.1,10.0.0.2", "postgresql+psycopg://h1,h2/d?hostaddr=10.0.0.1,10.0.0.2"),
    ],
)
def test_database_url_is_normalized(written: str, url: str) -> None:
    assert normalize_database_url(written, BASE) == url


@pytest.mark.parametrize(
    ("written", "says"),
    [
        pytest.param("ingestor.db", "is not a database URL", id="a path"),
        pytest.param("hunter2", "is not a database URL", id="a secret alone"),
        pytest.param("Hun ter2://x", "is not a database URL", id="no scheme"),
        pytest.param("mysql://u:hunter2@h/d", '"mysql" is not supported', id="MySQL"),
        pytest.param("postgresql+psycopg2://u:hunter2@h/d", "only psycopg 3 is included", id="driver"),
        pytest.param("postgresql://u:hunter2@h", "has no database name", id="no database"),
        pytest.param("postgresql://u:hun#ter2@h/d", "%23 for #", id="# in the password"),
        pytest.param("postgresql://u:hunter2/x@h/d", "%2F for /", id="/ in the password"),
        pytest.param("postgresql://u:hunter2@w@h/d", "%40 for @", id="@ in the password"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:2", "has no database name", id="hosts without database"),
        pytest.param("postgresql://u:hunter2@h1,,h2/d", "an empty name in its list", id="empty host"),
        pytest.param("postgresql://u:hunter2@h1:1,/d", "an empty name in its list", id="trailing comma"),
        pytest.param("postgresql://u:hunter2@/d?host=h1,", "an empty name in its list", id="trailing comma in query"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:x/d", "an invalid port", id="port is a word"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:65536/d", "an invalid port", id="port too large"),
        pytest.param("postgresql://u:hunter2@h1:1:2,h2/d", "is not of the form", id="two ports"),
        pytest.param("postgresql://u:hunter2@::1,h2/d", "is not of the form", id="IPv6 without brackets"),
        pytest.param("postgresql://u:hunter2@h1,[::1/d", "is not of the form", id="half a bracket"),
        pytest.param("postgresql://u:hunter2@h1; h2/d", "is not of the form", id="blank"),
        pytest.param("postgresql://u:hunter2@h1,h2/d?host=h3", "names hosts or ports twice", id="hosts in both places"),
        pytest.param("postgresql://u:hunter2@h1/d?host=h2,h3", "names hosts or ports twice", id="more hosts behind ?"),
        pytest.param("postgresql://u:hunter2@/d?host=h1:1,h2&port=3,4", "names hosts or ports twice", id="ports twice"),
        pytest.param("postgresql://u:hunter2@h1:1,h2:2/d?port=3", "names hosts or ports twice", id="ports in both"),
        pytest.param("postgresql://u:hunter2@/d?host=h1,h2,h3&port=1,2", "of different lengths", id="ports missing"),
        pytest.param("postgresql://u:hunter2@h1,h2/d?hostaddr=10.0.0.1", "of different lengths", id="address missing"),
        pytest.param("sqlite://", "must name a file|three slashes", id="nothing"),
        pytest.param("sqlite:///:memory:", "must name a file", id="memory"),
        pytest.param("sqlite:///file:x?uri=true", "must name a file", id="URI"),
        pytest.param("sqlite://x.db", "three slashes", id="two slashes"),
        pytest.param("sqlite:///data/", "names a folder", id="folder"),
        pytest.param("sqlite:///x.db?timeout=5", "not supported for SQLite", id="SQLite options"),
        pytest.param("sqlite:///~unknown-user/x.db", "user who does not exist", id="unknown home"),
    ],
)
def test_invalid_database_url_is_rejected_without_quoting_it(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        normalize_database_url(written, BASE)
    assert not {"hunter2", "hun#", "ter2"} & set(str(raised.value).replace('"', " ").split())
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///x.db", False),
        ("sqlite:////srv/a:b@c/x.db", False),
        ("postgresql://u@h/d", False),
        ("postgresql://u@[::1]:5432/d", False),
        ("postgresql://u@h/d?options=a:b", False),
        ("postgresql://u@h1:1,h2:2/d?options=a@b", False),
        ("postgresql://u:p@h1:1,h2:2/d", True),
        ("postgresql://u:p@h1:1,h2:/x/d", True),
        ("postgresql://u:p@h/d", True),
        ("postgresql://u:p#a@h/d", True),
        ("postgresql://u@h/d?password=p", True),
        ("postgresql://u@h/d?sslpassword=p", True),
    ],
)
def test_has_password(url: str, expected: bool) -> None:
    assert has_password(url) is expected


SERVERS = {
    "h/d": ("h", None),
    "h:1/d": ("h", "1"),
    "h1:1,h2:2/d": ("h1,h2", "1,2"),
    "h1,h2:2/d": ("h1,h2", ",2"),
    "h1,h2/d?port=2": ("h1,h2", "2"),
    "h1,h2/d?port=1,2": ("h1,h2", "1,2"),
    "[::1]:1,[fe80::1%25eth0]:2/d": ("::1,fe80::1%eth0", "1,2"),
    "%2Frun%2Fpostgresql:1,h2/d": ("/run/postgresql,h2", "1,"),
    ":1/d": (None, "1"),
    "/d": (None, None),
    "/d?host=h1:1&host=h2": ("h1,h2", "1,"),
    "/d?host=[::1]:1,h2:2": ("::1,h2", "1,2"),
    "/d?host=::1": ("::1", None),
    "/d?host=/run/postgresql": ("/run/postgresql", None),
    "h1:1/d?host=h2": ("h2", None),
}


@pytest.mark.parametrize(("rest", "servers"), SERVERS.items(), ids=SERVERS)
def test_hosts_and_ports_are_found_in_every_form(rest: str, servers: tuple[str | None, str | None]) -> None:
    found = find_hosts(normalize_database_url(f"postgresql://{rest}", BASE))
    assert (found.get("host"), found.get("port")) == servers


@pytest.mark.parametrize(
    ("rest", "hosts", "sslmode"),
    [
        pytest.param("u@db.example/d", ["db.example"], "prefer", id="no sslmode"),
        pytest.param("u:p@db.example:5432/d?sslmode=disable", ["db.example"], "disable", id="disable"),
        pytest.param("u@db.example/d?sslmode=allow", ["db.example"], "allow", id="allow"),
        pytest.param("u@10.0.0.7/d?sslmode=prefer", ["10.0.0.7"], "prefer", id="prefer"),
        pytest.param("u@/d?host=127.0.0.1:1,db.example:2", ["db.example"], "prefer", id="one of several"),
        pytest.param("u@/d?host=localhost&host=db.example", ["db.example"], "prefer", id="one of two"),
        pytest.param("u@h1:1,localhost,h2:2/d", ["h1", "h2"], "prefer", id="two of three"),
        pytest.param("u@localhost/d?hostaddr=10.0.0.7", ["10.0.0.7"], "prefer", id="an address"),
        pytest.param("u@h1,h2/d?hostaddr=10.0.0.7,", ["10.0.0.7", "h2"], "prefer", id="an address for one of two"),
        pytest.param("u@db.example/d?sslmode=require", [], "require", id="require"),
        pytest.param("u@db.example/d?sslmode=verify-ca", [], "verify-ca", id="verify-ca"),
        pytest.param("u@h1:1,h2:2/d?sslmode=verify-full", [], "verify-full", id="verify-full"),
        pytest.param("u@localhost/d", [], "prefer", id="this machine"),
        pytest.param("u@[::1]:5432/d?sslmode=disable", [], "disable", id="this machine by IPv6"),
        pytest.param("u@/d?host=127.0.0.1:1,[::1]:2", [], "prefer", id="this machine twice"),
        pytest.param("u@127.0.0.1:1,[::1]:2/d", [], "prefer", id="this machine twice, before the /"),
        pytest.param("u@/d", [], "prefer", id="the usual socket"),
        pytest.param("u@/d?host=/run/postgresql", [], "prefer", id="a socket"),
        pytest.param("u@%2Frun%2Fpostgresql/d", [], "prefer", id="a socket in place of the host"),
    ],
)
def test_find_unencrypted_hosts(rest: str, hosts: list[str], sslmode: str) -> None:
    assert find_unencrypted_hosts(f"postgresql+psycopg://{rest}", {}) == (hosts, sslmode)


def test_find_unencrypted_hosts_uses_libpq_variables() -> None:
    url = "postgresql+psycopg://u@/d"
    assert find_unencrypted_hosts(url, {"PGHOST": "h1,h2"}) == (["h1", "h2"], "prefer")
    assert find_unencrypted_hosts(url, {"PGHOST": "db.example", "PGSSLMODE": "require"})[0] == []
    assert find_unencrypted_hosts("sqlite:////srv/x.db", {"PGHOST": "db.example"})[0] == []


def test_passwords_are_found_as_written_and_decoded() -> None:
    url = "postgresql+psycopg://u:p%40w@h1:1,h2:2/d?%70assword=a+b%25&sslpassword=c"
    assert find_passwords(url) == {"p%40w", "p@w", "a+b%25", "a+b%", "c"}
    assert find_passwords("sqlite:////srv/u:p@h/x.db") == set()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("sqlite:////srv/a?b=c/[d#e/x.db", "sqlite:////srv/a?b=c/[d#e/x.db"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql+psycopg://u:hunter2@h:1/d", "postgresql+psycopg://u:***@h:1/d"),
        ("postgresql+psycopg://u:hunter2@[::1]:1/d", "postgresql+psycopg://u:***@[::1]:1/d"),
        ("postgresql+psycopg://u@h/d?password=hunter2&x=y", "postgresql+psycopg://u@h/d?password=***&x=***"),
        (
            "postgresql+psycopg://u:hunter2@h1:1,[::1]:2/d?target_session_attrs=read-write&sslmode=verify-full&passfile=x",
            "postgresql+psycopg://u:***@h1:1,[::1]:2/d?target_session_attrs=read-write&sslmode=verify-full&passfile=***",
        ),
        (
            "postgresql+psycopg:///d?host=h1:1&host=h2&port=1,2&hostaddr=10.0.0.1&options=hunter2&hunter2",
            "postgresql+psycopg:///d?host=h1:1&host=h2&port=1,2&hostaddr=10.0.0.1&options=***&hunter2=***",
        ),
        (
            "postgresql+psycopg://u@h/d?host=u:hunter2@h2&sslmode=a+hunter2",
            "postgresql+psycopg://u@h/d?host=***&sslmode=***",
        ),
        ("postgresql+psycopg://u:hunter2@w@h/d", "***"),
        ("postgresql+psycopg://u:hunter2@[h/d", "***"),
    ],
)
def test_mask_url(url: str, shown: str) -> None:
    assert mask_url(url) == shown
