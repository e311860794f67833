"""Models and fuzz of hypothesis, for so many steps in the default run, and for INGESTOR_TEST_STEPS by hand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

STEPS_PER_RUN = 50
_TMPFS = Path("/dev/shm")


class StepCounter(RuleBasedStateMachine):
    """A machine that counts its steps, over all its runs."""

    steps = 0

    @invariant()
    def one_more_step(self) -> None:
        type(self).steps += 1


def run_for(machine: type[StepCounter], steps: int) -> None:
    """Run until ``steps`` (or INGESTOR_TEST_STEPS) steps are done, in runs that each begin with nothing."""
    wanted = wanted_steps(steps)
    machine.steps = 0
    while machine.steps < wanted:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max((wanted - machine.steps) // STEPS_PER_RUN, 1),
                stateful_step_count=STEPS_PER_RUN,
                deadline=None,
                phases=[Phase.reuse, Phase.generate],  # to shrink such a run takes more minutes than to read it
                suppress_health_check=list(HealthCheck),
            ),
        )


def wanted_steps(default: int) -> int:
    """How many steps, or examples, are wanted: INGESTOR_TEST_STEPS of them where that is set."""
    return int(os.environ.get("INGESTOR_TEST_STEPS", default))


def fast_folder() -> Path:
    """A new folder, in memory where the system has such: tens of thousands of fsyncs are not what a model is about."""
    return Path(tempfile.mkdtemp(prefix="ingestor-", dir=_TMPFS if os.access(_TMPFS, os.W_OK) else None))
