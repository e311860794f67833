"""The configuration's nouns, with the order, names and defaults of ``config.yaml``. All frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from ingestor.config import urls, validators
from ingestor.config.secret_file import SecretFile
from ingestor.config.validators import ListenAddress, duration, size

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

# Editors read an unquoted 007 or TRUE as a number or a boolean; here all three are text.
ANY_SCALAR = {"type": ["string", "number", "boolean"]}
LABEL = WithJsonSchema({"type": "string", "maxLength": validators.MAX_KEY_LENGTH})
Text = Annotated[str, BeforeValidator(validators.text)]
Ticker = Annotated[str, BeforeValidator(validators.ticker), WithJsonSchema({**ANY_SCALAR, "maxLength": 64})]
AbsolutePath = Annotated[Path, BeforeValidator(validators.absolute_path), WithJsonSchema({"type": "string"})]


def config_key(default: Any, description: str) -> Any:
    """A key of ``config.yaml``: its default as it would be written there, and what an editor shows."""
    return Field(default=default, validate_default=True, description=description)


class ConfigSection(BaseModel):
    """A mapping of the document. Unknown keys are refused; with every key commented out it is its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_written(cls, data: Any) -> Any:
        return {} if data is None else data


class TokenConfig(ConfigSection):
    """How long a token is used."""

    lifetime: Annotated[float, duration("1s", "365d")] = config_key("5h", "Life of a token that names no end")
    renew_before: Annotated[float, duration("0s", "30d")] = config_key("10m", "How long before its end to renew")
    timeout: Annotated[float, duration("100ms", "1h")] = config_key(
        "120s", "Deadline of a whole token request; answers of 36s are documented"
    )

    @field_validator("renew_before")
    @classmethod
    def _within_the_life(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds >= info.data.get("lifetime", float("inf")):
            raise ValueError("must be shorter than provider.token.lifetime")
        return seconds


class ProviderConfig(ConfigSection):
    """Where the data comes from, and how it is asked for."""

    url: Annotated[str, BeforeValidator(validators.text), AfterValidator(urls.normalize_provider_url)] = config_key(
        "https://open.marketprophit.com", "Root URL of the provider, https://…"
    )
    token_path: Annotated[str, BeforeValidator(validators.url_path)] = config_key(
        "/jwt", "Path under the root that hands out tokens"
    )
    api_key_file: AbsolutePath | None = config_key(
        None,
        "File with the API key, mode 0600; or systemd credential api_key, or INGESTOR_PROVIDER__API_KEY",
    )
    # Never from the document: secrets puts it here, and nothing that is shown includes it.
    api_key: SkipJsonSchema[Annotated[SecretStr, AfterValidator(validators.api_key)] | None] = Field(
        default=None, exclude=True
    )
    protocol: Annotated[Literal["auto", "4", "3"], WithJsonSchema({"enum": ["auto", "4", "3", 4, 3]})] = config_key(
        "auto", "Socket.IO generation: auto asks the server, 4 is 3.x-4.x, 3 is 1.x-2.x"
    )
    events: Annotated[tuple[Text, ...], Field(min_length=1)] = config_key(
        ["res", "data"], "Names of the events that carry data"
    )
    token: TokenConfig = config_key({}, "How long a token is used")
    renewal: Literal["overlap", "reconnect"] = config_key(
        "overlap", "On a new token: overlap opens the new connection before the old is closed"
    )
    silence: Annotated[float, duration("100ms", "30d")] = config_key(
        "10m", "A ticker without data for this long is asked for again, a connection without any is renewed"
    )
    ca_file: AbsolutePath | None = config_key(None, "CA certificates (PEM) to trust in place of the system's")
    allow_insecure: bool = config_key(False, "Allow http:// to a host other than this machine")

    @field_validator("ca_file")
    @classmethod
    def _can_be_trusted(cls, path: Path | None) -> Path | None:
        return None if path is None else validators.ca_file(path)

    @field_validator("allow_insecure")
    @classmethod
    def _no_secrets_in_plain_text(cls, allowed: bool, info: ValidationInfo) -> bool:
        host = urls.find_plaintext_host(info.data.get("url", ""))
        if host and not allowed:
            message = (
                f'http:// would send the key and all data readable to "{host}"; write https://, '
                "or set provider.allow_insecure: true if that network is yours"
            )
            raise PydanticCustomError("sibling", "{message}", {"message": message, "sibling": "url"})
        return allowed


class BatchConfig(ConfigSection):
    """When entries are written."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = config_key(5000, "Rows that are written at once at most")
    max_wait: Annotated[float, duration("0s", "60s")] = config_key("100ms", "How long an entry may wait for company")


class RetentionConfig(ConfigSection):
    """How long is kept what is not a sample. Seconds; 0.0 keeps nothing, None keeps for ever."""

    payloads: Annotated[float | None, duration("1s", "36500d", none=0.0, forever=None)] = config_key(
        "24h", "Raw text of what was received: a duration, none or forever"
    )
    samples: Annotated[float | None, duration("1s", "36500d", forever=None)] = config_key(
        "forever", "Samples and their revisions: a duration or forever"
    )
    journal: Annotated[float | None, duration("1s", "36500d", forever=None)] = config_key(
        "90d", "Events, the ledger of batches, and coverage in full: a duration or forever"
    )


def _normalised(value: Any, info: ValidationInfo) -> str:
    written = validators.text(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return urls.normalize_database_url(written, validators.base_folder_of(info))


class DatabaseConfig(ConfigSection):
    """Where the data goes."""

    url: Annotated[SecretStr, BeforeValidator(_normalised), WithJsonSchema({"type": "string"})] = config_key(
        "sqlite:///ingestor.db",
        "sqlite:///file or postgresql://user@host/database; with a password, see url_file",
    )
    url_file: AbsolutePath | None = config_key(
        None, "File that holds a URL with a password, mode 0600; or systemd credential database_url"
    )
    migrate: Literal["auto", "never"] = config_key("auto", "Whether run brings the tables up to date itself")
    batch: BatchConfig = config_key({}, "When entries are written")
    retention: RetentionConfig = config_key({}, "How long data is kept")


class SpoolConfig(ConfigSection):
    """The durable store between socket and database."""

    path: AbsolutePath = config_key("spool", "Folder of the spool")
    max_bytes: Annotated[int, size("64KiB", "64TiB")] = config_key("1GiB", "Beyond it, connections are closed")
    sync_every: Annotated[float, duration("1ms", "10s")] = config_key("20ms", "Longest wait before a sync")


class HttpConfig(ConfigSection):
    """Health, metrics and status."""

    listen: Annotated[
        ListenAddress,
        PlainValidator(validators.listen_address),
        PlainSerializer(str, when_used="json"),
        WithJsonSchema({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):[0-9]{1,5}$"}),
    ] = config_key("127.0.0.1:8642", "Address of the status page, /healthz, /readyz and /metrics")


class LogConfig(ConfigSection):
    """What is said on stderr."""

    level: Literal["debug", "info", "warning", "error"] = config_key("info", "The least that is said")
    format: Literal["auto", "console", "json"] = config_key("auto", "auto: console on a terminal, else json")


def canonical_json(params: Mapping[str, str]) -> str:
    """Params as the one JSON text that names them wherever they are stored: sorted, no blanks."""
    return _CANONICAL.encode(dict(params))


@dataclass(frozen=True, slots=True)
class Subscription:
    """One path, method and params that the operator asked for. Equal to another if it asks for the same."""

    path: str = field(compare=False)
    method: str = field(default="get", compare=False)  # lower case
    params: Mapping[str, str] = field(default_factory=dict, compare=False)
    location: str = field(default="", compare=False, repr=False)  # file:line:column of its path
    config_path: str = field(default="", compare=False, repr=False)  # "subscriptions.2", which may be many tickers
    key: tuple[str, str, str] = field(init=False, repr=False)  # path, method, canonical params

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))
        object.__setattr__(self, "key", (self.path, self.method, canonical_json(self.params)))

    @property
    def ticker(self) -> str:
        """The ticker asked for; empty for all."""
        return self.params.get("ticker", "")


class Settings(ConfigSection):
    """What the document says, apart from its subscriptions."""

    instance: Annotated[str, BeforeValidator(validators.label), LABEL] | None = config_key(
        None, "Label of this daemon in the database; default: the host's name"
    )
    provider: ProviderConfig = config_key({}, "Where the data comes from")
    database: DatabaseConfig = config_key({}, "Where the data goes")
    spool: SpoolConfig = config_key({}, "The durable store between socket and database")
    http: HttpConfig = config_key({}, "Health, metrics and status over HTTP")
    log: LogConfig = config_key({}, "What is said on stderr")
    watch: bool = config_key(False, "Reload when this file changes")


class Config(Settings):
    """Everything the operator told us, checked and complete."""

    subscriptions: tuple[Subscription, ...]
    key_file: SecretFile | None = None  # that provider.api_key came from, and may be read from again
    proxy: SecretStr | None = None  # on the way to provider.url; its URL may hold a password
    source: Path  # the file it was read from, absolute
    sha256: str  # of that file's bytes, hexadecimal
