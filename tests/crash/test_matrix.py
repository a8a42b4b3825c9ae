"""The crash matrix: every operation, stopped in place of each of its system calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from .bench import Bench, folder, in_child, log
from .counts import count
from .operations import OPERATIONS, Operation
from .place import Lines
from .syscalls import STOPPED, WRITES, stopping

__all__ = ['folder', 'log']


FLOORS = {
    'adopt': 60,
    'attempt': 251,
    'check': 28,
    'claim and release': 25,
    'discard one': 21,
    'discard three': 28,
    'doubt': 10,
    'enqueue one': 108,
    'enqueue three': 183,
    'postpone': 16,
    'prepare': 82,
    'put aside': 57,
    'recover committed': 102,
    'recover doubtful': 149,
    'recover unvoted': 86,
    'report': 97,
    'resume after the dot': 94,
    'resume before the dot': 90,
    'retry by hand': 114,
    'run once': 999,
    'sealing': 15,
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('operation', OPERATIONS, ids=lambda operation: operation.name)
def test_crash(folder: Path, operation: Operation, log: Lines, pytestconfig: pytest.Config) -> None:
    """Stopped in place of each call, and in the middle of each write, an operation leaves what the
    next process brings to the end that the crash table gives it."""
    cases = 0
    words: Counter[str] = Counter()
    for number, variant in enumerate(operation.variants):
        bench = Bench(folder / str(number), operation, variant)
        names = bench.trace()
        points = [(at, False) for at in range(1, len(names) + 2)]
        points += [(at, True) for at, name in enumerate(names, 1) if name in WRITES]
        for at, torn in points:
            place = bench.lay()
            status = in_child(place, operation, stopping(at, torn=torn))
            assert status == (STOPPED if at <= len(names) else 0), (variant, at)
            try:
                words[place.verify(log, torn=torn)] += 1
                operation.check(place)
            except BaseException:
                print(f'{variant}, stopped at {at}, torn: {torn}: {names[at - 2 : at]}')
                raise
        cases += len(points)
    count(pytestconfig, 'cases of the crash matrix', operation.name, cases)
    print(dict(words))
    assert cases >= FLOORS[operation.name]
