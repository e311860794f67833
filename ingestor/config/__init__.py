"""What the operator told us: YAML and environment, as one frozen Config.

document       YAML as text with places          units, values, urls   what a single value may be
environment    INGESTOR_ variables over it       secrets               where key and database URL come from
model          the nouns                         subscriptions         the list, and what it stands for
draft, complaints, loading   put together, with every problem at once        showing   JSON Schema and `config show`
"""

from ingestor.config.loading import load, require_api_key
from ingestor.config.model import (
    Batch,
    Config,
    Database,
    Http,
    Log,
    Provider,
    Retention,
    Spool,
    Subscription,
    TokenLife,
)
from ingestor.config.showing import render, schema
from ingestor.config.values import Listen

__all__ = [
    "Batch",
    "Config",
    "Database",
    "Http",
    "Listen",
    "Log",
    "Provider",
    "Retention",
    "Spool",
    "Subscription",
    "TokenLife",
    "load",
    "render",
    "require_api_key",
    "schema",
]
