"""A random walk with random access: its value is a pure function of seed, series and bucket."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_OCTAVES = 12  # the slowest octave spans 2**12 buckets: about three days of minutes
_WEIGHTS = [2 ** (octave / 2) for octave in range(_OCTAVES)]  # the spread of a walk grows with the square root of time


def hash_fraction(*key: object) -> float:
    """Return a number in [0, 1) that depends only on the key."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


@lru_cache(maxsize=1 << 17)
def walk(seed: int, series: str, bucket: int) -> float:
    """Return the value of one series at one bucket, in [-1, 1]; adjacent buckets have close values."""
    total = sum(weight * _octave(seed, series, octave, bucket / 2**octave) for octave, weight in enumerate(_WEIGHTS))
    return total / sum(_WEIGHTS)


def _octave(seed: int, series: str, octave: int, position: float) -> float:
    left = int(position // 1)
    share = position - left
    start, end = (_knot(seed, series, octave, index) for index in (left, left + 1))
    return start + share * (end - start)


@lru_cache(maxsize=1 << 16)
def _knot(seed: int, series: str, octave: int, index: int) -> float:
    return 2 * hash_fraction(seed, series, octave, index) - 1
