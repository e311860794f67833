"""Find the proxy for the provider in the usual environment variables, in upper or lower case.

HTTPS_PROXY (HTTP_PROXY for a provider.url with http://) and NO_PROXY, which lists hosts and domains to connect to
directly. Connections to this machine never use a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # missing from the stubs

from pydantic import SecretStr

from ingestor.config.urls import is_loopback, normalize_proxy_url
from ingestor.errors import ConfigProblem


def find_proxy(url: str, env: Mapping[str, str], report: Callable[[ConfigProblem], None]) -> SecretStr | None:
    """Return the proxy's URL, which may contain a password, for a provider's URL. Report one that cannot be used."""
    parts = urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    name = _variable_name(f"{parts.scheme}_proxy", env)
    no_proxy = env.get(_variable_name("no_proxy", env), "")
    if not env.get(name) or proxy_bypass_environment(parts.netloc, {"no": no_proxy}):
        return None
    try:
        return SecretStr(normalize_proxy_url(env[name]))
    except ValueError as error:
        report(ConfigProblem(name, "", str(error)))
        return None


def _variable_name(name: str, env: Mapping[str, str]) -> str:
    """Return the spelling that counts. Lower case takes precedence, as in other programs."""
    return name if name in env else name.upper()
