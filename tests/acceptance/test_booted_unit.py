"""Run the shipped unit under a booted systemd, installed as in docs/deploy.md, with the simulator on the same machine.

`pytest -m nspawn -v --durations=0` shows every step with its time. The first time on a machine it fetches two Debians.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import time
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from ..support.daemon import until
from ..support.db_reader import DbReader
from ..support.nspawn_machine import PYTHONS, NspawnMachine
from ..support.requirements import skip_missing
from ..support.sandbox_probe import NOT_ITS_OWN
from .test_readme import deploy

pytestmark = [pytest.mark.slow, pytest.mark.nspawn, pytest.mark.timeout(900)]

TOP = Path(__file__).parents[2]
SHIPPED = TOP / "systemd" / "ingestor.service"
WAITING = TOP / "systemd" / "ingestor.service.d" / "notify-reload.conf"
KEY = "the-key-of-this-test"
CONFIG = (TOP / "config.yaml").read_text().replace("https://open.marketprophit.com", "http://127.0.0.1:8700")
DROP_INS = "etc/systemd/system/ingestor.service.d"
AS_INGESTOR = "cd / && sudo -u ingestor STATE_DIRECTORY=/var/lib/ingestor /opt/ingestor/bin/ingestor"


class Unit:
    """The service ingestor.service in its machine."""

    def __init__(self, machine: NspawnMachine, state: Path) -> None:
        self.machine = machine
        self.database = state / "ingestor.db"
        self.db = DbReader(f"sqlite:///{self.database}")

    def install(self) -> None:
        """Run the steps of docs/deploy.md, with a config that names the simulator."""
        run = self.machine.run
        run(f"cd /src\n{deploy('sudo python3 -m venv')}")
        self.configure(CONFIG)
        simulate = f"/opt/ingestor/bin/ingestor simulate --port 8700 --api-key {KEY} --cadence 1"
        run(f"systemd-run -q --unit=simulator {simulate}")
        run(deploy("credentials/api_key\n"), stdin=KEY)
        output = run(deploy("systemctl enable"))
        assert "✗" not in output, output

    def restore(self) -> None:
        """Restore the shipped unit and the first config, and restart."""
        self._since = time.time()
        self.machine.run(f"rm -rf /{DROP_INS}; systemctl daemon-reload; systemctl reset-failed ingestor")
        self.configure(CONFIG)
        self.machine.run("systemctl restart ingestor")

    def configure(self, text: str) -> None:
        (self.machine.root / "etc/ingestor/config.yaml").write_text(text)

    def drop_in(self, *lines: str) -> None:
        """Override settings of [Service]. They take effect at the next start."""
        folder = self.machine.root / DROP_INS
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        self.machine.run("systemctl daemon-reload")

    def shows(self, *names: str) -> dict[str, str]:
        """Return properties of the unit, as shown by systemd."""
        output = self.machine.run(f"systemctl show ingestor --property={','.join(names)}")
        return dict(line.split("=", 1) for line in output.splitlines())

    def state(self) -> dict[str, str]:
        """The result and state of the unit."""
        return self.shows("ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts")

    def pid(self) -> str:
        return self.shows("MainPID")["MainPID"]

    def started_again(self, pid: str) -> bool:
        """Return whether the service is ready with another pid than this one."""
        now = self.shows("SubState", "MainPID")
        return now["SubState"] == "running" and now["MainPID"] not in ("0", pid)

    def status(self) -> dict[str, Any]:
        """The status of the running daemon."""
        found: dict[str, Any] = json.loads(self.machine.run(f"{AS_INGESTOR} status --output json"))
        return found

    def journal(self) -> str:
        """Return the journal of the unit since it was restored, including systemd's messages."""
        options = f"--since=@{self._since:.0f} --output=short-precise --no-hostname --no-pager"
        return self.machine.run(f"journalctl --unit=ingestor {options}")

    def rows(self) -> int:
        """The number of stored rows."""
        try:
            return int(self.db.scalar("SELECT count(*) FROM observations"))
        except sqlite3.OperationalError:  # no database yet, or no tables
            return 0

    async def writes(self) -> None:
        """Wait until rows are added."""
        before = self.rows()
        await until(lambda: self.rows() > before)

    def audit(self) -> None:
        assert self.machine.run(f"{AS_INGESTOR} audit").endswith("✓ everything balances")


@pytest.fixture(scope="module", params=PYTHONS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    state = tmp_path_factory.mktemp("state")  # mounted as its state folder, so that we can read the database
    with NspawnMachine(request.param, state, at="/var/lib/ingestor") as machine:
        unit = Unit(machine, state)
        unit.install()
        yield unit


@pytest.fixture
def unit(installed: Unit) -> Iterator[Unit]:
    """The running service, as shipped."""
    installed.restore()
    yield installed
    print(installed.journal())  # shown with a failure


# Credentials and files.


async def test_readme_steps_install_a_writing_service(installed: Unit) -> None:
    unit = installed
    assert unit.state() == {
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "ExecMainStatus": "0",
        "NRestarts": "0",
    }
    assert unit.shows("StatusText", "UnitFileState") == {"StatusText": "receiving", "UnitFileState": "enabled"}
    await unit.writes()
    assert unit.machine.run("systemd-analyze --no-pager verify ingestor.service") == ""
    output = unit.machine.run("systemd-analyze --no-pager security ingestor.service")
    assert "Overall exposure level for ingestor.service: 1.1 OK" in output


def test_api_key_is_only_in_the_credential(unit: Unit) -> None:
    run, pid = unit.machine.run, unit.pid()
    assert run(f"nsenter --target {pid} --mount cat /run/credentials/ingestor.service/api_key") == KEY
    assert run("stat --format='%a %U' /etc/ingestor/credentials/api_key") == "600 root"
    output = run(f"tr '\\0' '\\n' < /proc/{pid}/environ; cat /proc/{pid}/cmdline | tr '\\0' ' '") + unit.journal()
    assert "CREDENTIALS_DIRECTORY=" in output
    assert KEY not in output


async def test_group_members_read_database_but_not_spool(unit: Unit) -> None:
    await unit.writes()
    unit.machine.run("id analyst 2>/dev/null || useradd --groups ingestor analyst; id stranger || useradd stranger")
    count = "import sqlite3; print(sqlite3.connect('/var/lib/ingestor/ingestor.db').execute(QUERY).fetchone())"
    query = shlex.quote(count.replace("QUERY", "'SELECT count(*) > 0 FROM crowd_sentiment'"))
    assert unit.machine.run(f"sudo -u analyst python3 -c {query}") == "(1,)"
    assert "unable to open database file" in unit.machine.run_unchecked(f"sudo -u stranger python3 -c {query}").stderr
    assert "Permission denied" in unit.machine.run_unchecked("sudo -u analyst ls /var/lib/ingestor/spool").stderr
    folders = unit.machine.run("cd /var/lib && stat --format='%n %a %U %G' ingestor ingestor/spool")
    assert folders.splitlines() == ["ingestor 750 ingestor ingestor", "ingestor/spool 700 ingestor ingestor"]


# Sandbox and limits.

SHOWN_AS = {
    "BindReadOnlyPaths": (
        "/opt/ingestor:/opt/ingestor:rbind /usr/bin:/usr/bin:rbind /usr/lib:/usr/lib:rbind -/usr/lib64:/usr/lib64:rbind"
    ),
    "IPAddressDeny": "169.254.0.0/16 fe80::/10 224.0.0.0/4 ff00::/8",
    "MemoryMax": str(512 << 20),
    "RestartSec": "5s",
    "SystemCallErrorNumber": "1",
    "TimeoutStartSec": "1min 30s",
    "TimeoutStopSec": "1min",
    "WatchdogSec": "1min",
    "WorkingDirectory": "/var/lib/ingestor",
}
SHOWN_OTHERWISE = {"ExecReload", "ExecStart", "LoadCredential", "SystemCallFilter"}  # checked by other tests


def test_systemd_applies_every_directive(unit: Unit) -> None:
    unit_file = ConfigParser(strict=False, interpolation=None)
    unit_file.optionxform = str
    unit_file.read(SHIPPED)
    written = {name: SHOWN_AS.get(name, value) for name, value in unit_file["Service"].items()}
    names = {name: name.replace("Sec", "USec") for name in written.keys() - SHOWN_OTHERWISE}
    shown = unit.shows(*names.values())
    assert {name: set(shown[names[name]].split()) for name in names} == {
        name: set(written[name].split()) for name in names
    }


def test_sandbox_denies_what_a_plain_user_may_do(unit: Unit) -> None:
    """Make each attempt twice: as the same user outside the unit, and inside it, before the daemon starts."""
    unit.machine.run("install -m 644 /src/tests/support/probe.py /opt/ingestor/probe.py; touch /tmp/of-others")
    probe = "/usr/bin/python3 /opt/ingestor/probe.py"
    outside = json.loads(unit.machine.run(f"sudo -u ingestor mkdir -p /tmp/own && sudo -u ingestor {probe} /tmp/own"))
    created = [f"create a file in {folder}" for folder in NOT_ITS_OWN]
    unit.drop_in(f"ExecStartPre={probe} /var/lib/ingestor")
    unit.machine.run("systemctl restart ingestor")
    (output,) = (line.partition(": ")[2] for line in unit.journal().splitlines() if "run a program" in line)
    inside = json.loads(output)
    # Denied by the filter; from systemd 254 on, by the kernel.
    assert inside.pop("memory that is written and run") in ("EPERM", "EACCES")
    assert inside == {
        "run a program in its own folder": "EACCES",
        "run a program in /tmp": "EACCES",
        "run a program in /var/tmp": "EACCES",
        "run a program in /dev/shm": "EACCES",
        "look into /home": "EACCES",
        "see what others have in /tmp": "ENOENT",
        "see another process": "ENOENT",
        "read the machine's memory figures": "ENOENT",
        "make a file setuid": "EPERM",
        "give a file an owner": "EPERM",
        "choose its processors": "EPERM",
        "make a namespace": "EPERM",
        "be another system": "EPERM",
        "a netlink socket": "EAFNOSUPPORT",
        "send to a group": "EPERM",
    } | dict.fromkeys(created, "EROFS")
    assert outside == dict.fromkeys(outside, "allowed") | dict.fromkeys(created, "EACCES")


def test_service_has_no_privileges_and_own_namespaces(unit: Unit) -> None:
    pid = unit.pid()
    status = dict(line.split(":\t") for line in unit.machine.run(f"grep : /proc/{pid}/status").splitlines())
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"].split()) == ("1", "2", status["Gid"].split()[:1])
    for kind in ("user", "mnt", "ipc", "uts"):
        assert unit.machine.run(f"readlink /proc/{pid}/ns/{kind}") != unit.machine.run(f"readlink /proc/1/ns/{kind}")


def test_service_memory_and_tasks_are_limited(unit: Unit) -> None:
    cgroup = unit.machine.root / "sys/fs/cgroup/system.slice/ingestor.service"
    if not (cgroup / "memory.max").exists():
        skip_missing("MemoryMax= and TasksMax=: needs a machine whose memory controller is in the unified hierarchy")
    assert [(cgroup / name).read_text().strip() for name in ("memory.max", "pids.max")] == [str(512 << 20), "64"]


# Reload.

MORE = CONFIG.replace("[AAPL, TSLA, ON, 6E_F]", "[AAPL, TSLA, ON, 6E_F, NVDA]")
WRONG = CONFIG.replace("tickers:", "tickres:", 1)
COMPLAINT = re.compile(r"/etc/ingestor/config\.yaml:\d+:\d+: .*tickres")


async def test_service_reload_adds_ticker_and_rejects_invalid_config(unit: Unit) -> None:
    await unit.writes()
    pid = unit.pid()
    unit.configure(MORE)
    unit.machine.run("systemctl reload ingestor")
    await until(lambda: unit.db.scalar("SELECT count(*) FROM crowd_sentiment WHERE ticker = 'NVDA'"))
    unit.configure(WRONG)
    unit.machine.run_unchecked("systemctl reload ingestor")
    await until(lambda: COMPLAINT.search(unit.journal()))
    await unit.writes()
    assert unit.shows("ActiveState", "MainPID", "NRestarts") == {
        "ActiveState": "active",
        "MainPID": pid,
        "NRestarts": "0",
    }


def test_systemctl_reload_waits_for_the_daemon(unit: Unit) -> None:
    if unit.machine.suite == "bookworm":
        pytest.skip("systemd 252 does not know Type=notify-reload")
    unit.drop_in(*WAITING.read_text().splitlines())
    unit.machine.run("systemctl restart ingestor")
    unit.configure(MORE)
    unit.machine.run("systemctl reload ingestor")
    assert "NVDA" in json.dumps(unit.status()["subscriptions"])
    assert unit.shows("Type", "ActiveState") == {"Type": "notify-reload", "ActiveState": "active"}


# Stop and restart.


async def test_service_stop_drains_spool_and_succeeds(unit: Unit) -> None:
    await unit.writes()
    with unit.db.write_locked():
        await until(lambda: unit.status()["spool"]["entries"] > 10)
        head = unit.status()["spool"]["durable_seq"]
        unit.machine.run("systemctl stop --no-block ingestor")
        await until(lambda: unit.state()["ActiveState"] == "deactivating")
    await until(lambda: unit.state()["ActiveState"] == "inactive")
    assert (unit.state()["Result"], unit.state()["ExecMainStatus"]) == ("success", "0")
    assert unit.db.scalar("SELECT position FROM instances") > head
    assert unit.db.states("AAPL")[-1] == "stopped"
    unit.db.assert_consistent()
    unit.audit()


async def test_killed_service_restarts_and_loses_nothing(unit: Unit) -> None:
    await unit.writes()
    pid = unit.pid()
    with unit.db.write_locked():
        await until(lambda: unit.status()["spool"]["entries"] > 10)
        durable = unit.status()["spool"]["durable_seq"]
        unit.machine.run("systemctl kill --signal=KILL ingestor")
        await until(lambda: unit.started_again(pid))  # READY although the database is locked
    assert unit.state()["NRestarts"] == "1"
    await until(lambda: unit.db.scalar("SELECT position FROM instances") > durable)
    await unit.writes()
    assert "crashed" in unit.db.states("AAPL")
    unit.machine.run("systemctl stop ingestor")
    unit.db.assert_consistent()
    unit.audit()


async def test_watchdog_restarts_a_stopped_process(unit: Unit) -> None:
    unit.drop_in("WatchdogSec=3")
    unit.machine.run("systemctl restart ingestor")
    await unit.writes()
    pid = unit.pid()
    with pytest.raises(TimeoutError):  # the watchdog does not act while the daemon makes progress
        await until(lambda: unit.pid() != pid, 5)
    unit.machine.run("systemctl kill --signal=STOP ingestor")
    await until(lambda: unit.started_again(pid), 60)
    assert unit.state()["NRestarts"] == "1"
    assert "Watchdog timeout" in unit.journal()
    await unit.writes()
    unit.machine.run("systemctl stop ingestor")
    unit.db.assert_consistent()
    unit.audit()


async def test_invalid_config_is_reported_and_not_restarted(unit: Unit) -> None:
    unit.configure(WRONG)
    assert unit.machine.run_unchecked("systemctl restart ingestor").returncode != 0
    down = unit.state()
    assert down == {
        "ActiveState": "failed",
        "SubState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "78",
        "NRestarts": "0",
    }
    assert COMPLAINT.search(unit.journal())
    with pytest.raises(TimeoutError):  # longer than RestartSec=
        await until(lambda: unit.state() != down, 7)


# PostgreSQL on the same machine.


async def test_service_connects_to_postgresql_by_unix_socket(unit: Unit) -> None:
    unit.machine.run("sudo -u postgres createuser ingestor; sudo -u postgres createdb --owner ingestor ingestor")
    unit.configure(CONFIG.replace("sqlite:///ingestor.db", "postgresql://ingestor@/ingestor?host=/run/postgresql"))
    unit.machine.run("systemctl restart ingestor")
    psql = "sudo -u ingestor psql --tuples-only --no-align ingestor --command"
    await until(lambda: unit.machine.run_unchecked(f"{psql} 'SELECT count(*) > 0 FROM observations'").stdout == "t\n")
    unit.machine.run("systemctl stop ingestor")
    unit.audit()
