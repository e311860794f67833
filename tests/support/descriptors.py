"""Take the descriptors away from the test's own process."""

from __future__ import annotations

import codecs
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_descriptors(number: int) -> Iterator[None]:
    """Let this process open only this many descriptors more."""
    for name in ("idna", "utf-8-sig"):  # Python remembers for ever that it could not load a codec
        codecs.lookup(name)
    gc.collect()  # what earlier tests left open would be closed meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    newest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    fillers = [os.open("/dev/null", os.O_RDONLY)]  # in the gaps between those that are open
    while fillers[-1] < newest:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + number, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
