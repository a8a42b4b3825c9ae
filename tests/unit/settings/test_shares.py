"""What each of several processes gets: together never more than the settings say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.exceptions import ConfigurationError

from pyramid_sendmail.sending.rate_limiter import RateLimiter
from pyramid_sendmail.settings.shares import share, share_of_settings, useful_processes
from tests.support.configuration import parse
from tests.support.queues import Clock


@pytest.mark.parametrize(
    ('total', 'processes', 'shares'),
    [(4, 1, [4]), (4, 2, [2, 2]), (7, 3, [3, 2, 2]), (2, 4, [1, 1, 0, 0])],
)
def test_share(total: int, processes: int, shares: list[int]) -> None:
    """The shares differ by one at most, and the first processes get the remainder."""
    assert [share(total, number, processes) for number in range(1, processes + 1)] == shares


@pytest.mark.parametrize(
    ('rate', 'useful'),
    [(None, 8), ((8, 1), 8), ((7, 1), 7), ((1, 1), 1), ((600, 60), 8), ((90, 60), 1), ((5, 60), 1)],
)
def test_useful_processes(rate: tuple[int, int] | None, useful: int) -> None:
    """A process is of use with one mail a second or more; one process always is."""
    assert useful_processes(8, rate) == useful


def test_settings() -> None:
    """Workers and rate are divided, with one worker each at least; the rest stays the same."""
    settings = parse(workers=2, rate='20/s', batch=7)
    assert [
        (each.workers, each.rate, each.batch)
        for each in (share_of_settings(settings, number, 3) for number in (1, 2, 3))
    ] == [(1, (7, 1), 7), (1, (7, 1), 7), (1, (6, 1), 7)]
    assert share_of_settings(settings, 1, 1) == settings
    assert share_of_settings(parse(workers=8), 2, 2).rate is None


def test_a_rate_that_became_too_low() -> None:
    """A child that starts again after mail.rate was lowered sends nothing; it says what to do."""
    with pytest.raises(ConfigurationError, match='too low for 3 processes: restart psendmail-qp'):
        share_of_settings(parse(rate='2/s'), 3, 3)


@given(
    rate=st.tuples(st.integers(1, 3000), st.sampled_from([1, 60, 3600])),
    processes=st.integers(1, 9),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 8), st.integers(1, 50)), max_size=80),
)
def test_the_sum_never_exceeds_the_rate(
    rate: tuple[int, int], processes: int, steps: list[tuple[float, int, int]]
) -> None:
    """However the processes send, no period has more mails than the rate, and no moment more than
    a second's share."""
    mails, seconds = rate
    useful = useful_processes(processes, rate)
    clock = Clock(0.0)
    settings = parse(rate=f'{mails}/{ {1: "s", 60: "m", 3600: "h"}[seconds] }')
    limiters = [
        RateLimiter(share_of_settings(settings, number, useful).rate, monotonic=clock)
        for number in range(1, useful + 1)
    ]
    sent: list[float] = []
    for pause, number, asked in steps:
        clock.now += pause * seconds / mails * 10
        limiter = limiters[number % useful]
        sent += [clock.now for _ in range(asked) if limiter.acquire() is not None]
    for moment in sent:
        assert sum(moment <= each < moment + seconds - 1e-6 for each in sent) <= mails
        assert sent.count(moment) <= max(mails // seconds, 1)
