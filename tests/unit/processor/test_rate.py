"""``mail.rate``: what leaves, over all workers, and what does not use up a place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.sending.outcome import Tally
from tests.support.queues import Clock, until
from tests.support.smtp.server import ScriptedSMTPServer
from tests.unit.processor.test_processor import (
    READ_ONLY,
    Setup,
    at_work,
    crew_of,
    processor_threads,
)

NEVER = (1, 86400)
"""A rate by which nothing leaves after the first mail."""


@pytest.fixture
def setup() -> Setup:
    return Setup(MemoryQueue())


class Steered:
    """A processor at work, whose pace goes by a clock that stands still."""

    def __init__(self, clock: Clock, workers: int) -> None:
        self.clock = clock
        self.workers = workers

    def rest(self) -> None:
        """Wait until every worker does nothing but wait for a place or for mail."""
        until(lambda: self.pending.waiting == self.workers)

    @property
    def pending(self) -> Any:
        return crew_of(processor_threads()).pending

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds
        self.pending.nudge()


@contextmanager
def steered(setup: Setup, rate: tuple[int, int], *, workers: int = 4) -> Iterator[Steered]:
    clock = Clock(1000.0)
    with setup.running(rate=rate, workers=workers, monotonic=clock):
        until(lambda: len(processor_threads()) == workers)
        yield Steered(clock, workers)


@pytest.mark.parametrize('workers', [1, 8])
def test_workers_share_the_rate(
    smtp_server: ScriptedSMTPServer, setup: Setup, workers: int
) -> None:
    """However many there are: at a relay arrive so many mails in a second, and no more."""
    mailer: Any = SMTPMailer(smtp_server.host, smtp_server.port, hostname='web.example.org')
    setup.mailer = mailer
    setup.put_many(24)
    with steered(setup, (10, 1), workers=workers) as processor:
        for arrived, again in ((10, 10), (20, 20), (24, 24)):
            until(lambda arrived=arrived: len(smtp_server.messages) == arrived)  # type: ignore[misc]
            processor.rest()
            processor.later(0.5)
            processor.rest()
            assert len(smtp_server.messages) == again
            processor.later(0.5)
    assert len({message.data for message in smtp_server.messages}) == 24


def test_one_at_a_time_over_one_connection(setup: Setup) -> None:
    """Below one mail a second: exactly one, by the worker who has a connection."""
    setup.put_many(5)
    with steered(setup, (30, 60)) as processor:
        for sent in range(1, 6):
            setup.mailer.wait_for(sent)
            processor.rest()
            assert len(setup.mailer.sent) == sent
            processor.later(2)
    assert setup.mailer.connections == 1


def test_priorities_count_while_mail_waits_for_a_place(setup: Setup) -> None:
    """Urgent mail that comes later goes first."""
    setup.put_many(3)
    with steered(setup, NEVER) as processor:
        setup.mailer.wait_for(1)
        processor.rest()
        urgent = setup.put(priority='high')
        until(lambda: len(processor.pending) == 3)
        processor.later(86400)
        setup.mailer.wait_for(2)
        assert setup.mailer.sent[1].id == urgent.id


@pytest.mark.parametrize('once', [False, True])
def test_stop_while_waiting(setup: Setup, once: bool) -> None:
    """The end does not wait for a place: the next one would come tomorrow."""
    setup.put_many(3)
    processor = setup.processor(rate=NEVER)
    if once:
        stop = threading.Event()
        assert processor.run_once(stop_after(setup, 1, stop), stop) == Tally(delivered=1)
    else:
        with at_work(processor):
            setup.mailer.wait_for(1)
            until(lambda: crew_of(processor_threads()).pending.waiting == 4)
    assert len(setup.mailer.sent) == 1
    assert len(setup.queue) == 2
    assert setup.mailer.open_sessions == []


def stop_after(setup: Setup, mails: int, stop: threading.Event) -> Callable[[Tally, int], None]:
    def progress(tally: Tally, left: int) -> None:
        if len(setup.mailer.sent) == mails:
            stop.set()

    return progress


def test_once_obeys_it_and_drains(setup: Setup) -> None:
    """``--once`` takes its time: no mail is left behind, and none leaves early."""
    times: list[float] = []
    setup.mailer.before = lambda envelope: times.append(time.monotonic())
    setup.put_many(25)
    start = time.monotonic()
    assert setup.processor(rate=(10, 1)).run_once() == Tally(delivered=25)
    assert len(times) == 25
    assert times[10] - start >= 1
    assert times[20] - start >= 2


def test_a_second_run_goes_on_where_the_first_ended(setup: Setup) -> None:
    """A processor that starts again after a failure does not begin with a fresh share."""
    setup.put()
    processor = setup.processor(rate=NEVER)
    assert processor.run_once() == Tally(delivered=1)
    setup.put()
    with at_work(processor):
        until(processor_threads)
        pending = crew_of(processor_threads()).pending
        until(lambda: len(pending) == 1 and pending.waiting == 4)
    assert len(setup.mailer.sent) == 1


# What uses up no place


def only_one_leaves(setup: Setup, **options: Any) -> None:
    """With one place a day, the good mail is sent all the same."""
    with setup.running(rate=NEVER, **options):
        until(lambda: setup.mailer.accepted('good@example.org') == 1)


def test_expired_mail(setup: Setup) -> None:
    """It is settled, and not sent."""
    for _ in range(5):
        setup.put(expires=time.time() - 1, priority='high')
    setup.put('good@example.org')
    only_one_leaves(setup)
    until(lambda: not len(setup.queue))
    assert len(setup.mailer.sent) == 1


def test_mail_that_somebody_else_has(setup: Setup) -> None:
    """Claimed by another processor."""
    setup.put_many(5, priority='high')
    claims = [setup.queue.claim(ticket) for ticket in setup.queue.scan(time.time())[0]]
    original = setup.queue.scan
    tickets, _ = original(time.time())
    assert len(tickets) == len(claims) == 5
    setup.put('good@example.org')
    only_one_leaves(setup)
    for claim in claims:
        claim.release()


class Interrupted:
    """A claim of a mail over which a process has stopped."""

    interrupted, ambiguous = 'sending', ()

    def __init__(self, claim: Any) -> None:
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)


def test_mail_over_which_a_process_has_stopped(setup: Setup) -> None:
    """It is put off, and not sent."""
    poison = setup.put(priority='high')
    claim = setup.queue.claim

    def claiming(ticket: Any, **options: Any) -> Any:
        got = claim(ticket, **options)
        return Interrupted(got) if got and got.envelope.id == poison.id else got

    setup.queue.claim = claiming
    setup.put('good@example.org')
    only_one_leaves(setup)
    assert [envelope.recipients for envelope in setup.mailer.sent] == [('good@example.org',)]


def test_a_road_that_closes(setup: Setup) -> None:
    """Nobody is let in, or 421 at MAIL: what was given back keeps its place for the next try."""
    troubles = iter([True, True, False])

    def before(envelope: Envelope) -> None:
        if next(troubles, False):
            raise MailerUnavailable('421')

    setup.mailer.before = before
    setup.put('good@example.org')
    only_one_leaves(setup)
    assert setup.mailer.connections == 3


def test_a_road_that_is_closed(setup: Setup) -> None:
    """A connection that is refused takes no place."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put('good@example.org')
    with setup.running(rate=NEVER):
        until(lambda: setup.mailer.connections == 3)
        setup.mailer.unavailable = None
        setup.mailer.wait_for(1)


def test_a_queue_that_fails(setup: Setup) -> None:
    """Nor does a mail that could not be claimed because the queue cannot be used."""
    claim = setup.queue.claim
    failures: list[QueueError] = [READ_ONLY, READ_ONLY]

    def failing(ticket: Any, **options: Any) -> Any:
        if failures:
            raise QueueError(*failures.pop().args)
        return claim(ticket, **options)

    setup.queue.claim = failing
    setup.put('good@example.org')
    only_one_leaves(setup, poll=0.05)


def test_a_stale_connection(setup: Setup) -> None:
    """A mail that is sent again at once, because the connection had gone, counts once: after the
    two places are used, nothing leaves."""
    stale = iter([False, True])

    def before(envelope: Envelope) -> None:
        if next(stale, False):
            raise MailerUnavailable('421', stale=True)

    setup.mailer.before = before
    setup.put_many(4)
    with steered(setup, (2, 1), workers=1) as processor:
        setup.mailer.wait_for(2)
        processor.rest()
        assert len(setup.mailer.sent) == 2
        assert setup.mailer.connections == 2
        processor.later(1)
        setup.mailer.wait_for(4)


def test_an_attempt_that_failed_counts(setup: Setup) -> None:
    """The relay was asked: a refusal or a deferral is a mail like any other."""
    setup.mailer.script('ann@example.org', Verdict('failed', Reply(550, 'no')))
    setup.put_many(2)
    with steered(setup, NEVER) as processor:
        setup.mailer.wait_for(1)
        processor.rest()
        assert len(setup.mailer.sent) == 1


@pytest.mark.slow
def test_a_high_rate_costs_little(setup: Setup) -> None:
    """A rate that is higher than what the mailer can do anyway makes no difference to speak of;
    one that is lower is nearly reached."""

    def sending(processor: QueueProcessor, mails: int) -> float:
        setup.put_many(mails)
        start = time.monotonic()
        assert processor.run_once() == Tally(delivered=mails)
        return time.monotonic() - start

    free = min(sending(setup.processor(), 3000) for _ in range(3))
    paced = min(sending(setup.processor(rate=(999_999, 1)), 3000) for _ in range(3))
    assert paced < free * 2
    rate = max(int(3000 / free / 10), 20)
    mails = rate * 5 // 2
    assert sending(setup.processor(rate=(rate, 1)), mails) < 1.5 * mails / rate
