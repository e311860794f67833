"""The configuration: YAML file, environment variables and secrets as one frozen Config.

yaml_document                   YAML as text, with the location of each value
units, validators, urls         check and convert single values
model, subscriptions            the sections and how two configurations differ, and the list of what is collected
environment, secrets            values from outside the file; secret_file reads a file with one secret
ticker_file                     files of tickers that subscriptions name
draft, validation_errors, loader  combine everything, and report all problems at once
edit, rewrite                   add or remove a ticker in the file's text, and replace the file
render                          JSON Schema, and `config show`
"""

from ingestor.config.loader import list_files, load, require_api_key
from ingestor.config.model import Config, Subscription, changed_settings
from ingestor.config.render import list_secrets

__all__ = [
    "Config",
    "Subscription",
    "changed_settings",
    "list_files",
    "list_secrets",
    "load",
    "require_api_key",
]
