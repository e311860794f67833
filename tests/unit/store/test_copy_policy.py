from __future__ import annotations

from ingestor.store.write.copy_policy import FIRST_WAIT, LONGEST_WAIT, CopyPolicy


def merged_before_a_copy(policy: CopyPolicy) -> int:
    """Write all-new batches until one is to be copied, and return how many were merged."""
    merged = 0
    while not policy.is_due:
        policy.note_written(all_new=True)
        merged += 1
    return merged


def test_first_batches_are_merged() -> None:
    assert merged_before_a_copy(CopyPolicy()) == FIRST_WAIT


def test_each_failed_copy_doubles_the_wait_up_to_a_limit() -> None:
    policy = CopyPolicy()
    waits = []
    for _ in range(8):
        waits.append(merged_before_a_copy(policy))
        policy.note_failed()
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64]
    assert waits[-1] == LONGEST_WAIT


def test_merged_batch_with_rows_that_were_there_begins_the_wait_again() -> None:
    policy = CopyPolicy()
    policy.note_written(all_new=True)
    policy.note_written(all_new=False)
    assert merged_before_a_copy(policy) == FIRST_WAIT


def test_wait_is_short_again_after_as_many_copies_as_had_been_waited_for() -> None:
    policy = CopyPolicy()
    for copies, following_wait in ((0, 4), (3, 8), (8, 2), (1, 4), (4, 2)):
        merged_before_a_copy(policy)
        for _ in range(copies):
            policy.note_written(all_new=True)
        policy.note_failed()
        assert merged_before_a_copy(policy) == following_wait
        policy.note_written(all_new=False)
