from __future__ import annotations

from pathlib import Path

import pytest

from ingestor.config import changed_settings, load

BASE = """\
provider: {url: 'http://127.0.0.1:1'}
spool: {max_bytes: 1GiB}
subscriptions:
  - {path: /real-time/crowd-sentiment, tickers: [A, ON]}
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        pytest.param("A, ON", "A, NO", (), id="subscriptions are not settings"),
        pytest.param("1GiB", "1024MiB", (), id="same value, other unit"),
        pytest.param("spool: {max_bytes: 1GiB}", "", (), id="default no longer written"),
        pytest.param("1GiB", "2GiB", ("spool.max_bytes",), id="a size"),
        pytest.param("spool:", "database: {url: 'postgresql://u@h/b'}\nspool:", ("database.url",), id="a secret"),
        pytest.param(
            "spool:", "database: {batch: {max_rows: 7}}\nspool:", ("database.batch.max_rows",), id="nested key"
        ),
        pytest.param("spool:", "watch: true\nspool:", ("watch",), id="top level"),
        pytest.param("}\nspool", ", api_key_file: key}\nspool", (), id="key file, which needs no restart"),
        pytest.param("spool:", "database: {url_file: url}\nspool:", ("database.url",), id="URL from a file"),
    ],
)
def test_changed_settings_lists_differing_keys(tmp_path: Path, old: str, new: str, changed: tuple[str, ...]) -> None:
    for name, secret in (("key", "a-key"), ("url", "postgresql://u@h/b")):
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    file = tmp_path / "config.yaml"
    configs = []
    for text in (BASE, BASE.replace(old, new)):
        file.write_text(text)
        configs.append(load(file, env={}))
    assert changed_settings(*configs) == changed
