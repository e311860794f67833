"""Run the commands of the README and of the pages in docs/. The first two, which install, are tested by .ci/run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.support.faulty_simulator import FaultySimulator

from ..support.daemon import until
from ..support.db_reader import DbReader
from ..support.postgres_server import USER, Postgres, find_binaries, free_port
from ..support.requirements import skip_missing

TOP = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("ingestor")
UNIT = TOP / "systemd" / "ingestor.service"
KEY = "the-key-of-this-test"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("INGESTOR_")}


def block(containing: str, language: str = "sh", page: str = "README.md") -> str:
    """Return the only code block of the page that contains this text."""
    text = (TOP / page).read_text()
    (found,) = (code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if containing in code)
    return str(found)


def shell(script: str, *, folder: Path, stdin: str = "", **environment: str) -> str:
    """Run a pasted script line by line and return its output. Asserts success. ``stdin`` is entered afterwards."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=CLEAN | environment,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(folder: Path, name: str, script: str) -> None:
    """Write an executable script of this name into a folder."""
    file = folder / name
    file.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
    file.chmod(0o755)


async def test_try_it_steps_end_in_a_clean_check(simulator: FaultySimulator, tmp_path: Path) -> None:
    program(tmp_path, "editor", r"""sed -i 's/# api_key_file: null/api_key_file: api_key/' "$1" """)
    lines = block("ingestor init").splitlines()
    assert lines.pop().startswith("ingestor run")
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    provider = {"INGESTOR_PROVIDER__URL": simulator.url}
    environment = {"HOME": str(tmp_path), "EDITOR": f"{tmp_path}/editor", "PATH": path, **provider}
    run = partial(shell, "\n".join(lines), folder=tmp_path, stdin=simulator.api_key, **environment)
    output = await asyncio.to_thread(run)
    assert "✓ API key: found" in output
    assert "✓ token:" in output
    assert "✗" not in output


# The try-out in two terminals.

deploy = partial(block, page="docs/deploy.md")

Terminal = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """``terminal(block)`` runs the block in a checkout and returns the started process."""
    port, checkout = str(free_port()), tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "ingestor").symlink_to(PROGRAM)
    shutil.copy(TOP / "config.yaml", checkout)
    environment = CLEAN | {"INGESTOR_HTTP__LISTEN": "127.0.0.1:0"}
    with ExitStack() as running, (tmp_path / "said").open("a") as output:

        def type_in(script: str, **more: str) -> subprocess.Popen[str]:
            here = script.replace("8700", port).replace("/tmp/ingestor-try", str(tmp_path / "try"))
            command = ["bash", "-c", f"exec env {here}"]
            process = subprocess.Popen(
                command, cwd=checkout, env=environment | more, stdout=output, stderr=output, text=True
            )
            running.callback(process.wait)
            running.callback(process.kill)
            return process

        yield type_in


async def test_simulator_and_daemon_restart_with_the_same_command(terminal: Terminal, tmp_path: Path) -> None:
    simulate, run = deploy("ingestor simulate"), deploy("INGESTOR_PROVIDER__URL")
    db = DbReader(f"sqlite:///{tmp_path / 'try' / 'ingestor.db'}")
    provider, daemon = terminal(simulate), terminal(run)
    await new_rows(db)
    kill(provider)
    terminal(simulate)
    await new_rows(db)
    kill(daemon)
    daemon = terminal(run)
    await new_rows(db)
    daemon.terminate()
    assert daemon.wait(20) == 0
    assert terminal(deploy(".venv/bin/ingestor audit")).wait(20) == 0
    db.assert_consistent()


async def new_rows(db: DbReader) -> None:
    """Wait until a value from after now is stored, which only a running daemon can have written."""
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"

    def stored() -> object:
        try:
            return db.scalar(f"SELECT count(*) FROM observations WHERE ts > '{began}'")
        except sqlite3.OperationalError:  # no database yet, or no tables
            return 0

    await until(stored, 60)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


# Two hosts, as two folders.

two_hosts = partial(block, page="docs/high-availability.md")


@pytest.mark.slow
@pytest.mark.postgres
async def test_nothing_is_missing_after_a_host_dies_with_its_disk_while_the_database_is_away(
    terminal: Terminal, postgres: Postgres, tmp_path: Path
) -> None:
    local = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": USER}
    local["PATH"] = f"{find_binaries()}:{os.environ['PATH']}"
    port = free_port()

    def adapted(script: str) -> str:
        script = re.sub("127.0.0.1:865[12]", "127.0.0.1:0", script).replace("8701", str(port))
        return script.replace("sleep 5", "sleep 2").replace("/tmp/host", f"{tmp_path}/host")

    def paste(containing: str, **more: str) -> str:
        return shell(adapted(two_hosts(containing)), folder=tmp_path / "checkout", **local, **more)

    exported = dict(re.findall(r"(INGESTOR_\w+)=(\S+)", adapted(two_hosts("export INGESTOR_DATABASE__URL"))))
    terminal(adapted(two_hosts("--port 8701")))
    paste("createdb ingestor_try")
    for host in ("host1", "host2"):
        terminal(adapted(two_hosts(f"INGESTOR_INSTANCE={host}")), **local, **exported)
    db = DbReader(postgres.url("ingestor_try"))
    await until(lambda: both_have_stored(db), 60)
    await asyncio.sleep(15)  # "after a quarter of a minute"
    assert paste("grep instance", **exported).count("alive, ") == 2

    stop, kill_host, start = two_hosts("systemctl stop postgresql").splitlines()
    assert (stop.partition(";")[0], start) == ("sudo systemctl stop postgresql", "sudo systemctl start postgresql")
    postgres.stop()
    shell(adapted(kill_host), folder=tmp_path)
    postgres.start()
    back_at = db.scalar("SELECT now() AS now_at")
    written = f"SELECT COUNT(*) FROM instances WHERE name = 'host2' AND heartbeat_at > '{back_at}'"
    await until(lambda: db.scalar(written), 60)
    answer = paste("psql ingestor_try", **exported)
    assert re.findall(r"^ [A-Z0-9_]+ +\|.*\| +(-?\d+)$", answer, re.MULTILINE) == ["0"] * 4
    assert re.search(r" gaps *\n-+\n +0\n", answer)


def both_have_stored(db: DbReader) -> bool:
    try:
        return bool(db.scalar("SELECT COUNT(DISTINCT instance_id) FROM payloads") == 2)
    except psycopg.errors.UndefinedTable:  # no tables yet
        return False


# The service.


def test_service_setup_steps_are_in_a_working_order(tmp_path: Path) -> None:
    """Run the steps with a folder as root. Stand-ins for pip and systemd record their calls."""
    if shutil.which("systemd-sysusers") is None:
        skip_missing("systemd-sysusers: install systemd")
    machine = a_machine(tmp_path)
    steps = [deploy(step) for step in ("sudo python3 -m venv", "credentials/api_key\n", "systemctl enable")]
    for step in steps:
        shell(
            re.sub(r"(?<=[ =])/(?=etc/|opt/|var/)", f"{machine}/", step),
            folder=TOP,
            stdin=KEY,
            PATH=f"{tmp_path}/programs:{os.environ['PATH']}",
        )
    assert (machine / "etc/systemd/system/ingestor.service").read_text() == UNIT.read_text()
    assert "ingestor:x:" in (machine / "etc/passwd").read_text()
    assert (tmp_path / "calls").read_text().splitlines() == [
        "pip install -q .[postgres]",
        "systemctl daemon-reload",
        "systemctl enable --now ingestor",
    ]
    for setting in ("INGESTOR_CONFIG=", "LoadCredential=api_key:"):
        path = next(line.partition(setting)[2] for line in UNIT.read_text().splitlines() if setting in line)
        assert (machine / path[1:]).is_file()
    assert stat.S_IMODE((machine / "etc/ingestor/credentials/api_key").stat().st_mode) == 0o600


def a_machine(folder: Path) -> Path:
    """The root folder; stand-ins for programs that would change a real machine are in ``programs`` beside it."""
    machine, programs = folder / "machine", folder / "programs"
    for place in (programs, machine / "opt/ingestor/bin", machine / "etc/systemd/system"):
        place.mkdir(parents=True)
    (machine / "opt/ingestor/bin/ingestor").symlink_to(PROGRAM)
    program(machine / "opt/ingestor/bin", "pip", f'echo "pip $*" >> {folder}/calls')
    program(programs, "python3", "")  # the virtual environment exists already
    program(programs, "sudo", 'exec "$@"')
    program(programs, "systemctl", f'echo "systemctl $*" >> {folder}/calls')
    program(programs, "systemd-sysusers", f'exec {shutil.which("systemd-sysusers")} --root={machine} "$@"')
    return machine
