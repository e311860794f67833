"""What can go wrong, each named for what its caller does next. Libraries' exceptions end at the door of their room."""

from __future__ import annotations

from dataclasses import dataclass


class IngestorError(Exception):
    """The root. ``exit_code`` is what the process ends with where the error ends it (after sysexits.h)."""

    exit_code = 70


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in the configuration: where it stands, and what to do about it."""

    location: str  # file:line:column, or the environment variable's name
    path: str  # the place in the document, e.g. "subscriptions.2.path"; empty for the document itself
    message: str  # what is wrong, and what to do

    def __str__(self) -> str:
        return ": ".join(part for part in (self.location, self.path, self.message) if part)


class ConfigError(IngestorError):
    """The configuration cannot be used. Carries every problem found, not only the first."""

    exit_code = 78

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class InsecureSecretFile(ConfigError):
    """A secret's file can be read by others; the message holds the command that mends it."""

    exit_code = 77


class TokenRefused(IngestorError):
    """The provider does not accept the API key (401, 403). Do not hurry: a person has to act."""

    exit_code = 77


class TokenUnavailable(IngestorError):
    """No token now (network, 5xx, 429, deadline). Try again, after ``retry_after_seconds`` if the provider said so."""

    exit_code = 69

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class InvalidTokenResponse(TokenUnavailable):
    """The answer was not a token (HTML, ``{}``, a redirect, too long). Try again later; tell a person."""


class ConnectionFailed(IngestorError):
    """The socket could not be had, or was lost. Try again after a backoff."""

    exit_code = 69


class ConnectionRefused(ConnectionFailed):
    """The server refused the token at the handshake. Fetch one fresh token, then back off."""

    exit_code = 77


class ProtocolUnsupported(ConnectionFailed):
    """The server speaks a Socket.IO generation that we do not (0.9), or none."""


class RestUnavailable(IngestorError):
    """No REST answer that can be used, now. Ask again later; the message says why."""

    exit_code = 69


class RestRefused(IngestorError):
    """The provider will not answer this question (400, 403, 404, …), in its own words. Do not ask it again."""

    exit_code = 69

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ResponseTooLarge(RestRefused):
    """The answer is longer than we take. Ask for less at a time."""


class DatabaseUnavailable(IngestorError):
    """Nothing is wrong with the rows: connection, lock, disk, restart, timeout. Try the same batch again."""

    exit_code = 69


class BatchRejected(IngestorError):
    """The database refused a row. Halve the batch until it stands alone."""


class FullBatchRequired(IngestorError):
    """A batch cannot be judged without the rows that were left out as known. Nothing was written: leave none out."""


class PositionConflict(IngestorError):
    """Somebody (an earlier try that did commit) wrote this batch already. Read the position again and go on from it."""


class SchemaTooNew(IngestorError):
    """The database was migrated by a newer program. Upgrade this one."""

    exit_code = 78


class SchemaTooOld(IngestorError):
    """The database lacks migrations and ``database.migrate`` is ``never``. Run ``ingestor db upgrade``."""

    exit_code = 78


class SchemaUnsupported(IngestorError):
    """The database was created by a pre-release, whose schema cannot be upgraded. Use another database."""

    exit_code = 78


class AlreadyLocked(IngestorError):
    """Another process holds the spool or the SQLite database; the message names it."""

    exit_code = 75


class PermissionDenied(IngestorError):
    """This user may not do what is needed; the message says what, and how to allow it."""

    exit_code = 77


class SpoolFailed(IngestorError):
    """The spool cannot be written. Nothing after the last sync is acknowledged: stop, restart, verify."""

    exit_code = 74


class MissingExtra(IngestorError):
    """A library is not installed that only some need; the message says which extra brings it."""

    exit_code = 69


class FileWriteFailed(IngestorError):
    """A file that was asked for cannot be written; the message says why. Nothing of it was left."""

    exit_code = 74
