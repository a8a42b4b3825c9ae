"""Two troubles, one after the other: see ``schedules``. SOAK=1 plays each at each call."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.counts import Count
from tests.crash.matrix import Walker
from tests.crash.operations import OPERATIONS
from tests.crash.schedules import SCHEDULES
from tests.support.folders import folder

__all__ = ['folder']

SOAK = bool(os.environ.get('SOAK'))

MOVING = [
    each for each in OPERATIONS if each.name not in ('check_writable', 'prepare', 'sync', 'wake')
]
"""The others move no mail."""


@pytest.fixture(scope='module')
def walker() -> Iterator[Walker]:
    """The process that walks."""
    walker = Walker()
    yield walker
    walker.close()


@pytest.mark.slow
@pytest.mark.timeout(1800 if SOAK else 300)
@pytest.mark.parametrize('schedule', SCHEDULES)
def test_two_troubles(folder: Path, schedule: str, walker: Walker, count: Count) -> None:
    """Whatever stops, fails or works meanwhile where an operation was stopped, has failed or is
    asleep: committed mail arrives, or lies in failed/ with an event, nothing arrives twice but
    what was called ambiguous, and nothing stays behind. TEST_SEED repeats a run."""
    seed = int(os.environ.get('TEST_SEED', random.SystemRandom().randrange(1, 10**6)))
    cases = 0
    for number, operation in enumerate(MOVING):
        place = folder / str(number)
        place.mkdir()
        walk = walker.walk(operation, place, schedule=schedule, seed=0 if SOAK else seed)
        assert walk.failure == ''
        cases += walk.cases
    count('cases of two troubles', schedule, cases)
    assert cases > (2000 if SOAK else 60)
