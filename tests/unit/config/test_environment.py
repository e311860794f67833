from __future__ import annotations

import pytest

from .conftest import ONE, Loaded, Refused


def test_variable_overrides_document(loaded: Loaded) -> None:
    config = loaded(
        ONE + "provider: {silence: 1h}\nwatch: false\n",
        {
            "INGESTOR_PROVIDER__SILENCE": "2h",
            "INGESTOR_PROVIDER__EVENTS": "res, more",
            "INGESTOR_DATABASE__BATCH__MAX_ROWS": "7",
            "INGESTOR_WATCH": "true",
            "INGESTOR_INSTANCE": "ON",
        },
    )
    assert config.provider.silence == 7200
    assert config.provider.events == ("res", "more")
    assert config.database.batch.max_rows == 7
    assert config.watch is True
    assert config.instance == "ON"


def test_empty_variable_removes_value(loaded: Loaded, refused: Refused) -> None:
    assert loaded(ONE + "instance: x\n", {"INGESTOR_INSTANCE": ""}).instance is None
    assert refused(ONE, {"INGESTOR_LOG__LEVEL": ""}) == [
        "INGESTOR_LOG__LEVEL: log.level: has no value; write one, or remove the line"
    ]


def test_invalid_variable_is_reported_by_name(refused: Refused) -> None:
    assert refused(ONE, {"INGESTOR_DATABASE__BATCH__MAX_WAIT": "100"}) == [
        "INGESTOR_DATABASE__BATCH__MAX_WAIT: database.batch.max_wait: "
        '"100" has no unit; add one of ms, s, m, h, d: "100s" is 100 seconds'
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("INGESTOR_PROVIDER_URL", "did you mean INGESTOR_PROVIDER__URL?", id="one underscore"),
        pytest.param("INGESTOR_HTTP__LISTN", "did you mean INGESTOR_HTTP__LISTEN?", id="typo"),
        pytest.param("INGESTOR_CONFG", "did you mean INGESTOR_CONFIG?", id="the file's own variable"),
        pytest.param("INGESTOR_PROVIDER__API_KY", "did you mean INGESTOR_PROVIDER__API_KEY?", id="a secret"),
        pytest.param("INGESTOR_ZZZ", "unknown variable; unset it", id="nothing near"),
        pytest.param("INGESTOR_SUBSCRIPTIONS", "write them in the file", id="subscriptions"),
        pytest.param("INGESTOR_SUBSCRIPTIONS__0__PATH", "write them in the file", id="one subscription"),
    ],
)
def test_unknown_variable_is_rejected_without_its_value(refused: Refused, name: str, says: str) -> None:
    (problem,) = refused(ONE, {name: "hunter2"})
    assert problem.startswith(f"{name}: ")
    assert says in problem
    assert "hunter2" not in problem


def test_variables_of_tests_and_others_are_ignored(loaded: Loaded) -> None:
    loaded(ONE, {"INGESTOR_TEST_POSTGRES": "x", "PATH": "/bin", "XINGESTOR_Y": "z", "ingestor_z": "z"})


def test_variable_does_not_hide_invalid_section(refused: Refused) -> None:
    (problem,) = refused(ONE + "log: loud\n", {"INGESTOR_LOG__LEVEL": "debug"})
    assert problem.startswith("config.yaml:2:6: log: must be a mapping")
