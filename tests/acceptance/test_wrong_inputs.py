"""Wrong inputs: each ends in one sentence with place and remedy, and the documented exit code. Nothing is written.

A part runs the installed command, the others its entry point in the process of the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ingestor.cli import main

from ..support.daemon import COMMAND
from ..support.postgres_server import free_port

SECRET = "hunter2-in-every-secret"
CROWD = "/real-time/crowd-sentiment"
GOOD: dict[str, Any] = {
    "provider": {"url": "http://127.0.0.1:9", "api_key_file": "key"},
    "database": {"url": "sqlite:///ingestor.db"},
    "http": {"listen": "127.0.0.1:0"},
    "subscriptions": [{"path": CROWD, "tickers": ["AAPL"]}],
}


@dataclass(frozen=True)
class Wrong:
    """A command line in a folder with one thing wrong, and what must come of it."""

    command: str
    says: str  # a pattern: the place and the remedy
    code: int
    config: dict[str, Any] | str | bytes | None = field(default_factory=lambda: GOOD)  # None: no file
    env: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda _: None
    process: bool = False  # run the installed command, as each `run`


class Ended(NamedTuple):
    """A command that has ended, and what it printed."""

    code: object
    text: str


def config(**sections: Any) -> dict[str, Any]:
    """Return the good config with some keys replaced."""
    merged = dict(GOOD)
    for name, section in sections.items():
        merged[name] = {**GOOD.get(name, {}), **section} if isinstance(section, dict) else section
    return merged


def key(mode: int = 0o600, text: str = SECRET) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "key").write_text(text)
        (folder / "key").chmod(mode)

    return prepare


def write(name: str, content: bytes = b"no database, but text\n" * 50) -> Callable[[Path], None]:
    return lambda folder: (folder / name).parent.mkdir(exist_ok=True) or (folder / name).write_bytes(content)  # type: ignore[return-value]


def set_revision(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "ingestor.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9_9999_future'")
        connection.commit()


def make_public_url_file(folder: Path) -> None:
    (folder / "url").write_text(f"postgresql://u:{SECRET}@db/d")
    (folder / "url").chmod(0o640)


def remove_database(folder: Path) -> None:
    (folder / "ingestor.db").unlink()


RANGE = "--from 2026-01-01 --to 2026-01-02"
SUBSCRIPTION = {"path": CROWD, "tickers": ["AAPL"]}
WRONG = {
    # Command lines
    "unknown command": Wrong("chek", r"No such command 'chek'. Did you mean 'check'\?", 2, process=True),
    "unknown option": Wrong("run --confg x", r"No such option: --confg .*--config", 2, process=True),
    "missing argument": Wrong("add", r"ingestor add --help.*Missing argument 'TICKER", 2),
    "superfluous argument": Wrong("run now", r"ingestor run --help.*unexpected extra argument.*now", 2),
    "option without its value": Wrong("run --config", r"'--config' requires an argument", 2),
    "unknown format": Wrong("audit --output xml", r"'--output'.*'xml' is not one of 'text', 'json'", 2),
    "count below one": Wrong("tail -n 0", r"'-n'.*greater than or equal to 1", 2),
    "count that is no number": Wrong("tail -n ten", r"'-n'.*valid integer", 2),
    "port out of range": Wrong("simulate --port 99999", r"'--port'.*65535", 2, process=True),
    "negative cadence": Wrong("simulate --cadence -1", r"'--cadence'.*greater than or equal to 0", 2),
    "negative duration": Wrong("demo --seconds -1", r"'--seconds'.*greater than or equal to 0", 2),
    # The config file
    "no config": Wrong("run", r"no configuration found.*`ingestor init` writes one", 78, None, process=True),
    "config that is missing": Wrong("run --config nope.yaml", r"^nope.yaml: there is no such file; name another", 78),
    "config that is a folder": Wrong("run --config .", r"^\.: cannot be read \(Is a directory\); correct the path", 78),
    "config that is empty": Wrong("check", r"^config.yaml: is empty; `ingestor init` writes one", 78, ""),
    "config with an open bracket": Wrong("run", r"^config.yaml:2:1: a bracket is not closed", 78, "http: [a\n"),
    "config with a tab": Wrong("run", r"^config.yaml:2:1: a tab .*; indent with spaces", 78, "http:\n\ta: 1\n"),
    "config in Latin-1": Wrong("run", r"^config.yaml:1:7: is not UTF-8; save", 78, b"http: \xe9\n", process=True),
    "config with a list": Wrong("run", r"^config.yaml:1:1: must be a mapping at the top level; begin", 78, "- a\n"),
    "unknown section": Wrong(
        "run", r"^config.yaml:1:\d+: htp: unknown key; did you mean \"http\"\?", 78, config(htp={})
    ),
    "key twice": Wrong(
        "run",
        r"^config.yaml:3:\d+: duplicate key \"http\", first in line 2; keep one",
        78,
        f"subscriptions: [{{path: {CROWD}, ticker: A}}]\nhttp: {{}}\nhttp: {{}}\n",
    ),
    "no subscriptions": Wrong(
        "check", r"^config.yaml:1:\d+: subscriptions: is empty; add", 78, config(subscriptions=[])
    ),
    "existing config": Wrong("init", r"^config.yaml: already exists .*; remove it, or name another file", 78),
    "config in no folder": Wrong("init none/config.yaml", r"^none/config.yaml: cannot be written .*; name a file", 78),
    "duration in words": Wrong(
        "run", r"^config.yaml:1:\d+: provider.silence: .* write for example", 78, config(provider={"silence": "a day"})
    ),
    "size in words": Wrong(
        "run", r"^config.yaml:1:\d+: spool.max_bytes: .*; write for example", 78, config(spool={"max_bytes": "much"})
    ),
    "port of the page out of range": Wrong(
        "check",
        r"^config.yaml:1:\d+: http.listen: .* 0 to 65535; write",
        78,
        config(http={"listen": "127.0.0.1:99999"}),
    ),
    "unknown protocol": Wrong(
        "check", r"^config.yaml:1:\d+: provider.protocol: .*; write one of auto", 78, config(provider={"protocol": "5"})
    ),
    "unknown level of the log": Wrong(
        "check", r"^config.yaml:1:\d+: log.level: .*; write one of debug", 78, config(log={"level": "loud"})
    ),
    "name of 65 characters": Wrong(
        "check", r"^config.yaml:1:\d+: instance: .*; at most 64 can be stored", 78, config(instance="x" * 65)
    ),
    "negative retention": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.retention.payloads: .*; write for example",
        78,
        config(database={"retention": {"payloads": "-1d"}}),
    ),
    "wrong config of a daemon": Wrong(
        "reload", r"^config.yaml:1:\d+: http.listen: .*; write", 78, config(http={"listen": "x"})
    ),
    "wrong config to add to": Wrong(
        "add TSLA", r"^config.yaml:1:\d+: http.listen: .*; write", 78, config(http={"listen": "x"})
    ),
    "listen without a port": Wrong(
        "check", r"^config.yaml:1:\d+: http.listen: must be host:port; write", 78, config(http={"listen": "localhost"})
    ),
    # Subscriptions and tickers
    "tickers in one text": Wrong(
        "check",
        r"^config.yaml:1:\d+: subscriptions.0.ticker: .* write several as a list",
        78,
        config(subscriptions=[{"path": CROWD, "ticker": "AAPL TSLA"}]),
    ),
    "subscription twice": Wrong(
        "check",
        r"^config.yaml:1:\d+: subscriptions.1.tickers.0: is a duplicate of config.yaml:1:\d+; keep one",
        78,
        config(subscriptions=[SUBSCRIPTION, SUBSCRIPTION]),
    ),
    "subscription without path": Wrong(
        "run",
        r"^config.yaml:1:\d+: subscriptions.0.path: is missing; add it",
        78,
        config(subscriptions=[{"ticker": "A"}]),
    ),
    "ticker and tickers": Wrong(
        "run",
        r"^config.yaml:1:\d+: subscriptions.0.tickers: .*; keep one of the two",
        78,
        config(subscriptions=[{**SUBSCRIPTION, "ticker": "B"}]),
    ),
    "ticker that is not UTF-8": Wrong("tail \udcff", r"argument .* the database can contain: .*; correct it", 2),
    "last ticker removed": Wrong(
        "remove AAPL", r"^config.yaml:1:\d+: subscriptions: .*; stop the daemon instead", 78, process=True
    ),
    "ticker too long": Wrong(f"add {'A' * 65}", r"TICKER: a ticker may have at most 64 characters, this has 65", 2),
    # Secrets and their modes
    "no API key": Wrong(
        "run",
        r"config.yaml: provider.api_key: is missing; put it into a file of mode 0600",
        78,
        config(provider={"api_key_file": None}),
        process=True,
    ),
    "API key for all to read": Wrong(
        "run",
        r"^config.yaml:1:\d+: provider.api_key_file: .*; run: chmod 600 .*/key",
        77,
        prepare=key(0o644),
        process=True,
    ),
    "API key file that is missing": Wrong(
        "check",
        r"^config.yaml:1:\d+: provider.api_key_file: cannot be read .*; correct the path",
        78,
        config(provider={"api_key_file": "nowhere"}),
    ),
    "API key file that is empty": Wrong(
        "check", r"^config.yaml:1:\d+: provider.api_key_file: is empty; write the secret", 78, prepare=key(text="")
    ),
    "API key of two words": Wrong(
        "check", r"^config.yaml:1:\d+: provider.api_key: must be one word of ASCII", 78, prepare=key(text=f"{SECRET} x")
    ),
    "API key in the config": Wrong(
        "check",
        r"^config.yaml:1:\d+: provider.api_key: does not belong in this file; put it into a file of mode 0600",
        78,
        config(provider={"api_key": SECRET, "api_key_file": None}),
    ),
    "password in a public config": Wrong(
        "run",
        r"^config.yaml:1:\d+: database.url: contains a password, .*; put the URL into a file of mode 0600",
        78,
        config(database={"url": f"postgresql://u:{SECRET}@db/d"}),
        process=True,
    ),
    "password in a public file": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.url_file: others can read .*; run: chmod 600 ",
        77,
        config(database={"url_file": "url"}),
        prepare=make_public_url_file,
    ),
    # URLs
    "provider with ftp": Wrong(
        "check",
        r"^config.yaml:1:\d+: provider.url: begins with \"ftp:\"; write",
        78,
        config(provider={"url": "ftp://p.example"}),
    ),
    "provider without TLS": Wrong(
        "run",
        r"^config.yaml:1:\d+: provider.url: http:// .*; write https://",
        78,
        config(provider={"url": "http://p.example"}),
    ),
    "key in the provider's URL": Wrong(
        "run",
        r"^config.yaml:1:\d+: provider.url: must not contain .*; put the key into",
        78,
        config(provider={"url": f"https://{SECRET}@p.example"}),
    ),
    "CA file that is missing": Wrong(
        "check",
        r"^config.yaml:1:\d+: provider.ca_file: the file .*/ca.pem does not exist; name",
        78,
        config(provider={"ca_file": "ca.pem"}),
    ),
    # Environment variables
    "unknown variable": Wrong(
        "check",
        r"^INGESTOR_PROVIDER__ULR: .* did you mean INGESTOR_PROVIDER__URL\?",
        78,
        env={"INGESTOR_PROVIDER__ULR": "x"},
    ),
    "variable with a wrong value": Wrong(
        "check", r"^INGESTOR_SPOOL__MAX_BYTES: spool.max_bytes: .*; write", 78, env={"INGESTOR_SPOOL__MAX_BYTES": "-1"}
    ),
    "variable with no config": Wrong(
        "run",
        r"^/nowhere/c.yaml: there is no such file; name another",
        78,
        env={"INGESTOR_CONFIG": "/nowhere/c.yaml"},
        process=True,
    ),
    "proxy of another kind": Wrong(
        "run",
        r"^HTTPS_PROXY: is a \"socks5\" proxy; only http:// and https:// are supported",
        78,
        config(provider={"url": "https://p.example"}),
        env={"HTTPS_PROXY": f"socks5://u:{SECRET}@h:1"},
    ),
    # Databases
    "another kind of database": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.url: \"mysql\" is not supported; write",
        78,
        config(database={"url": "mysql://h/d"}),
    ),
    "two slashes for SQLite": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.url: .*; write three slashes",
        78,
        config(database={"url": "sqlite://a.db"}),
    ),
    "folder as SQLite": Wrong(
        "run",
        r"^config.yaml:1:\d+: database.url: names the folder .*; add the name",
        78,
        config(database={"url": "sqlite:///."}),
    ),
    "PostgreSQL without a database": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.url: has no database name; write",
        78,
        config(database={"url": "postgresql://u@h"}),
    ),
    "PostgreSQL's port out of range": Wrong(
        "check",
        r"^config.yaml:1:\d+: database.url: has an invalid port; write",
        78,
        config(database={"url": "postgresql://u@h:99999/d"}),
    ),
    "stand-by with SQLite": Wrong(
        "run", r"^config.yaml:1:\d+: database: is SQLite, .* name a PostgreSQL", 78, config(provider={"standby": True})
    ),
    "server that does not run": Wrong(
        "tail",
        r"^postgresql\+psycopg://u@127.0.0.1:\d+/d: the database server cannot be reached: .*; check that it runs",
        69,
        config(database={"url": f"postgresql://u@127.0.0.1:{free_port()}/d"}),
        process=True,
    ),
    "database that is missing": Wrong(
        "audit", r"ingestor.db: does not exist; `ingestor run` creates it", 69, prepare=remove_database
    ),
    "text instead of a database": Wrong(
        "tail",
        r"ingestor.db: the file is not a SQLite database: .*; name another file",
        69,
        prepare=write("ingestor.db"),
    ),
    "schema of a newer program": Wrong(
        "check",
        r"✗ database: .* v9_9999_future.* install the newer ingestor, or restore",
        78,
        prepare=set_revision,
        process=True,
    ),
    "copy onto itself": Wrong(
        "db copy --into sqlite:///ingestor.db", r"--into: this is the database .* name another", 77
    ),
    "replay onto itself": Wrong(
        "replay --into sqlite:///ingestor.db", r"--into: this is the database .* name another", 77
    ),
    "copy into no URL": Wrong("db copy --into elsewhere", r"--into: is not a database URL; write sqlite:///", 2),
    "copy into a server that does not run": Wrong(
        f"db copy --into postgresql://u:{SECRET}@127.0.0.1:{free_port()}/d",
        r"u:\*\*\*@.*cannot be reached.*; check",
        69,
    ),
    # Spools
    "file instead of a spool": Wrong(
        "check",
        r"✗ spool: .*/spool is a file instead of a folder; move it, or choose another",
        74,
        prepare=write("spool"),
        process=True,
    ),
    "nothing to salvage": Wrong("spool salvage", r"FOLDER: no spool was set aside in .*/spool; name its folder", 2),
    "salvage of no spool": Wrong("spool salvage .", r"spool.db: does not exist; name the folder of a spool", 74),
    # Time ranges, exports, ids
    "time in words": Wrong(
        "coverage --since tomorrow", r"--since: \"tomorrow\" is neither .*\(7d\) nor", 2, process=True
    ),
    "start in the future": Wrong("coverage --since 2999-01-01", r"--since: the range from 2999.* is empty; write", 2),
    "end before the start": Wrong(
        "export --feed crowd-sentiment --since 2026-01-02 --until 2026-01-01",
        r"--until: the range .* is empty; write a later",
        2,
    ),
    "end of a replay before its start": Wrong(
        "replay --into sqlite:///copy.db --from 2026-01-02 --to 2026-01-01",
        r"--until: the range .* is empty; write a later",
        2,
    ),
    "backfill of another ticker": Wrong(
        f"backfill --ticker ZZZ {RANGE}", r"no subscription includes \"ZZZ\"; name an end", 2
    ),
    "export without a feed": Wrong("export", r"--feed: name at least one, such as --feed crowd-sentiment", 2),
    "export of an unknown feed": Wrong(
        "export --feed crowd-sentimnt", r"feed \"crowd-sentimnt\"; did you mean \"crowd-sen", 2
    ),
    "export of an unknown ticker": Wrong(
        "export --feed crowd-sentiment --ticker NOPE",
        r"unknown ticker \"NOPE\" of crowd-sentiment; the database has none",
        2,
    ),
    "export with an unknown suffix": Wrong(
        "export --feed crowd-sentiment -o a.xlsx", r"-o: the suffix of a.xlsx is none of .*; add --format", 2
    ),
    "export over a file": Wrong(
        "export --feed crowd-sentiment -o key", r"-o: key exists; name another file, or replace", 2
    ),
    "export into no folder": Wrong(
        "export --feed crowd-sentiment -o none/a.csv",
        r"none/a.csv: cannot be written .*; name a file in a folder",
        74,
        process=True,
    ),
    "lake in a file": Wrong("export --partition day key", r"FOLDER: key is not a folder; name another one", 2),
    "partition without a folder": Wrong(
        "export --partition day", r"--partition: name the folder, too: --partition day F", 2
    ),
    "dead letter that does not exist": Wrong(
        "dead-letters show 7", r"no dead letter 7; `ingestor dead-letters list", 2
    ),
    "retry of an unknown dead letter": Wrong(
        "dead-letters retry 7", r"no dead letter 7; `ingestor dead-letters list", 2
    ),
    "id beyond all integers": Wrong(
        "dead-letters show 99999999999999999999", r"'ID'.*less than or equal to 9223", 2, process=True
    ),
    "id that is no number": Wrong("dead-letters retry seven", r"'ID'.*valid integer", 2),
    "dashboards into a file": Wrong(
        "dashboards export key", r"^key: cannot be created .*; name a folder that you may", 78
    ),
}


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    """A folder with the key and a database without rows."""
    shutil.copy(sqlite_template, tmp_path / "ingestor.db")
    key()(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[Wrong], Ended]:
    """Run the command in the folder, as a process or through its entry point."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("INGESTOR_", "HTTP"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def run(case: Wrong) -> Ended:
        for name, value in case.env.items():
            monkeypatch.setenv(name, value)
        arguments = case.command.split()
        if case.process or case.command.startswith("run"):
            ended = subprocess.run([COMMAND, *arguments], timeout=30)
            return Ended(ended.returncode, "".join(capfd.readouterr()))
        monkeypatch.setattr(sys, "argv", ["ingestor", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return Ended(exited.value.code, "".join(capfd.readouterr()))

    return run


def contents(folder: Path) -> dict[str, str]:
    """Return each file with its mode and hash. A reader of SQLite leaves an empty WAL behind, and its index."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if not (path.name.endswith("-shm") or (path.name.endswith("-wal") and not content)):
            found[str(path)] = f"{path.stat().st_mode:o} {hashlib.sha256(content).hexdigest()}"
    return found


def sentences(text: str) -> list[str]:
    """Return the lines, without those of a check that passed. How to get help belongs to the sentence after it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("Usage: ", "✓", "!"))]
    return re.sub(r"(?m)^(Try 'ingestor .*' for help\.)\n", r"\1 ", "\n".join(lines)).split("\n")


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_wrong_input_ends_in_one_sentence_and_writes_nothing(
    case: Wrong, folder: Path, run: Callable[[Wrong], Ended]
) -> None:
    if isinstance(case.config, dict):
        (folder / "config.yaml").write_text(json.dumps(case.config))
    elif case.config is not None:
        written = case.config if isinstance(case.config, bytes) else case.config.encode()
        (folder / "config.yaml").write_bytes(written)
    case.prepare(folder)
    before = contents(folder)
    code, text = run(case)
    assert "Traceback" not in text
    assert SECRET not in text
    (sentence,) = sentences(text)
    assert re.search(case.says, sentence), sentence
    assert code == case.code
    assert contents(folder) == before
