"""What a mail costs, in figures that a busy machine does not change: instructions of the processor,
as a share of what the standard library needs to write the same message, steps of the interpreter,
and system calls.

``python -m tests.benchmarks.counts`` prints what they are now. Where they are less, or more for a
good reason, write them here.
"""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks import counts
from tests.benchmarks.processes import Absent

INSTRUCTIONS = {'build': 0.048, 'send': 0.129, 'drain': 0.112}
"""A mail, as a part of the reference, with CPython 3.11."""

STEPS = {'build': 1_555, 'send': 4_270, 'drain': 3_880}
"""Steps of the interpreter a mail, with CPython 3.11."""

CALLS = {'send': 18.4, 'drain': 15.7}
"""System calls a mail, those left out that only wait for another thread. Some of them are for
the start, for which sixty mails pay: the folders are opened, checked and closed again."""

MORE = 1.15
"""How much more is not yet a change for the worse."""

VERSION = (3, 11)


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != VERSION, reason='the figures are those of CPython 3.11')
def test_instructions() -> None:
    """A message made, ``send`` with its commit, and a mail delivered take no more than they did."""
    try:
        found = counts.instructions()
    except Absent as reason:
        pytest.skip(str(reason))
    for phase, before in INSTRUCTIONS.items():
        assert found[phase] / found['reference'] <= before * MORE, phase


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != VERSION, reason='the figures are those of CPython 3.11')
def test_steps() -> None:
    """The same, of the interpreter: what a change of the code alone adds."""
    found = counts.steps()
    for phase, before in STEPS.items():
        assert found[phase] <= before * MORE, phase


@pytest.mark.timeout(600)
def test_system_calls() -> None:
    """``send`` with its commit, and the delivery of a mail, ask no more of the system."""
    try:
        found = counts.system_calls()
    except Absent as reason:
        pytest.skip(str(reason))
    for phase, before in CALLS.items():
        assert sum(found[phase].values()) <= before + 1, found[phase]
    # The file, and the folder that it is in: nothing less.
    assert found['send']['fsync'] == 2
