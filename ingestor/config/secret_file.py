"""Read a file that contains a single secret, if no other user can read or change it."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from ingestor.core.os_errors import describe_os_error

MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class UnusableSecret:
    """Why a secret is not used, and what to do."""

    message: str
    exposed: bool = False  # others can read it


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The path of a secret, and whether its permissions are checked."""

    path: Path
    others_may_read: bool = False  # for a credential, whose folder systemd protects

    def read(self) -> SecretStr | UnusableSecret:
        """Return the contents without the last line break. Checks the permissions of the open file."""
        try:
            # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return UnusableSecret("is not a regular file; name the file that contains the secret")
                if status.st_mode & 0o066 and not self.others_may_read:
                    command = f"chmod 600 {shlex.quote(str(self.path))}"
                    return UnusableSecret(f"others can read or change this file; run: {command}", exposed=True)
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:  # str(error) would quote the path, which may be a secret put in the wrong place
            reason = describe_os_error(error.errno)
            return UnusableSecret(f"cannot be read ({reason}); correct the path or the permissions")
        if len(raw) > MAX_BYTES:
            return UnusableSecret(f"is larger than {MAX_BYTES >> 10} KiB; is it the right file?")
        # Bytes that are not UTF-8 become surrogates, which the validator rejects: an exception would quote the secret.
        text = raw.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        return SecretStr(text) if text.strip() else UnusableSecret("is empty; write the secret into it")
