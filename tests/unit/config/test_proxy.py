from __future__ import annotations

import base64

import pytest

from ingestor.config.render import list_secrets, render

from .conftest import ONE, Loaded, Refused

PROXY = "http://proxy.example:3128"
HTTP = ONE + "provider: {url: http://feed.example:8000, allow_insecure: true}\n"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({"HTTPS_PROXY": PROXY}, PROXY, id="upper case"),
        pytest.param({"https_proxy": PROXY}, PROXY, id="lower case"),
        pytest.param({"https_proxy": PROXY, "HTTPS_PROXY": "http://other.example"}, PROXY, id="lower before upper"),
        pytest.param({"https_proxy": "", "HTTPS_PROXY": PROXY}, None, id="emptied"),
        pytest.param({"https_proxy": "proxy.example:3128"}, PROXY, id="without a scheme"),
        pytest.param({"HTTP_PROXY": PROXY}, None, id="for http alone"),
        pytest.param({"HTTPS_PROXY": PROXY, "NO_PROXY": "open.marketprophit.com"}, None, id="excepted"),
        pytest.param({"HTTPS_PROXY": PROXY, "no_proxy": "localhost, .marketprophit.com"}, None, id="its domain"),
        pytest.param({"HTTPS_PROXY": PROXY, "no_proxy": "open.marketprophit.com:8443"}, PROXY, id="another port"),
        pytest.param({"HTTPS_PROXY": PROXY, "no_proxy": "prophit.com"}, PROXY, id="another domain"),
        pytest.param({"HTTPS_PROXY": PROXY, "no_proxy": "*"}, None, id="everything excepted"),
        pytest.param({}, None, id="none"),
    ],
)
def test_proxy_comes_from_environment(loaded: Loaded, env: dict[str, str], expected: str | None) -> None:
    proxy = loaded(ONE, env).proxy
    assert (proxy and proxy.get_secret_value()) == expected


def test_plain_http_uses_http_proxy(loaded: Loaded) -> None:
    proxy = loaded(HTTP, {"http_proxy": PROXY, "https_proxy": "http://other.example"}).proxy
    assert proxy is not None
    assert proxy.get_secret_value() == PROXY


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "127.9.9.9"])
def test_loopback_uses_no_proxy(loaded: Loaded, host: str) -> None:
    env = {"http_proxy": PROXY, "https_proxy": PROXY}
    for scheme in ("http", "https"):
        assert loaded(ONE + f'provider: {{url: "{scheme}://{host}:8000"}}\n', env).proxy is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("socks5://somebody:hunter2@proxy.example", 'is a "socks5" proxy; only http:// and https://'),
        ("http://somebody:hunter2@", "is not a valid URL"),
        ("http://somebody:hunter2@proxy.example:port", "is not a valid URL"),
        ("http://proxy.example with hunter2", "is not a valid URL"),
    ],
)
def test_invalid_proxy_is_reported_without_its_url(refused: Refused, url: str, says: str) -> None:
    (problem,) = refused(ONE, {"HTTPS_PROXY": url})
    assert problem.startswith(f"HTTPS_PROXY: {says}")
    assert "hunter2" not in problem
    assert len(refused(ONE + "watch: perhaps\n")) == 1


@pytest.mark.parametrize(
    ("credentials", "hidden"),
    [
        ("somebody:hun%40ter2@", ["hun%40ter2", "hun@ter2", base64.b64encode(b"somebody:hun@ter2").decode()]),
        ("token-of-somebody@", ["token-of-somebody", base64.b64encode(b"token-of-somebody:").decode()]),
    ],
)
def test_proxy_credentials_are_secrets(loaded: Loaded, credentials: str, hidden: list[str]) -> None:
    config = loaded(ONE, {"HTTPS_PROXY": f"http://{credentials}proxy.example"})
    assert set(hidden) == set(list_secrets(config))
    shown = f"{config!r} {render(config)} {config.model_dump(mode='json', exclude={'subscriptions'})}"
    assert not [secret for secret in hidden if secret in shown]
