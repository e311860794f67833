from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingestor.config import require_api_key
from ingestor.config.secret_file import MAX_BYTES, SecretFile, UnusableSecret
from ingestor.config.secrets import read_api_key
from ingestor.errors import ConfigError, InsecureSecretFile

from .conftest import ONE, Loaded, Refused

KEY_FILE = ONE + "provider: {api_key_file: key}\n"


def put(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_api_key_source_precedence(folder: Path, loaded: Loaded) -> None:
    def key(text: str, **env: str) -> str:
        return require_api_key(loaded(text, env)).get_secret_value()

    put(folder / "key", "from-file\n")
    put(folder / "credentials" / "api_key", "from-credential\n", 0o444)
    credentials = str(folder / "credentials")
    from_env = {"INGESTOR_PROVIDER__API_KEY": "from-env"}
    assert key(ONE, **from_env) == "from-env"
    assert key(KEY_FILE, **from_env) == "from-file"
    assert key(KEY_FILE, CREDENTIALS_DIRECTORY=credentials, **from_env) == "from-credential"


def test_api_key_can_be_reread_from_its_file(folder: Path, loaded: Loaded) -> None:
    file = put(folder / "key", "from-file\n")
    credential = put(folder / "credentials" / "api_key", "from-credential\n", 0o444)
    from_env = {"INGESTOR_PROVIDER__API_KEY": "from-env"}
    assert loaded(ONE, from_env).key_file is None
    assert loaded(KEY_FILE, from_env).key_file == SecretFile(file)
    found = loaded(KEY_FILE, {"CREDENTIALS_DIRECTORY": str(credential.parent)}).key_file
    assert found == SecretFile(credential, others_may_read=True)
    put(credential, "another\n", 0o444)
    assert read_api_key(found).get_secret_value() == "another"
    put(file, "hünter2")
    with pytest.raises(ConfigError, match=f"{file}: provider.api_key: must be one word") as raised:
        read_api_key(SecretFile(file))
    assert "nter2" not in str(raised.value)


def test_database_url_source_precedence(folder: Path, loaded: Loaded) -> None:
    def url(text: str, **env: str) -> str:
        return loaded(text, env).database.url.get_secret_value()

    put(folder / "url", "postgres://u:p@h/file\r\n")
    put(folder / "credentials" / "database_url", "postgres://u:p@h/credential", 0o444)
    credentials = str(folder / "credentials")
    from_env = {"INGESTOR_DATABASE__URL": "postgres://u:p@h/env"}
    in_yaml = ONE + "database:\n  url: postgres://u@h/yaml\n"
    with_file = in_yaml + "  url_file: url\n"
    assert url(ONE) == f"sqlite:///{folder}/ingestor.db"
    assert url(in_yaml) == "postgresql+psycopg://u@h/yaml"
    assert url(in_yaml, **from_env) == "postgresql+psycopg://u:p@h/env"
    assert url(with_file, **from_env) == "postgresql+psycopg://u:p@h/file"
    assert url(with_file, CREDENTIALS_DIRECTORY=credentials) == "postgresql+psycopg://u:p@h/credential"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602])
def test_insecure_secret_file_is_rejected_with_chmod(folder: Path, loaded: Loaded, mode: int) -> None:
    key = put(folder / "key", "hunter2", mode)
    with pytest.raises(InsecureSecretFile) as raised:
        loaded(KEY_FILE)
    assert raised.value.exit_code == 77
    assert f"run: chmod 600 {key}" in str(raised.value)
    assert str(raised.value).startswith("config.yaml:2:26: provider.api_key_file: ")
    key.chmod(0o600)
    assert require_api_key(loaded(KEY_FILE)).get_secret_value() == "hunter2", "the command fixed it"


def test_chmod_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    refusal = SecretFile(put(tmp_path / "my key; rm x", "hunter2", 0o644)).read()
    assert isinstance(refusal, UnusableSecret)
    assert refusal.message.endswith(f"chmod 600 '{tmp_path}/my key; rm x'")


def test_insecure_secret_file_is_reported_with_other_problems(folder: Path, refused: Refused) -> None:
    put(folder / "key", "hunter2", 0o644)
    first, second = refused(KEY_FILE + "watch: perhaps\n")
    assert "chmod 600" in first
    assert second.startswith("config.yaml:3:8: watch")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("\n", "is empty", id="a line break alone"),
        pytest.param("hunter2 hunter2", "must be one word", id="a blank inside"),
        pytest.param("hunter2\nhunter2\n", "must be one word", id="two lines"),
        pytest.param("hünter2", "must be one word", id="beyond ASCII"),
        pytest.param(b"hunter2\xff", "must be one word", id="not UTF-8"),
        pytest.param(b"hunter2\0", "must be one word", id="NUL"),
        pytest.param(b"h" * (MAX_BYTES + 1), "is larger than 64 KiB", id="huge"),
    ],
)
def test_invalid_key_file_is_rejected_without_its_contents(
    folder: Path, refused: Refused, content: str | bytes, says: str
) -> None:
    put(folder / "key", content)
    (problem,) = refused(KEY_FILE)
    assert problem.startswith("config.yaml:2:26: provider.api_key")
    assert says in problem
    assert "hunter" not in problem


def test_missing_key_file_is_not_named_because_it_may_be_a_key(refused: Refused) -> None:
    (problem,) = refused(ONE + "provider: {api_key_file: hunter2}\n")
    assert "No such file or directory" in problem
    assert "hunter2" not in problem


def test_pipe_or_folder_is_rejected_as_secret_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refusal = SecretFile(tmp_path / "pipe").read()
    assert refusal == UnusableSecret("is not a regular file; name the file that contains the secret")
    assert isinstance(SecretFile(tmp_path).read(), UnusableSecret)


def test_key_in_document_is_rejected_with_alternatives(refused: Refused) -> None:
    (problem,) = refused(ONE + "provider: {api_key: hunter2}\n")
    assert problem.startswith("config.yaml:2:12: provider.api_key: does not belong")
    for place in ("provider.api_key_file", "systemd credential api_key", "INGESTOR_PROVIDER__API_KEY"):
        assert place in problem
    assert "hunter2" not in problem


def test_missing_key_is_an_error_only_if_required(loaded: Loaded) -> None:
    config = loaded(ONE)
    assert config.provider.api_key is None
    with pytest.raises(ConfigError, match=r"provider.api_key: is missing; put it into a file"):
        require_api_key(config)


def test_empty_key_variable_is_rejected(refused: Refused) -> None:
    assert refused(ONE, {"INGESTOR_PROVIDER__API_KEY": ""}) == [
        "INGESTOR_PROVIDER__API_KEY: provider.api_key: is empty; set it or unset it"
    ]


def test_password_in_readable_document_is_rejected(loaded: Loaded, refused: Refused) -> None:
    text = ONE + 'database: {url: "postgresql://u:hunter2@h/d"}\n'
    (problem,) = refused(text)
    assert problem.startswith("config.yaml:2:17: database.url: contains a password, and others can read")
    assert "database.url_file" in problem
    assert "hunter2" not in problem
    assert loaded(text, mode=0o600).database.url.get_secret_value() == "postgresql+psycopg://u:hunter2@h/d"


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/d", "postgresql://u:hunter2#@h/d", "hunter2"])
def test_invalid_database_url_is_reported_without_its_text(refused: Refused, url: str) -> None:
    (problem,) = refused(ONE, {"INGESTOR_DATABASE__URL": url})
    assert problem.startswith("INGESTOR_DATABASE__URL: database.url: ")
    assert "hunter2" not in problem


def test_config_text_contains_no_secret(folder: Path, loaded: Loaded) -> None:
    config = loaded(
        ONE, {"INGESTOR_PROVIDER__API_KEY": "hunter2", "INGESTOR_DATABASE__URL": "postgres://u:hunter2@h/d"}
    )
    for text in (
        repr(config),
        str(config),
        f"{config.provider}",
        config.model_dump_json(exclude={"subscriptions"}),
    ):
        assert "hunter2" not in text


def test_error_has_no_context_with_a_secret(loaded: Loaded) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(ONE + "watch: perhaps\n", {"INGESTOR_PROVIDER__API_KEY": "hunter2"})
    assert raised.value.__context__ is None, "pydantic's own error quotes its input"
