"""The rules between rooms: imports point one way, and each outside library lives in one room."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingestor

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "ingestor"

# A room imports from rooms of a lower level only, apart from NEIGHBOURS.
LEVELS = {
    "errors": 0,
    "commit": 0,
    "disk": 0,
    "redaction": 0,
    "lock": 1,
    "config": 1,
    "provider": 2,
    "pipeline": 2,
    "store": 2,
    "ops": 2,
    "reload": 3,
    "following": 3,
    "healing": 3,
    "control": 3,
    "snapshot": 4,
    "building": 4,
    "checking": 5,
    "service": 5,
    "demo": 6,
    "probing": 6,
    "replaying": 6,
    "offline": 6,
    "cli": 7,
    "__main__": 8,
}

# What rooms of one level may know of each other.
NEIGHBOURS = {
    "provider": ("pipeline.entry",),  # provider and store meet in the entries
    "ops": ("pipeline.entry",),  # facts become log lines and counters
    "pipeline": ("store",),  # the writer commits what the store knows how to write
}

LIBRARIES = {
    "aiohttp": {"provider", "ops"},  # the socket's transport; the status port
    "alembic": {"store", "migrations"},
    "apscheduler": {"provider", "service"},
    "engineio": {"provider"},
    "msgspec": {"pipeline", "ops"},
    "prometheus_client": {"ops"},
    "psycopg": {"store"},
    "pyarrow": {"store"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "requests": {"provider"},
    "rich": {"cli"},
    "socketio": {"provider"},
    "sqlalchemy": {"store", "migrations"},
    "structlog": {"ops"},
    "tenacity": {"provider", "pipeline"},
    "typer": {"cli"},
    "urllib3": {"provider"},  # requests' own
    "yaml": {"config"},
}
EVERYWHERE = {"pydantic.SecretStr"}  # the type that a secret travels in

SOURCES = sorted([*TOP.glob("ingestor/**/*.py"), *TOP.glob("migrations/**/*.py")])


def imported(source: str) -> Iterator[str]:
    """Every name that a module imports, wherever in it: ``package.module.name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    first, second = path.parts[:2]
    return "migrations" if first == "migrations" else second.removesuffix(".py")


def broken_rule(path: Path, name: str) -> str | None:
    """Why a module at this path may not import this name; None if it may."""
    room, top = room_of(path), name.partition(".")[0]
    if name.startswith("."):
        return "is relative: write where it is from"
    if top == "ingestor":
        return _between_rooms(path, room, name.partition(".")[2])
    if top in sys.stdlib_module_names:
        early = LEVELS.get(room, 0) < LEVELS["service"]
        return "belongs to the service" if top == "signal" and early else None
    if name in EVERYWHERE or room in LIBRARIES.get(top, ()):
        return None
    return f"is for {LIBRARIES.get(top, 'no room yet')}"


def _between_rooms(path: Path, room: str, name: str) -> str | None:
    other = name.partition(".")[0]
    if room == "migrations":
        fixed = "versions" in path.parts or other not in ("store", "config")
        return "changes after the migration is written" if fixed else None
    if other in (room, "__version__") or room == "__init__":
        return None
    if other not in LEVELS or room not in LEVELS:
        return "is a room without a level in this test"
    if LEVELS[other] < LEVELS[room] or name.startswith(NEIGHBOURS.get(room, ())):
        return None
    return f"points the wrong way: {room} must not know {other}"


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(TOP))) for path in SOURCES])
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    place = path.relative_to(TOP)
    found = {name: broken_rule(place, name) for name in imported(path.read_text(encoding="utf-8"))}
    assert not [f"{name} {rule}" for name, rule in found.items() if rule]


@pytest.mark.parametrize(
    ("path", "name", "allowed"),
    [
        ("ingestor/provider/token/supply.py", "ingestor.errors.TokenRefused", True),
        ("ingestor/provider/token/supply.py", "ingestor.provider.clock.boottime", True),
        ("ingestor/provider/token/supply.py", "ingestor.pipeline.entry.Frame", True),
        ("ingestor/provider/token/supply.py", "ingestor.pipeline.spool.Spool", False),
        ("ingestor/provider/token/supply.py", "ingestor.store.database.Database", False),
        ("ingestor/store/database.py", "ingestor.provider.catalog", False),
        ("ingestor/store/database.py", "ingestor.pipeline.entry.Frame", False),
        ("ingestor/pipeline/writer.py", "ingestor.store.database.Database", True),
        ("ingestor/pipeline/writer.py", "ingestor.provider.catalog", False),
        ("ingestor/config/model.py", "ingestor.provider.catalog", False),
        ("ingestor/errors.py", "ingestor.config.load", False),
        ("ingestor/ops/web.py", "ingestor.service.Service", False),
        ("ingestor/service.py", "ingestor.cli.main", False),
        ("ingestor/ops/web.py", "ingestor.elsewhere.x", False),
        ("ingestor/ops/web.py", ".logs.configure", False),
        ("ingestor/config/document.py", "yaml", True),
        ("ingestor/ops/web.py", "yaml", False),
        ("ingestor/ops/web.py", "pydantic.BaseModel", False),
        ("ingestor/service.py", "pydantic.SecretStr", True),
        ("ingestor/service.py", "sqlalchemy.create_engine", False),
        ("ingestor/service.py", "signal", True),
        ("ingestor/provider/token/supply.py", "signal", False),
        ("ingestor/provider/token/supply.py", "httpx", False),
        ("migrations/env.py", "ingestor.store.schema.metadata", True),
        ("migrations/versions/0001_initial.py", "ingestor.store.schema.metadata", False),
        ("migrations/versions/0001_initial.py", "alembic.op", True),
    ],
)
def test_the_rules_are_what_the_design_says(path: str, name: str, allowed: bool) -> None:
    assert (broken_rule(Path(path), name) is None) is allowed


def test_the_map_of_the_rooms_has_each_in_its_order() -> None:
    rooms = {
        path.parts[0].removesuffix(".py") for path in (one.relative_to(PACKAGE) for one in PACKAGE.glob("**/*.py"))
    }
    shown = re.findall(r"^    (\w+) ", ingestor.__doc__ or "", re.MULTILINE)
    assert sorted(shown) == sorted(rooms - {"__init__", "__main__"})
    assert shown == sorted(shown, key=LEVELS.__getitem__)


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(TOP))) for path in SOURCES])
def test_a_function_fits_on_a_screen(path: Path) -> None:
    if path.parent.name == "versions":
        return  # migrations are lists, and not changed once written
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {one.name: (one.end_lineno or 0) - one.lineno + 1 for one in functions}
    assert {name: lines for name, lines in lengths.items() if lines >= 50} == {}


def test_every_dependency_has_its_room() -> None:
    assert SOURCES, "nothing was found to test"
    used = {name.partition(".")[0] for path in SOURCES for name in imported(path.read_text(encoding="utf-8"))}
    assert used - set(sys.stdlib_module_names) - {"ingestor"} <= set(LIBRARIES)
