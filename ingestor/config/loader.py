"""Find and read the configuration file, and combine it with environment and secrets."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr, ValidationError

from ingestor.config.draft import Draft
from ingestor.config.environment import FILE_VARIABLE, apply_environment, find_proxy, variable_name
from ingestor.config.model import Config, Settings, SpoolConfig
from ingestor.config.secrets import API_KEY, API_KEY_REMEDY, SECRET_LOCS, place_secrets
from ingestor.config.subscriptions import ConfigFile, FeedNamer, expand_subscriptions
from ingestor.config.ticker_file import TickerFiles
from ingestor.config.validation_errors import to_issues
from ingestor.config.validators import resolve_path
from ingestor.config.yaml_document import MAX_BYTES, parse_yaml
from ingestor.core.files import is_missing
from ingestor.core.os_errors import describe_os_error
from ingestor.errors import ConfigError, ConfigProblem

SYSTEM_FILE = Path("/etc/ingestor/config.yaml")
LOCAL_FILE = Path("config.yaml")
_DEFAULT_SPOOL: str = SpoolConfig.model_fields["path"].default


def load(
    path: Path | None = None, env: Mapping[str, str] | None = None, *, feed_name: FeedNamer | None = None
) -> Config:
    """Load the configuration from ``path``, or from the file that ``find_file`` finds.

    ``env`` defaults to the environment of the process. With ``feed_name``, subscriptions whose feed name is too long
    for the database are rejected. Raises ConfigError with every problem, or InsecureSecretFile if the only problem is
    that others can read a secret.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    return parse_config(source, *read_file(source), env, feed_name)


def parse_config(
    source: Path,
    raw: bytes,
    file_is_private: bool,
    env: Mapping[str, str],
    feed_name: FeedNamer | None = None,
    files: TickerFiles | None = None,
) -> Config:
    """Build the configuration from the contents of the file. Raises as ``load`` does.

    ``files`` are the files of tickers, if they have been read, or are to have another text.
    """
    files = files or ticker_files(source, env)
    draft = Draft(parse_yaml(raw, str(source)))
    base = base_folder(source, env)
    apply_environment(draft, env, SECRET_LOCS)
    key_file = place_secrets(draft, env, base, file_is_private=file_is_private)
    written = draft.value.pop("subscriptions", None)
    subscriptions = expand_subscriptions(written, draft.location_of, draft.add_issue, feed_name, files)
    settings = _validate_settings(draft, base)
    proxy = find_proxy(settings.provider.url, env, draft.add_problem) if settings else None
    draft.check()
    assert settings is not None  # noqa: S101  # else check has raised
    return Config(
        **{name: getattr(settings, name) for name in Settings.model_fields},
        subscriptions=subscriptions,
        key_file=key_file,
        proxy=proxy,
        source=source.absolute(),
        sha256=_sha256(raw, files),
        warnings=draft.warnings,
    )


def ticker_files(source: Path, env: Mapping[str, str]) -> TickerFiles:
    """Return the files of tickers that a configuration may name. Messages show their paths as they show the source."""
    return TickerFiles(base_folder(source, env) if env.get("STATE_DIRECTORY") else source.parent)


def list_files(source: Path, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the configuration file and the files of tickers that it names, even if something in it is invalid."""
    try:
        written = parse_yaml(read_file(source)[0], str(source)).value.get("subscriptions")
    except ConfigError:
        written = None
    files, found = ticker_files(source, env), [source]
    for item in written if isinstance(written, list) else ():
        with suppress(ValueError):
            found.append(files.resolve(item.get("tickers_file") if isinstance(item, dict) else None))
    return tuple(found)


def _sha256(raw: bytes, files: TickerFiles) -> str:
    digest = hashlib.sha256(raw)
    for found in files.lists.values():
        digest.update(hashlib.sha256(found.text.encode()).digest())
    return digest.hexdigest()


def find_file(path: Path | None, env: Mapping[str, str]) -> Path:
    """Return the file to read: ``path``, ``$INGESTOR_CONFIG``, ``./config.yaml`` or ``/etc/ingestor/config.yaml``.

    The first two are returned whether they exist or not. Raises ConfigError, which lists the places searched.
    """
    if path is not None:
        return path
    if named := env.get(FILE_VARIABLE):
        return Path(named)
    candidates = (LOCAL_FILE, SYSTEM_FILE)
    found = next((candidate for candidate in candidates if not is_missing(candidate)), None)
    if found is None:
        searched = f"looked for --config, ${FILE_VARIABLE}, {', '.join(map(str, candidates))}"
        message = f"no configuration found ({searched}); `ingestor init` writes one"
        raise ConfigError([ConfigProblem("", "", message)])
    return found


def base_folder(source: Path, env: Mapping[str, str]) -> Path:
    """Return the folder that relative paths start from: the first of ``$STATE_DIRECTORY``, else the file's folder."""
    state = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state).absolute() if state else source.absolute().parent


def find_spool_folder(path: Path | None = None, env: Mapping[str, str] | None = None) -> Path:
    """Return the spool's folder even if the file is invalid, because a daemon may run with an earlier version of it.

    Raises ConfigError if there is no file.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    written = env.get(variable_name("spool", "path")) or _read_spool_path(source)
    try:
        return resolve_path(written, base_folder(source, env))
    except ValueError:  # not a path
        return resolve_path(_DEFAULT_SPOOL, base_folder(source, env))


def _read_spool_path(source: Path) -> object:
    try:
        return Draft(parse_yaml(read_file(source)[0], str(source))).get("spool", "path") or _DEFAULT_SPOOL
    except ConfigError:
        return _DEFAULT_SPOOL


def require_api_key(config: Config) -> SecretStr:
    """Return the API key. Raises ConfigError, which says where to put one, if there is none."""
    if config.provider.api_key is None:
        path = ".".join(API_KEY.loc)
        raise ConfigError([ConfigProblem(str(config.source), path, f"is missing; {API_KEY_REMEDY}")])
    return config.provider.api_key


def find_location(config: Config, *loc: str, env: Mapping[str, str] | None = None) -> str:
    """Return where a setting comes from: ``file:line:column``, or the name of a variable. Raises ConfigError."""
    draft = Draft(parse_yaml(read_file(config.source)[0], str(config.source)))
    apply_environment(draft, os.environ if env is None else env, SECRET_LOCS)
    return draft.location_of(loc)


def read_file(source: Path) -> tuple[bytes, bool]:
    """Return the contents of the file, and whether only its owner can read it.

    Reads at most one byte more than is allowed. Raises ConfigError.
    """
    try:
        with source.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        message = "there is no such file; name another with --config, or write one with `ingestor init`"
    except OSError as error:
        message = f"cannot be read ({describe_os_error(error.errno)}); correct the path or the permissions"
    else:
        return raw, not mode & (stat.S_IRWXG | stat.S_IRWXO)
    raise ConfigError([ConfigProblem(str(source), "", message)])


def _validate_settings(draft: Draft, base: Path) -> Settings | None:
    """Return everything but the subscriptions, or add the issues to the draft and return None."""
    try:
        return Settings.model_validate(draft.value, context={"base": base})
    except ValidationError as error:
        issues = list(to_issues(error, ConfigFile))
    for issue in issues:  # outside of the except clause: the error quotes secrets, and would become a context
        draft.add_issue(issue)
    return None
