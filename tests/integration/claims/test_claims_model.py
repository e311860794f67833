"""What the tables claim against what the provider said: no row is claimed as live that is not stored.

Each scenario is a random mix of kills, half-open lines, clock steps, copies of the spool, failovers and restarts in a
world whose time the test moves. The same judge watches both databases. ``--scenarios N`` runs more of them,
``--scenario SEED`` one of them alone.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingestor.config import Config, load
from tests.support.hypothesis_steps import fast_folder
from tests.support.postgres_server import fresh_database

from .databases import Database, PostgresDatabase, SqliteDatabase
from .judge import Figures
from .scenario import ALL_KINDS, KEYS, World, make_steps, shrink

PARTS = 2  # of the scenarios on each database, for pytest-xdist
POSTGRES_SHARE = 0.4  # the rest is for SQLite, which takes half the time
MIN_CLAIMED_PERCENT = 60  # of the rows that are stored: a daemon that claims nothing makes no false claims
ENOUGH = 150  # scenarios, from which on the figures mean something


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = fast_folder()
    yield folder
    shutil.rmtree(folder)


def write_config(folder: Path, database_url: str) -> Config:
    tickers: dict[str, list[str]] = {}
    for path, ticker in KEYS:
        tickers.setdefault(path, []).append(ticker)
    document = {
        "provider": {"url": "http://127.0.0.1:1", "protocol": "4", "token": {"lifetime": "60s", "renew_before": "20s"}},
        "database": {"url": database_url, "migrate": "never", "batch": {"max_rows": 6, "max_wait": "0s"}},
        "subscriptions": [{"path": path, "tickers": names} for path, names in tickers.items()],
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(document))
    file.chmod(0o600)
    return load(file, env={})


def run_scenarios(
    request: pytest.FixtureRequest, folder: Path, database: Database, part: int, record: Callable[[str, object], None]
) -> None:
    config = write_config(folder, database.url)
    figures, performed, failed = Figures(), Counter[str](), dict[int, list[str]]()
    for seed in _seeds(request, database, part):
        world = World(folder / "world", config, database, seed)
        problems = world.run(make_steps(seed, several_hosts=database.several_hosts), figures)
        performed += world.performed
        if problems:
            failed[seed] = problems
    record("claims", (figures.scenarios + len(failed), figures.stored, figures.stored_and_covered))
    if failed:
        pytest.fail(_describe(folder / "world", config, database, failed), pytrace=False)
    if figures.scenarios >= ENOUGH:
        assert 100 * figures.stored_and_covered >= MIN_CLAIMED_PERCENT * figures.stored, figures
        rare = [kind for kind in ALL_KINDS if performed[kind] < 2]
        assert not [kind for kind in rare if database.several_hosts or not kind.startswith("second")], performed


def _seeds(request: pytest.FixtureRequest, database: Database, part: int) -> range | list[int]:
    if (only := request.config.getoption("--scenario")) is not None:
        return [only] if only % PARTS == part else []
    share = POSTGRES_SHARE if database.several_hosts else 1 - POSTGRES_SHARE
    return range(part, round(request.config.getoption("--scenarios") * share), PARTS)


def _describe(folder: Path, config: Config, database: Database, failed: dict[int, list[str]]) -> str:
    """Say what is wrong with one of the failed scenarios, without the steps that do not matter."""
    seed, problems = min(failed.items(), key=lambda item: len(item[1]))

    def fails(steps: object) -> bool:
        return bool(World(folder, config, database, seed).run(steps, Figures()))

    steps = shrink(make_steps(seed, several_hosts=database.several_hosts), fails)
    world = World(folder, config, database, seed)
    problems = world.run(steps, Figures()) or problems
    lines = [f"{len(failed)} scenarios fail: {', '.join(map(str, sorted(failed)))}; repeat one: --scenario {seed}"]
    lines += [f"scenario {seed}, reduced to {len(steps)} steps, with {len(world.keys)} subscriptions:"]
    lines += [f"    {step}" for step in steps]
    lines += [f"  {problem}" for problem in problems[:20]]
    lines += [f"  {host.name} ended with {error}" for host in world.hosts for error in host.ended_with]
    return "\n".join(lines)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_row_is_claimed_that_is_not_stored_on_sqlite(
    request: pytest.FixtureRequest,
    folder: Path,
    sqlite_template: Path,
    part: int,
    record_property: Callable[[str, object], None],
) -> None:
    with closing(SqliteDatabase(sqlite_template, folder)) as database:
        run_scenarios(request, folder, database, part, record_property)


@pytest.mark.postgres
@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_row_is_claimed_that_is_not_stored_on_postgres(
    request: pytest.FixtureRequest,
    folder: Path,
    postgres_template_url: str,
    postgres_server_url: str,
    part: int,
    record_property: Callable[[str, object], None],
) -> None:
    with fresh_database(postgres_server_url, postgres_template_url) as url, closing(PostgresDatabase(url)) as database:
        run_scenarios(request, folder, database, part, record_property)
