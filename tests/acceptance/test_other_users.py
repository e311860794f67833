"""What other users of the machine can read, of a daemon that has the group, the umask and the folder of the unit."""

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
from ..support.requirements import missing

INGESTOR, ANALYST, STRANGER = 61001, 61002, 61003  # groups; the last two are users as well
HAS_ROWS = "SELECT count(*) > 0 FROM crowd_sentiment WHERE ticker = 'AAPL'"


@pytest.fixture
def state() -> Iterator[Path]:
    """The state folder. Not pytest's: other users must be able to walk to it."""
    if os.geteuid() != 0:
        missing("what other users can read: run as root")
    folder = Path(tempfile.mkdtemp(prefix="istate-", dir="/tmp"))
    os.chown(folder, 0, INGESTOR)
    folder.chmod(0o750)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def daemon(state: Path, simulator: FaultySimulator) -> Iterator[subprocess.Popen[bytes]]:
    # Still root, since the interpreter may lie where no other user can go.
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
    """Until the end of the block this process has the rights of another user."""
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


def ask(database: Path | str, query: str) -> Any:
    """What comes of a query: the value, or why there is none."""
    try:
        with closing(sqlite3.connect(database, uri=True)) as connection:
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError as error:
        return str(error)


async def test_analysts_in_its_group_read_the_database_and_nobody_else_reads_anything(
    state: Path, daemon: subprocess.Popen[bytes]
) -> None:
    database = state / "ingestor.db"

    def has_rows() -> bool:
        with acting_as(ANALYST, INGESTOR):
            return bool(ask(database, HAS_ROWS) == 1)

    await until(has_rows)
    with acting_as(ANALYST, INGESTOR):
        assert ask(database, "DELETE FROM samples") == "attempt to write a readonly database"
        with pytest.raises(PermissionError):
            list((state / "spool").iterdir())
    with acting_as(STRANGER):
        assert ask(database, HAS_ROWS) == "unable to open database file"

    daemon.terminate()
    assert daemon.wait(20) == 0
    with acting_as(ANALYST, INGESTOR):  # as the README says: only who may also write can open it in the usual way
        assert ask(database, HAS_ROWS) == "attempt to write a readonly database"
        assert ask(f"file:{database}?immutable=1", HAS_ROWS) == 1
