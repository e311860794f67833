"""Which values another configuration changes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from ingestor.config.model import Config

# Told elsewhere, or no values of the document; where a secret stands is none, its own value is.
_NOT_SETTINGS = frozenset(
    {"subscriptions", "source", "sha256", "key_file", "provider.api_key", "provider.api_key_file", "database.url_file"}
)


def changed_settings(old: Config, new: Config) -> tuple[str, ...]:
    """The keys, such as ``spool.max_bytes``, whose values are others; subscriptions, key and secrets' files apart."""
    before = _leaves(old)
    return tuple(name for name, value in _leaves(new).items() if value != before[name])


def _leaves(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every value of the document but the subscriptions, by the path at which it stands there."""
    return dict(_walk(section, prefix))


def _walk(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in _NOT_SETTINGS:
            yield f"{prefix}{name}", value.get_secret_value() if isinstance(value, SecretStr) else value
