"""The protocol against a model of relays: replies, limits and losses at random.

No recipient has a mail twice unless the first time was ambiguous; every outcome is true of what the
relay has taken; and what is written obeys the RFCs.
"""

from __future__ import annotations

import logging
import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.smtp.drains import (
    ANSWERS,
    HOW_LOST,
    POLICIES,
    TRAITS_OF_LIMITS,
    TRAITS_OF_SESSIONS,
    Case,
    Counts,
    drain,
    random_case,
    traits,
)
from tests.support.smtp.links import Loss

pytestmark = pytest.mark.slow

DRAINS = int(os.environ.get('DRAINS', '45'))
"""How often each policy drains a queue; a run over night takes thousands."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Leave out what the memory of a relay logs."""
    caplog.set_level(logging.WARNING)


@pytest.mark.parametrize('policy', POLICIES)
def test_many_relays(policy: str) -> None:
    """Some thousand sessions, the same in each run: all mail has its verdicts in the end, and they
    are true."""
    counts = Counts()
    for number in range(DRAINS):
        drain(random_case(Random(f'{policy} {number}'), policy), counts)
    # The model reached what it is there for.
    assert counts.connections > 4 * DRAINS
    assert set(counts.losses) == set(HOW_LOST)
    assert set(counts.verdicts) == {'delivered', 'deferred', 'failed', 'ambiguous'}
    assert counts.untouched


CASES = st.sampled_from(tuple(POLICIES)).flatmap(
    lambda policy: st.builds(
        Case,
        policy=st.just(policy),
        mails=st.lists(
            st.tuples(st.integers(1, 5), st.sampled_from((0, 0, 0, 20_000, 70_000))),
            min_size=1,
            max_size=5,
        ).map(tuple),
        traits=st.builds(
            traits,
            st.just(policy),
            max_transactions=st.integers(0, 4),
            full=st.sampled_from(TRAITS_OF_SESSIONS),
            max_recipients=st.integers(0, 3),
            crowded=st.sampled_from(TRAITS_OF_LIMITS),
            refuses_behind_dot=st.booleans(),
            empty_text=st.booleans(),
        ),
        max_recipients=st.sampled_from((100, 3, 2)),
        answers=st.dictionaries(st.integers(0, 80), st.integers(0, ANSWERS - 1), max_size=12),
        losses=st.lists(
            st.none() | st.builds(Loss, st.integers(1, 80), st.sampled_from(HOW_LOST)),
            max_size=5,
        ).map(tuple),
        raises=st.dictionaries(st.integers(0, 3), st.integers(0, 4), max_size=1),
        forgets=st.booleans(),
        seed=st.none() | st.integers(0, 1 << 30),
    )
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(case=CASES)
def test_any_relay(case: Case) -> None:
    """So with any relay; a case that fails is made short."""
    drain(case, Counts())
