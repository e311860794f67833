"""Validate, normalize and mask the URLs of provider, proxy and database.

Messages never quote a URL, because it may contain a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

POSTGRES = "postgresql+psycopg"  # the only driver that is included
SQLITE = "sqlite:///"  # and the path of the file, literally: nothing in it is percent-encoded or an option
_POSTGRES_NAMES = frozenset({"postgres", "postgresql", POSTGRES})
_SQLITE_NAMES = frozenset({"sqlite", "sqlite+pysqlite"})
_SQLITE_OPTIONS = re.compile(r"\?\w+=[^/]*$")
_PASSWORD = re.compile(r"://[^@]*:[^@]*@")  # finds it even if a character in it makes the URL invalid
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_SECRET_OPTIONS = frozenset({"password", "passfile", "sslpassword"})


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
        return f"{SQLITE}{base / Path(name).expanduser()}"
    except RuntimeError:
        raise ValueError("begins with ~ and a user who does not exist; write the full path") from None


def _postgres_url(text: str) -> str:
    parts = _split(text)
    if parts is None or parts.fragment or re.search(r"\s", text):
        raise ValueError(
            "is not of the form postgresql://user:password@host:port/database; "
            "in a password write %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?"
        )
    if len(parts.path) < 2 and not {"dbname", "service"} & {name for name, _ in parse_qsl(parts.query)}:
        raise ValueError("has no database name; write postgresql://user@host/database")
    return text


def has_password(url: str) -> bool:
    """Return whether a database URL contains a password, even if the URL is invalid."""
    if url.partition(":")[0] in _SQLITE_NAMES:
        return False
    options = parse_qsl(url.partition("?")[2])
    return bool(_PASSWORD.search(url)) or any(name in _SECRET_OPTIONS for name, _ in options)


def find_passwords(url: str) -> set[str]:
    """Return every password in a normalized database URL, as written and decoded."""
    parts = _split(url)
    if parts is None or url.startswith(SQLITE):
        return set()
    options = [value for name, value in parse_qsl(parts.query) if name in _SECRET_OPTIONS]
    written = [parts.password or "", *options]
    return {form for text in written for form in (text, unquote(text)) if form}


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


def find_unencrypted_host(url: str, env: Mapping[str, str]) -> tuple[str, str] | None:
    """Return a remote PostgreSQL host that may be connected to without TLS, and the sslmode that allows it.

    The rules are those of libpq, https://www.postgresql.org/docs/current/libpq-ssl.html: the default sslmode is
    prefer, which connects without TLS if the server has none. Returns None for connections on this machine and SQLite.
    """
    parts = _split(url)
    if parts is None or parts.scheme != POSTGRES:
        return None
    options = parse_qsl(parts.query)
    sslmode = dict(options).get("sslmode") or env.get("PGSSLMODE") or "prefer"
    if sslmode in _ENCRYPTED:
        return None
    written = {name: [value for key, value in options if key == name] for name in ("hostaddr", "host")}
    hosts = written["hostaddr"] or written["host"] or [unquote(parts.hostname or "") or env.get("PGHOST", "")]
    remote = [host for host in ",".join(hosts).split(",") if not _is_local(host)]
    return (remote[0], sslmode) if remote else None


def _is_local(host: str) -> bool:
    # Empty, a path or an abstract name: a Unix socket.
    return host[:1] in ("", "/", "@") or is_loopback(host) or is_loopback(host.rpartition(":")[0].strip("[]"))


def mask_url(url: str) -> str:
    """Return a normalized database URL with the password and the values of all options replaced by ``***``."""
    if url.startswith(SQLITE):
        return url
    parts = _split(url)
    if parts is None:
        return "***"
    user_part, at, host = parts.netloc.rpartition("@")
    user, colon, _ = user_part.partition(":")
    netloc = f"{user}{colon and ':***'}{at}{host}"
    query = "&".join(f"{option.partition('=')[0]}=***" for option in parts.query.split("&") if option)
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is invalid
    except ValueError:  # str(error) would quote the URL
        return None
    return parts
