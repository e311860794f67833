"""What the operator told us: YAML and environment, as one frozen Config.

document                     YAML as text, with places
units, values, urls          what a single value may be
model, subscriptions         the nouns, and the list of what is collected
environment, secrets, proxy  what comes from elsewhere; secretfile is a secret's own file
draft, complaints, loading   put together, with every problem at once
editing, rewriting           a ticker more or less, and the file replaced
difference                   what another configuration changes
showing                      JSON Schema, and `config show`
"""

from ingestor.config.diff import changed_settings
from ingestor.config.loader import load, require_api_key
from ingestor.config.model import (
    BatchConfig,
    Config,
    DatabaseConfig,
    HttpConfig,
    LogConfig,
    ProviderConfig,
    RetentionConfig,
    SpoolConfig,
    Subscription,
    TokenConfig,
)
from ingestor.config.render import describe_keys, json_schema, list_secrets, render, render_yaml
from ingestor.config.secret_file import SecretFile
from ingestor.config.secrets import read_api_key
from ingestor.config.validators import ListenAddress

__all__ = [
    "BatchConfig",
    "Config",
    "DatabaseConfig",
    "HttpConfig",
    "ListenAddress",
    "LogConfig",
    "ProviderConfig",
    "RetentionConfig",
    "SecretFile",
    "SpoolConfig",
    "Subscription",
    "TokenConfig",
    "changed_settings",
    "describe_keys",
    "json_schema",
    "list_secrets",
    "load",
    "read_api_key",
    "render",
    "render_yaml",
    "require_api_key",
]
