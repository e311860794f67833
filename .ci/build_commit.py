"""Writes into the package which commit it was built from. Run by hatchling; see [tool.hatch.build.hooks.custom]."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """An editable install is left to its checkout, and what comes out of an sdist has the file already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "ingestor")
        known = runpy.run_path(str(package / "core" / "version.py"))
        commit = known["checkout_commit"](package.parent)
        if version == "editable" or not commit:
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name, known["COMMIT_FILE"])
        file.write_text(f"{commit}\n", encoding="ascii")
        build_data["force_include"][str(file)] = f"ingestor/{file.name}"
