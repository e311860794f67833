"""Where API key and database URL come from, by trust: systemd credential, file, environment.

A secret's text is in no message, and no exception that could quote it survives here.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from ingestor.config import urls, values
from ingestor.config.complaints import Complaint
from ingestor.config.draft import Draft
from ingestor.config.environment import variable
from ingestor.errors import Problem

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Slot:
    """A secret's place in the configuration, and the names of its sources."""

    loc: tuple[str, str]
    credential: str
    file_key: str  # the key, in the same section, that names its file

    @property
    def file_loc(self) -> tuple[str, str]:
        return self.loc[0], self.file_key

    @property
    def variable(self) -> str:
        return variable(*self.loc)


API_KEY = Slot(("provider", "api_key"), credential="api_key", file_key="api_key_file")
DATABASE_URL = Slot(("database", "url"), credential="database_url", file_key="url_file")
LOCS = frozenset({API_KEY.loc, DATABASE_URL.loc})

KEY_PLACES = (
    "put it into a file of mode 0600 named by provider.api_key_file, "
    f"into the systemd credential {API_KEY.credential}, or into {API_KEY.variable}"
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a secret's file is not used."""

    message: str
    exposed: bool = False  # others can read it


@dataclass(frozen=True, slots=True)
class Source:
    """One place that was looked into."""

    where: str  # for people
    loc: tuple[str, str]  # the key that names it
    content: SecretStr | Refusal


def place_secrets(draft: Draft, env: Mapping[str, str], base: Path, *, file_is_private: bool) -> None:
    """Put both secrets into the draft as SecretStr, from the most trusted source that has one."""
    if draft.get(*API_KEY.loc) is not None:
        draft.complain(Complaint(API_KEY.loc, f"does not belong in this file; {KEY_PLACES}", key=True))
    draft.drop(API_KEY.loc)
    written = draft.get(*DATABASE_URL.loc)
    if isinstance(written, str) and urls.has_password(written) and not file_is_private:
        message = (
            "holds a password in a file that others can read; put the URL into a file of mode 0600 "
            f"named by database.url_file, or into {DATABASE_URL.variable}"
        )
        draft.complain(Complaint(DATABASE_URL.loc, message))
    for slot in (API_KEY, DATABASE_URL):
        _place(draft, slot, _found(draft, slot, env, base))


def read_secret(path: Path, *, others_may_read: bool = False) -> SecretStr | Refusal:
    """The text of a secret's file without its last line break. The mode is that of the file which is read."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Refusal("is not a plain file; name the file that holds the secret")
            if status.st_mode & 0o066 and not others_may_read:
                command = f"chmod 600 {shlex.quote(str(path))}"
                return Refusal(f"others can read or change this file; run: {command}", exposed=True)
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:  # it holds the path and no content
        return Refusal(f"cannot be read ({os.strerror(error.errno or 0)}); mend the path or the permissions")
    return _text(raw)


def _text(raw: bytes) -> SecretStr | Refusal:
    if len(raw) > MAX_BYTES:
        return Refusal(f"is larger than {MAX_BYTES >> 10} KiB; is it the right file?")
    # What is not UTF-8 becomes surrogates, which the value's own check refuses: an exception would quote it.
    text = raw.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    return SecretStr(text) if text.strip() else Refusal("is empty; write the secret into it")


def _found(draft: Draft, slot: Slot, env: Mapping[str, str], base: Path) -> Source | None:
    """The first source that has the secret."""
    credential = Path(env.get("CREDENTIALS_DIRECTORY", ""), slot.credential)
    # Unlike Path.exists, this does not raise for a folder that may not be searched.
    if env.get("CREDENTIALS_DIRECTORY") and os.path.exists(credential):  # noqa: PTH110
        content = read_secret(credential, others_may_read=True)
        return Source(f"credential {slot.credential}", slot.loc, content)
    if path := _named_file(draft.get(*slot.file_loc), base):
        return Source(draft.where(slot.file_loc), slot.file_loc, read_secret(path))
    text = env.get(slot.variable)
    if text is not None:
        content = SecretStr(text) if text.strip() else Refusal("is empty; set it or unset it")
        return Source(slot.variable, slot.loc, content)
    return None


def _named_file(written: object, base: Path) -> Path | None:
    try:
        return values.resolve(written, base) if written is not None else None
    except ValueError:  # not a path: the check of its own key says so
        return None


def _place(draft: Draft, slot: Slot, source: Source | None) -> None:
    if source is None:
        return
    if isinstance(source.content, Refusal):
        problem = Problem(source.where, ".".join(source.loc), source.content.message)
        draft.report(problem, exposed=source.content.exposed)
        draft.drop(slot.loc)
    else:
        draft.put(slot.loc, source.content, source.where)
