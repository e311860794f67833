"""Parse and format durations and sizes with units, such as ``1h30m`` and ``512MiB``."""

from __future__ import annotations

import re

SECONDS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BINARY = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
BYTES = {**_BINARY, "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
DURATION_PATTERN = rf"^(?:0|(?:{_NUMBER}(?:ms|[wdhms]))+)$"
SIZE_PATTERN = rf"^(?:0|{_NUMBER}(?:[KMGT]iB|[kMGT]?B))$"
_PART = re.compile(rf"({_NUMBER})(ms|[wdhms])")


def parse_duration(text: str) -> float:
    """Parse ``90s``, ``1h30m`` or ``100ms`` to seconds. Raises ValueError with a message for the operator."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(
            f'"{text}" has no unit; add one of ms, s, m, h, d: "{text}s" is {text} seconds'
            if re.fullmatch(_NUMBER, text)
            else f'"{text[:40]}" is not a duration; write for example 100ms, 90s, 1h30m or 7d'
        )
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if units != [unit for unit in SECONDS if unit in units]:
        raise ValueError(f'"{text}" has its units out of order; write the largest first, and each once: 1h30m')
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """Return the shortest text that ``parse_duration`` parses to the same number of microseconds."""
    remainder = round(seconds * 1_000_000)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, remainder = divmod(remainder, round(SECONDS[unit] * 1_000_000))
        if count:
            parts.append(f"{count}{unit}")
    if remainder:
        parts.append(f"{remainder / 1000:g}ms")
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """Parse ``512MiB``, ``10MB`` or ``0`` to bytes, rounded down. Raises ValueError with a message for the operator."""
    if not re.fullmatch(SIZE_PATTERN, text):
        raise ValueError(
            f'"{text}" has no unit; add one of B, KiB, MiB, GiB: "{text}MiB" is {text} × 1,048,576 bytes'
            if re.fullmatch(_NUMBER, text)
            else f'"{text[:40]}" is not a size; write for example 512MiB, 1GiB or 10MB'
        )
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups("B")  # type: ignore[union-attr]  # the pattern matched
    return int(float(number) * BYTES[unit or "B"])


def format_size(size_bytes: int) -> str:
    """Format in the largest unit that represents the size exactly."""
    for unit, factor in sorted(BYTES.items(), key=lambda item: -item[1]):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return "0B"
