"""Gaps are repaired: by what came when we listened again, by what is current, by what past days were.

    plan     what to try next, and in which pieces; pure
    proof    does an answer reach back to the gap's start, or cover what was asked? pure
    windows  the answers that came after a gap
    manual   what a person asks for; pure
    healing  one thread that finds gaps, asks, and notes what is proven

A response is a rolling window of about an hour, so one that reaches back to the gap's start has all of the gap in it.
What is asked for by REST goes through the spool as a frame, and a repair is done only when its frames are committed.
"""

from ingestor.repair.worker import RepairWorker

__all__ = ["RepairWorker"]
