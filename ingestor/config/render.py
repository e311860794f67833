"""Render the configuration: its JSON Schema for editors, and its values for ``config show``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import yaml

from ingestor.config.model import Config
from ingestor.config.subscriptions import ConfigFile
from ingestor.config.urls import find_credentials, find_passwords, mask_url


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of ``config.yaml``, with which editors complete, explain and check it."""
    body = _without_noise(ConfigFile.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ingestor configuration", **body}


def render(config: Config) -> dict[str, Any]:
    """Return the configuration in the shape of its file, with units, and with secrets as ``***``."""
    values = config.model_dump(
        mode="json", exclude={"subscriptions", "key_file", "proxy", "source", "sha256", "warnings"}
    )
    values["provider"]["api_key"] = "***" if config.provider.api_key else None
    values["database"]["url"] = mask_url(config.database.url.get_secret_value())
    values["subscriptions"] = [
        {"path": subscription.path, "method": subscription.method, "params": dict(subscription.params)}
        for subscription in config.subscriptions
    ]
    return values


def render_yaml(config: Config) -> str:
    """Return the configuration as YAML, after a comment with the name of the file: tickers of one entry as a list."""
    values = render(config) | {"subscriptions": list(_subscription_entries(config))}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return f"# {config.source}\n{text.rstrip()}"


def _subscription_entries(config: Config) -> Iterator[dict[str, Any]]:
    """Yield the entries of the file, with the tickers of their files."""
    for _, group in groupby(config.subscriptions, key=lambda subscription: subscription.config_path):
        first, *others = group
        entry: dict[str, Any] = {"path": first.path, "method": first.method, "params": dict(first.params)}
        if others:
            del entry["params"]["ticker"]
            entry["tickers"] = [subscription.ticker for subscription in (first, *others)]
        yield entry


def describe_keys() -> Iterator[str]:
    """Yield a line for every key of the document: its path, default and description."""
    body = json_schema()
    for path, default, description in _keys(body, body["$defs"], ""):
        yield f"{path:<30} {default:<32} {description}"


def list_secrets(config: Config) -> tuple[str, ...]:
    """Return what must be masked: the API key, and the passwords of database and proxy in every spelling."""
    key = config.provider.api_key.get_secret_value() if config.provider.api_key else ""
    proxy = config.proxy.get_secret_value() if config.proxy else ""
    secrets = {key, *find_passwords(config.database.url.get_secret_value()), *find_credentials(proxy)}
    return tuple(secret for secret in secrets if secret)


def _keys(node: Any, definitions: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, value in node["properties"].items():
        section = value.get("$ref") or value.get("items", {}).get("$ref")
        if section is None:
            yield f"{prefix}{name}", _format_default(value.get("default")), value["description"]
        else:
            child_prefix = f"{prefix}{name}[]." if "items" in value else f"{prefix}{name}."
            yield from _keys(definitions[section.rpartition("/")[2]], definitions, child_prefix)


def _format_default(default: Any) -> str:
    if isinstance(default, list):
        return f"[{', '.join(default)}]"
    return str(default).lower() if isinstance(default, bool) else str("" if default is None else default)


def _without_noise(node: Any) -> Any:
    """Remove pydantic's titles, the docstrings of its classes, and empty defaults."""
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
    # A property may be named "title" or "default"; its value is then a schema.
    return (name == "title" and isinstance(value, str)) or (name == "default" and value in ({}, [], "", None))
