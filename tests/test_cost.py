"""What a mail costs, in figures that a busy machine does not change: instructions of the processor,
as a share of what the standard library needs to write the same message, and system calls.

``python -m tests.benchmarks.counts`` prints today's. Where a limit is reached for a good reason,
write the new figure here, and the reason into the commit.
"""

from __future__ import annotations

import sys

import pytest

from .benchmarks import counts
from .benchmarks.processes import Absent

INSTRUCTIONS = {'send': 0.200, 'drain': 0.257}
"""Fifteen percent more than was measured, as parts of the reference, with CPython 3.11."""

CALLS = {'send': 20, 'drain': 19}
"""System calls a mail, those that only wait for another thread left out; one more than measured."""

VERSION = (3, 11)


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != VERSION, reason='the limits are those of CPython 3.11')
def test_instructions() -> None:
    """``send`` with its commit, and the delivery of a mail, take no more than they did."""
    try:
        found = counts.instructions()
    except Absent as reason:
        pytest.skip(str(reason))
    shares = {phase: found[phase] / found['reference'] for phase in INSTRUCTIONS}
    print(shares)
    assert all(shares[phase] <= limit for phase, limit in INSTRUCTIONS.items()), shares


@pytest.mark.timeout(600)
def test_system_calls() -> None:
    """``send`` with its commit, and the delivery of a mail, ask no more of the system."""
    try:
        found = counts.system_calls()
    except Absent as reason:
        pytest.skip(str(reason))
    for phase, limit in CALLS.items():
        assert sum(found[phase].values()) <= limit, found[phase]
    # The file, and the folder that it is in: nothing less.
    assert found['send']['fsync'] == 2
