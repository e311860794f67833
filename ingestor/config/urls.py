"""The two URLs: which are allowed, how they are normalised, and how they are shown.

No message quotes one, since it may hold a secret.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

POSTGRES = "postgresql+psycopg"  # the one driver that we ship
_POSTGRES_NAMES = frozenset({"postgres", "postgresql", POSTGRES})
_SQLITE_NAMES = frozenset({"sqlite", "sqlite+pysqlite"})
_PASSWORD = re.compile(r"://[^@]*:[^@]*@")  # also where a character in it makes the URL unreadable
_SECRET_OPTIONS = frozenset({"password", "passfile", "sslpassword"})


def is_loopback(host: str) -> bool:
    """Whether traffic to this host (no brackets) stays on the machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name: it may point anywhere
        return False


def provider_url(text: str) -> str:
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


def plain_text_host(url: str) -> str | None:
    """The host to which this URL would send secrets unencrypted over a network; None if it does not."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return host if parts.scheme == "http" and not is_loopback(host) else None


def database_url(text: str, base: Path) -> str:
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


def passwords(url: str) -> set[str]:
    """Every password of a normalised database URL, as written and as meant."""
    parts = _split(url)
    if parts is None:
        return set()
    options = [value for name, value in parse_qsl(parts.query) if name in _SECRET_OPTIONS]
    written = [parts.password or "", *options]
    return {form for text in written for form in (text, unquote(text)) if form}


def masked(url: str) -> str:
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
