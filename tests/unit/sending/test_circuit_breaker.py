"""The circuit breaker: when a worker may connect, and what the log says."""

from __future__ import annotations

import errno
import logging

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.sending.circuit_breaker import (
    CROWDED_PAUSE,
    LONGEST_PAUSE,
    PROBE_PATIENCE,
    CircuitBreaker,
)
from pyramid_sendmail.sending.refusals import EveryMailRefused
from tests.support.processors import RELAY_REFUSED
from tests.support.queues import Clock


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


def test_one_worker_tries_first() -> None:
    """Without a session one worker at a time tries, so an unavailable relay costs one connect."""
    breaker = CircuitBreaker(Clock(0.0))
    assert breaker.acquire('ann') == 0
    assert breaker.acquire('bob') > 0
    breaker.session_opened('ann')
    assert breaker.acquire('bob') == 0
    assert breaker.acquire('eve') == 0, 'any worker, since one has a session'
    for worker in ('ann', 'bob'):
        breaker.session_opened(worker)
        breaker.release(worker)
    assert breaker.acquire('bob') == 0
    assert breaker.acquire('ann') > 0, 'no worker has a session any more'


def test_a_worker_that_ends_without_a_session_lets_another_try() -> None:
    """The other workers do not wait for ever for one that failed for another reason."""
    breaker = CircuitBreaker(Clock(0.0))
    breaker.acquire('ann')
    breaker.release('bob')
    assert breaker.acquire('bob') > 0
    breaker.release('ann')
    assert breaker.acquire('bob') == 0


def test_a_worker_that_stalls_lets_another_try() -> None:
    """One more after each PROBE_PATIENCE; the failure of any of them opens the breaker."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    for worker in ('ann', 'bob', 'eve'):
        assert breaker.acquire(worker) == 0
        assert breaker.acquire('joe') == PROBE_PATIENCE
        clock.now += 0.75 * PROBE_PATIENCE
        assert breaker.acquire('joe') == 0.25 * PROBE_PATIENCE
        clock.now += 0.25 * PROBE_PATIENCE
    breaker.session_opened('bob')
    assert breaker.acquire('joe') == 0, 'bob has a session'
    breaker.release('bob')
    breaker.record_failure(RELAY_REFUSED, 'ann')
    clock.now += breaker.retry_in() / 2
    assert breaker.acquire('joe') == breaker.retry_in() > 0


def test_the_pause_grows(caplog: pytest.LogCaptureFixture) -> None:
    """Pauses of 1, 2, 4 ... seconds, at most a minute, a fifth more or less; one log line at first,
    and a reminder after one, five and fifteen minutes."""
    caplog.set_level(logging.INFO)
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock, relay='smtp://relay.example.org:25')
    for step in range(8):
        assert breaker.acquire('ann') == 0
        assert breaker.record_failure(RELAY_REFUSED, 'ann') == 0
        pause = min(2.0**step, LONGEST_PAUSE)
        assert 0.8 * pause <= breaker.retry_in() <= 1.2 * pause
        assert breaker.acquire('ann') == breaker.retry_in()
        clock.now += breaker.retry_in()
    assert breaker.retry_in() == 0
    assert 100 < clock.now < 300
    assert levels(caplog) == ['ERROR'] * 2
    assert 'Connection refused' in caplog.text
    breaker.acquire('ann')
    breaker.session_opened('ann')
    breaker.record_success('ann')
    breaker.record_success('ann')
    assert levels(caplog) == ['ERROR', 'ERROR', 'WARNING']
    again = caplog.messages[-1]
    assert again.startswith('relay available again, after 8 failed attempts in ')
    assert again.endswith(
        ' min; mails that wait: 0, the oldest for 0 s: smtp://relay.example.org:25'
    )
    breaker.record_failure(RELAY_REFUSED, 'ann')
    assert breaker.retry_in() <= 1.2, 'it starts over'
    assert levels(caplog) == ['ERROR', 'ERROR', 'WARNING', 'ERROR']


def test_a_relay_that_refuses_every_mail_is_on_trial(caplog: pytest.LogCaptureFixture) -> None:
    """The breaker opens although other workers have sessions; after the pause one worker at a time
    tries, and its session proves nothing until a mail has another outcome. CRITICAL once."""
    error = EveryMailRefused('relay: 554 denied')
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    for worker in ('ann', 'bob'):
        breaker.acquire('ann')
        breaker.session_opened(worker)
    assert breaker.record_failure(error, 'ann') == 0
    assert not breaker.allows('bob')
    for _ in range(2):
        clock.now += breaker.retry_in()
        assert breaker.acquire('ann') == 0
        breaker.session_opened('ann')
        assert breaker.acquire('bob') > 0
        assert breaker.record_failure(error, 'ann') == 0
    clock.now += breaker.retry_in()
    assert breaker.acquire('ann') == 0
    breaker.session_opened('ann')
    breaker.record_success('ann')
    assert breaker.acquire('bob') == 0
    assert levels(caplog) == ['CRITICAL', 'WARNING']


def test_an_outage_is_not_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """The log has a line after 1, 5 and 15 minutes, then every hour: since when, how many attempts,
    how much mail waits and how old it is, when the next try is, and why."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock, chance=lambda: 0.5, backlog=lambda: (7, clock.now + 90))
    logged: list[tuple[float, str]] = []
    while clock.now < 4 * 3600:
        breaker.acquire('ann')
        caplog.clear()
        breaker.record_failure(RELAY_REFUSED, 'ann')
        logged += [(clock.now, text) for text in caplog.messages]
        clock.now += breaker.retry_in()
    first, *reminders = logged
    assert first[0] == 0
    assert 'mails that wait' not in first[1]
    planned = [60, 300, 900, 4500, 8100, 11_700]
    assert len(reminders) == len(planned)
    for (at, text), wanted in zip(reminders, planned, strict=True):
        # An attempt a minute: the hourly lines drift by less than one each.
        assert wanted <= at < wanted + 4 * LONGEST_PAUSE
        assert text.endswith('next try in 60 s: ' + str(RELAY_REFUSED)) or at < 120
    assert reminders[1][1].startswith(
        'relay still unavailable, after 11 failed attempts in 5 min; '
    )
    assert 'mails that wait: 7, the oldest for 7 min; next try' in reminders[1][1]


def test_a_new_reason_when_a_reminder_is_due(caplog: pytest.LogCaptureFixture) -> None:
    """It has a line and a level of its own; the next reminder is about the new reason."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    every = EveryMailRefused('relay: 554 denied')
    for now, error in ((0, RELAY_REFUSED), (61, every), (130, every), (301, RELAY_REFUSED)):
        clock.now = now
        breaker.acquire('ann')
        breaker.record_failure(error, 'ann')
    clock.now = 901
    breaker.acquire('ann')
    breaker.record_failure(RELAY_REFUSED, 'ann')
    assert levels(caplog) == ['ERROR', 'CRITICAL', 'ERROR', 'ERROR']
    still = ['still unavailable' in text for text in caplog.messages]
    assert still == [False, False, False, True]


def test_the_pause_ends_when_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """A worker may try at once; if that fails the log has a line, although the reason is known, and
    the reminders go on as before. A breaker that is not open stays as it is."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock, chance=lambda: 0.5)
    breaker.retry_now()
    breaker.acquire('ann')
    breaker.session_opened('ann')
    assert breaker.allows('ann')
    for number in range(3):
        breaker.record_failure(RELAY_REFUSED, 'ann')
        assert breaker.acquire('ann') == 2.0**number
        breaker.retry_now()
        assert breaker.retry_in() == 0
        assert breaker.acquire('ann') == 0
    assert [text.partition(' failed')[0] for text in caplog.messages] == [
        f'relay unavailable, mail stays queued: {RELAY_REFUSED}',
        'relay still unavailable, after 2',
        'relay still unavailable, after 3',
    ]
    clock.now = 61.0
    breaker.record_failure(RELAY_REFUSED, 'ann')
    assert len(caplog.messages) == 3 + 1


def test_a_new_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If the relay answers again and now refuses the password, the log says so."""
    caplog.set_level(logging.INFO)
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    for error in (
        RELAY_REFUSED,
        RELAY_REFUSED,
        MailerUnavailable('535; see mail.password'),
        RELAY_REFUSED,
    ):
        breaker.acquire('ann')
        breaker.record_failure(error, 'ann')
        clock.now += 50
    assert levels(caplog) == ['ERROR'] * 3
    assert 'see mail.password' in caplog.text


@pytest.mark.parametrize('chance', [0.0, 0.5, 1.0])
def test_chance_spreads_the_pauses(chance: float) -> None:
    """Each pause is up to a fifth shorter or longer, and none is longer than a minute."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock, chance=lambda: chance)
    for step in range(40):
        breaker.acquire('ann')
        breaker.record_failure(RELAY_REFUSED, 'ann')
        pause = min(2.0**step, LONGEST_PAUSE)
        assert breaker.retry_in() == pytest.approx(min(pause * (0.8 + 0.4 * chance), 60))
        clock.now += breaker.retry_in() + 1e-6


SAME = (
    (
        '421 4.7.0 try again later. (EHLO) 5b1f17b1804b1-4318c0d05bcsm1234 - gsmtp',
        '421 4.7.0 try again later. (EHLO) ffacd0b85a97d-3823ad47b3csm9 - gsmtp',
    ),
    (
        'smtp://relay.example.org:25: connecting: 192.0.2.1: timed out after 30 s',
        'smtp://relay.example.org:25: connecting: 192.0.2.2: timed out after 30 s',
    ),
    ('MAIL was answered 450 4.7.1 <a@example.org>', 'MAIL was answered 450 4.7.1 <b@example.org>'),
    (
        '554 5.7.1 no [DB3.example.com 2026-11-23T08:50:06.123Z 08DC]',
        '554 5.7.1 no [AM6.example.com 2026-11-23T08:51:07.001Z 09AB]',
    ),
)


OTHERS = (
    ('the relay answered 421 busy', 'the relay answered 451 busy'),
    ('the relay answered 454 4.7.0 no', 'the relay answered 454 4.7.8 no'),
    (
        'AUTH: the relay answered 535; see mail.username',
        'AUTH: the relay answered 534; see mail.username',
    ),
    ('the greeting: the relay answered 421', 'EHLO: the relay answered 421'),
)


@pytest.mark.parametrize(
    ('first', 'second', 'lines'), [(*each, 1) for each in SAME] + [(*each, 2) for each in OTHERS]
)
def test_what_counts_as_a_new_reason(
    first: str, second: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Another reply code or phase is a new reason; another time or session number is not."""
    caplog.set_level(logging.DEBUG)
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    for text in (first, second, second):
        breaker.acquire('ann')
        breaker.record_failure(MailerUnavailable(text), 'ann')
        clock.now += 20
    assert levels(caplog) == ['ERROR'] * lines + ['DEBUG'] * (3 - lines)
    assert first in caplog.text
    assert second in caplog.text, 'the debug line has the whole text'


def test_a_session_alone_proves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A session that fails at MAIL is a failure: the pause grows, and the log has one line."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock)
    for step in range(5):
        assert breaker.acquire('ann') == 0
        breaker.session_opened('ann')
        breaker.record_failure(MailerUnavailable('530'), 'ann')
        assert breaker.retry_in() >= 0.8 * 2.0**step
        clock.now += breaker.retry_in()
    assert levels(caplog) == ['ERROR']


def test_workers_that_fail_together_count_once(caplog: pytest.LogCaptureFixture) -> None:
    """Workers that fail at the same time count as one failure, with one log line."""
    caplog.set_level(logging.DEBUG)
    breaker = CircuitBreaker(Clock(0.0))
    breaker.acquire('ann')
    breaker.session_opened('ann')
    breaker.acquire('bob')
    breaker.record_failure(RELAY_REFUSED, 'ann')
    breaker.record_failure(MailerUnavailable('421 4.3.2 closing'), 'bob')
    assert breaker.retry_in() <= 1.2
    assert levels(caplog) == ['ERROR', 'DEBUG']


def test_a_relay_that_takes_few_connections_is_available(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that gets no connection while others have one pauses alone; the breaker stays
    closed, and the log reports no unavailable relay."""
    caplog.set_level(logging.INFO)
    breaker = CircuitBreaker(Clock(0.0))
    breaker.acquire('ann')
    breaker.session_opened('ann')
    breaker.acquire('bob')
    assert breaker.record_failure(MailerUnavailable('421 too many'), 'bob') == CROWDED_PAUSE
    assert breaker.retry_in() == 0
    assert breaker.allows('ann')
    assert breaker.acquire('eve') == 0
    assert levels(caplog) == ['INFO']


def test_a_queue_that_cannot_be_used_stops_all_workers(caplog: pytest.LogCaptureFixture) -> None:
    """A worker with a session takes no further mail, and its next answer does not close the
    breaker."""
    breaker = CircuitBreaker(Clock(0.0))
    for worker in ('ann', 'bob'):
        breaker.acquire(worker)
        breaker.session_opened(worker)
    assert breaker.record_failure(QueueError(errno.ENOSPC, 'full'), 'ann') == 0
    assert not breaker.allows('bob')
    breaker.record_success('bob')
    assert breaker.retry_in() > 0
    assert breaker.acquire('bob') > 0
    assert levels(caplog) == ['ERROR']


def test_a_queue_that_works_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log tells a queue that failed from a relay that failed."""
    clock = Clock(0.0)
    breaker = CircuitBreaker(clock, relay='smtp://relay.example.org:25')
    breaker.acquire('ann')
    breaker.record_failure(QueueError(errno.ENOSPC, 'full'), 'ann')
    clock.now += 10
    breaker.acquire('ann')
    breaker.session_opened('ann')
    breaker.record_success('ann')
    assert [record.getMessage() for record in caplog.records] == [
        'queue unavailable, mail stays queued: full',
        'queue can be written again after 1 failed attempts',
    ]
