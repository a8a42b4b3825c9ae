"""The rate limiter: never more than the rate, in any period, and hardly less."""

from __future__ import annotations

import sys
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.sending.rate_limiter import RateLimiter
from tests.support.queues import Clock

RATES = st.tuples(st.integers(1, 2000), st.sampled_from([1, 60, 3600, 86400]))

ROUNDING = 1e-6
"""Seconds by which a sum of floats may be wrong."""


def most_within(seconds: float, moments: list[float]) -> int:
    """Return the largest number of moments in any period of so many seconds, its end excluded."""
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
    """However permits are acquired and refunded, no period has more than its mails, and no moment
    more than a second's share."""
    clock = Clock(0.0)
    limiter = RateLimiter(rate, monotonic=clock)
    mails, seconds = rate
    sent: list[float] = []
    for pauses, asked, returned in steps:
        clock.now += pauses * seconds / mails
        got = [permit for _ in range(asked) if (permit := limiter.acquire()) is not None]
        for permit in got[:returned]:
            limiter.refund(permit)
        sent += got[returned:]
    assert most_within(seconds, sent) <= mails
    assert most_within(2 * ROUNDING, sent) <= max(mails // seconds, 1)


@given(rate=RATES)
def test_hardly_less_than_the_rate(rate: tuple[int, int]) -> None:
    """A caller that takes each permit at once gets the rate, except for a sixtieth."""
    clock = Clock(0.0)
    limiter = RateLimiter(rate, monotonic=clock)
    mails, seconds = rate
    taken = 0
    while clock.now < seconds and taken < 5000:
        while limiter.acquire() is not None:
            taken += 1
        wait = limiter.retry_in()
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
    """At most a second's share at once, or one mail at rates below one a second; then a pause."""
    clock = Clock(1000.0)
    limiter = RateLimiter(rate, monotonic=clock)
    assert [limiter.acquire() for _ in range(share + 1)] == [1000.0] * share + [None]
    assert limiter.retry_in() == pytest.approx(after)
    clock.now += limiter.retry_in() + ROUNDING
    assert [limiter.retry_in(count) for count in (1, share, share + 1)] == [0.0, 0.0, inf]
    assert limiter.acquire() == clock.now


def test_wait_for_several() -> None:
    """The time until several permits can be acquired at once."""
    clock = Clock(0.0)
    limiter = RateLimiter((3, 1), monotonic=clock)
    for _ in range(3):
        limiter.acquire()
        clock.now += 0.25
    assert [limiter.retry_in(count) for count in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, inf]
    clock.now = 1.25
    assert [limiter.retry_in(count) for count in (1, 2, 3)] == [0.0, 0.0, 0.25]


def test_a_permit_is_refunded_by_its_time() -> None:
    """A refund frees that permit only; a permit that has expired frees nothing."""
    clock = Clock(0.0)
    limiter = RateLimiter((2, 1), monotonic=clock)
    early = limiter.acquire()
    assert early == 0.0
    clock.now = 0.5
    limiter.acquire()
    assert limiter.refund(early)
    assert limiter.acquire() == 0.5
    assert limiter.retry_in() == 1.0
    clock.now = 10.0
    assert not limiter.refund(early)
    assert [limiter.acquire() for _ in range(3)] == [10.0, 10.0, None]


def test_no_limit() -> None:
    """Without a rate there is always a permit, and nothing is remembered."""
    clock = Clock(0.0)
    limiter = RateLimiter(monotonic=clock)
    assert {limiter.acquire() for _ in range(1000)} == {0.0}
    assert limiter.retry_in() == limiter.retry_in(sys.maxsize - 1) == 0.0
    assert len(limiter._permits) <= 1
