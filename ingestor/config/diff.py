"""Compare two configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from ingestor.config.model import Config

# Compared elsewhere, or not settings: not the name of a secret's file counts, but the secret in it.
_NOT_COMPARED = frozenset(
    {"subscriptions", "source", "sha256", "key_file", "provider.api_key", "provider.api_key_file", "database.url_file"}
)


def changed_settings(old: Config, new: Config) -> tuple[str, ...]:
    """Return the keys whose values differ, such as ``spool.max_bytes``. Ignores subscriptions and the API key."""
    before = dict(_settings(old))
    return tuple(name for name, value in _settings(new) if value != before[name])


def _settings(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in _NOT_COMPARED:
            yield f"{prefix}{name}", value.get_secret_value() if isinstance(value, SecretStr) else value
