"""Where API key and database URL come from, by trust: systemd credential, file, environment.

A key that came from a file can be read from there again while the daemon runs. A secret's text is in no message, and
no exception that could quote it survives here.
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
    """A secret's place in the configuration, and the names of its sources."""

    loc: tuple[str, str]
    credential: str
    file_key: str  # the key, in the same section, that names its file

    @property
    def file_loc(self) -> tuple[str, str]:
        return self.loc[0], self.file_key

    @property
    def variable(self) -> str:
        return variable_name(*self.loc)


API_KEY = SecretField(("provider", "api_key"), credential="api_key", file_key="api_key_file")
DATABASE_URL = SecretField(("database", "url"), credential="database_url", file_key="url_file")
SECRET_LOCS = frozenset({API_KEY.loc, DATABASE_URL.loc})

API_KEY_REMEDY = (
    "put it into a file of mode 0600 named by provider.api_key_file, "
    f"into the systemd credential {API_KEY.credential}, or into {API_KEY.variable}"
)


@dataclass(frozen=True, slots=True)
class SecretSource:
    """One place that was looked into."""

    where: str  # for people
    loc: tuple[str, str]  # the key that names it
    content: SecretStr | UnusableSecret
    file: SecretFile | None = None


def place_secrets(draft: Draft, env: Mapping[str, str], base: Path, *, file_is_private: bool) -> SecretFile | None:
    """Put both secrets into the draft as SecretStr, from the most trusted source that has one.

    Returns the file that the API key came from, if it did.
    """
    if draft.get(*API_KEY.loc) is not None:
        draft.complain(ValidationIssue(API_KEY.loc, f"does not belong in this file; {API_KEY_REMEDY}", key=True))
    draft.drop(API_KEY.loc)
    written = draft.get(*DATABASE_URL.loc)
    if isinstance(written, str) and urls.has_password(written) and not file_is_private:
        message = (
            "holds a password in a file that others can read; put the URL into a file of mode 0600 "
            f"named by database.url_file, or into {DATABASE_URL.variable}"
        )
        draft.complain(ValidationIssue(DATABASE_URL.loc, message))
    sources = {slot: _found(draft, slot, env, base) for slot in (API_KEY, DATABASE_URL)}
    for slot, source in sources.items():
        _place(draft, slot, source)
    key = sources[API_KEY]
    return key.file if key else None


def read_api_key(file: SecretFile) -> SecretStr:
    """The API key that the file holds now. Raises ConfigError, or InsecureSecretFile, with what to do about it."""
    content = file.read()
    if isinstance(content, SecretStr):
        try:
            return validators.api_key(content)
        except ValueError as error:
            content = UnusableSecret(str(error))
    problem = ConfigProblem(str(file.path), ".".join(API_KEY.loc), content.message)
    raise (InsecureSecretFile if content.exposed else ConfigError)([problem])


def _found(draft: Draft, slot: SecretField, env: Mapping[str, str], base: Path) -> SecretSource | None:
    """The first source that has the secret."""
    credential = Path(env.get("CREDENTIALS_DIRECTORY", ""), slot.credential)
    # Unlike Path.exists, this does not raise for a folder that may not be searched.
    if env.get("CREDENTIALS_DIRECTORY") and os.path.exists(credential):  # noqa: PTH110
        file = SecretFile(credential, others_may_read=True)
        return SecretSource(f"credential {slot.credential}", slot.loc, file.read(), file)
    if path := _named_file(draft.get(*slot.file_loc), base):
        file = SecretFile(path)
        return SecretSource(draft.location_of(slot.file_loc), slot.file_loc, file.read(), file)
    text = env.get(slot.variable)
    if text is not None:
        content = SecretStr(text) if text.strip() else UnusableSecret("is empty; set it or unset it")
        return SecretSource(slot.variable, slot.loc, content)
    return None


def _named_file(written: object, base: Path) -> Path | None:
    try:
        return validators.resolve_path(written, base) if written is not None else None
    except ValueError:  # not a path: the check of its own key says so
        return None


def _place(draft: Draft, slot: SecretField, source: SecretSource | None) -> None:
    if source is None:
        return
    if isinstance(source.content, UnusableSecret):
        problem = ConfigProblem(source.where, ".".join(source.loc), source.content.message)
        draft.report(problem, exposed=source.content.exposed)
        draft.drop(slot.loc)
    else:
        draft.put(slot.loc, source.content, source.where)
