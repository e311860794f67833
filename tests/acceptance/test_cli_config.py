from __future__ import annotations

import json
from pathlib import Path

import pytest

from .test_cli_start import ingestor_

TOP = Path(__file__).parents[2]
HIDDEN = "hunter2hunter2"


def test_a_file_with_five_mistakes_gets_five_messages_and_78(tmp_path: Path) -> None:
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
    ended = ingestor_("config", "show", cwd=tmp_path)
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert [line.partition(": ")[0] for line in ended.stderr.splitlines()] == [
        "config.yaml:2:3",
        "config.yaml:3:12",
        "config.yaml:4:21",
        "config.yaml:6:24",
        "config.yaml:8:5",
    ]


def test_a_secret_that_others_can_read_ends_with_77(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("provider: {api_key_file: key}\nsubscriptions: [{path: /a}]\n")
    (tmp_path / "key").write_text(HIDDEN)
    (tmp_path / "key").chmod(0o644)
    ended = ingestor_("config", "show", cwd=tmp_path)
    assert ended.returncode == 77
    assert f"chmod 600 {tmp_path}/key" in ended.stderr
    assert HIDDEN not in ended.stderr + ended.stdout


def test_a_configuration_that_is_not_there_ends_with_78_and_names_init(tmp_path: Path) -> None:
    ended = ingestor_("config", "show", "--config", "gone.yaml", cwd=tmp_path)
    assert ended.returncode == 78
    assert ended.stderr.startswith("gone.yaml: there is no such file")
    assert "`ingestor init`" in ended.stderr


def test_an_unknown_endpoint_is_a_warning_once_however_many_tickers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "subscriptions:\n  - path: /real-time/crowd-sentimet\n    tickers: [AAPL, TSLA]\n"
    )
    ended = ingestor_("config", "show", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == (
        'config.yaml:2:11: subscriptions.0.path: unknown endpoint "/real-time/crowd-sentimet"; '
        'did you mean "/real-time/crowd-sentiment"?\n'
    )


def test_a_feed_whose_name_cannot_be_stored_ends_with_78_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"subscriptions:\n  - {{path: /real-time/crowd-sentiment, params: {{period: '{'9' * 60}'}}}}\n"
    )
    ended = ingestor_("check", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith("config.yaml:2:12: subscriptions.0.path: makes a feed name of")


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_configuration_is_shown_without_its_secrets(tmp_path: Path, output: str) -> None:
    file = tmp_path / "config.yaml"
    url = f"postgresql://u:{HIDDEN}@h/d"
    file.write_text(f"database: {{url: '{url}'}}\nsubscriptions: [{{path: crowd-sentiment}}]\n")
    file.chmod(0o600)
    ended = ingestor_("config", "show", "--output", output, cwd=tmp_path)
    assert ended.returncode == 0
    assert "postgresql+psycopg://u:***@h/d" in ended.stdout
    assert HIDDEN not in ended.stdout + ended.stderr
    if output == "json":
        (one,) = json.loads(ended.stdout)["subscriptions"]
        assert one == {"path": "crowd-sentiment", "method": "get", "params": {}}


def test_the_schema_is_the_shipped_one_and_as_text_names_every_key() -> None:
    assert ingestor_("config", "schema").stdout == (TOP / "config.schema.json").read_text()
    text = ingestor_("config", "schema", "--output", "text").stdout
    assert "database.batch.max_wait" in text
    assert "subscriptions[].tickers" in text


def test_init_writes_a_configuration_that_loads_and_says_what_comes_next(tmp_path: Path) -> None:
    ended = ingestor_("init", cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "config.yaml").read_text() == (TOP / "config.yaml").read_text()
    assert (tmp_path / "config.schema.json").read_text() == (TOP / "config.schema.json").read_text()
    for step in ("install -m 600 /dev/stdin api_key", "ingestor check", "ingestor run", "ingestor demo"):
        assert step in ended.stdout
    assert ingestor_("config", "show", cwd=tmp_path).returncode == 0


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    ended = ingestor_("init", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.startswith("config.yaml: already exists and was left unchanged; remove it, or name")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_init_says_what_is_wrong_with_a_folder_that_is_not_there(tmp_path: Path) -> None:
    ended = ingestor_("init", str(tmp_path / "gone" / "config.yaml"))
    assert ended.returncode == 78
    assert "cannot be written (No such file or directory)" in ended.stderr


def test_the_unit_that_is_printed_is_the_shipped_one() -> None:
    assert ingestor_("service", "print").stdout == (TOP / "systemd" / "ingestor.service").read_text()


def test_dashboards_are_written_where_they_are_wanted_and_over_nothing(tmp_path: Path) -> None:
    written = ingestor_("dashboards", "export", "new/folder", cwd=tmp_path)
    assert (written.returncode, written.stderr) == (0, "")
    shipped = TOP / "ingestor" / "monitoring" / "dashboards"
    folder = tmp_path / "new" / "folder"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        file.name: file.read_text() for file in shipped.iterdir()
    }
    assert all(f"new/folder/{file.name}: in " in written.stdout for file in shipped.iterdir())
    assert ingestor_("dashboards", "export", "new/folder", cwd=tmp_path).returncode == 0  # they say the same
    (folder / "ingestor-alerts.yaml").write_text("mine")
    again = ingestor_("dashboards", "export", "new/folder", cwd=tmp_path)
    assert again.returncode == 78
    assert again.stderr.startswith("new/folder/ingestor-alerts.yaml: already exists and was left unchanged")
    assert (folder / "ingestor-alerts.yaml").read_text() == "mine"
    assert (
        "cannot be written"
        in ingestor_("dashboards", "export", "new/folder/ingestor-alerts.yaml/x", cwd=tmp_path).stderr
    )
