"""The crash matrix: every operation, stopped in place of each of its system calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.counts import Count
from tests.crash.matrix import Walker
from tests.crash.operations import OPERATIONS, Operation
from tests.support.folders import folder

__all__ = ['folder']


FLOORS = {
    'adopt': 60,
    'attempt': 251,
    'check_writable': 26,
    'claim and release': 24,
    'discard one': 21,
    'discard three': 28,
    'keep_in_doubt': 10,
    'hold': 55,
    'release': 41,
    'release and defer': 41,
    'retry failed': 82,
    'retry deferred': 77,
    'drop': 36,
    'enqueue one': 108,
    'enqueue three': 183,
    'retry_events': 16,
    'prepare': 82,
    'set aside': 57,
    'recover committed': 102,
    'recover doubtful': 149,
    'recover unvoted': 86,
    'report': 97,
    'resume after the dot': 94,
    'resume before the dot': 90,
    'retry by hand': 114,
    'run once': 999,
    'mark_ambiguous': 15,
    'settle deferred': 21,
    'settle delivered': 25,
    'settle failed': 30,
    'settle mixed': 36,
    'settle partly': 33,
    'sync': 7,
    'wake': 12,
}
"""Nine tenths of the cases that each operation was measured to have: fewer, and something is not
watched any more."""


@pytest.fixture(scope='module')
def walker() -> Iterator[Walker]:
    """The process that walks."""
    walker = Walker()
    yield walker
    walker.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('operation', OPERATIONS, ids=lambda operation: operation.name)
def test_crash(folder: Path, operation: Operation, walker: Walker, count: Count) -> None:
    """After an operation was stopped in place of any call, or in the middle of any write, the next
    process brings its mail to the end that the crash table gives it."""
    walk = walker.walk(operation, folder)
    count('cases of the crash matrix', operation.name, walk.cases)
    print(walk.words)
    assert walk.failure == ''
    assert walk.cases >= FLOORS[operation.name]
