"""The queue processor and ``mail.rate``: what leaves over all workers, and what uses no permit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Reply, Tally, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.processor.active_queue import ActiveQueue
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MemoryQueue
from tests.support.processors import READ_ONLY, ProcessorSetup, running_processor
from tests.support.queues import Clock, until
from tests.support.smtp.server import ScriptedSMTPServer

NEVER = (1, 86400)
"""A rate by which nothing leaves after the first mail."""


@pytest.fixture
def setup() -> ProcessorSetup:
    return ProcessorSetup(MemoryQueue())


class Steered:
    """A running processor whose rate limiter has a clock that stands still."""

    def __init__(self, processor: QueueProcessor, clock: Clock, workers: int) -> None:
        self.processor = processor
        self.clock = clock
        self.workers = workers

    def rest(self) -> None:
        """Wait until all workers wait for a permit or for mail."""
        if isinstance(self.processor._mailer, SMTPMailer):
            # The loop has one thread, which looks for work a moment after it was woken.
            time.sleep(0.1)
            until(lambda: not self.active_queue.working)
        else:
            until(lambda: self.active_queue.waiting == self.workers)

    @property
    def active_queue(self) -> ActiveQueue:
        return active_queue(self.processor)

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds
        self.active_queue.notify_waiters()


@contextmanager
def steered(setup: ProcessorSetup, rate: tuple[int, int], *, workers: int = 4) -> Iterator[Steered]:
    clock = Clock(1000.0)
    with setup.running(rate=rate, workers=workers, monotonic=clock) as processor:
        until(lambda: processor.current)
        yield Steered(processor, clock, workers)


def active_queue(processor: QueueProcessor) -> ActiveQueue:
    assert processor.current is not None
    return processor.current.active_queue


@pytest.mark.parametrize('workers', [1, 8])
def test_workers_share_the_rate(
    smtp_server: ScriptedSMTPServer, setup: ProcessorSetup, workers: int
) -> None:
    """However many workers there are, the relay gets the rate and no more."""
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


def test_one_at_a_time_over_one_connection(setup: ProcessorSetup) -> None:
    """Below one mail a second one mail leaves at a time, over the open connection."""
    setup.put_many(5)
    with steered(setup, (30, 60)) as processor:
        for sent in range(1, 6):
            setup.mailer.wait_for(sent)
            processor.rest()
            assert len(setup.mailer.sent) == sent
            processor.later(2)
    assert setup.mailer.connections == 1


def test_priorities_count_while_mail_waits_for_a_permit(setup: ProcessorSetup) -> None:
    """Urgent mail that arrives later leaves first."""
    setup.put_many(3)
    with steered(setup, NEVER) as processor:
        setup.mailer.wait_for(1)
        processor.rest()
        urgent = setup.put(priority='high')
        until(lambda: len(processor.active_queue) == 3)
        processor.later(86400)
        setup.mailer.wait_for(2)
        assert setup.mailer.sent[1].id == urgent.id


@pytest.mark.parametrize('once', [False, True])
def test_stop_while_waiting(setup: ProcessorSetup, once: bool) -> None:
    """A processor that stops does not wait for a permit, which would come tomorrow."""
    setup.put_many(3)
    processor = setup.processor(rate=NEVER)
    if once:
        stop = threading.Event()
        assert processor.run_once(stop_after(setup, 1, stop), stop) == Tally(delivered=1)
    else:
        with running_processor(processor):
            setup.mailer.wait_for(1)
            until(lambda: active_queue(processor).waiting == 4)
    assert len(setup.mailer.sent) == 1
    assert len(setup.queue) == 2
    assert setup.mailer.open_sessions == []


def stop_after(
    setup: ProcessorSetup, mails: int, stop: threading.Event
) -> Callable[[Tally, int], None]:
    def progress(tally: Tally, left: int) -> None:
        if len(setup.mailer.sent) == mails:
            stop.set()

    return progress


def test_run_once_keeps_the_rate(setup: ProcessorSetup) -> None:
    """``run_once`` sends all mail, and no mail early."""
    times: list[float] = []
    setup.mailer.before = lambda envelope: times.append(time.monotonic())
    setup.put_many(25)
    start = time.monotonic()
    assert setup.processor(rate=(10, 1)).run_once() == Tally(delivered=25)
    assert len(times) == 25
    assert times[10] - start >= 1
    assert times[20] - start >= 2


def test_the_rate_lasts_over_several_runs(setup: ProcessorSetup) -> None:
    """A processor that starts again after a failure has no new permits."""
    setup.put()
    processor = setup.processor(rate=NEVER)
    assert processor.run_once() == Tally(delivered=1)
    setup.put()
    with running_processor(processor):
        until(lambda: len(active_queue(processor)) == 1)
        until(lambda: active_queue(processor).waiting == 4)
    assert len(setup.mailer.sent) == 1


# What uses no permit


def only_one_leaves(setup: ProcessorSetup, **options: Any) -> None:
    """Check that the good mail is sent although there is one permit a day."""
    with setup.running(rate=NEVER, **options):
        until(lambda: setup.mailer.accepted('good@example.org') == 1)


def test_expired_mail(setup: ProcessorSetup) -> None:
    """It is settled without being sent."""
    for _ in range(5):
        setup.put(expires=time.time() - 1, priority='high')
    setup.put('good@example.org')
    only_one_leaves(setup)
    until(lambda: not len(setup.queue))
    assert len(setup.mailer.sent) == 1


def test_mail_that_another_processor_has(setup: ProcessorSetup) -> None:
    """A mail that cannot be claimed uses no permit."""
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
    """A claim of a mail that a process was sending when it died."""

    interrupted, ambiguous = 'sending', ()

    def __init__(self, claim: Any) -> None:
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)


def test_mail_of_a_dead_process(setup: ProcessorSetup) -> None:
    """It is deferred without being sent."""
    poison = setup.put(priority='high')
    claim = setup.queue.claim

    def claiming(ticket: Any, **options: Any) -> Any:
        got = claim(ticket, **options)
        return Interrupted(got) if got and got.envelope.id == poison.id else got

    setup.queue.claim = claiming
    setup.put('good@example.org')
    only_one_leaves(setup)
    assert [envelope.recipients for envelope in setup.mailer.sent] == [('good@example.org',)]


def test_a_relay_that_becomes_unavailable(setup: ProcessorSetup) -> None:
    """A mail released after 421 at MAIL frees its permit for the next try."""
    troubles = iter([True, True, False])

    def before(envelope: Envelope) -> None:
        if next(troubles, False):
            raise MailerUnavailable('421')

    setup.mailer.before = before
    setup.put('good@example.org')
    only_one_leaves(setup)
    assert setup.mailer.connections == 3


def test_a_relay_that_is_unavailable(setup: ProcessorSetup) -> None:
    """A refused connection uses no permit."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put('good@example.org')
    with setup.running(rate=NEVER):
        until(lambda: setup.mailer.connections >= 3)
        setup.mailer.unavailable = None
        setup.mailer.wait_for(1)


def test_a_queue_that_fails(setup: ProcessorSetup) -> None:
    """A mail that could not be claimed because the queue failed uses no permit."""
    claim = setup.queue.claim
    failures: list[QueueError] = [READ_ONLY, READ_ONLY]

    def failing(ticket: Any, **options: Any) -> Any:
        if failures:
            raise QueueError(*failures.pop().args)
        return claim(ticket, **options)

    setup.queue.claim = failing
    setup.put('good@example.org')
    only_one_leaves(setup, poll=0.05)


def test_a_stale_connection(setup: ProcessorSetup) -> None:
    """A mail that is sent again at once over a new connection uses one permit."""
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


def test_an_attempt_that_failed_counts(setup: ProcessorSetup) -> None:
    """A mail that the relay refused uses a permit."""
    setup.mailer.script('ann@example.org', Verdict('failed', Reply(550, 'no')))
    setup.put_many(2)
    with steered(setup, NEVER) as processor:
        setup.mailer.wait_for(1)
        processor.rest()
        assert len(setup.mailer.sent) == 1


@pytest.mark.slow
class CountedClock:
    """The monotonic clock, which counts how often it is read."""

    def __init__(self) -> None:
        self.readings: list[float] = []

    def __call__(self) -> float:
        self.readings.append(time.monotonic())
        return self.readings[-1]


def test_a_high_rate_costs_little(setup: ProcessorSetup) -> None:
    """A rate above what the mailer can do lets no worker wait: the clock is read a few times more
    for each mail."""

    def clock_reads(**options: Any) -> int:
        setup.put_many(1000)
        clock = CountedClock()
        processor = setup.processor(monotonic=clock, **options)
        assert processor.run_once() == Tally(delivered=1000)
        return len(clock.readings)

    assert clock_reads(rate=(999_999, 1)) - clock_reads() <= 2 * 1000


def test_a_low_rate_is_reached(setup: ProcessorSetup) -> None:
    """Each second sends what the rate permits, and no permit is lost."""
    setup.put_many(50)
    with steered(setup, (20, 1)) as processor:
        for sent in (20, 40, 50):
            setup.mailer.wait_for(sent)
            processor.rest()
            assert len(setup.mailer.sent) == sent
            processor.later(1)
