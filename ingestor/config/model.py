"""The sections of the configuration, with the names, order and defaults of ``config.yaml``. All are frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

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
from ingestor.core.entries import canonical_json
from ingestor.errors import ConfigProblem

# Compared elsewhere, or not settings: not the name of a secret's file counts, but the secret in it.
_NOT_COMPARED = frozenset(
    {
        "subscriptions",
        "source",
        "sha256",
        "warnings",
        "key_file",
        "provider.api_key",
        "provider.api_key_file",
        "database.url_file",
    }
)

# Editors parse an unquoted 007 or TRUE as a number or a boolean; here both are text.
ANY_SCALAR = {"type": ["string", "number", "boolean"]}
LABEL = WithJsonSchema({"type": "string", "maxLength": validators.MAX_KEY_LENGTH})
Text = Annotated[str, BeforeValidator(validators.text)]
Ticker = Annotated[str, BeforeValidator(validators.ticker), WithJsonSchema({**ANY_SCALAR, "maxLength": 64})]
AbsolutePath = Annotated[Path, BeforeValidator(validators.absolute_path), WithJsonSchema({"type": "string"})]


def config_key(default: Any, description: str) -> Any:
    """Declare a key of ``config.yaml``: its default as written there, and its description for editors."""
    return Field(default=default, validate_default=True, description=description)


class ConfigSection(BaseModel):
    """A mapping in the document. Unknown keys are rejected; if every key is commented out, the defaults apply."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, data: Any) -> Any:
        return {} if data is None else data


class TokenConfig(ConfigSection):
    """Lifetime and renewal of tokens."""

    lifetime: Annotated[float, duration("1s", "365d")] = config_key("5h", "Lifetime of a token without an expiry time")
    renew_before: Annotated[float, duration("0s", "30d")] = config_key(
        "10m", "How long before its expiry to renew a token"
    )
    timeout: Annotated[float, duration("100ms", "1h")] = config_key(
        "120s", "Deadline of a token request; response times of 36s are documented"
    )

    @field_validator("renew_before")
    @classmethod
    def _shorter_than_lifetime(cls, seconds: float, info: ValidationInfo) -> float:
        if seconds >= info.data.get("lifetime", float("inf")):
            raise ValueError("must be shorter than provider.token.lifetime")
        return seconds


class ProviderConfig(ConfigSection):
    """The provider and how to connect to it."""

    url: Annotated[str, BeforeValidator(validators.text), AfterValidator(urls.normalize_provider_url)] = config_key(
        "https://open.marketprophit.com", "Root URL of the provider, https://…"
    )
    token_path: Annotated[str, BeforeValidator(validators.url_path)] = config_key(
        "/jwt", "Path of the token endpoint, below url"
    )
    api_key_file: AbsolutePath | None = config_key(
        None, "File with the API key, mode 0600; or use systemd credential api_key or INGESTOR_PROVIDER__API_KEY"
    )
    # Never in the document: place_secrets sets it. Excluded from all output.
    api_key: SkipJsonSchema[Annotated[SecretStr, AfterValidator(validators.api_key)] | None] = Field(
        default=None, exclude=True
    )
    protocol: Annotated[
        Literal["auto", "4", "3", "0.9"], WithJsonSchema({"enum": ["auto", "4", "3", "0.9", 4, 3, 0.9]})
    ] = config_key(
        "auto",
        "Protocol version: auto detects it; 4 is Socket.IO 3.x-4.x, 3 is Socket.IO 1.x-2.x, 0.9 is Socket.IO 0.8-0.9",
    )
    events: Annotated[tuple[Text, ...], Field(min_length=1)] = config_key(
        ["res", "data"], "Names of the events that contain data"
    )
    token: TokenConfig = config_key({}, "Lifetime and renewal of tokens")
    renewal: Literal["overlap", "reconnect"] = config_key(
        "overlap", "With a new token: overlap opens the new connection before closing the old one"
    )
    standby: bool = config_key(
        False,
        "Receive only while no other daemon with this key and PostgreSQL database does; take over when it is silent",
    )
    silence: Annotated[float, duration("100ms", "30d")] = config_key(
        "10m", "Resubscribe to a ticker after this time without data; reconnect if a connection has none"
    )
    ca_file: Annotated[AbsolutePath, AfterValidator(validators.ca_file)] | None = config_key(
        None, "CA certificates (PEM) to trust instead of the system's"
    )
    allow_insecure: bool = config_key(False, "Allow http:// to other machines")

    @field_validator("allow_insecure")
    @classmethod
    def _reject_plaintext(cls, allowed: bool, info: ValidationInfo) -> bool:
        host = urls.find_plaintext_host(info.data.get("url", ""))
        if host and not allowed:
            message = (
                f'http:// would send the key and all data unencrypted to "{host}"; write https://, '
                "or set provider.allow_insecure: true if you trust the network"
            )
            raise PydanticCustomError("sibling", "{message}", {"message": message, "sibling": "url"})
        return allowed


class BatchConfig(ConfigSection):
    """When a batch is written."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = config_key(5000, "Maximum rows per batch")
    max_wait: Annotated[float, duration("0s", "60s")] = config_key(
        "100ms", "How long to wait for more entries before writing a partial batch"
    )


class RetentionConfig(ConfigSection):
    """How long data is kept, in seconds. 0.0 keeps nothing, None keeps forever."""

    payloads: Annotated[float | None, duration("1s", "36500d", none=0.0, forever=None)] = config_key(
        "24h", "Raw text of received data: a duration, none or forever"
    )
    samples: Annotated[float | None, duration("1s", "36500d", forever=None)] = config_key(
        "forever", "Samples and their revisions: a duration or forever"
    )
    journal: Annotated[float | None, duration("1s", "36500d", forever=None)] = config_key(
        "90d", "Events, batch ledger and uncompacted coverage: a duration or forever"
    )


def _normalize_url(value: Any, info: ValidationInfo) -> str:
    written = validators.text(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return urls.normalize_database_url(written, validators.base_folder_of(info))


class DatabaseConfig(ConfigSection):
    """The database."""

    url: Annotated[SecretStr, BeforeValidator(_normalize_url), WithJsonSchema({"type": "string"})] = config_key(
        "sqlite:///ingestor.db",
        "sqlite:/// and a path, literally, or postgresql://user@host/database, or several hosts, as libpq writes them:"
        " postgresql://user@host1:port1,host2:port2/database; for a URL with a password, see url_file",
    )
    url_file: AbsolutePath | None = config_key(
        None, "File with a URL that contains a password, mode 0600; or use systemd credential database_url"
    )
    migrate: Literal["auto", "never"] = config_key("auto", "Whether run upgrades the schema")
    batch: BatchConfig = config_key({}, "When a batch is written")
    retention: RetentionConfig = config_key({}, "How long data is kept")


class KeepConfig(ConfigSection):
    """How much of what the database has committed stays in the spool, to be written again if the database goes back."""

    # An editor accepts 0 instead of the mapping.
    model_config = ConfigDict(
        json_schema_extra={"type": ["object", "string", "integer"], "pattern": "^0$", "minimum": 0, "maximum": 0}
    )

    time: Annotated[float, duration("0s", "3650d")] = config_key("24h", "For how long; 0 keeps nothing")
    size: Annotated[int, validators.size("0B", "64TiB")] = config_key("2GiB", "Up to which size; 0 keeps nothing")

    @model_validator(mode="before")
    @classmethod
    def _nothing(cls, data: Any) -> Any:
        return {"time": "0", "size": "0"} if data == "0" else data


class SpoolConfig(ConfigSection):
    """The durable queue between socket and database."""

    path: AbsolutePath = config_key("spool", "Folder of the spool")
    max_bytes: Annotated[int, size("64KiB", "64TiB")] = config_key(
        "1GiB", "Maximum size of what the database does not have yet; when it is reached, connections are closed"
    )
    sync_every: Annotated[float, duration("1ms", "10s")] = config_key(
        "20ms", "Maximum time between receiving an entry and starting to sync it"
    )
    keep: KeepConfig = config_key({}, "What stays after the database has committed it; 0 keeps nothing")


class HttpConfig(ConfigSection):
    """The HTTP server."""

    listen: Annotated[
        ListenAddress,
        PlainValidator(validators.listen_address),
        PlainSerializer(str, when_used="json"),
        WithJsonSchema({"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):[0-9]{1,5}$"}),
    ] = config_key("127.0.0.1:8642", "Address of the status page, /healthz, /readyz and /metrics")


class LogConfig(ConfigSection):
    """Logging to stderr."""

    level: Literal["debug", "info", "warning", "error"] = config_key("info", "Lowest level to log")
    format: Literal["auto", "console", "json"] = config_key("auto", "auto is console on a terminal, else json")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A path, method and params to subscribe to. Two are equal if these are."""

    path: str = field(compare=False)
    method: str = field(default="get", compare=False)  # lower case
    params: Mapping[str, str] = field(default_factory=dict, compare=False)
    location: str = field(default="", compare=False, repr=False)  # file:line:column of the path
    config_path: str = field(default="", compare=False, repr=False)  # "subscriptions.2"; a list of tickers shares one
    key: tuple[str, str, str] = field(init=False, repr=False)  # path, method, canonical params

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))
        object.__setattr__(self, "key", (self.path, self.method, canonical_json(self.params)))

    @property
    def ticker(self) -> str:
        """The ticker, or empty for all tickers."""
        return self.params.get("ticker", "")


class Settings(ConfigSection):
    """The document without its subscriptions."""

    instance: Annotated[str, BeforeValidator(validators.label), LABEL] | None = config_key(
        None, "Name of this daemon in the database; default: the host name"
    )
    provider: ProviderConfig = config_key({}, "The provider and how to connect to it")
    database: DatabaseConfig = config_key({}, "The database")
    spool: SpoolConfig = config_key({}, "The durable queue between socket and database")
    http: HttpConfig = config_key({}, "The HTTP server")
    log: LogConfig = config_key({}, "Logging to stderr")
    watch: bool = config_key(False, "Reload the configuration when this file changes")

    @field_validator("database")
    @classmethod
    def _reject_standby_with_sqlite(cls, database: DatabaseConfig, info: ValidationInfo) -> DatabaseConfig:
        provider = info.data.get("provider")
        if provider and provider.standby and database.url.get_secret_value().startswith(urls.SQLITE):
            raise ValueError(
                "is SQLite, which only one daemon can write to, so there is no other to stand by for: "
                "name a PostgreSQL in database.url, or remove provider.standby"
            )
        return database


class Config(Settings):
    """The complete, validated configuration."""

    subscriptions: tuple[Subscription, ...]
    key_file: SecretFile | None = None  # that provider.api_key was read from, and can be read from again
    proxy: SecretStr | None = None  # for provider.url; may contain a password
    source: Path  # absolute path of the file
    sha256: str  # of the contents of the file and of the files of tickers that it names, hexadecimal
    warnings: tuple[ConfigProblem, ...] = ()  # what is valid, but probably a mistake


def changed_settings(old: Config, new: Config) -> tuple[str, ...]:
    """Return the keys whose values differ, such as ``spool.max_bytes``. Ignores subscriptions and the API key."""
    names = [name for loc, _ in list_keys(Config) if (name := ".".join(loc)) not in _NOT_COMPARED]
    return tuple(name for name in names if attrgetter(name)(old) != attrgetter(name)(new))


def list_keys(model: type[BaseModel], parent: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the location of every key with a single value or a list of texts, and whether it is a list."""
    for name, field_ in model.model_fields.items():
        kind = field_.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from list_keys(kind, (*parent, name))
        else:
            yield (*parent, name), tuple in {get_origin(kind), *map(get_origin, get_args(kind))}
