"""Every exception, named for what the caller does next.

Third-party exceptions are translated where they are raised and never leave their package.
"""

from __future__ import annotations

from dataclasses import dataclass


class IngestorError(Exception):
    """Base class. ``exit_code`` is the exit code of the process if this error ends it (see sysexits.h)."""

    exit_code = 70


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One problem in the configuration, and how to fix it."""

    location: str  # file:line:column, or the name of an environment variable
    path: str  # of the key, such as "subscriptions.2.path"; empty for the whole document
    message: str  # what is wrong, and what to do

    def __str__(self) -> str:
        return ": ".join(part for part in (self.location, self.path, self.message) if part)


class ConfigError(IngestorError):
    """The configuration is invalid. Report it and do not use it. Contains every problem found."""

    exit_code = 78

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class InsecureSecretFile(ConfigError):
    """Others can read a file with a secret. Do not use the secret; the message has the command that fixes it."""

    exit_code = 77


class TokenRefused(IngestorError):
    """The provider rejected the API key (401, 403). Retry slowly: someone has to change the key."""

    exit_code = 77


class TokenUnavailable(IngestorError):
    """No token could be obtained (network, 5xx, 429, timeout). Retry, not before ``retry_after_seconds`` if set."""

    exit_code = 69

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class InvalidTokenResponse(TokenUnavailable):
    """The response was not a token (HTML, ``{}``, a redirect, too long). Report it, and retry later."""


class ConnectionFailed(IngestorError):
    """The socket could not be opened, or was closed. Retry with backoff."""

    exit_code = 69


class ConnectionRefused(ConnectionFailed):
    """The server rejected the token during the handshake. Get a new token once, then back off."""

    exit_code = 77


class ProtocolUnsupported(ConnectionFailed):
    """The server uses an unsupported version of Socket.IO, or another protocol. Retry with backoff."""


class RestUnavailable(IngestorError):
    """A REST request failed for a reason that may be temporary. Retry later."""

    exit_code = 69


class RestRefused(IngestorError):
    """The provider rejected a REST request (400, 403, 404, …). Do not repeat it. The message quotes the provider."""

    exit_code = 69

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ResponseTooLarge(RestRefused):
    """The response exceeds the size limit. Request a shorter range."""


class DatabaseUnavailable(IngestorError):
    """The database failed for a reason other than the rows: connection, lock, disk, restart, timeout. Retry."""

    def __init__(self, message: str, exit_code: int = 69) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DatabaseUnsupported(DatabaseUnavailable):
    """The database, or what is between it and us, cannot work with this program. Stop at the start, else retry."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=78)


class BatchRejected(IngestorError):
    """The database rejected a row. Split the batch until the row is found."""


class CopyRejected(IngestorError):
    """The target of a copy rejects a row. Stop; the message names its table and its key range."""

    exit_code = 1


class FullBatchRequired(IngestorError):
    """The batch lacks rows that dedup removed, and needs them. Nothing was written: write it again with all rows."""


class PositionConflict(IngestorError):
    """The position is not where this run left it, or may not be: register again, and continue from there."""


class SchemaTooNew(IngestorError):
    """A newer version migrated the database. Stop: this program has to be upgraded."""

    exit_code = 78


class SchemaTooOld(IngestorError):
    """The database lacks migrations and ``database.migrate`` is ``never``. Stop: run ``ingestor db upgrade``."""

    exit_code = 78


class SchemaUnsupported(IngestorError):
    """The database has the schema of a pre-release, or is an unfinished copy. Use another one, or finish the copy."""

    exit_code = 78


class SpoolTooNew(IngestorError):
    """A newer version wrote the spool. Stop, and leave it as it is: this program has to be upgraded."""

    exit_code = 78


class AlreadyLocked(IngestorError):
    """Another process uses the spool or the SQLite database. Stop; the message names the process."""

    exit_code = 75


class PermissionDenied(IngestorError):
    """This user lacks a permission. Stop; the message says which, and how to grant it."""

    exit_code = 77


class SpoolFailed(IngestorError):
    """The spool cannot be written. Stop, and acknowledge nothing after the last sync; a restart verifies the spool."""

    exit_code = 74


class MissingExtra(IngestorError):
    """An optional library is not installed. Stop; the message has the command that installs it."""

    exit_code = 78


class UnknownName(IngestorError):
    """A feed, ticker or column does not exist. Stop; the message names similar ones."""

    exit_code = 2


class FileWriteFailed(IngestorError):
    """An output file cannot be written. Stop; no partial file is left."""

    exit_code = 74
