"""Find the file, read it, put environment and secrets over it: one Config, or every problem at once."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr, ValidationError

from ingestor.config.draft import Draft
from ingestor.config.environment import FILE_VARIABLE, apply_environment, variable_name
from ingestor.config.model import Config, Settings, SpoolConfig
from ingestor.config.proxy import find_proxy
from ingestor.config.secrets import API_KEY, API_KEY_REMEDY, SECRET_LOCS, place_secrets
from ingestor.config.subscriptions import ConfigFile, FeedNamer, expand_subscriptions
from ingestor.config.validation_errors import to_issues
from ingestor.config.validators import resolve_path
from ingestor.config.yaml_document import MAX_BYTES, parse_yaml
from ingestor.errors import ConfigError, ConfigProblem

SYSTEM_FILE = Path("/etc/ingestor/config.yaml")
LOCAL_FILE = Path("config.yaml")
_SPOOL_PATH: str = SpoolConfig.model_fields["path"].default


def load(
    path: Path | None = None, env: Mapping[str, str] | None = None, *, feed_name: FeedNamer | None = None
) -> Config:
    """The configuration, from ``path`` or where ``find`` says; ``env`` is the process's unless given.

    ``feed_name`` tells a feed's name from path and params, so that one which cannot be stored is refused.
    Raises ConfigError with every problem; InsecureSecretFile if the only ones are secrets that others can read.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    return parse_config(source, *read_file(source), env, feed_name)


def parse_config(
    source: Path, raw: bytes, file_is_private: bool, env: Mapping[str, str], feed_name: FeedNamer | None = None
) -> Config:
    """What ``load`` makes of the file, if these were its bytes. Raises as it does."""
    draft = Draft(parse_yaml(raw, str(source)))
    base = base_folder(source, env)
    apply_environment(draft, env, SECRET_LOCS)
    key_file = place_secrets(draft, env, base, file_is_private=file_is_private)
    subscriptions = expand_subscriptions(
        draft.value.pop("subscriptions", None), draft.location_of, draft.complain, feed_name
    )
    settings = _settings(draft, base)
    proxy = find_proxy(settings.provider.url, env, draft.report) if settings else None
    draft.check()
    assert settings is not None  # noqa: S101  # check has raised otherwise
    return Config(
        **{name: getattr(settings, name) for name in Settings.model_fields},
        subscriptions=subscriptions,
        key_file=key_file,
        proxy=proxy,
        source=source.absolute(),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def find_file(path: Path | None, env: Mapping[str, str]) -> Path:
    """The file to read: asked for, ``$INGESTOR_CONFIG``, ``./config.yaml``, ``/etc/ingestor/config.yaml``.

    One that was asked for is not searched any further. Raises ConfigError that names what was looked for.
    """
    if path is not None:
        return path
    if named := env.get(FILE_VARIABLE):
        return Path(named)
    places = (LOCAL_FILE, SYSTEM_FILE)
    found = next((place for place in places if _may_be_there(place)), None)
    if found is None:
        looked = f"looked for --config, ${FILE_VARIABLE}, {', '.join(map(str, places))}"
        message = f"there is no configuration ({looked}); `ingestor init` writes one"
        raise ConfigError([ConfigProblem("", "", message)])
    return found


def _may_be_there(place: Path) -> bool:
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # not for this user: reading it will say so, rather than that there is none
        return True
    return True


def base_folder(source: Path, env: Mapping[str, str]) -> Path:
    """Where relative paths begin: the first of ``$STATE_DIRECTORY``, else the configuration's own folder."""
    state = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state) if state else source.absolute().parent


def find_spool_folder(path: Path | None = None, env: Mapping[str, str] | None = None) -> Path:
    """Where a running daemon can be asked, as far as the file tells: whatever else is wrong there, it may go on.

    Raises ConfigError if there is no file.
    """
    env = os.environ if env is None else env
    source = find_file(path, env)
    written = env.get(variable_name("spool", "path")) or _spool_written(source)
    try:
        return resolve_path(written, base_folder(source, env))
    except ValueError:  # not a path
        return resolve_path(_SPOOL_PATH, base_folder(source, env))


def _spool_written(source: Path) -> object:
    try:
        return Draft(parse_yaml(read_file(source)[0], str(source))).get("spool", "path") or _SPOOL_PATH
    except ConfigError:
        return _SPOOL_PATH


def require_api_key(config: Config) -> SecretStr:
    """The API key of a configuration that will connect. Raises ConfigError that says where to put one."""
    if config.provider.api_key is None:
        path = ".".join(API_KEY.loc)
        raise ConfigError([ConfigProblem(str(config.source), path, f"there is none; {API_KEY_REMEDY}")])
    return config.provider.api_key


def read_file(source: Path) -> tuple[bytes, bool]:
    """The file's bytes (one more than may be, if there are), and whether only its owner can read it.

    Raises ConfigError.
    """
    try:
        with source.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        message = "there is no such file; name another with --config, or write one with `ingestor init`"
    except OSError as error:
        message = f"cannot be read ({os.strerror(error.errno or 0)}); mend the path or the permissions"
    else:
        return raw, not mode & (stat.S_IRWXG | stat.S_IRWXO)
    raise ConfigError([ConfigProblem(str(source), "", message)])


def _settings(draft: Draft, base: Path) -> Settings | None:
    """All but the subscriptions; None if the draft has got complaints instead."""
    try:
        return Settings.model_validate(draft.value, context={"base": base})
    except ValidationError as error:
        found = list(to_issues(error, ConfigFile))
    for complaint in found:
        draft.complain(complaint)
    return None
