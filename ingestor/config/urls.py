"""The URLs of provider, proxy and database: which are allowed, how they are normalised, and how they are shown.

No message quotes one, since it may hold a secret.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

POSTGRES = "postgresql+psycopg"  # the one driver that we ship
_POSTGRES_NAMES = frozenset({"postgres", "postgresql", POSTGRES})
_SQLITE_NAMES = frozenset({"sqlite", "sqlite+pysqlite"})
_PASSWORD = re.compile(r"://[^@]*:[^@]*@")  # also where a character in it makes the URL unreadable
_ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
_SECRET_OPTIONS = frozenset({"password", "passfile", "sslpassword"})


def is_loopback(host: str) -> bool:
    """Whether traffic to this host (no brackets) stays on the machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name: it may point anywhere
        return False


def normalize_provider_url(text: str) -> str:
    """The provider's root URL without a trailing slash. Raises ValueError with a message for the operator."""
    parts = _split(text)
    if "@" in text:
        raise ValueError("must not hold a user name or key; the key has its own place: provider.api_key_file")
    if parts is None or not parts.hostname or re.search(r"\s", text):
        raise ValueError("is not a URL that can be read; write for example https://open.marketprophit.com")
    if parts.scheme not in ("https", "http"):
        raise ValueError(f'begins with "{parts.scheme}:"; write https:// (the socket follows by itself)')
    if parts.query or parts.fragment:
        raise ValueError("must end before ? and #; the token is added by the ingestor")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def normalize_proxy_url(text: str) -> str:
    """A proxy's URL, ``http://`` unless it says otherwise. Raises ValueError with a message for the operator."""
    written = text if "://" in text else f"http://{text}"
    parts = _split(written)
    if parts is None or not parts.hostname or re.search(r"\s", text):
        raise ValueError("is not a URL that can be read; write for example http://proxy.example:3128")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f'names a "{parts.scheme}" proxy; one of http:// or https:// is what can be used')
    return written


def find_plaintext_host(url: str) -> str | None:
    """The host to which this URL would send secrets unencrypted over a network; None if it does not."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return host if parts.scheme == "http" and not is_loopback(host) else None


def normalize_database_url(text: str, base: Path) -> str:
    """The URL with the driver that we ship, a SQLite file's path made absolute against ``base``.

    Raises ValueError with a message for the operator.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not re.fullmatch(r"[a-z0-9+]+", scheme):
        raise ValueError("is no database URL; write sqlite:///ingestor.db or postgresql://user@host/database")
    if scheme in _SQLITE_NAMES:
        return _sqlite_url(rest, base)
    if scheme in _POSTGRES_NAMES:
        return _postgres_url(f"{POSTGRES}://{rest}")
    if scheme.startswith("postgresql+"):
        raise ValueError(f'asks for the driver "{scheme}"; write postgresql:// (psycopg 3 is what we ship)')
    raise ValueError(f'"{scheme}" is not supported; write sqlite:/// or postgresql://')


def _sqlite_url(rest: str, base: Path) -> str:
    path, mark, options = rest.partition("?")
    if not path.startswith("/"):
        raise ValueError("names a host, which SQLite has not; write three slashes: sqlite:///ingestor.db")
    name = path[1:]
    if not name or name.startswith((":memory:", "file:")):
        raise ValueError("must name a file, since the data has to outlive the process: sqlite:///ingestor.db")
    return f"sqlite:///{base / name}{mark}{options}"


def _postgres_url(text: str) -> str:
    parts = _split(text)
    if parts is None or parts.fragment or re.search(r"\s", text):
        raise ValueError(
            "cannot be read as postgresql://user:password@host:port/database; "
            "in a password write %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?"
        )
    if len(parts.path) < 2:
        raise ValueError("names no database; write postgresql://user@host/database")
    return text


def has_password(url: str) -> bool:
    """Whether a database URL carries a password, be it readable otherwise or not."""
    options = parse_qsl(url.partition("?")[2])
    return bool(_PASSWORD.search(url)) or any(name in _SECRET_OPTIONS for name, _ in options)


def find_passwords(url: str) -> set[str]:
    """Every password of a normalised database URL, as written and as meant."""
    parts = _split(url)
    if parts is None:
        return set()
    options = [value for name, value in parse_qsl(parts.query) if name in _SECRET_OPTIONS]
    written = [parts.password or "", *options]
    return {form for text in written for form in (text, unquote(text)) if form}


def find_credentials(url: str) -> set[str]:
    """What must not be seen of a proxy's URL, as written, as meant and as sent: the password, or a user without one."""
    parts = _split(url)
    if parts is None or not parts.username:
        return set()
    written = parts.password or parts.username
    sent = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {written, unquote(written), base64.b64encode(sent.encode()).decode()}


def origin(url: str) -> str:
    """A URL's scheme, host and port alone."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def find_unencrypted_host(url: str, env: Mapping[str, str]) -> tuple[str, str] | None:
    """The other host to which a PostgreSQL database may be spoken to without TLS, and the sslmode that allows it.

    The rules are libpq's, https://www.postgresql.org/docs/current/libpq-ssl.html: without an sslmode TLS is preferred,
    and done without where the server has none. None for what stays on this machine, and for SQLite.
    """
    parts = _split(url)
    if parts is None or parts.scheme != POSTGRES:
        return None
    options = parse_qsl(parts.query)
    sslmode = dict(options).get("sslmode") or env.get("PGSSLMODE") or "prefer"
    if sslmode in _ENCRYPTED:
        return None
    written = {name: [value for key, value in options if key == name] for name in ("hostaddr", "host")}
    hosts = written["hostaddr"] or written["host"] or [parts.hostname or env.get("PGHOST", "")]
    far = [host for host in ",".join(hosts).split(",") if not _stays_here(host)]
    return (far[0], sslmode) if far else None


def _stays_here(host: str) -> bool:
    # Nothing, a path and an abstract name are Unix sockets.
    return host[:1] in ("", "/", "@") or is_loopback(host) or is_loopback(host.rpartition(":")[0].strip("[]"))


def mask_url(url: str) -> str:
    """A normalised database URL as it may be shown: the password and the values of options as ``***``."""
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
        _ = parts.port  # reading it is what checks it
    except ValueError:  # its text quotes the URL
        return None
    return parts
