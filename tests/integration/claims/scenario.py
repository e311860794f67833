"""Scenarios: random steps in a world of one or two hosts, a provider and a database, which the judge watches."""

from __future__ import annotations

import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ingestor.config import Config

from . import judge
from .databases import Database
from .host import Host, world_around
from .judge import Figures, Memory
from .provider import Provider
from .virtual_time import Clocks

KEYS = (
    ("/real-time/crowd-sentiment", "A"),
    ("/real-time/crowd-sentiment", "B"),
    ("/real-time/tweet-volume", "C"),
)


class Step(NamedTuple):
    """One step of a scenario. Its values are drawn beforehand, so that others can be left out."""

    kind: str
    host: int = 0
    seconds: float = 0.0
    option: str = ""
    seed: int = 0

    def __str__(self) -> str:
        values = [f"host {self.host}"] if self.host else []
        values += [f"{self.seconds:.3f} s"] if self.seconds else []
        return " ".join([self.kind, self.option, *values]).replace("  ", " ").strip()


_WEIGHTS = {
    "flow": 30,
    "quiet": 8,
    "write": 10,
    "half_open": 6,
    "cut": 5,
    "reach": 3,
    "answers": 2,
    "stall": 3,
    "unstall": 4,
    "clock": 5,
    "away": 4,
    "back": 6,
    "fault": 4,
    "repair": 6,
    "kill": 7,
    "stop": 3,
    "start": 10,
    "copy": 4,
    "put_back": 7,
    "damage": 3,
    "keep_database": 4,
    "put_back_database": 7,
    "second": 2,
}
_PAIRS = (("copy", "put_back"), ("keep_database", "put_back_database"))  # the second has no effect without the first
_OPTIONS = {
    "cut": ("reset", "closed", "kicked"),
    "reach": ("no", "yes", "yes"),
    "answers": ("ok", "ok", "late", "none", "refused"),
    "fault": ("undone", "done", "kill_before", "kill_after"),
    "put_back": ("folder", "file"),
    "damage": ("lock", "wal", "mark", "bit", "spool"),
    "second": ("fresh", "copy", "copy"),
}
ALL_KINDS = [f"{kind} {option}".strip() for kind in _WEIGHTS for option in dict.fromkeys(_OPTIONS.get(kind, ("",)))]
_STEPS_OF_CLOCK = (2.0, 7.0, 45.0, 600.0, 3600.0, 31_536_000.0)


def make_steps(seed: int, *, several_hosts: bool) -> list[Step]:
    """Draw the steps of a scenario."""
    draw = random.Random(seed)
    # A scenario draws from some of the kinds only: fewer faults at once, and longer runs of each.
    kinds = [kind for kind in _WEIGHTS if draw.random() < 0.6 or kind in ("flow", "write", "start", "back", "unstall")]
    kinds += [first for first, then in _PAIRS if then in kinds and first not in kinds]
    if not several_hosts and "second" in kinds:
        kinds.remove("second")
    weights = [_WEIGHTS[kind] for kind in kinds]
    steps = []
    for kind in draw.choices(kinds, weights, k=draw.randint(5, 22)):
        seconds = 0.0
        if kind in ("flow", "quiet", "kill", "stop"):
            seconds = draw.choice((0.3, 1.0, 3.0, 6.0, 12.0)) * draw.uniform(0.5, 1.5)
        elif kind == "clock":
            seconds = draw.choice((-1, 1)) * draw.choice(_STEPS_OF_CLOCK) * draw.uniform(0.8, 1.2)
        host = int(draw.random() < 0.35) if several_hosts else 0
        steps.append(Step(kind, host, seconds, draw.choice(_OPTIONS.get(kind, ("",))), draw.getrandbits(32)))
    return steps


class World:
    """Everything that a scenario has."""

    def __init__(self, folder: Path, config: Config, database: Database, seed: int) -> None:
        draw = random.Random(seed)
        self._folder, self._config, self._database, self._seed = folder, config, database, seed
        self.clocks = Clocks()
        delay = draw.choice((0.0, 0.0, 4.0, 15.0))
        self.provider = Provider(self.clocks, window=draw.random() < 0.4, window_delay_seconds=delay)
        self.keys = KEYS[: draw.choice((1, 2, 3, 3))]
        self.hosts: list[Host] = []
        self._kept_memories: dict[str, Memory] = {}  # those of the database that was kept
        self.memories: dict[str, Memory] = {}  # of every instance, by spool_id
        self.performed: Counter[str] = Counter()
        self.durable: set[tuple[str, str]] = set()  # (ticker, ts) of what must be in the tables
        self._repairs = draw.random() < 0.3
        self._writes_along = draw.random() < 0.8
        self._is_complete = True  # whether no history was lost
        self._keep_bytes = draw.choice((1 << 30, 1 << 30, 1 << 30, 3_000, 0))  # of what was acknowledged
        self.problems: list[str] = []

    # -- the scenario

    def run(self, steps: Sequence[Step], figures: Figures) -> list[str]:
        """Perform the steps, then let everything recover, and judge. Returns what is wrong."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._database.empty()
        with world_around(self.clocks, self._seed):
            try:
                self._add_host("one")
                self._pass(0.7)
                for step in steps:
                    self._perform(step)
                    if self.problems:
                        return self.problems
                self._settle()
                self._judge(figures, final=True)
            except Exception:
                self.problems.append(traceback.format_exc(limit=-4))
            finally:
                for host in self.hosts:
                    host.kill()
        return self.problems

    def _perform(self, step: Step) -> None:
        if step.host >= len(self.hosts):
            step = step._replace(host=0)
        method: Callable[[Host, Step], bool | None] = getattr(self, f"_do_{step.kind}")
        if method(self.hosts[step.host], step) is not False:
            self.performed[f"{step.kind} {step.option}".strip()] += 1
        self._pass(0.004)
        if step.seed % 5 == 0:
            self._judge(None, final=False)

    def _settle(self) -> None:
        """Everything is well again, for long enough that every daemon notices."""
        self.provider.reachable, self.provider.answers = True, "ok"
        for host in self.hosts:
            host.faults.away, host.faults.at_commit = False, ""
            host.stall(False)
            if not host.running:
                host.start()
        for seconds in (7.0, 7.0, 7.5, 5.1):
            for _ in range(4):
                self._say()
                self._pass(seconds / 4)
            for host in self.hosts:
                host.drain()
                if self._repairs and seconds > 7.0:
                    host.repair()
                if not host.running:  # systemd starts it again
                    host.start()

    def _judge(self, figures: Figures | None, *, final: bool) -> None:
        said = self.provider.said
        if not final:
            # While the database has not heard of a clock that was set back, its claims are those of the first time.
            said = [row for row in said if not row.is_repeated]
            tables = judge.read_tables(self._database.engine, ["covered"])
            self.problems += judge.false_claims(self._database.engine, tables, said, self.memories)
            return
        tables = judge.read_tables(self._database.engine)
        self.problems += judge.false_claims(self._database.engine, tables, said, self.memories)
        until_us = self.clocks.wall_us if self._is_complete else None
        self.problems += judge.missing_gaps(self._database.engine, tables, said, self.memories, until_us)
        running = [host.spool.spool_id for host in self.hosts]
        self.problems += judge.future_claims(self._database.engine, running, self.clocks.wall_us)
        self.problems += self._audit_issues()
        self.problems += self._missing(tables)
        if figures:
            judge.count(figures, tables, said)

    def _audit_issues(self) -> list[str]:
        issues = judge.audit_issues(self._database.engine)
        if self.performed["second copy"] and self.performed["put_back_database"]:
            # One copy has closed the instance as lost, and the other goes on with it: their coverage overlaps.
            return [issue for issue in issues if "overlaps" not in issue]
        return issues

    def _missing(self, tables: judge.Tables) -> list[str]:
        for host in self.hosts:
            self._note_durable(host)
        stamps = {(said.ticker, said.row["ts"]): said for said in self.provider.said}
        lost = [stamps[row] for row in self.durable if (row[0], stamps[row].ts_us) not in tables.stored]
        return [f"{said}: durable, and not stored" for said in sorted(lost)]

    # -- time and data

    def _pass(self, seconds: float) -> None:
        start = self.clocks.now
        end = start + seconds
        for host in self.hosts:
            self.clocks.now = start
            host.run_until(start + seconds)
            end = max(end, self.clocks.now)
        self.clocks.now = end

    def _say(self) -> None:
        for path, ticker in self.keys:
            self.provider.say(path, ticker)
            self.clocks.now += 0.000_01

    def _do_flow(self, _: Host, step: Step) -> None:
        draw = random.Random(step.seed)
        rows = draw.randint(2, 12)
        for _ in range(rows):
            self._pass(step.seconds / rows * draw.uniform(0.5, 1.5))
            path, ticker = draw.choice(self.keys)
            self.provider.say(path, ticker)
            if self._writes_along and draw.random() < 0.15:
                for host in self.hosts:
                    host.write(2)
        self._pass(0.05)

    def _do_quiet(self, _: Host, step: Step) -> None:
        self._pass(step.seconds)

    def _do_write(self, host: Host, step: Step) -> None:
        host.write(1 + step.seed % 5)

    # -- connections

    def _do_half_open(self, host: Host, _: Step) -> bool:
        sockets = self.provider.of(host.name)
        for socket in sockets:
            socket.dead = True
        return bool(sockets)

    def _do_cut(self, host: Host, step: Step) -> bool:
        sockets = self.provider.of(host.name)
        for socket in sockets[: 1 + step.seed % 2]:
            socket.cut(step.option)
        return bool(sockets)

    def _do_reach(self, _: Host, step: Step) -> None:
        self.provider.reachable = step.option == "yes"

    def _do_answers(self, _: Host, step: Step) -> None:
        self.provider.answers = step.option

    # -- disk, clock, database

    def _do_stall(self, host: Host, _: Step) -> bool:
        host.stall(True)
        return host.running

    def _do_unstall(self, host: Host, _: Step) -> None:
        host.stall(False)

    def _do_clock(self, _: Host, step: Step) -> None:
        self.provider.note_clock_step()
        self.clocks.offset += step.seconds

    def _do_away(self, host: Host, _: Step) -> None:
        host.faults.away = True

    def _do_back(self, host: Host, _: Step) -> None:
        host.faults.away = False

    def _do_fault(self, host: Host, step: Step) -> None:
        host.faults.at_commit = step.option

    def _do_repair(self, host: Host, _: Step) -> bool:
        return host.repair()

    # -- processes and their files

    def _do_kill(self, host: Host, step: Step) -> bool:
        if not host.running:
            return False
        self._note_durable(host)
        host.kill()
        self._pass(step.seconds if step.seed % 2 else 0.001)
        return True

    def _do_stop(self, host: Host, step: Step) -> bool:
        if not host.running:
            return False
        host.stop()
        self._note_durable(host)
        self._pass(step.seconds if step.seed % 2 else 0.001)
        return True

    def _do_start(self, host: Host, _: Step) -> bool:
        return not host.running and host.start()

    def _do_copy(self, host: Host, _: Step) -> bool:
        if not host.running:
            return False
        shutil.rmtree(self._copy_of(host), ignore_errors=True)
        host.copy_files(self._copy_of(host))
        return True

    def _do_put_back(self, host: Host, step: Step) -> bool:
        """An older copy of its spool is put back under a host."""
        copy = self._copy_of(host)
        if not copy.exists():
            return False
        host.kill()
        self._forget_durable()
        if step.option == "folder":
            shutil.rmtree(host.folder)
        for file in host.folder.glob("spool.db*"):
            file.unlink()
        shutil.copytree(copy, host.folder, dirs_exist_ok=True, ignore=_all_but_file if step.option == "file" else None)
        if step.seed % 2:
            host.faults.away = True  # so that it grows before it finds out
        host.start()
        return True

    def _do_damage(self, host: Host, step: Step) -> bool:
        host.kill()
        self._note_durable(host)
        if step.option in ("wal", "bit", "spool"):
            self._forget_durable()
        return damage(host.folder, step)

    def _do_keep_database(self, _: Host, __: Step) -> None:
        self._database.keep()
        positions = judge.read_positions(self._database.engine)
        self._kept_memories = {
            spool_id: self.memories[spool_id].known_at(position)
            for spool_id, position in positions.items()
            if spool_id in self.memories
        }

    def _do_put_back_database(self, _: Host, __: Step) -> bool:
        if self._keep_bytes < 1 << 30:  # else everything is written again
            self._forget_durable()
        for host in self.hosts:
            if not self._database.several_hosts:
                host.kill()
        is_changed = self._database.put_back()
        if is_changed:
            for spool_id, memory in self.memories.items():  # what it wrote of later settings of the clock is gone
                kept = self._kept_memories.get(spool_id, Memory(0, {self.provider.clock_era: 0}))
                memory.clock_eras = dict(kept.clock_eras)
        return is_changed

    def _do_second(self, host: Host, step: Step) -> bool:
        if len(self.hosts) > 1:
            return False
        if step.option == "copy":
            if not host.running:
                return False
            host.copy_files(self._folder / "two")
        self._add_host("two")
        return True

    def _add_host(self, name: str) -> None:
        keep = self._config.spool.keep.model_copy(update={"size": self._keep_bytes})
        spool = self._config.spool.model_copy(update={"path": self._folder / name, "keep": keep})
        config = self._config.model_copy(
            update={
                "instance": name,
                "spool": spool,
                "subscriptions": tuple(
                    item for item in self._config.subscriptions if (item.path, item.ticker) in self.keys
                ),
            }
        )
        host = Host(name, self._folder / name, config, self.clocks, self.provider, self.memories)
        self.hosts.append(host)
        host.start()

    def _copy_of(self, host: Host) -> Path:
        return self._folder / f"{host.name}.copy"

    def _note_durable(self, host: Host) -> None:
        """What is durable now must be in the tables at the end."""
        self.durable |= host.spool.durable_rows()

    def _forget_durable(self) -> None:
        """Durable entries may be lost by what happens now."""
        self.durable.clear()
        self._is_complete = False
        for host in self.hosts:
            host.spool.appended.clear()


def _all_but_file(_: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("spool.db")]


def damage(folder: Path, step: Step) -> bool:
    """Damage a spool that no process uses. Returns whether there was something to damage."""
    if step.option == "spool":
        files = list(folder.glob("spool.db*"))
    elif step.option == "mark":
        files = [file for file in folder.glob("*") if file.name not in ("lock", "ballast") and file.is_file()]
        files = [file for file in files if not file.name.startswith("spool.db")]
    elif step.option == "bit":
        return flip_bit(folder / "spool.db-wal", random.Random(step.seed))
    else:
        files = [folder / {"lock": "lock", "wal": "spool.db-wal"}[step.option]]
    existing = [file for file in files if file.exists()]
    for file in existing:
        file.unlink()
    return bool(existing)


def flip_bit(file: Path, draw: random.Random) -> bool:
    """Flip a bit in the last part of a file."""
    if not file.exists() or not (content := bytearray(file.read_bytes())):
        return False
    place = len(content) - 1 - draw.randrange(min(len(content), 8192))
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return True


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Leave out steps as long as the others still fail."""
    left = list(steps)
    size = max(len(left) // 2, 1)
    while size:
        start = 0
        while start < len(left):
            fewer = left[:start] + left[start + size :]
            if fails(fewer):
                left = fewer
            else:
                start += size
        size //= 2
    return left
