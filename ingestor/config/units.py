"""Durations and sizes as people write them, ``1h30m`` and ``512MiB``. Knows nothing of what they are for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

SECONDS: Mapping[str, float] = MappingProxyType(
    {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
)
BYTES: Mapping[str, int] = MappingProxyType(
    {
        "TiB": 1 << 40,
        "GiB": 1 << 30,
        "MiB": 1 << 20,
        "KiB": 1 << 10,
        "TB": 10**12,
        "GB": 10**9,
        "MB": 10**6,
        "kB": 10**3,
        "B": 1,
    }
)

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
DURATION_PATTERN = rf"^(?:0|(?:{_NUMBER}(?:ms|[wdhms]))+)$"
SIZE_PATTERN = rf"^(?:0|{_NUMBER}(?:[KMGT]iB|[kMGT]?B))$"
_PART = re.compile(rf"({_NUMBER})(ms|[wdhms])")


def parse_duration(text: str) -> float:
    """``90s``, ``1h30m``, ``100ms`` → seconds. A plain ``0`` needs no unit; every other number does.

    Raises ValueError with a message for the operator.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(_not_a_duration(text))
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if units != [unit for unit in SECONDS if unit in units]:
        raise ValueError(f'"{text}" has its units out of order; write the largest first, each once: 1h30m')
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def _not_a_duration(text: str) -> str:
    if re.fullmatch(_NUMBER, text):
        return f'"{text}" has no unit; add one of ms, s, m, h, d: "{text}s" is {text} seconds'
    return f'"{text[:40]}" is not a duration; write for example 100ms, 90s, 1h30m or 7d'


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` reads as the same seconds, to the microsecond."""
    rest = round(seconds * 1_000_000)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, round(SECONDS[unit] * 1_000_000))
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{rest / 1000:g}ms")
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """``512MiB``, ``10MB``, ``0`` → bytes, rounded down. Raises ValueError, a message for the operator."""
    if not re.fullmatch(SIZE_PATTERN, text):
        raise ValueError(_not_a_size(text))
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups("B")  # type: ignore[union-attr]  # it matched
    return int(float(number) * BYTES[unit or "B"])


def _not_a_size(text: str) -> str:
    if re.fullmatch(_NUMBER, text):
        return f'"{text}" has no unit; add one of B, KiB, MiB, GiB: "{text}MiB" is {text} × 1,048,576 bytes'
    return f'"{text[:40]}" is not a size; write for example 512MiB, 1GiB or 10MB'


def format_size(size_bytes: int) -> str:
    """The size in the largest unit that holds it exactly."""
    for unit, factor in sorted(BYTES.items(), key=lambda item: -item[1]):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return "0B"
