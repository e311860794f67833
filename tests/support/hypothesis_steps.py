"""Run hypothesis models and fuzz tests for a number of steps: a default, or INGESTOR_TEST_STEPS."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

STEPS_PER_RUN = 50
# The default method raises an exception: a failure that hypothesis repeats, so that the test would hang for ever.
MODEL_TIMEOUT_METHOD = "thread"
_TMPFS = Path("/dev/shm")


class StepCounter(RuleBasedStateMachine):
    """A state machine that counts its steps over all its runs."""

    steps = 0

    @invariant()
    def count_step(self) -> None:
        type(self).steps += 1


def run_for(machine: type[StepCounter], steps: int) -> None:
    """Run until ``steps`` (or INGESTOR_TEST_STEPS) steps are done, in runs that each begin empty."""
    wanted = wanted_steps(steps)
    machine.steps = 0
    while machine.steps < wanted:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max((wanted - machine.steps) // STEPS_PER_RUN, 1),
                stateful_step_count=STEPS_PER_RUN,
                deadline=None,
                phases=[Phase.reuse, Phase.generate],  # shrinking such a run takes longer than reading it
                suppress_health_check=list(HealthCheck),
            ),
        )


def wanted_steps(default: int) -> int:
    """Return the number of steps or examples: INGESTOR_TEST_STEPS if it is set."""
    return int(os.environ.get("INGESTOR_TEST_STEPS", default))


def fast_folder() -> Path:
    """Create a folder, in memory where possible: a model does not need tens of thousands of real fsyncs."""
    return Path(tempfile.mkdtemp(prefix="ingestor-", dir=_TMPFS if os.access(_TMPFS, os.W_OK) else None))
