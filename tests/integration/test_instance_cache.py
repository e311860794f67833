"""What the daemon knows of the other instances: read in a thread, one read at a time, and never stale."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ingestor.daemon import instance_cache
from ingestor.daemon.instance_cache import InstanceCache
from ingestor.errors import DatabaseUnavailable
from ingestor.monitoring.status import SharedStatus
from tests.support.daemon import until

from ..unit.monitoring.healthy_status import HOST1, HOST2

FOUND = SharedStatus(instances=(HOST1, HOST2), unreceived_subscriptions=0)


def counted(read: Callable[[], SharedStatus]) -> tuple[InstanceCache, list[None]]:
    reads: list[None] = []

    def count() -> SharedStatus:
        reads.append(None)
        return read()

    return InstanceCache(count), reads


async def test_refresh_does_not_wait_for_a_hanging_database() -> None:
    answer = threading.Event()
    cache, reads = counted(lambda: FOUND if answer.wait(20) else SharedStatus())
    for _ in range(3):
        cache.refresh()
    assert (cache.newest(), len(reads)) == (SharedStatus(), 1)
    answer.set()
    await until(lambda: cache.newest() == FOUND)
    cache.refresh()
    assert len(reads) == 1  # it is not due


async def test_instances_that_were_read_long_ago_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = counted(lambda: FOUND)
    cache.refresh()
    await until(lambda: cache.newest() == FOUND)
    monkeypatch.setattr(instance_cache, "MAX_AGE_SECONDS", 0.0)
    assert cache.newest() == SharedStatus()


async def test_failed_read_keeps_what_was_read_and_is_not_repeated_at_once() -> None:
    def fail() -> SharedStatus:
        raise DatabaseUnavailable("gone")

    cache, reads = counted(fail)
    cache.refresh()
    await until(lambda: not cache._refreshing.locked())
    cache.refresh()
    assert (cache.newest(), len(reads)) == (SharedStatus(), 1)


async def test_refresh_is_due_again_until_the_daemon_has_registered() -> None:
    cache, reads = counted(SharedStatus)
    for number in (1, 2, 3):
        cache.refresh()
        await until(lambda: not cache._refreshing.locked())
        assert len(reads) == number
