"""Validate, normalize and mask the URLs of provider, proxy and database.

Messages never quote a URL, because it may contain a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

POSTGRES = "postgresql+psycopg"  # the only driver that is included
SQLITE = "sqlite:///"  # and the path of the file, literally: nothing in it is percent-encoded or an option
_POSTGRES_NAMES = frozenset({"postgres", "postgresql", POSTGRES})
_SQLITE_NAMES = frozenset({"sqlite", "sqlite+pysqlite"})
_SQLITE_OPTIONS = re.compile(r"\?\w+=[^/]*$")
_POSTGRES_URL = re.compile(
    r"(?P<scheme>[a-z0-9+]+)://(?:(?P<user>[^\s:/@?#]*)(?::(?P<password>[^\s/@?#]*))?@)?(?P<hosts>[^\s/@?#]*)"
    r"(?:/(?P<database>[^\s/?#]*))?(?:\?(?P<query>[^\s#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Za-z:.%_-]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[^:]*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_PASSWORD = re.compile(r"://[^@]*:[^@]*@")  # finds it even if a character in it makes the URL invalid
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_SECRET_OPTIONS = frozenset({"password", "passfile", "sslpassword"})
_SECRET_OPTION = re.compile(rf"[?&]({'|'.join(sorted(_SECRET_OPTIONS))})=")
_SHOWN_OPTIONS = frozenset({"host", "hostaddr", "port", "dbname", "sslmode", "target_session_attrs"})
_SHOWN_VALUE = re.compile(r"[\w.,:%/\[\]-]*")


def is_loopback(host: str) -> bool:
    """Return whether traffic to this host, written without brackets, stays on this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name: it may resolve to any address
        return False


def normalize_provider_url(text: str) -> str:
    """Return the provider's root URL without a trailing slash. Raises ValueError with a message for the operator."""
    parts = _split(text)
    if "@" in text:
        raise ValueError("must not contain a user name or key; put the key into provider.api_key_file")
    if parts is None or not parts.hostname or re.search(r"\s", text):
        raise ValueError("is not a valid URL; write for example https://open.marketprophit.com")
    if parts.scheme not in ("https", "http"):
        raise ValueError(f'begins with "{parts.scheme}:"; write https:// (the URL of the socket is derived from it)')
    if parts.query or parts.fragment:
        raise ValueError("must end before ? and #; the token is added by the ingestor")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def normalize_proxy_url(text: str) -> str:
    """Return a proxy's URL, ``http://`` if it has no scheme. Raises ValueError with a message for the operator."""
    written = text if "://" in text else f"http://{text}"
    parts = _split(written)
    if parts is None or not parts.hostname or re.search(r"\s", text):
        raise ValueError("is not a valid URL; write for example http://proxy.example:3128")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f'is a "{parts.scheme}" proxy; only http:// and https:// are supported')
    return written


def find_plaintext_host(url: str) -> str | None:
    """Return the host to which this URL would send secrets unencrypted over a network, or None."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return host if parts.scheme == "http" and not is_loopback(host) else None


def normalize_database_url(text: str, base: Path) -> str:
    """Return the URL with the included driver; a SQLite path becomes absolute, from ``base``. Raises ValueError."""
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[a-z0-9+]+", scheme):
        raise ValueError("is not a database URL; write sqlite:///ingestor.db or postgresql://user@host/database")
    if scheme in _SQLITE_NAMES:
        return _sqlite_url(rest, base)
    if scheme in _POSTGRES_NAMES:
        return _postgres_url(f"{POSTGRES}://{rest}")
    if scheme.startswith("postgresql+"):
        raise ValueError(f'names the driver "{scheme}"; write postgresql:// (only psycopg 3 is included)')
    raise ValueError(f'"{scheme}" is not supported; write sqlite:/// or postgresql://')


def _sqlite_url(path: str, base: Path) -> str:
    if not path.startswith("/"):
        raise ValueError("names a host, but SQLite has none; write three slashes: sqlite:///ingestor.db")
    name = path[1:]
    if not name or name.startswith((":memory:", "file:")):
        raise ValueError("must name a file, because the data must outlive the process: sqlite:///ingestor.db")
    if name.endswith("/"):
        raise ValueError("names a folder; add the name of the file: sqlite:////var/lib/ingestor/ingestor.db")
    if _SQLITE_OPTIONS.search(name):
        raise ValueError("has options after ?, which are not supported for SQLite; end it with the name of the file")
    try:
        file = base / Path(name).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and a user who does not exist; write the full path") from None
    if os.path.isdir(file):  # noqa: PTH112  # unlike Path.is_dir, this does not raise below a closed folder
        raise ValueError(f"names the folder {file}; add the name of the file: sqlite:////var/lib/ingestor/ingestor.db")
    return f"{SQLITE}{file}"


def _postgres_url(text: str) -> str:
    url = _PostgresUrl.parse(text)
    if url is None:
        raise ValueError(
            "is not of the form postgresql://user:password@host:port/database, or …@host1:port1,host2:port2/database; "
            "in a password write %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?"
        )
    if not url.database and not {"dbname", "service"} & {name for name, _ in url.options}:
        raise ValueError("has no database name; write postgresql://user@host/database")
    _check_hosts(url)
    return text


def _check_hosts(url: _PostgresUrl) -> None:
    options = dict(url.options)
    hosts, ports, addresses = url.servers()
    count = len(hosts) or len(addresses) or 1
    hosts_twice = bool(url.hosts) and "host" in options and (count > 1 or "," in url.hosts)
    ports_twice = count > 1 and bool(options.get("port")) and ports != options["port"].split(",")
    if hosts_twice or ports_twice:
        raise ValueError("names hosts or ports twice; write host1:port1,host2:port2 either before the / or in ?host=")
    if count > 1 and "" in hosts:
        raise ValueError("has an empty name in its list of hosts; write postgresql://host1:port1,host2:port2/database")
    if not all(port == "" or (_PORT.fullmatch(port) and 0 < int(port) < 65536) for port in ports):
        raise ValueError("has an invalid port; write a number from 1 to 65535")
    if len(ports) not in (0, 1, count) or (hosts and len(addresses) not in (0, count)):
        raise ValueError("has lists of different lengths: write a port, or an address, for each host, or one port")


class _Servers(NamedTuple):
    """The hosts of a PostgreSQL URL with their ports and addresses: lists as long as each other, or empty."""

    hosts: list[str]
    ports: list[str]
    addresses: list[str]


class _PostgresUrl(NamedTuple):
    """The parts of a PostgreSQL URL as written, split as libpq does: urlsplit knows no lists of hosts."""

    scheme: str
    user: str
    password: str | None
    hosts: str  # host:port,host:port
    database: str
    query: str

    @classmethod
    def parse(cls, url: str) -> _PostgresUrl | None:
        """Return the parts, None if the URL has another form."""
        match = _POSTGRES_URL.fullmatch(url)
        if match is None or not all(_HOST.fullmatch(host) for host in match["hosts"].split(",")):
            return None
        return cls(**{name: value or "" for name, value in match.groupdict().items()} | {"password": match["password"]})

    @property
    def options(self) -> list[tuple[str, str]]:
        """The names and values after the ?, decoded."""
        written = (option.partition("=") for option in self.query.split("&") if option)
        return [(unquote(name), unquote(value)) for name, _, value in written]

    def servers(self) -> _Servers:
        """Return what the URL says of its servers.

        ``?host=a:1&host=b:2`` means two, as SQLAlchemy has it; libpq would take "b:2" for the name of the only one.
        """
        in_query = ",".join(value for name, value in self.options if name == "host")
        written = in_query.split(",") if in_query else [unquote(host) for host in self.hosts.split(",") if self.hosts]
        named = [_split_host(host) for host in written]
        options = dict(self.options)
        by_host = [port for _, port in named] if any(port for _, port in named) else []
        ports, addresses = (options[name].split(",") if options.get(name) else [] for name in ("port", "hostaddr"))
        return _Servers([host for host, _ in named], by_host or ports, addresses)


def _split_host(text: str) -> tuple[str, str]:
    match = _HOST.fullmatch(text)
    if match is None:  # an IPv6 address without brackets, in ?host=
        return text, ""
    return match["address"] or match["name"] or "", match["port"] or ""


def find_hosts(url: str) -> dict[str, str]:
    """Return host and port of a normalized PostgreSQL URL as libpq's parameters, each a list separated by commas."""
    parts = _PostgresUrl.parse(url)
    hosts, ports, _ = parts.servers() if parts else _Servers([], [], [])
    return {name: ",".join(values) for name, values in (("host", hosts), ("port", ports)) if any(values)}


def has_password(url: str) -> bool:
    """Return whether a database URL contains a password, even if the URL is invalid."""
    if url.partition(":")[0] in _SQLITE_NAMES:
        return False
    parts = _PostgresUrl.parse(url)
    if parts is None:
        return bool(_PASSWORD.search(url) or _SECRET_OPTION.search(url))
    return bool(parts.password) or any(name in _SECRET_OPTIONS for name, _ in parts.options)


def find_passwords(url: str) -> set[str]:
    """Return every password in a normalized database URL, as written and decoded."""
    parts = _PostgresUrl.parse(url)
    if parts is None:
        return set()
    written = [option.partition("=") for option in parts.query.split("&")]
    secrets = [value for name, _, value in written if unquote(name) in _SECRET_OPTIONS]
    return {form for text in (parts.password or "", *secrets) for form in (text, unquote(text)) if form}


def find_credentials(url: str) -> set[str]:
    """Return the secret in a proxy's URL as written, decoded and as sent: the password, or a user without one."""
    parts = _split(url)
    if parts is None or not parts.username:
        return set()
    written = parts.password or parts.username
    sent = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {written, unquote(written), base64.b64encode(sent.encode()).decode()}


def origin(url: str) -> str:
    """Return only scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def find_unencrypted_hosts(url: str, env: Mapping[str, str]) -> tuple[list[str], str]:
    """Return the remote PostgreSQL hosts that may be connected to without TLS, and the sslmode that allows it.

    The rules are those of libpq, https://www.postgresql.org/docs/current/libpq-ssl.html: the default sslmode is
    prefer, which connects without TLS if the server has none. No hosts for connections on this machine and SQLite.
    """
    parts = _PostgresUrl.parse(url)
    if parts is None:
        return [], ""
    sslmode = dict(parts.options).get("sslmode") or env.get("PGSSLMODE") or "prefer"
    servers = parts.servers()
    named = [address or host for address, host in zip_longest(servers.addresses, servers.hosts, fillvalue="")]
    hosts = named or env.get("PGHOST", "").split(",")
    return [host for host in hosts if sslmode not in _ENCRYPTED and not _is_local(host)], sslmode


def _is_local(host: str) -> bool:
    return host[:1] in ("", "/", "@") or is_loopback(host)  # empty, a path or an abstract name: a Unix socket


def mask_url(url: str) -> str:
    """Return a normalized database URL with the password replaced by ``***``, and the values of most options.

    Hosts, ports, the database, sslmode and target_session_attrs stay: they say which server is meant.
    """
    if url.startswith(SQLITE):
        return url
    parts = _PostgresUrl.parse(url)
    if parts is None:
        return "***"
    user = f"{parts.user}{'' if parts.password is None else ':***'}@" if parts.user or parts.password else ""
    query = "&".join(_mask_option(*option.partition("=")) for option in parts.query.split("&") if option)
    return f"{parts.scheme}://{user}{parts.hosts}/{parts.database}{'?' if query else ''}{query}"


def _mask_option(name: str, _: str, value: str) -> str:
    return f"{name}={value if name in _SHOWN_OPTIONS and _SHOWN_VALUE.fullmatch(value) else '***'}"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:  # str(error) would quote the URL
        return None
    return parts
