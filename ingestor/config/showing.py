"""The configuration turned outwards: its JSON Schema for editors, and its values for ``config show``."""

from __future__ import annotations

from typing import Any

from ingestor.config.model import Config
from ingestor.config.subscriptions import Written
from ingestor.config.urls import masked


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``config.yaml``: what an editor completes, explains and refuses."""
    body = _without_noise(Written.model_json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ingestor configuration",
        **body,
    }


def render(config: Config) -> dict[str, Any]:
    """The configuration in the shape of its file, durations and sizes with units, secrets as ``***``."""
    shown = config.model_dump(mode="json", exclude={"subscriptions", "source", "sha256"})
    shown["provider"]["api_key"] = "***" if config.provider.api_key else None
    shown["database"]["url"] = masked(config.database.url.get_secret_value())
    shown["subscriptions"] = [
        {"path": one.path, "method": one.method, "params": dict(one.params)} for one in config.subscriptions
    ]
    return shown


def _without_noise(node: Any) -> Any:
    """Drop pydantic's titles, its class docstrings, and defaults that only say "nothing"."""
    if isinstance(node, list):
        return [_without_noise(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        name: value if name == "default" else _without_noise(value)
        for name, value in node.items()
        if not _is_noise(name, value)
    }
    if "properties" in kept:
        kept.pop("description", None)
    return kept


def _is_noise(name: str, value: Any) -> bool:
    # A property may be called "title" or "default", but then its value is a schema of its own.
    return (name == "title" and isinstance(value, str)) or (name == "default" and value in ({}, [], "", None))
