from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ingestor.config import load, loader
from ingestor.config.loader import find_spool_folder
from ingestor.config.validators import ListenAddress
from ingestor.errors import ConfigError

from .conftest import ONE, Loaded, Refused


def test_defaults_apply_to_missing_keys(folder: Path, loaded: Loaded) -> None:
    config = loaded(ONE)
    assert config.instance is None
    assert config.provider.url == "https://open.marketprophit.com"
    assert config.provider.token_path == "/jwt"
    assert config.provider.protocol == "auto"
    assert config.provider.events == ("res", "data")
    token = config.provider.token
    assert (token.lifetime, token.renew_before, token.timeout) == (18_000, 600, 120)
    assert config.provider.renewal == "overlap"
    assert config.provider.silence == 600
    assert config.provider.allow_insecure is False
    assert config.database.url.get_secret_value() == f"sqlite:///{folder}/ingestor.db"
    assert config.database.migrate == "auto"
    assert (config.database.batch.max_rows, config.database.batch.max_wait) == (5000, 0.1)
    kept = config.database.retention
    assert (kept.payloads, kept.samples, kept.journal) == (86_400, None, 90 * 86_400)
    assert config.spool.path == folder / "spool"
    assert (config.spool.max_bytes, config.spool.sync_every) == (1 << 30, 0.02)
    assert (config.spool.keep.time, config.spool.keep.size) == (86_400, 2 << 30)
    assert config.http.listen == ListenAddress("127.0.0.1", 8642)
    assert (config.log.level, config.log.format) == ("info", "auto")
    assert config.watch is False
    assert config.source == folder / "config.yaml"
    assert config.sha256 == hashlib.sha256(ONE.encode()).hexdigest()


@pytest.mark.parametrize("text", ["0.9", '"0.9"', "4", "auto"])
def test_protocol_is_a_number_or_text(loaded: Loaded, text: str) -> None:
    assert loaded(ONE + f"provider: {{protocol: {text}}}").provider.protocol == text.strip('"')


def test_config_is_frozen(loaded: Loaded) -> None:
    config = loaded(ONE)
    for place in (config, config.provider, config.database.batch, config.spool):
        with pytest.raises(ValueError, match="frozen"):
            place.watch = True  # type: ignore[union-attr]


def test_all_problems_are_reported_in_file_order(refused: Refused) -> None:
    problems = refused(
        "provider:\n"
        "  urll: https://example.com\n"
        "  silence: 10\n"
        "  protocol: 5\n"
        "database: {batch: {max_rows: many}}\n"
        "subscriptions:\n"
        "  - {path: /a, ticker: A B}\n"
        "  - path: /a\n"
        "    path: /b\n"
        "watch: perhaps\n",
        {"INGESTOR_LOG__LEVL": "x"},
    )
    assert [problem.rpartition(": ")[0].partition(": ")[0] for problem in problems] == [
        "config.yaml:2:3",
        "config.yaml:3:12",
        "config.yaml:4:13",
        "config.yaml:5:30",
        "config.yaml:7:24",
        "config.yaml:9:5",
        "config.yaml:10:8",
        "INGESTOR_LOG__LEVL",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("provder: {}", '2:1: provder: unknown key; did you mean "provider"?'),
        ("zzz: {}", "2:1: zzz: unknown key; write one of instance, provider, database, spool"),
        ("provider: {apikey: hunter2}", '2:12: provider.apikey: unknown key; did you mean "api_key_file"?'),
        (
            "provider: {token: {lifetime: 1h, renew_before: 1h}}",
            "2:48: provider.token.renew_before: must be shorter",
        ),
        ("provider: {token_path: jwt}", "2:24: provider.token_path: must be a path that begins with /"),
        ("provider: {events: []}", "2:20: provider.events: is empty; add at least one"),
        ("provider: {events: res}", "2:20: provider.events: must be a list"),
        ("provider: {events: [res, ~]}", "2:26: provider.events.1: has no value"),
        ("provider: {protocol: 0.8}", '2:22: provider.protocol: "0.8" is not one of the choices; did you mean "0.9"?'),
        ("provider: {renewal: overlp}", '"overlp" is not one of the choices; did you mean "overlap"?'),
        ("provider: {ca_file: nowhere.pem}", "2:21: provider.ca_file: the file /"),
        (
            "provider: {url: http://example.com}",
            "2:17: provider.url: http:// would send the key and all data",
        ),
        ("database: {batch: {max_rows: 0}}", "2:30: database.batch.max_rows: must be at least 1"),
        ("database: {batch: {max_rows: 2000000}}", "must be at most 1,000,000"),
        ("database: {batch: {max_wait: 10m}}", '"10m" is out of range; write 0s to 60s'),
        ("database: {retention: {samples: none}}", '"none" is not a duration'),
        (
            "spool: {keep: 5}",
            "spool.keep: must be a mapping",
        ),
        (
            "spool: {keep: {size: 1000}}",
            'spool.keep.size: "1000" has no unit; add one of B, KiB, MiB, GiB',
        ),
        (
            "spool: {max_bytes: 1000}",
            '2:20: spool.max_bytes: "1000" has no unit; add one of B, KiB, MiB, GiB',
        ),
        ("spool: {max_bytes: 1KiB}", "is out of range; write 64KiB to 64TiB"),
        ("spool: {path: }", "2:15: spool.path: has no value"),
        ("http: {listen: '8642'}", "2:16: http.listen: must be host:port"),
        ("http: {listen: '::1:8642'}", "with brackets around IPv6"),
        ("http: {listen: '127.0.0.1:70000'}", "a port from 0 to 65535"),
        ("log: {level: loud}", '2:14: log.level: "loud" is not one of the choices; write one of debug'),
        ("instance: [a]", "2:11: instance: must be a single text"),
        (f"instance: {'x' * 65}", "has 65 characters; at most 64"),
        ("watch: 2", "2:8: watch: is neither true nor false"),
        ("log: text", "2:6: log: must be a mapping"),
        ("log: [a]", "2:6: log: must be a mapping"),
    ],
)
def test_invalid_value_is_reported_with_location_and_remedy(refused: Refused, text: str, expected: str) -> None:
    (problem,) = refused(ONE + text)
    assert expected in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("garbage.pem", "contains no certificates"),
        ("empty.pem", "contains no certificates"),
        ("folder", "cannot be read (Is a directory)"),
        ("garbage.pem/ca.pem", "cannot be read (Not a directory)"),
    ],
)
def test_unusable_ca_file_is_rejected(folder: Path, refused: Refused, name: str, says: str) -> None:
    (folder / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
    (folder / "empty.pem").touch()
    (folder / "folder").mkdir()
    (problem,) = refused(f"{ONE}provider: {{ca_file: {name}}}")
    assert problem.startswith("config.yaml:2:21: provider.ca_file: ")
    assert says in problem


# Of a CA made for this test; its key was deleted.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBjTCCATOgAwIBAgIUUoYD/B69gtaWF5Ar0f9Vyz4GmgEwCgYIKoZIzj0EAwIw
GzEZMBcGA1UEAwwQYS10ZXN0LWF1dGhvcml0eTAgFw0yNjExMjIxMjEwMDRaGA8y
MTI2MTAyOTEyMTAwNFowGzEZMBcGA1UEAwwQYS10ZXN0LWF1dGhvcml0eTBZMBMG
ByqGSM49AgEGCCqGSM49AwEHA0IABEpXZOLocRfcIrzuGOPtbPMNg3gcKl+mZR/j
K4e4ztR3TZwk7BUVJQrk+XGNKQ7SjuEIBoj8nRCay6sP0wwKkFqjUzBRMB0GA1Ud
DgQWBBRYhf7T362Q/kloBfSM0/qrdFanNTAfBgNVHSMEGDAWgBRYhf7T362Q/klo
BfSM0/qrdFanNTAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQCP
7G+ZeWTNsR3P+6X905eRaSKhU0Xsy7/qE3dAp6bUtwIgGV6TwshW19/WALLCCw6H
iCdqQStkK4kSu5pEWAN35EE=
-----END CERTIFICATE-----
"""


def test_valid_ca_file_is_accepted(folder: Path, loaded: Loaded) -> None:
    (folder / "ca.pem").write_text(CERTIFICATE)
    assert loaded(f"{ONE}provider: {{ca_file: ca.pem}}").provider.ca_file == folder / "ca.pem"


def test_empty_section_has_its_defaults(loaded: Loaded) -> None:
    config = loaded(ONE + "spool:\n  # path: x\nprovider:\n  token:\n")
    assert config.spool.sync_every == 0.02
    assert config.provider.token.lifetime == 18_000


def test_retention_accepts_none_and_forever(loaded: Loaded) -> None:
    text = ONE + "database: {retention: {payloads: none, samples: 30d, journal: forever}}"
    kept = loaded(text).database.retention
    assert (kept.payloads, kept.samples, kept.journal) == (0.0, 30 * 86_400, None)


@pytest.mark.parametrize(
    ("written", "listen"),
    [("0.0.0.0:0", ("0.0.0.0", 0)), ("'[::1]:8642'", ("::1", 8642)), ("localhost:80", ("localhost", 80))],
)
def test_http_listen_address_is_parsed(loaded: Loaded, written: str, listen: tuple[str, int]) -> None:
    assert loaded(f"{ONE}http: {{listen: {written}}}").http.listen == listen


def test_plain_http_to_other_machine_needs_allow_insecure(loaded: Loaded) -> None:
    config = loaded(ONE + "provider: {url: http://example.com, allow_insecure: true}")
    assert config.provider.url == "http://example.com"
    assert loaded(ONE + "provider: {url: http://127.0.0.1:1}").provider.url == "http://127.0.0.1:1"


def test_relative_paths_start_from_state_directory_or_file(folder: Path, loaded: Loaded) -> None:
    text = ONE + "spool: {path: s/p}\ndatabase: {url: 'sqlite:///d.db'}\n"
    assert loaded(text).spool.path == folder / "s" / "p"
    config = loaded(text, {"STATE_DIRECTORY": "/var/lib/ingestor:/var/lib/other"})
    assert config.spool.path == Path("/var/lib/ingestor/s/p")
    assert config.database.url.get_secret_value() == "sqlite:////var/lib/ingestor/d.db"
    assert loaded(ONE + "spool: {path: /srv/spool}").spool.path == Path("/srv/spool")


def test_explicit_file_takes_precedence(folder: Path, loaded: Loaded) -> None:
    loaded(ONE)
    (folder / "asked.yaml").write_text(ONE + "instance: asked\n")
    (folder / "named.yaml").write_text(ONE + "instance: named\n")
    named = {"INGESTOR_CONFIG": "named.yaml"}
    assert load(None, {}).instance is None
    assert load(None, named).instance == "named"
    assert load(Path("asked.yaml"), named).instance == "asked"
    with pytest.raises(ConfigError, match=r"^gone.yaml: there is no such file"):
        load(None, {"INGESTOR_CONFIG": "gone.yaml"})


def test_system_file_is_the_last_candidate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = folder / "etc.yaml"
    monkeypatch.setattr(loader, "SYSTEM_FILE", system)
    with pytest.raises(ConfigError, match=r"for --config, \$INGESTOR_CONFIG, config.yaml, .*`ingestor init`"):
        load(None, {})
    system.write_text(ONE)
    assert load(None, {}).source == system


def test_inaccessible_system_file_is_not_reported_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # stat fails even for root, which a folder without permissions does not achieve.
    monkeypatch.setattr(loader, "SYSTEM_FILE", folder / ("x" * 300))
    with pytest.raises(ConfigError, match=r"cannot be read \(File name too long\)"):
        load(None, {})


def test_folder_is_rejected_as_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load(folder, {})


def test_env_defaults_to_process_environment(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(ONE)
    monkeypatch.setenv("INGESTOR_INSTANCE", "from the process")
    assert load().instance == "from the process"


@pytest.mark.parametrize(
    ("text", "env", "folder"),
    [
        pytest.param("spool: {path: here}\nsubscriptions: 7", {}, "here", id="whatever else is wrong"),
        pytest.param("spool: {path: here}", {"INGESTOR_SPOOL__PATH": "there"}, "there", id="from the environment"),
        pytest.param("spool: {path: here}", {"STATE_DIRECTORY": "/var/lib/i"}, "/var/lib/i/here", id="of a service"),
        pytest.param("spool: {path: [a]}", {}, "spool", id="no path"),
        pytest.param("spool: {path: here}\n]", {}, "spool", id="no YAML"),
    ],
)
def test_spool_folder_is_found_in_invalid_file(tmp_path: Path, text: str, env: dict[str, str], folder: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert find_spool_folder(file, env) == tmp_path / folder


def test_standby_with_sqlite_is_rejected(refused: Refused, loaded: Loaded) -> None:
    standby = ONE + "provider: {standby: true}\n"
    (problem,) = refused(standby)
    assert "database" in str(problem) and "is SQLite" in str(problem) and "remove provider.standby" in str(problem)
    assert loaded(standby + "database: {url: 'postgresql://u@h/b'}").provider.standby is True
