"""The document and what environment and secrets add to it: values, their places, and what is wrong so far."""

from __future__ import annotations

import re
from typing import Any

from ingestor.config.validation_errors import ValidationIssue
from ingestor.config.yaml_document import Loc, YamlDocument
from ingestor.errors import ConfigError, ConfigProblem, InsecureSecretFile


class Draft:
    """A configuration while it is put together. Problems gather until ``check`` raises them all at once."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self._origins: dict[Loc, str] = {}  # what does not stand in the document, and where it came from
        self._problems = list(document.problems)
        self._exposed: list[ConfigProblem] = []
        self.value: dict[str, Any] = document.value

    def get(self, *loc: str) -> Any:
        """The value at a place; None if there is none."""
        found: Any = self.value
        for part in loc:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def put(self, loc: tuple[str, ...], value: Any, origin: str) -> None:
        """Set a value that comes from ``origin``; nothing where the document has no mapping to hold it."""
        holder = self.value
        for part in loc[:-1]:
            if holder.get(part) is None:
                holder[part] = {}
            holder = holder[part]
            if not isinstance(holder, dict):
                return
        holder[loc[-1]] = value
        self._origins[loc] = origin

    def drop(self, loc: tuple[str, ...]) -> None:
        """Take a value out, so that it is neither checked nor shown."""
        holder = self.get(*loc[:-1])
        if isinstance(holder, dict):
            holder.pop(loc[-1], None)

    def location_of(self, loc: Loc, *, key: bool = False) -> str:
        """Where a value was written: ``file:line:column``, or a variable's or file's name."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self._origins:
                return self._origins[loc[:length]]
        return self._document.location_of(loc, key=key)

    def complain(self, complaint: ValidationIssue) -> None:
        path = ".".join(map(str, complaint.loc))
        self._problems.append(
            ConfigProblem(self.location_of(complaint.loc, key=complaint.key), path, complaint.message)
        )

    def report(self, problem: ConfigProblem, *, exposed: bool = False) -> None:
        """Add a problem whose place is known. ``exposed``: it is about a secret that others can read."""
        (self._exposed if exposed else self._problems).append(problem)

    def check(self) -> None:
        """Raise all problems in the file's order: InsecureSecretFile if nothing else is wrong, or ConfigError."""
        if self._problems:
            raise ConfigError(sorted(self._problems + self._exposed, key=_order))
        if self._exposed:
            raise InsecureSecretFile(self._exposed)


def _order(problem: ConfigProblem) -> tuple[bool, int, int]:
    place = re.search(r":(\d+):(\d+)$", problem.location)
    return (False, int(place[1]), int(place[2])) if place else (True, 0, 0)
