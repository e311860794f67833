"""Override the document with ``INGESTOR_<SECTION>__<KEY>`` variables, and find the proxy for the provider."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # missing from the stubs

from pydantic import SecretStr

from ingestor.config.draft import Draft
from ingestor.config.model import Settings, list_keys
from ingestor.config.urls import is_loopback, normalize_proxy_url
from ingestor.errors import ConfigProblem

FILE_VARIABLE = "INGESTOR_CONFIG"
_PREFIX = "INGESTOR_"
_TEST_PREFIX = "INGESTOR_TEST_"


def variable_name(*loc: str) -> str:
    """Return the variable that sets a key: ``("http", "listen")`` → ``INGESTOR_HTTP__LISTEN``."""
    return _PREFIX + "__".join(loc).upper()


def apply_environment(draft: Draft, env: Mapping[str, str], secrets: frozenset[tuple[str, str]]) -> None:
    """Override the document's values. Skip ``secrets``, which ``place_secrets`` resolves. Report unknown variables."""
    known = {variable_name(*loc): (loc, is_list) for loc, is_list in list_keys(Settings)}
    for name, text in sorted(env.items()):
        if name not in known:
            if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name != FILE_VARIABLE:
                draft.add_problem(ConfigProblem(name, "", _unknown_message(name, [*known, FILE_VARIABLE])))
            continue
        loc, is_list = known[name]
        if loc not in secrets:
            value = [item.strip() for item in text.split(",")] if is_list else text
            draft.set(loc, value if text else None, name)


def _unknown_message(name: str, known: list[str]) -> str:
    if name.startswith(variable_name("subscriptions")):
        return "subscriptions cannot be set from the environment; write them in the file"
    # Without the common prefix, which would make all names similar.
    by_suffix = {other.removeprefix(_PREFIX): other for other in known}
    similar = difflib.get_close_matches(name.removeprefix(_PREFIX), by_suffix, n=1)
    return f"unknown variable; {f'did you mean {by_suffix[similar[0]]}?' if similar else 'unset it'}"


def find_proxy(url: str, env: Mapping[str, str], report: Callable[[ConfigProblem], None]) -> SecretStr | None:
    """Return the URL of the proxy for a provider's URL, which may contain a password. Report one that cannot be used.

    The variables are HTTPS_PROXY (HTTP_PROXY for a URL with http://) and NO_PROXY, which lists hosts and domains to
    connect to directly. Connections to this machine never use a proxy.
    """
    parts = urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    name = _present_spelling(f"{parts.scheme}_proxy", env)
    no_proxy = env.get(_present_spelling("no_proxy", env), "")
    if not env.get(name) or proxy_bypass_environment(parts.netloc, {"no": no_proxy}):
        return None
    try:
        return SecretStr(normalize_proxy_url(env[name]))
    except ValueError as error:
        report(ConfigProblem(name, "", str(error)))
        return None


def _present_spelling(name: str, env: Mapping[str, str]) -> str:
    """Return the lower or upper case spelling. Lower case takes precedence, as in other programs."""
    return name if name in env else name.upper()
