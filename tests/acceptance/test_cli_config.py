from __future__ import annotations

import json
from pathlib import Path

import pytest

from .test_cli_start import run_cli

TOP = Path(__file__).parents[2]
HIDDEN = "hunter2hunter2"


def test_every_problem_is_reported_with_exit_code_78(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "provider:\n"
        "  urll: https://example.com\n"
        "  silence: 10\n"
        "database: {migrate: sometimes}\n"
        "subscriptions:\n"
        "  - {path: /a, ticker: A B}\n"
        "  - {path: /a}\n"
        "  - {path: /a}\n"
    )
    ended = run_cli("config", "show", cwd=tmp_path)
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert [line.partition(": ")[0] for line in ended.stderr.splitlines()] == [
        "config.yaml:2:3",
        "config.yaml:3:12",
        "config.yaml:4:21",
        "config.yaml:6:24",
        "config.yaml:8:5",
    ]


def test_insecure_secret_file_exits_with_77(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("provider: {api_key_file: key}\nsubscriptions: [{path: /a}]\n")
    (tmp_path / "key").write_text(HIDDEN)
    (tmp_path / "key").chmod(0o644)
    ended = run_cli("config", "show", cwd=tmp_path)
    assert ended.returncode == 77
    assert f"chmod 600 {tmp_path}/key" in ended.stderr
    assert HIDDEN not in ended.stderr + ended.stdout


def test_missing_config_exits_with_78_and_names_init(tmp_path: Path) -> None:
    ended = run_cli("config", "show", "--config", "gone.yaml", cwd=tmp_path)
    assert ended.returncode == 78
    assert ended.stderr.startswith("gone.yaml: there is no such file")
    assert "`ingestor init`" in ended.stderr


def test_unknown_endpoint_is_warned_of_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "subscriptions:\n  - path: /real-time/crowd-sentimet\n    tickers: [AAPL, TSLA]\n"
    )
    ended = run_cli("config", "show", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == (
        'config.yaml:2:11: subscriptions.0.path: unknown endpoint "/real-time/crowd-sentimet"; '
        'did you mean "/real-time/crowd-sentiment"?\n'
    )


def test_too_long_feed_name_exits_with_78(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"subscriptions:\n  - {{path: /real-time/crowd-sentiment, params: {{period: '{'9' * 60}'}}}}\n"
    )
    ended = run_cli("check", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith("config.yaml:2:12: subscriptions.0.path: makes a feed name of")


@pytest.mark.parametrize("output", ["text", "json"])
def test_config_show_masks_secrets(tmp_path: Path, output: str) -> None:
    file = tmp_path / "config.yaml"
    url = f"postgresql://u:{HIDDEN}@h/d"
    file.write_text(f"database: {{url: '{url}'}}\nsubscriptions: [{{path: crowd-sentiment}}]\n")
    file.chmod(0o600)
    ended = run_cli("config", "show", "--output", output, cwd=tmp_path)
    assert ended.returncode == 0
    assert "postgresql+psycopg://u:***@h/d" in ended.stdout
    assert HIDDEN not in ended.stdout + ended.stderr
    if output == "json":
        (subscription,) = json.loads(ended.stdout)["subscriptions"]
        assert subscription == {"path": "crowd-sentiment", "method": "get", "params": {}}


def test_config_schema_matches_shipped_file() -> None:
    assert run_cli("config", "schema").stdout == (TOP / "config.schema.json").read_text()
    text = run_cli("config", "schema", "--output", "text").stdout
    assert "database.batch.max_wait" in text
    assert "subscriptions[].tickers" in text


def test_init_writes_valid_config_and_next_steps(tmp_path: Path) -> None:
    ended = run_cli("init", cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "config.yaml").read_text() == (TOP / "config.yaml").read_text()
    assert (tmp_path / "config.schema.json").read_text() == (TOP / "config.schema.json").read_text()
    for step in ("install -m 600 /dev/stdin api_key", "ingestor check", "ingestor run", "ingestor demo"):
        assert step in ended.stdout
    assert run_cli("config", "show", cwd=tmp_path).returncode == 0


def test_init_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    ended = run_cli("init", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith("config.yaml: already exists and was left unchanged; remove it, or name")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_init_reports_missing_folder(tmp_path: Path) -> None:
    ended = run_cli("init", str(tmp_path / "gone" / "config.yaml"))
    assert ended.returncode == 78
    assert "cannot be written (No such file or directory)" in ended.stderr


def test_service_print_matches_shipped_unit() -> None:
    assert run_cli("service", "print").stdout == (TOP / "systemd" / "ingestor.service").read_text()


def test_dashboards_export_does_not_overwrite(tmp_path: Path) -> None:
    written = run_cli("dashboards", "export", "new/folder", cwd=tmp_path)
    assert (written.returncode, written.stderr) == (0, "")
    shipped = TOP / "ingestor" / "monitoring" / "dashboards"
    folder = tmp_path / "new" / "folder"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        file.name: file.read_text() for file in shipped.iterdir()
    }
    assert all(f"new/folder/{file.name}: in " in written.stdout for file in shipped.iterdir())
    assert run_cli("dashboards", "export", "new/folder", cwd=tmp_path).returncode == 0  # unchanged files
    (folder / "ingestor-alerts.yaml").write_text("mine")
    again = run_cli("dashboards", "export", "new/folder", cwd=tmp_path)
    assert again.returncode == 78
    assert again.stderr.startswith("new/folder/ingestor-alerts.yaml: already exists and was left unchanged")
    assert (folder / "ingestor-alerts.yaml").read_text() == "mine"
    below_a_file = run_cli("dashboards", "export", "new/folder/ingestor-alerts.yaml/x", cwd=tmp_path)
    assert "ingestor-alerts.yaml/x: cannot be created (Not a directory)" in below_a_file.stderr
