"""Settings of the interpreter for a process that moves many small objects through several threads."""

from __future__ import annotations

import gc
import sys

# How long a thread may keep computing while another one waits for the interpreter. With Python's default of 5 ms, the
# writer's thread loses that time at nearly every response of the database, and so does the event loop. Measured beside
# a thread that computes: a thread gets the interpreter back 1.5 to 2 ms after a short wait, instead of 5 to 6 ms.
SWITCH_SECONDS = 0.001


def tune_interpreter() -> None:
    """Apply the settings. Call it once, when everything has been imported.

    A batch is thousands of small objects without reference cycles. With Python's default thresholds, the garbage
    collector traverses them, and everything that was imported, again and again: a quarter of the writer's time.
    """
    gc.collect()
    gc.freeze()  # what was imported stays, so the collector can skip it
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(SWITCH_SECONDS)
