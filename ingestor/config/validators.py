"""Validate single values: durations, sizes, addresses, paths and names.

The ValueErrors are messages for the operator; the loader prefixes them with file, line and column.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr, ValidationInfo
from pydantic_core import core_schema

from ingestor.config import units

MAX_KEY_LENGTH = 64  # characters of a text key in the database
_NOT_IN_A_TICKER = re.compile(r"[*?@$#,;|<>(){}\[\]\\\"'`´\u2018-\u201f\u00ab\u00bb\u2039\u203a]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def text(value: Any) -> str:
    """Return a text without control characters. Raises ValueError for anything else in a document."""
    if value is None:
        raise ValueError("has no value; write one, or remove the line")
    if not isinstance(value, str):
        raise ValueError("must be a single text, not a list or a mapping")  # noqa: TRY004  # pydantic expects this
    if not value.strip():
        raise ValueError("is empty; write a value, or remove the line")
    if _CONTROL.search(value):
        raise ValueError("contains a control character; remove it")
    return value


def label(value: Any) -> str:
    """Return a name that fits into the database. Raises ValueError."""
    name = text(value)
    if len(name) > MAX_KEY_LENGTH:
        raise ValueError(f"has {len(name)} characters; at most {MAX_KEY_LENGTH} can be stored")
    return name


def url_path(value: Any) -> str:
    """Return a path under the provider's root, without a query. Raises ValueError."""
    path = text(value)
    if not path.startswith("/") or re.search(r"[\s?#]", path):
        raise ValueError("must be a path that begins with /, without a query, such as /jwt")
    return path


def ticker(value: Any) -> str:
    """Return a ticker as written. Almost anything is allowed, because the provider has tickers such as ``6E_F``."""
    return _key_text(value, "a ticker")


def doubt_ticker(text: str) -> str | None:
    """Return why a text that can be stored is surely no ticker, with what may be meant; None if it may be one.

    Tickers such as ``6E_F``, ``BRK.B``, ``BRK/B``, ``BTC-USD``, ``^GSPC``, ``EURUSD=X``, ``ES1!`` and ``ALL`` may be.
    """
    if text == "*" or (text.lower() == "all" and text != "ALL"):
        return f'"{text}" is no ticker; name each one'
    if not _NOT_IN_A_TICKER.search(text):
        return None
    words = [word for word in _NOT_IN_A_TICKER.split(text) if word]
    if len(words) > 1:
        return f'"{text}" is no ticker; did you mean {len(words)} of them: {" ".join(words)}?'
    return f'"{text}" is no ticker' + (f'; did you mean "{words[0]}"?' if words else "; write letters and digits")


def user_id(value: Any) -> str:
    """Return a user id. Its only known restriction is that it must fit into the database."""
    return _key_text(value, "a user_id")


def _key_text(value: Any, noun: str) -> str:
    name = text(value)
    if re.search(r"\s", name):
        raise ValueError(f"{noun} must not contain spaces; write several as a list: [AAPL, TSLA]")
    if len(name) > MAX_KEY_LENGTH:
        raise ValueError(f"{noun} may have at most {MAX_KEY_LENGTH} characters, this has {len(name)}")
    return name


@dataclass(frozen=True, slots=True)
class UnitNumber:
    """A pydantic annotation for a number written as text with a unit, or as one of ``words``."""

    minimum: str
    maximum: str
    parse: Callable[[str], float]
    format: Callable[[Any], str]
    pattern: str
    words: dict[str, float | None] = field(default_factory=dict)

    def read(self, value: Any) -> float | None:
        """Parse a text and check the range. A number, as code passes it, only has its range checked."""
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        number = value if isinstance(value, int | float) else self.parse(text(value))
        if not self.parse(self.minimum) <= number <= self.parse(self.maximum):
            shown = self.format(number) if isinstance(value, int | float) else value
            raise ValueError(f'"{shown}" is out of range; write {self.minimum} to {self.maximum}')
        return number

    def to_text(self, number: float | None) -> str:
        """Return the text that ``read`` parses to this number."""
        words = {value: word for word, value in self.words.items()}
        return words[number] if number in words else self.format(number)

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(self.to_text, when_used="json")
        return core_schema.no_info_plain_validator_function(self.read, serialization=shown)

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        pattern = "|".join([self.pattern, *(f"^{word}$" for word in self.words)])
        # Editors parse a bare 0 as a number; the bounds allow no other number.
        return {"type": ["string", "integer"], "pattern": pattern, "minimum": 0, "maximum": 0}


def duration(minimum: str, maximum: str, **words: float | None) -> UnitNumber:
    """Annotate seconds, written as ``1h30m``."""
    return UnitNumber(minimum, maximum, units.parse_duration, units.format_duration, units.DURATION_PATTERN, words)


def size(minimum: str, maximum: str) -> UnitNumber:
    """Annotate bytes, written as ``512MiB``."""
    return UnitNumber(minimum, maximum, units.parse_size, units.format_size, units.SIZE_PATTERN)


class ListenAddress(NamedTuple):
    """The address that the HTTP server listens on. IPv6 without brackets; port 0 is any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen_address(value: Any) -> ListenAddress:
    """Parse ``127.0.0.1:8642`` or ``[::1]:8642``. Raises ValueError."""
    if isinstance(value, ListenAddress):
        return value
    host, _, port = text(value).rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bracketed = bare != host
    if not bare or bracketed != (":" in bare) or re.search(r"[\s/@\[\]]", bare):
        raise ValueError("must be host:port; write 127.0.0.1:8642, or [::1]:8642 with brackets around IPv6")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError("must end in a port from 0 to 65535; write for example 127.0.0.1:8642")
    return ListenAddress(bare, int(port))


def absolute_path(value: Any, info: ValidationInfo) -> Path:
    """Return an absolute path. A relative one starts from the folder in the validation context."""
    return resolve_path(value, base_folder_of(info))


def base_folder_of(info: ValidationInfo) -> Path:
    """Return the absolute folder that relative paths start from: outside of ``load`` the current one."""
    base: Path = (info.context or {}).get("base", Path())
    return base.absolute()


def resolve_path(value: Any, base: Path) -> Path:
    """Return an absolute path: ``~`` is expanded, relative paths start from ``base``. Raises ValueError."""
    path = value if isinstance(value, Path) else Path(text(value))
    try:
        return base / path.expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and a user who does not exist; write the full path") from None


def ca_file(path: Path) -> Path:
    """Check that a file of CA certificates (PEM) can be loaded. Raises ValueError."""
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{path} contains no certificates; name a PEM file, or remove the line") from None
    except FileNotFoundError:
        raise ValueError(f"the file {path} does not exist; name a PEM file, or remove the line") from None
    except OSError as error:
        problem = os.strerror(error.errno or 0)
        raise ValueError(f"{path} cannot be read ({problem}); correct the path or the permissions") from None
    return path


def api_key(secret: SecretStr) -> SecretStr:
    """Check that the key is one word of printable ASCII, for an HTTP header. Raises ValueError, without the key."""
    word = secret.get_secret_value()
    if not word.isascii() or not word.isprintable() or " " in word:
        raise ValueError("must be one word of ASCII; it contains spaces, line breaks or other characters")
    return secret
