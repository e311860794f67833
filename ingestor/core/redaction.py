"""Mask secrets in text for people: known secrets by value, other text by patterns that secrets match."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import Counter
from urllib.parse import quote, quote_plus

MASK = "***"
MIN_SECRET_CHARACTERS = 4  # masking anything shorter would make text unreadable and hide nothing

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A JWT, complete or truncated: its first parts are JSON objects, and `{"` in base64 is `eyJ`.
    (re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*){0,2}"), MASK),
    (re.compile(r"(?i)\b((?:access_|api_)?token|api_?key)(=|%3d)[^&\s\\\"'<>)\]]+"), rf"\1\2{MASK}"),
    (re.compile(r"(?i)(\\?\"(?:token|api_?key)\\?\"\s*:\s*\\?\")[^\"\\]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(authorization\W{1,8}(?:basic|bearer)\s+)[^\s\\'\",;]+"), rf"\1{MASK}"),
    # Up to the last @ before the path, because a password may contain one.
    (re.compile(r"(://[^/\s:@]*:)[^/\s]+@"), rf"\1{MASK}@"),
)


class Redactor:
    """The secrets that are masked by value. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encodings: dict[str, tuple[str, ...]] = {}
        self._counts: Counter[str] = Counter()
        self._needles: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._encodings)} secrets>"

    def add(self, secret: str) -> None:
        """Mask ``secret`` from now on, in every encoding. Secrets shorter than 4 characters are ignored."""
        if len(secret) < MIN_SECRET_CHARACTERS:
            return
        with self._lock:
            self._counts[secret] += 1
            self._encodings[secret] = _encodings(secret)
            self._update_needles()

    def remove(self, secret: str) -> None:
        """Undo one ``add``, so that the secrets of expired tokens do not accumulate."""
        with self._lock:
            self._counts[secret] -= 1
            if self._counts[secret] <= 0:  # else it was added twice: a token's claims repeat the API key
                del self._counts[secret]
                self._encodings.pop(secret, None)
                self._update_needles()

    def scrub(self, text: str) -> str:
        """Return ``text`` with every secret replaced by ``***``."""
        for needle in self._needles:
            if needle in text:
                text = text.replace(needle, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def _update_needles(self) -> None:
        # Longest first: if a secret contains another one, masking the shorter first would leave part of the longer.
        needles = {text for texts in self._encodings.values() for text in texts}
        self._needles = tuple(sorted(needles, key=lambda text: (-len(text), text)))


def _encodings(secret: str) -> tuple[str, ...]:
    # Text from the environment may contain surrogates, which cannot be encoded strictly; this must not raise.
    raw = secret.encode("utf-8", "surrogateescape")
    in_urls = (quote(raw, safe=""), quote(raw), quote_plus(raw))
    in_header = base64.b64encode(raw + b":").decode()
    return (secret, *in_urls, json.dumps(secret)[1:-1], repr(secret)[1:-1], in_header, in_header.rstrip("="))


redactor = Redactor()  # shared by logs, facts, status and all commands
