"""The configuration turned outwards: its JSON Schema for editors, and its values for ``config show``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from ingestor.config.model import Config
from ingestor.config.subscriptions import ConfigFile
from ingestor.config.urls import find_credentials, find_passwords, mask_url


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``config.yaml``: what an editor completes, explains and refuses."""
    body = _without_noise(ConfigFile.model_json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ingestor configuration",
        **body,
    }


def render(config: Config) -> dict[str, Any]:
    """The configuration in the shape of its file, durations and sizes with units, secrets as ``***``."""
    shown = config.model_dump(mode="json", exclude={"subscriptions", "key_file", "proxy", "source", "sha256"})
    shown["provider"]["api_key"] = "***" if config.provider.api_key else None
    shown["database"]["url"] = mask_url(config.database.url.get_secret_value())
    shown["subscriptions"] = [
        {"path": one.path, "method": one.method, "params": dict(one.params)} for one in config.subscriptions
    ]
    return shown


def render_yaml(config: Config) -> str:
    """What ``render`` gives, as YAML that names its file first."""
    shown = yaml.safe_dump(
        render(config),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=110,
    )
    return f"# {config.source}\n{shown.rstrip()}"


def describe_keys() -> Iterator[str]:
    """A line for every key of the document: its place, its default as it is written, and what it is for."""
    body = json_schema()
    for place, default, about in _keys(body, body["$defs"], ""):
        yield f"{place:<30} {default:<32} {about}"


def list_secrets(config: Config) -> tuple[str, ...]:
    """The texts that must not be shown: the API key, and the database's and the proxy's passwords in every spelling."""
    key = config.provider.api_key.get_secret_value() if config.provider.api_key else ""
    proxy = config.proxy.get_secret_value() if config.proxy else ""
    found = {key, *find_passwords(config.database.url.get_secret_value()), *find_credentials(proxy)}
    return tuple(secret for secret in found if secret)


def _keys(node: Any, definitions: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, value in node["properties"].items():
        section = value.get("$ref") or value.get("items", {}).get("$ref")
        if section is None:
            yield f"{prefix}{name}", _written(value.get("default")), value["description"]
        else:
            below = f"{prefix}{name}[]." if "items" in value else f"{prefix}{name}."
            yield from _keys(definitions[section.rpartition("/")[2]], definitions, below)


def _written(default: Any) -> str:
    if isinstance(default, list):
        return f"[{', '.join(default)}]"
    return str(default).lower() if isinstance(default, bool) else str("" if default is None else default)


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
