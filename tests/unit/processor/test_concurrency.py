"""The concurrency controller: when one more worker joins."""

from __future__ import annotations

from typing import Any

import pytest

from pyramid_sendmail.processor.concurrency import MEASURING_TIME, ConcurrencyController
from tests.support.queues import Clock


class Lock:
    """A cooperative lock whose working time the test sets."""

    def __init__(self) -> None:
        self.worked = 0.0


@pytest.fixture
def lock() -> Lock:
    return Lock()


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def concurrency(lock: Any, clock: Clock) -> ConcurrencyController:
    return ConcurrencyController(lock, monotonic=clock)


def test_the_first_worker_always_starts(concurrency: ConcurrencyController, lock: Lock) -> None:
    """Mail that arrives at an idle processor does not wait."""
    lock.worked = 500.0
    assert concurrency.acquire(0) == 0


def test_no_worker_joins_a_busy_one(
    concurrency: ConcurrencyController, lock: Lock, clock: Clock
) -> None:
    """One worker serves a relay on the same machine."""
    assert concurrency.acquire(0) == 0
    lock.worked = 0.001
    assert 0 < concurrency.acquire(1) <= MEASURING_TIME
    for _ in range(5):
        clock.now += 1.01 * MEASURING_TIME
        lock.worked += MEASURING_TIME * 0.9
        assert concurrency.acquire(1) == MEASURING_TIME


def test_the_workers_double_while_they_mostly_wait(
    concurrency: ConcurrencyController, lock: Lock, clock: Clock
) -> None:
    """All workers serve a distant relay after a few measurements."""
    assert concurrency.acquire(0) == 0
    lock.worked = 0.001
    working = 1
    for joining in (1, 2, 4):
        assert 0 < concurrency.acquire(working) <= MEASURING_TIME
        clock.now += 1.01 * MEASURING_TIME
        lock.worked += MEASURING_TIME * 0.1
        for _ in range(joining):
            assert concurrency.acquire(working) == 0
            working += 1
    assert 0 < concurrency.acquire(working) <= MEASURING_TIME


def test_all_join_without_the_cooperative_lock(concurrency: ConcurrencyController) -> None:
    """A session without the cooperative lock may wait all the time."""
    assert [concurrency.acquire(working) for working in range(4)] == [0, 0, 0, 0]
