"""The proxy on the way to the provider, named by the environment's usual variables in either case.

HTTPS_PROXY (for a provider.url with http://, HTTP_PROXY) and NO_PROXY, which lists hosts and domains to go to directly.
What stays on this machine never takes a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # there, if in no stub

from pydantic import SecretStr

from ingestor.config.urls import is_loopback, normalize_proxy_url
from ingestor.errors import ConfigProblem


def find_proxy(url: str, env: Mapping[str, str], report: Callable[[ConfigProblem], None]) -> SecretStr | None:
    """The proxy's URL for the provider's; it may hold a password. One that cannot be used is reported."""
    parts = urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    name = _set(f"{parts.scheme}_proxy", env)
    no_proxy = env.get(_set("no_proxy", env), "")
    if not env.get(name) or proxy_bypass_environment(parts.netloc, {"no": no_proxy}):
        return None
    try:
        return SecretStr(normalize_proxy_url(env[name]))
    except ValueError as error:
        report(ConfigProblem(name, "", str(error)))
        return None


def _set(name: str, env: Mapping[str, str]) -> str:
    """The spelling that counts: the lower one where both are set, as everywhere."""
    return name if name in env else name.upper()
