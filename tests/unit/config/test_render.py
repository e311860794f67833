from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ingestor.config import load
from ingestor.config.render import json_schema, render

from .conftest import ONE, Loaded

TOP = Path(__file__).parents[3]


def test_shipped_config_is_valid_and_names_its_schema() -> None:
    shipped = TOP / "config.yaml"
    assert shipped.read_text().splitlines()[0] == "# yaml-language-server: $schema=./config.schema.json"
    assert {subscription.ticker for subscription in load(shipped, {}).subscriptions} == {"AAPL", "TSLA", "ON", "6E_F"}


def test_commented_out_keys_of_shipped_config_are_defaults(folder: Path, loaded: Loaded) -> None:
    text = (TOP / "config.yaml").read_text()
    on = re.sub(r"(?m)^( *)# ([a-z_]+: \S.*)$", r"\1\2", text)
    assert on.count("\n# instance") == 0, "the comments were not removed"
    plain, spelled_out = loaded(text), loaded(on)
    assert render(plain) == render(spelled_out)


def test_shipped_schema_is_current() -> None:
    shipped = json.loads((TOP / "config.schema.json").read_text())
    assert shipped == json_schema(), "regenerate it: ingestor config schema > config.schema.json"


def test_schema_describes_every_key_and_forbids_others() -> None:
    definitions = json_schema()["$defs"]
    for name, section in [*definitions.items(), ("", json_schema())]:
        assert section["additionalProperties"] is False, name
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    assert "api_key" not in definitions["ProviderConfig"]["properties"]
    assert definitions["TokenConfig"]["properties"]["lifetime"]["default"] == "5h"


def test_schema_allows_unquoted_numbers_and_booleans() -> None:
    entry = json_schema()["$defs"]["SubscriptionEntry"]["properties"]
    assert entry["tickers"]["items"]["type"] == ["string", "number", "boolean"]
    assert {4, 0.9} < set(json_schema()["$defs"]["ProviderConfig"]["properties"]["protocol"]["enum"])


def test_render_uses_units_and_masks_secrets(loaded: Loaded) -> None:
    env = {"INGESTOR_PROVIDER__API_KEY": "hunter2", "INGESTOR_DATABASE__URL": "postgres://u:hunter2@h/d"}
    shown: dict[str, Any] = render(loaded(ONE + "database: {retention: {payloads: none}}", env))
    assert shown["provider"]["api_key"] == "***"
    assert shown["provider"]["token"] == {"lifetime": "5h", "renew_before": "10m", "timeout": "2m"}
    assert shown["database"]["url"] == "postgresql+psycopg://u:***@h/d"
    assert shown["database"]["retention"] == {"payloads": "none", "samples": "forever", "journal": "90d"}
    assert shown["spool"]["max_bytes"] == "1GiB"
    assert shown["http"]["listen"] == "127.0.0.1:8642"
    assert shown["subscriptions"] == [{"path": "/real-time/crowd-sentiment", "method": "get", "params": {}}]
    assert "hunter2" not in json.dumps(shown)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("0", {"time": "0s", "size": "0B"}),
        ("", {"time": "1d", "size": "2GiB"}),
        ("{time: 0}", {"time": "0s", "size": "2GiB"}),
        ("{size: 0}", {"time": "1d", "size": "0B"}),
    ],
)
def test_keep_is_two_limits_or_nothing(loaded: Loaded, text: str, keep: dict[str, str]) -> None:
    assert render(loaded(f"{ONE}spool: {{keep: {text}}}\n"))["spool"]["keep"] == keep


def test_rendered_config_can_be_loaded(loaded: Loaded) -> None:
    config = loaded(ONE + "provider: {events: [a, b]}\nspool: {sync_every: 5ms}\n")
    shown = render(config)
    del shown["provider"]["api_key"]
    again = loaded(json.dumps(shown))
    assert render(again) == render(config)
