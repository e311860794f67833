"""Take secrets out of text that people will read. Knows nothing of where the text goes.

By value, for what we were told is secret; by pattern, for what looks like one whoever wrote it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import Counter
from urllib.parse import quote, quote_plus

MASK = "***"
MIN_SECRET_CHARACTERS = 4  # characters; masking anything shorter would make text unreadable and hide nothing

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A JWT, whole or cut off anywhere: its first parts are JSON objects, and `{"` in base64 is `eyJ`.
    (re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*){0,2}"), MASK),
    (re.compile(r"(?i)\b((?:access_|api_)?token|api_?key)(=|%3d)[^&\s\\\"'<>)\]]+"), rf"\1\2{MASK}"),
    (re.compile(r"(?i)(\\?\"(?:token|api_?key)\\?\"\s*:\s*\\?\")[^\"\\]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(authorization\W{1,8}(?:basic|bearer)\s+)[^\s\\'\",;]+"), rf"\1{MASK}"),
    # Up to the last @ before the path: a password may hold one itself.
    (re.compile(r"(://[^/\s:@]*:)[^/\s]+@"), rf"\1{MASK}@"),
)


class Redactor:
    """The secrets known now, and how to mask them. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, tuple[str, ...]] = {}
        self._uses: Counter[str] = Counter()
        self._needles: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._forms)} secrets>"

    def add(self, secret: str) -> None:
        """Mask ``secret`` from now on, in every spelling. Shorter than 4 characters: ignored."""
        if len(secret) < MIN_SECRET_CHARACTERS:
            return
        with self._lock:
            self._uses[secret] += 1
            self._forms[secret] = _forms(secret)
            self._sort()

    def forget(self, secret: str) -> None:
        """Take one ``add`` back, so that a year of ended tokens does not pile up."""
        with self._lock:
            self._uses[secret] -= 1
            if self._uses[secret] <= 0:  # nobody else holds it: a token's claims repeat the API key
                del self._uses[secret]
                self._forms.pop(secret, None)
                self._sort()

    def scrub(self, text: str) -> str:
        """``text`` with every secret replaced by ``***``."""
        for needle in self._needles:
            if needle in text:
                text = text.replace(needle, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def _sort(self) -> None:
        # Longest first, so that a secret inside another one does not leave the longer's rest behind.
        every = {form for forms in self._forms.values() for form in forms}
        self._needles = tuple(sorted(every, key=lambda form: (-len(form), form)))


def _forms(secret: str) -> tuple[str, ...]:
    # surrogateescape text (from the environment) cannot be encoded strictly, and must not raise here
    raw = secret.encode("utf-8", "surrogateescape")
    basic = base64.b64encode(raw + b":").decode()
    return (
        secret,
        quote(raw, safe=""),
        quote(raw),
        quote_plus(raw),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        basic,
        basic.rstrip("="),
    )


redactor = Redactor()  # the one that logs, facts and status share: a secret told to one is told to all
