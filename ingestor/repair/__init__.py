"""Repair gaps: from the responses that followed a gap, from the current window, or from the provider's history.

    plan               what to try next, and how to split the history into requests; pure
    verification       how much of a gap, or of the requested range, a response covers; pure
    window_scan        finds the responses that followed a gap
    backfill_requests  what a person requests with `ingestor backfill`; pure
    worker             one thread that finds gaps, sends requests and records what is repaired

A real-time response is a rolling window of about an hour, so one with a row from a gap's start or before and another
from its end or after contains the whole gap. A REST response goes through the spool as a frame, and a repair is done
only once its frames are committed.
"""

from ingestor.repair.worker import RepairWorker, repeat_backfill

__all__ = ["RepairWorker", "repeat_backfill"]
