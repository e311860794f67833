"""A file that holds one secret and nothing else: read only where nobody else can read or change it."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class UnusableSecret:
    """Why a secret's file is not used."""

    message: str
    exposed: bool = False  # others can read it


@dataclass(frozen=True, slots=True)
class SecretFile:
    """Where it is, and whose business its permissions are."""

    path: Path
    others_may_read: bool = False  # a credential: systemd made it, and guards the folder

    def read(self) -> SecretStr | UnusableSecret:
        """Its text without the last line break. The mode is that of the file which is read."""
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return UnusableSecret("is not a plain file; name the file that holds the secret")
                if status.st_mode & 0o066 and not self.others_may_read:
                    command = f"chmod 600 {shlex.quote(str(self.path))}"
                    return UnusableSecret(f"others can read or change this file; run: {command}", exposed=True)
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:  # it holds the path and no content
            return UnusableSecret(f"cannot be read ({os.strerror(error.errno or 0)}); mend the path or the permissions")
        return _text(raw)


def _text(raw: bytes) -> SecretStr | UnusableSecret:
    if len(raw) > MAX_BYTES:
        return UnusableSecret(f"is larger than {MAX_BYTES >> 10} KiB; is it the right file?")
    # What is not UTF-8 becomes surrogates, which the value's own check refuses: an exception would quote it.
    text = raw.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    return SecretStr(text) if text.strip() else UnusableSecret("is empty; write the secret into it")
