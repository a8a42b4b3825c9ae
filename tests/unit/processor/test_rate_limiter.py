"""The pace: never more than the rate, in whatever stretch of time, and hardly less."""

from __future__ import annotations

import sys
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.processor.rate_limiter import RateLimiter
from tests.support.queues import Clock

RATES = st.tuples(st.integers(1, 2000), st.sampled_from([1, 60, 3600, 86400]))

ROUNDING = 1e-6
"""Seconds by which a sum of floats may be wrong."""


def most_within(seconds: float, moments: list[float]) -> int:
    """The largest number of moments in any stretch of so many seconds, its end not included."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= seconds - ROUNDING:
            first += 1
        most = max(most, last - first + 1)
    return most


@given(
    rate=RATES,
    steps=st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 300), st.integers(0, 20)), max_size=60
    ),
)
def test_never_more_than_the_rate(
    rate: tuple[int, int], steps: list[tuple[float, int, int]]
) -> None:
    """However mail comes and whatever is given back: in no stretch of time as long as the rate's
    leave more than its mails, and at one moment no more than a second's share."""
    clock = Clock(0.0)
    pace = RateLimiter(rate, monotonic=clock)
    mails, seconds = rate
    sent: list[float] = []
    for pauses, asked, returned in steps:
        clock.now += pauses * seconds / mails
        got = [place for _ in range(asked) if (place := pace.take()) is not None]
        for place in got[:returned]:
            pace.give_back(place)
        sent += got[returned:]
    assert most_within(seconds, sent) <= mails
    assert most_within(2 * ROUNDING, sent) <= max(mails // seconds, 1)


@given(rate=RATES)
def test_hardly_less_than_the_rate(rate: tuple[int, int]) -> None:
    """Whoever takes each place as soon as there is one gets the rate, but for a sixtieth."""
    clock = Clock(0.0)
    pace = RateLimiter(rate, monotonic=clock)
    mails, seconds = rate
    taken = 0
    while clock.now < seconds and taken < 5000:
        while pace.take() is not None:
            taken += 1
        wait = pace.wait()
        assert wait > 0
        clock.now += wait + ROUNDING
    assert taken >= mails * clock.now / seconds * 59 / 60 - 1


@pytest.mark.parametrize(
    ('rate', 'share', 'after'),
    [
        ((20, 1), 20, 1.0),
        ((600, 60), 10, 1.0),
        ((1, 1), 1, 1.0),
        ((90, 60), 1, 60 / 90),
        ((90, 3600), 1, 40.0),
        ((1, 86400), 1, 86400.0),
        ((125, 60), 2, 60 / 62),
    ],
)
def test_share(rate: tuple[int, int], share: int, after: float) -> None:
    """At most a second's share at once, below one a second exactly one; then a pause."""
    clock = Clock(1000.0)
    pace = RateLimiter(rate, monotonic=clock)
    assert [pace.take() for _ in range(share + 1)] == [1000.0] * share + [None]
    assert pace.wait() == pytest.approx(after)
    clock.now += pace.wait() + ROUNDING
    assert [pace.wait(count) for count in (1, share, share + 1)] == [0.0, 0.0, inf]
    assert pace.take() == clock.now


def test_wait_for_several() -> None:
    """As long as it takes until there are so many at once."""
    clock = Clock(0.0)
    pace = RateLimiter((3, 1), monotonic=clock)
    for _ in range(3):
        pace.take()
        clock.now += 0.25
    assert [pace.wait(count) for count in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, inf]
    clock.now = 1.25
    assert [pace.wait(count) for count in (1, 2, 3)] == [0.0, 0.0, 0.25]


def test_a_place_is_given_back_as_what_it_was() -> None:
    """The others count from when they were taken; one that is long past is nobody's any more."""
    clock = Clock(0.0)
    pace = RateLimiter((2, 1), monotonic=clock)
    early = pace.take()
    assert early == 0.0
    clock.now = 0.5
    pace.take()
    assert pace.give_back(early)
    assert pace.take() == 0.5
    assert pace.wait() == 1.0
    clock.now = 10.0
    assert not pace.give_back(early)
    assert [pace.take() for _ in range(3)] == [10.0, 10.0, None]


def test_no_limit() -> None:
    """Without a rate there is always a place, and nothing is kept."""
    clock = Clock(0.0)
    pace = RateLimiter(monotonic=clock)
    assert {pace.take() for _ in range(1000)} == {0.0}
    assert pace.wait() == pace.wait(sys.maxsize - 1) == 0.0
    assert len(pace._taken) <= 1
