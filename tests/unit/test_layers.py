"""Imports point one way, each third-party library is confined to named packages, and each class name is unique."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingestor

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "ingestor"

# A package imports only from packages in the lines above its own.
LAYERS = (
    {"errors"},
    {"core"},
    {"config", "spool"},
    {"store", "provider", "monitoring"},
    {"pipeline", "simulator"},
    {"repair"},
    {"daemon"},
    {"commands"},
    {"cli"},
    {"__main__"},
)

# The same inside the two packages that have folders: a module or folder imports from itself and the lines above.
INNER_LAYERS = {
    "provider": (
        {"catalog", "transport"},
        {"http_client"},
        {"auth"},
        {"socket"},
        {"subscriptions", "rest_api"},
    ),
    "store": (
        {"failures", "postgres_session", "server_identity", "sqlite_file"},
        {"transaction_watchdog"},
        {"postgres_hosts"},
        {"schema", "engine"},
        {"migrate", "key_lookup", "views"},
        {"open_database", "leases"},
        {"receiver_lease", "instances"},
        {"write"},
        {"read", "maintenance", "copy"},
    ),
}

LIBRARIES = {
    "aiohttp": {"provider", "simulator", "monitoring"},  # the socket's transport; the status port
    "alembic": {"store", "migrations"},
    "apscheduler": {"daemon"},
    "engineio": {"provider", "simulator"},
    "msgspec": {"core", "spool", "store", "pipeline", "monitoring", "repair"},
    "prometheus_client": {"monitoring"},
    "psycopg": {"store"},
    "pyarrow": {"store"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "requests": {"provider"},
    "rich": {"cli"},
    "socketio": {"provider", "simulator"},
    "sqlalchemy": {"store", "migrations"},
    "structlog": {"monitoring"},
    "typer": {"cli"},
    "urllib3": {"provider"},  # a dependency of requests
    "yaml": {"config"},
}
EVERYWHERE = {"pydantic.SecretStr"}  # the type that a secret travels in

SOURCES = sorted([*TOP.glob("ingestor/**/*.py"), *TOP.glob("migrations/**/*.py")])
EACH_SOURCE = pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(TOP))) for path in SOURCES])


def imported_names(source: str) -> Iterator[str]:
    """Yield every name that a module imports, at any depth: ``package.module.name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    first, second = path.parts[:2]
    return "migrations" if first == "migrations" else second.removesuffix(".py")


def level(layers: tuple[set[str], ...], name: str) -> int | None:
    return next((number for number, names in enumerate(layers) if name in names), None)


def broken_rule(path: Path, name: str) -> str | None:
    """Return why a module at this path may not import this name; None if it may."""
    package, top = package_of(path), name.partition(".")[0]
    if name.startswith("."):
        return "is relative: write the absolute name"
    if top == "ingestor":
        return _broken_layer(path, package, name.split(".")[1:])
    if top in sys.stdlib_module_names:
        early = (level(LAYERS, package) or 0) < 6
        return "belongs to the daemon" if top == "signal" and early else None
    if name in EVERYWHERE or package in LIBRARIES.get(top, ()):
        return None
    return f"is for {LIBRARIES.get(top, 'no package yet')}"


def _broken_layer(path: Path, package: str, name: list[str]) -> str | None:
    other = name[0]
    if package == "migrations":
        frozen = "versions" in path.parts or other not in ("store", "config")
        return "changes after the migration is written" if frozen else None
    if other == "__version__" or package == "__init__":
        return None
    if other == package:
        return _broken_inner_layer(package, path.parts[2:], name[1:])
    own_level, other_level = level(LAYERS, package), level(LAYERS, other)
    if own_level is None or other_level is None:
        return "is a package without a level in this test"
    return None if other_level < own_level else f"points the wrong way: {package} must not import {other}"


def _broken_inner_layer(package: str, parts: tuple[str, ...], name: list[str]) -> str | None:
    if package not in INNER_LAYERS or not name or parts == ("__init__.py",):
        return None
    part, other = parts[0].removesuffix(".py"), name[0]
    own_level, other_level = level(INNER_LAYERS[package], part), level(INNER_LAYERS[package], other)
    if own_level is None or other_level is None:
        return f"is a part of {package} without a level in this test"
    same_line = len(INNER_LAYERS[package][own_level]) > 1 and own_level == other_level
    return None if part == other or other_level < own_level or same_line else f"points the wrong way inside {package}"


@EACH_SOURCE
def test_module_imports_only_lower_layers_and_its_own_libraries(path: Path) -> None:
    place = path.relative_to(TOP)
    found = {name: broken_rule(place, name) for name in imported_names(path.read_text(encoding="utf-8"))}
    assert not [f"{name} {rule}" for name, rule in found.items() if rule]


@pytest.mark.parametrize(
    ("path", "name", "allowed"),
    [
        ("ingestor/provider/auth/token_source.py", "ingestor.errors.TokenRefused", True),
        ("ingestor/provider/auth/token_source.py", "ingestor.core.clock.boottime", True),
        ("ingestor/provider/auth/token_source.py", "ingestor.provider.http_client.request", True),
        ("ingestor/provider/auth/token_source.py", "ingestor.provider.socket.connection.Connection", False),
        ("ingestor/provider/auth/token_source.py", "ingestor.pipeline.writer.Writer", False),
        ("ingestor/provider/auth/token_source.py", "ingestor.store.engine.make_engine", False),
        ("ingestor/store/write/batch_writer.py", "ingestor.provider.catalog", False),
        ("ingestor/store/write/batch_writer.py", "ingestor.store.read.audit", False),
        ("ingestor/store/read/audit.py", "ingestor.store.write.batch", True),
        ("ingestor/store/write/batch_writer.py", "ingestor.core.entries.Frame", True),
        ("ingestor/store/write/batch_writer.py", "ingestor.spool.spool.Spool", True),
        ("ingestor/pipeline/writer.py", "ingestor.store.write.batch_writer", True),
        ("ingestor/pipeline/writer.py", "ingestor.simulator.Simulator", False),
        ("ingestor/config/model.py", "ingestor.provider.catalog", False),
        ("ingestor/core/files.py", "ingestor.config.load", False),
        ("ingestor/errors.py", "ingestor.core.files", False),
        ("ingestor/monitoring/http_server.py", "ingestor.daemon.service.Service", False),
        ("ingestor/daemon/service.py", "ingestor.cli.main", False),
        ("ingestor/monitoring/http_server.py", "ingestor.elsewhere.x", False),
        ("ingestor/monitoring/http_server.py", ".log_setup.configure", False),
        ("ingestor/config/yaml_document.py", "yaml", True),
        ("ingestor/monitoring/http_server.py", "yaml", False),
        ("ingestor/monitoring/http_server.py", "pydantic.BaseModel", False),
        ("ingestor/daemon/service.py", "pydantic.SecretStr", True),
        ("ingestor/daemon/service.py", "sqlalchemy.create_engine", False),
        ("ingestor/daemon/service.py", "signal", True),
        ("ingestor/provider/auth/token_source.py", "signal", False),
        ("ingestor/provider/auth/token_source.py", "httpx", False),
        ("migrations/env.py", "ingestor.store.schema.metadata", True),
        ("migrations/versions/0001_tables.py", "ingestor.store.schema.metadata", False),
        ("migrations/versions/0001_tables.py", "alembic.op", True),
    ],
)
def test_import_rules_match_design(path: str, name: str, allowed: bool) -> None:
    assert (broken_rule(Path(path), name) is None) is allowed


def test_package_docstring_lists_every_package_lowest_first() -> None:
    packages = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.glob("**/*.py")}
    shown = re.findall(r"^    (\w+) ", ingestor.__doc__ or "", re.MULTILINE)
    assert sorted(shown) == sorted(packages - {"__init__", "__main__"})
    assert shown == sorted(shown, key=lambda name: level(LAYERS, name) or 0)


def test_packages_and_imports_between_them_stay_few() -> None:
    arrows: set[tuple[str, str]] = set()
    for path in PACKAGE.glob("**/*.py"):
        package = package_of(path.relative_to(TOP))
        names = [name.split(".") for name in imported_names(path.read_text(encoding="utf-8"))]
        arrows |= {(package, name[1]) for name in names if name[0] == "ingestor" and name[1] != package}
    arrows = {(package, other) for package, other in arrows if package != "__init__" and other != "__version__"}
    assert len({package for arrow in arrows for package in arrow}) <= 16
    assert len(arrows) <= 60


@EACH_SOURCE
def test_function_is_shorter_than_50_lines(path: Path) -> None:
    if path.parent.name == "versions":
        return  # migrations are lists, and not changed once written
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: lines for name, lines in lengths.items() if lines >= 50} == {}


def test_each_class_name_is_used_once() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(TOP)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_every_dependency_is_confined_to_packages() -> None:
    assert SOURCES, "nothing was found to test"
    used = {name.partition(".")[0] for path in SOURCES for name in imported_names(path.read_text(encoding="utf-8"))}
    assert used - set(sys.stdlib_module_names) - {"ingestor"} <= set(LIBRARIES)
