"""Retry policies: the delay after each attempt."""

from __future__ import annotations

import pytest

from pyramid_sendmail.retry import AT_ONCE_OR_NEVER, DAY, EVENT_RETRY, RetryPolicy

POLICY = RetryPolicy()


@pytest.mark.parametrize(
    ('attempt', 'age', 'chance', 'delay'),
    [
        (1, 0.0, 0.5, 60.0),
        (2, 60.0, 0.5, 300.0),
        (3, 400.0, 0.5, 900.0),
        (4, 2_000.0, 0.5, 1_800.0),
        (5, 4_000.0, 0.5, 3_600.0),
        (6, 9_000.0, 0.5, 7_200.0),
        (7, 20_000.0, 0.5, 7_200.0),
        (9_999, 20_000.0, 0.5, 7_200.0),
        (1, 0.0, 0.0, 48.0),
        (1, 0.0, 1.0, 72.0),
        (1, -10.0 * 365 * DAY, 0.5, 60.0),
        (1, 3 * DAY - 1, 0.5, 60.0),
        (1, 3 * DAY, 0.5, None),
        (50, 10 * 365 * DAY, 0.5, None),
    ],
)
def test_delays(attempt: int, age: float, chance: float, delay: float | None) -> None:
    """Each pause in turn, then the last one again, varied by a fifth, until the mail is too old."""
    found = POLICY.delay(attempt, age, chance=chance)
    assert found == (delay if delay is None else pytest.approx(delay))


def test_one_delay_is_enough() -> None:
    """With ``mail.retry = 1s`` the only delay repeats."""
    policy = RetryPolicy(delays=(1.0,), jitter=0.0)
    assert [policy.delay(n, 0.0) for n in (1, 2, 30)] == [1.0, 1.0, 1.0]


def test_jitter_spreads_retries() -> None:
    """10,000 mails deferred together are retried at times spread over a fifth of the delay."""
    delays = [POLICY.delay(1, 0.0) or 0.0 for _ in range(10_000)]
    assert 48.0 <= min(delays) < 49.0
    assert 71.0 < max(delays) <= 72.0
    buckets = {int(delay) for delay in delays}
    assert len(buckets) == 24


def test_longest() -> None:
    """No delay exceeds ``longest``: a retry time beyond it shows that a clock was wrong."""
    assert POLICY.longest == pytest.approx(8_640.0)
    assert POLICY.delay(99, 0.0, chance=1.0) == pytest.approx(POLICY.longest)
    assert AT_ONCE_OR_NEVER.longest == 0.0


def test_at_once_or_never() -> None:
    """Direct delivery without a queue gives up at the first failure."""
    assert AT_ONCE_OR_NEVER.delay(1, 0.0) is None


def test_event_retry() -> None:
    """A failed event is retried after 1, 5 and 30 s, then every 5 minutes for a day."""
    assert [EVENT_RETRY.delay(n, 0.0) for n in range(1, 7)] == [1, 5, 30, 300, 300, 300]
    assert EVENT_RETRY.delay(7, DAY) is None


def test_default_settings_survive_an_outage() -> None:
    """A relay that defers everything for two days loses nothing."""
    age, attempt = 0.0, 0
    while age < 2 * DAY:
        attempt += 1
        delay = POLICY.delay(attempt, age)
        assert delay is not None
        age += delay
    assert attempt < 40
