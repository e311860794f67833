"""A configuration under construction: values, their locations, and the problems found so far."""

from __future__ import annotations

import re
from typing import Any

from ingestor.config.validation_errors import ValidationIssue, limit_problems
from ingestor.config.yaml_document import Loc, YamlDocument
from ingestor.errors import ConfigError, ConfigProblem, InsecureSecretFile


class Draft:
    """The document plus values from elsewhere. Collects problems until ``check`` raises all of them at once."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self._origins: dict[Loc, str] = {}  # where values that are not in the document come from
        self._problems = list(document.problems)
        self._exposed: list[ConfigProblem] = []
        self._warnings: list[ConfigProblem] = []
        self.value: dict[str, Any] = document.value

    def get(self, *loc: str) -> Any:
        """Return the value at a location, or None."""
        value: Any = self.value
        for part in loc:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def set(self, loc: tuple[str, ...], value: Any, origin: str) -> None:
        """Set a value that comes from ``origin``. Does nothing if the document has no mapping there."""
        parent = self.value
        for part in loc[:-1]:
            if parent.get(part) is None:
                parent[part] = {}
            parent = parent[part]
            if not isinstance(parent, dict):
                return
        parent[loc[-1]] = value
        self._origins[loc] = origin

    def remove(self, loc: tuple[str, ...]) -> None:
        """Remove a value, so that it is neither validated nor shown."""
        parent = self.get(*loc[:-1])
        if isinstance(parent, dict):
            parent.pop(loc[-1], None)

    def location_of(self, loc: Loc, *, key: bool = False) -> str:
        """Return where a value comes from: ``file:line:column``, or the name of a variable or file."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self._origins:
                return self._origins[loc[:length]]
        return self._document.location_of(loc, key=key)

    def add_issue(self, issue: ValidationIssue) -> None:
        """Add an issue at its location."""
        location = issue.location or self.location_of(issue.loc, key=issue.key)
        problem = ConfigProblem(location, "" if issue.location else ".".join(map(str, issue.loc)), issue.message)
        (self._warnings if issue.warning else self._problems).append(problem)

    def add_problem(self, problem: ConfigProblem, *, exposed: bool = False) -> None:
        """Add a problem. ``exposed``: others can read a secret."""
        (self._exposed if exposed else self._problems).append(problem)

    @property
    def warnings(self) -> tuple[ConfigProblem, ...]:
        return limit_problems(self._warnings)

    def check(self) -> None:
        """Raise all problems in file order: InsecureSecretFile if there are no others, else ConfigError."""
        if self._problems:
            raise ConfigError(sorted(self._problems + self._exposed, key=self._sort_key))
        if self._exposed:
            raise InsecureSecretFile(self._exposed)

    def _sort_key(self, problem: ConfigProblem) -> tuple[int, int, int]:
        name, *position = re.match(r"(.*?)(?::(\d+):(\d+))?$", problem.location, re.DOTALL).groups()  # type: ignore[union-attr]
        line, column = (int(number or 0) for number in position)
        return (0 if name == self._document.name else 1) if line else 2, line, column
