"""Print the oldest releases that pyproject.toml allows of what a user installs, as constraints for pip."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

EXTRAS = (PROJECT["optional-dependencies"][extra] for extra in ("postgres", "export"))

for requirement in chain(PROJECT["dependencies"], *EXTRAS):
    if found := re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement):
        print(f"{found[1]}=={found[2]}")
