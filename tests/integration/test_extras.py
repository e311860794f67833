"""What a command says if an optional library is not installed, in a process that cannot import it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ingestor.core import extras

PROGRAM = "import sys; sys.modules['psycopg'] = None; from ingestor.cli import main; main()"


@pytest.mark.parametrize("arguments", [["check"], ["run"], ["audit"], ["db", "upgrade"]], ids=" ".join)
def test_postgres_url_without_psycopg_is_one_sentence_with_the_command(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "api_key").write_text("a-key")
    (tmp_path / "api_key").chmod(0o600)
    (tmp_path / "config.yaml").write_text(
        "provider: {url: 'http://127.0.0.1:1', api_key_file: api_key}\n"
        "database: {url: 'postgresql://user@127.0.0.1:1/market'}\n"
        "http: {listen: '127.0.0.1:0'}\n"
        "subscriptions: [{path: /real-time/tweet-volume, tickers: [AAPL]}]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, text=True, capture_output=True, timeout=30
    )
    output = done.stdout + done.stderr
    needed = f"PostgreSQL needs psycopg, which is not installed; run: {extras.install_command('postgres')}"
    assert (done.returncode, output.count(needed)) == (78, 1), output
    assert "Traceback" not in output
    assert not (tmp_path / "spool").exists()


def test_command_names_what_the_extra_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["aiohttp>=3", 'psycopg[binary]<4,>=3.2.10; extra == "postgres"', "pyarrow>=20; extra == 'export'"]
    monkeypatch.setattr(extras.metadata, "requires", lambda _: required)
    monkeypatch.setattr(sys, "executable", "/opt/the ingestor/bin/python")
    assert extras.install_command("postgres") in (
        "'/opt/the ingestor/bin/python' -m pip install 'psycopg[binary]<4,>=3.2.10'",
        "uv pip install --python '/opt/the ingestor/bin/python' 'psycopg[binary]<4,>=3.2.10'",
    )
    assert extras.install_command("export").endswith("'pyarrow>=20'")
