"""Find API key and database URL. In order of precedence: systemd credential, file, environment variable.

A key from a file can be read again while the daemon runs. Messages never contain a secret, and no exception that could
quote one leaves this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from ingestor.config import urls, validators
from ingestor.config.draft import Draft
from ingestor.config.environment import variable_name
from ingestor.config.secret_file import SecretFile, UnusableSecret
from ingestor.config.validation_errors import ValidationIssue
from ingestor.errors import ConfigError, ConfigProblem, InsecureSecretFile


@dataclass(frozen=True, slots=True)
class SecretField:
    """The location of a secret in the configuration, and the names of its sources."""

    loc: tuple[str, str]
    credential: str
    file_loc: tuple[str, str]  # of the key that names its file

    @property
    def variable(self) -> str:
        return variable_name(*self.loc)


API_KEY = SecretField(("provider", "api_key"), "api_key", ("provider", "api_key_file"))
DATABASE_URL = SecretField(("database", "url"), "database_url", ("database", "url_file"))
SECRET_LOCS = frozenset({API_KEY.loc, DATABASE_URL.loc})

API_KEY_REMEDY = (
    "put it into a file of mode 0600 named by provider.api_key_file, "
    f"into the systemd credential {API_KEY.credential}, or into {API_KEY.variable}"
)


def place_secrets(draft: Draft, env: Mapping[str, str], base: Path, *, file_is_private: bool) -> SecretFile | None:
    """Put both secrets into the draft as SecretStr. Return the file that the API key was read from, or None."""
    if draft.get(*API_KEY.loc) is not None:
        draft.add_issue(ValidationIssue(API_KEY.loc, f"does not belong in this file; {API_KEY_REMEDY}", key=True))
    draft.remove(API_KEY.loc)
    written = draft.get(*DATABASE_URL.loc)
    if isinstance(written, str) and urls.has_password(written) and not file_is_private:
        message = (
            "contains a password, and others can read this file; put the URL into a file of mode 0600 "
            f"named by database.url_file, or into {DATABASE_URL.variable}"
        )
        draft.add_issue(ValidationIssue(DATABASE_URL.loc, message))
    key_file = _place_secret(draft, API_KEY, env, base)
    _place_secret(draft, DATABASE_URL, env, base)
    return key_file


def read_api_key(file: SecretFile) -> SecretStr:
    """Read the API key from its file. Raises ConfigError or InsecureSecretFile."""
    content = file.read()
    if isinstance(content, SecretStr):
        try:
            return validators.api_key(content)
        except ValueError as error:
            content = UnusableSecret(str(error))
    problem = ConfigProblem(str(file.path), ".".join(API_KEY.loc), content.message)
    raise (InsecureSecretFile if content.exposed else ConfigError)([problem])


def _place_secret(draft: Draft, field: SecretField, env: Mapping[str, str], base: Path) -> SecretFile | None:
    """Put a secret into the draft from the first source that has it. Return the file that it was read from, or None."""
    name, loc, file = field.variable, field.loc, None
    credential = Path(env.get("CREDENTIALS_DIRECTORY", ""), field.credential)
    # Unlike Path.exists, this does not raise for a folder that may not be searched.
    if env.get("CREDENTIALS_DIRECTORY") and os.path.exists(credential):  # noqa: PTH110
        name, file = f"credential {field.credential}", SecretFile(credential, others_may_read=True)
    elif path := _resolve_file(draft.get(*field.file_loc), base):
        name, loc, file = draft.location_of(field.file_loc), field.file_loc, SecretFile(path)
    elif name not in env:
        return None
    content = file.read() if file else _parse_variable(env[name])
    if isinstance(content, UnusableSecret):
        draft.add_problem(ConfigProblem(name, ".".join(loc), content.message), exposed=content.exposed)
        draft.remove(field.loc)
    else:
        draft.set(field.loc, content, name)
    return file


def _resolve_file(written: object, base: Path) -> Path | None:
    try:
        return validators.resolve_path(written, base) if written is not None else None
    except ValueError:  # not a path: the validator of this key reports it
        return None


def _parse_variable(text: str) -> SecretStr | UnusableSecret:
    return SecretStr(text) if text.strip() else UnusableSecret("is empty; set it or unset it")
