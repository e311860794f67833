"""What other users of the machine can read if the daemon has the group, umask and folder of the unit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import COMMAND, until, write_config
from ..support.requirements import skip_missing

INGESTOR, ANALYST, STRANGER = 61001, 61002, 61003  # group ids; the last two are user ids too
HAS_ROWS = "SELECT count(*) > 0 FROM crowd_sentiment WHERE ticker = 'AAPL'"


@pytest.fixture
def state() -> Iterator[Path]:
    """The state directory. Not below tmp_path, which other users cannot enter."""
    if os.geteuid() != 0:
        skip_missing("what other users can read: run as root")
    folder = Path(tempfile.mkdtemp(prefix="istate-", dir="/tmp"))
    os.chown(folder, 0, INGESTOR)
    folder.chmod(0o750)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(state: Path, simulator: FaultySimulator) -> Iterator[subprocess.Popen[bytes]]:
    # As root, because other users may not be able to reach the interpreter.
    config = write_config(
        state,
        url=simulator.url,
        database_url="sqlite:///ingestor.db",
        subscriptions={"/real-time/crowd-sentiment": ["AAPL"]},
    )
    environment = {"STATE_DIRECTORY": str(state), "INGESTOR_PROVIDER__API_KEY": simulator.api_key}
    command = [COMMAND, "run", "--config", config]
    with subprocess.Popen(command, env=environment, group=INGESTOR, extra_groups=[], umask=0o027) as process:
        yield process
        process.kill()


@contextmanager
def acting_as(user: int, *groups: int) -> Iterator[None]:
    """Run the block with the permissions of another user."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def query_value(database: Path | str, query: str) -> Any:
    """Return the value that a query selects, or the error."""
    try:
        with closing(sqlite3.connect(database, uri=True)) as connection:
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError as error:
        return str(error)


async def test_only_the_group_can_read_the_database(state: Path, daemon: subprocess.Popen[bytes]) -> None:
    database = state / "ingestor.db"

    def has_rows() -> bool:
        with acting_as(ANALYST, INGESTOR):
            return bool(query_value(database, HAS_ROWS) == 1)

    await until(has_rows)
    with acting_as(ANALYST, INGESTOR):
        assert query_value(database, "DELETE FROM samples") == "attempt to write a readonly database"
        with pytest.raises(PermissionError):
            list((state / "spool").iterdir())
    with acting_as(STRANGER):
        assert query_value(database, HAS_ROWS) == "unable to open database file"

    daemon.terminate()
    assert daemon.wait(20) == 0
    with acting_as(ANALYST, INGESTOR):  # as in the README: opening it in the usual way needs write access
        assert query_value(database, HAS_ROWS) == "attempt to write a readonly database"
        assert query_value(f"file:{database}?immutable=1", HAS_ROWS) == 1
