"""The queue processor: what it sends, in which order, and over how many connections."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Reply, Tally, Verdict
from pyramid_sendmail.interfaces import IMailQueueProcessor
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.scan import ScanLimits
from pyramid_sendmail.retry import RetryPolicy
from tests.support.processors import (
    DEFERRED,
    ProcessorSetup,
    is_empty,
    log_levels,
    make_maildir,
    record_scans,
    running_processor,
)
from tests.support.queues import Clock, files, until

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))

YEAR = 365 * 86_400.0


def waiting(processor: QueueProcessor) -> int:
    """Return how many workers wait for work."""
    assert processor.current is not None
    return processor.current.active_queue.waiting


def test_interface(setup: ProcessorSetup) -> None:
    """The processor implements its interface."""
    assert verifyObject(IMailQueueProcessor, setup.processor())


def test_one_mail_opens_one_connection(setup: ProcessorSetup) -> None:
    """Four workers and one mail at a time: all mails go over one connection."""
    with setup.running() as processor:
        until(lambda: processor.current)
        for count in range(1, 6):
            until(lambda: waiting(processor) == 4)
            setup.put()
            setup.mailer.wait_for(count)
            until(lambda: is_empty(setup))
    assert setup.mailer.connections == 1
    assert setup.mailer.open_sessions == []


def test_one_worker_keeps_its_connection(setup: ProcessorSetup) -> None:
    """Mail after mail goes over the same connection."""
    with setup.running(workers=1):
        for count in range(1, 6):
            setup.put()
            setup.mailer.wait_for(count)
    assert setup.mailer.connections == 1


def test_a_connection_is_replaced_after_its_batch(setup: ProcessorSetup) -> None:
    """250 mails, 100 on each connection: three connections."""
    setup.put_many(250)
    with setup.running(workers=1, batch=100):
        setup.mailer.wait_for(250)
    assert setup.mailer.connections == 3
    assert set(setup.sent_ids().values()) == {1}
    assert is_empty(setup)


def test_workers_send_at_the_same_time(setup: ProcessorSetup) -> None:
    """Three workers have three mails in flight."""
    barrier = threading.Barrier(3)
    setup.mailer.before = lambda envelope: barrier.wait(10)
    setup.put_many(3)
    with setup.running(workers=3):
        setup.mailer.wait_for(3)
    assert setup.mailer.connections == 3


def test_mail_with_a_due_time(setup: ProcessorSetup) -> None:
    """It leaves at its time, without a scan in between."""
    due = time.time() + 0.3
    setup.put(due=due)
    with setup.running():
        setup.put()
        setup.mailer.wait_for(2)
    assert time.time() >= due
    assert setup.mailer.sent[1].due == due


def test_deferred_mail_is_retried(setup: ProcessorSetup) -> None:
    """The retry follows the policy and goes to the remaining recipients only."""
    setup.dispatcher.kinds = ('sent',)
    setup.mailer.script('bob@example.org', DEFERRED, DEFERRED)
    setup.put('ann@example.org', 'bob@example.org')
    with setup.running(policy=RetryPolicy(delays=(0.05,), jitter=0.0)):
        setup.mailer.wait_for(3)
        until(lambda: is_empty(setup))
    assert [envelope.recipients for envelope in setup.mailer.sent[1:]] == [
        ('bob@example.org',),
        ('bob@example.org',),
    ]
    assert [event.attempt for event in setup.dispatcher.pending_events] == [1, 3]


def test_fresh_mail_is_not_starved_by_deferred_mail(on_disk: ProcessorSetup) -> None:
    """A new mail that arrives while 300 deferred ones wait is among the next to leave."""
    on_disk.put_many(300)
    on_disk.mailer.always('ann@example.org', DEFERRED)
    on_disk.processor(policy=RetryPolicy(delays=(0.01,), jitter=0.0)).run_once()
    assert {name.split('/')[0] for name in files(on_disk.queue)} == {'cur'}
    until(lambda: len(on_disk.queue.scan(time.time())[0]) == 300)
    go_on, reached = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        if len(on_disk.mailer.sent) == 310:
            reached.set()
            assert go_on.wait(10)

    on_disk.mailer.before = before
    with on_disk.running(workers=1) as processor:
        assert reached.wait(10)
        fresh = on_disk.put('bob@example.org')
        tickets, _ = on_disk.queue.scan(time.time(), fresh=True)
        (ticket,) = (ticket for ticket in tickets if ticket.key == fresh.id)
        until(lambda: processor.current.active_queue.knows(ticket))
        go_on.set()
        on_disk.mailer.wait_for(400)
    place = [envelope.message_id for envelope in on_disk.mailer.sent].index(fresh.message_id)
    assert place < 340


def test_a_slow_mail_does_not_delay_others(setup: ProcessorSetup) -> None:
    """Other mail leaves meanwhile, and a scan while it is in flight opens no connection for it."""
    go_on = threading.Event()
    slow = setup.put('slow@example.org')

    def before(envelope: Envelope) -> None:
        if envelope.id == slow.id:
            assert go_on.wait(10)

    setup.mailer.before = before
    with setup.running(workers=2, poll=0.01):
        until(lambda: setup.mailer.connections == 1)
        setup.put_many(50)
        setup.mailer.wait_for(50)
        scans = record_scans(setup.queue)
        until(lambda: len(scans) > 10)
        assert setup.mailer.connections == 2
        go_on.set()
        setup.mailer.wait_for(51)
    assert set(setup.sent_ids().values()) == {1}


@pytest.mark.parametrize('once', [False, True])
def test_a_limit_smaller_than_the_queue(setup: ProcessorSetup, once: bool) -> None:
    """With few tickets in memory everything is sent, without waiting for the next poll."""
    setup.put_many(100)
    processor = setup.processor(limit=7, workers=2)
    if once:
        assert processor.run_once() == Tally(delivered=100)
    else:
        with running_processor(processor):
            setup.mailer.wait_for(100)
    assert set(setup.sent_ids().values()) == {1}
    assert is_empty(setup)


def test_a_limit_while_fresh_mail_comes(on_disk: ProcessorSetup) -> None:
    """After a scan of new mail a processor still knows that the last full scan was cut."""
    on_disk.mailer.always('ann@example.org', DEFERRED)
    on_disk.put_many(60)
    on_disk.processor(policy=RetryPolicy(delays=(0.01,), jitter=0.0)).run_once()
    on_disk.mailer.always('ann@example.org', Verdict('delivered', Reply(250, 'ok')))
    until(lambda: len(on_disk.queue.scan(time.time())[0]) == 60)
    on_disk.mailer.before = lambda envelope: (
        on_disk.put('bob@example.org') if len(on_disk.mailer.sent) in (63, 65) else None
    )
    with on_disk.running(workers=1, limit=10):
        on_disk.mailer.wait_for(60 + 62)
    assert is_empty(on_disk)


@pytest.mark.parametrize('once', [False, True])
def test_a_large_queue_is_scanned_seldom(on_disk: ProcessorSetup, once: bool) -> None:
    """What a scan found beyond the limit is sent without another scan."""
    on_disk.queue = MaildirQueue(on_disk.queue.path, sync=False, limits=ScanLimits(names=40))
    on_disk.put_many(100)
    scans = record_scans(on_disk.queue)
    processor = on_disk.processor(limit=8, workers=1, batch=4)
    if once:
        assert processor.run_once() == Tally(delivered=100)
    else:
        with running_processor(processor):
            on_disk.mailer.wait_for(100)
    assert set(on_disk.sent_ids().values()) == {1}
    # Three, those before the end, and a few more that found mail in flight again.
    assert len(scans) <= 8


@pytest.mark.parametrize('fresh', [True, False])
def test_slow_scans_leave_time_for_sending(setup: ProcessorSetup, fresh: bool) -> None:
    """However often mail arrives or is due again, the next scan waits ten times as long as the
    last one took."""
    began: list[float] = []
    ended: list[float] = []
    original = setup.queue.scan

    def scan(now: float, **options: Any) -> Any:
        if options['fresh'] is not fresh:
            return original(now, **options)
        began.append(time.monotonic())
        time.sleep(0.01)
        tickets, _ = original(now, **options)
        ended.append(time.monotonic())
        return tickets, None if fresh else now

    setup.queue.scan = scan
    with setup.running():
        for _ in range(8):
            setup.put()
            time.sleep(0.01)
        setup.mailer.wait_for(8)
        until(lambda: len(ended) > 2 or fresh)
    assert began
    assert all(begin - end >= 0.1 for end, begin in zip(ended, began[1:], strict=False))


def test_run_once(setup: ProcessorSetup) -> None:
    """Each due mail is tried once; delivered, deferred and refused mails are counted."""
    setup.mailer.script('bob@example.org', DEFERRED)
    setup.mailer.script('eve@example.org', REFUSED)
    for recipient in ('ann@example.org', 'bob@example.org', 'eve@example.org'):
        setup.put(recipient)
    setup.put(due=time.time() + 3600)
    seen: list[tuple[int, int]] = []
    processor = setup.processor(policy=RetryPolicy(delays=(0.001,), jitter=0.0))
    tally = processor.run_once(lambda tally, left: seen.append((tally.total, left)))
    assert tally == Tally(delivered=1, deferred=1, failed=1)
    assert seen[-1] == (3, 0)
    assert len(setup.mailer.sent) == 3
    until(lambda: setup.queue.scan(time.time())[0])
    assert processor.run_once() == Tally(delivered=1), 'the deferred one'


def test_run_once_with_nothing_to_do(setup: ProcessorSetup) -> None:
    """Without mail no connection is opened."""
    assert setup.processor().run_once() == Tally()
    assert setup.mailer.connections == 0


def test_run_once_sends_mail_that_arrives_meanwhile(setup: ProcessorSetup) -> None:
    """New mail is sent in the same run, but no mail twice, however soon its retry is due."""
    setup.mailer.always('later@example.org', DEFERRED)
    arrived: list[Envelope] = []

    def before(envelope: Envelope) -> None:
        if len(arrived) < 5:
            arrived.append(setup.put(*(['later@example.org'] if len(arrived) % 2 else [])))

    setup.mailer.before = before
    setup.put()
    processor = setup.processor(workers=1, policy=RetryPolicy(delays=(0.001,), jitter=0.0))
    tally = processor.run_once()
    assert tally == Tally(delivered=4, deferred=2)
    assert set(setup.sent_ids().values()) == {1}


def test_the_folder_is_synced(failing: ProcessorSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is synced after a hundred deliveries or a second; an error changes nothing."""
    interval = 'pyramid_sendmail.processor.processor.SYNC_INTERVAL'
    monkeypatch.setattr(interval, 3600.0)
    with failing.running(workers=1):
        for times in (1, 2):
            failing.put_many(125)
            failing.mailer.wait_for(125 * times)
            until(lambda times=times: failing.queue.calls['sync'] >= times)  # type: ignore[misc]
        until(lambda: is_empty(failing))
    monkeypatch.setattr(interval, 0.05)
    synced: list[int] = []
    failing.mailer.before = lambda envelope: synced.append(failing.queue.calls['sync'])
    failing.put_many(50)
    with failing.running(workers=1):
        failing.mailer.wait_for(300)
        until(lambda: failing.queue.calls['sync'] > synced[-1])
        until(lambda: is_empty(failing))
        failing.queue.errors['sync'] = OSError(errno.EIO, 'Input/output error')
        failing.put()
        failing.mailer.wait_for(301)
    assert is_empty(failing)


def test_a_sync_that_fails(failing: ProcessorSetup, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the mail is delivered."""
    failing.queue.errors['sync'] = OSError(errno.EIO, 'Input/output error')
    failing.put()
    assert failing.processor().run_once() == Tally(delivered=1)
    assert log_levels(caplog, 'could not be synced') == ['ERROR']


def test_two_processors_share_a_queue(on_disk: ProcessorSetup) -> None:
    """Each mail is sent once, by one processor or the other."""
    second = make_maildir(Path(on_disk.queue.path))
    on_disk.put_many(200)
    with on_disk.running(), on_disk.running(queue=second):
        on_disk.put_many(100)
        on_disk.mailer.wait_for(300)
        until(lambda: is_empty(on_disk))
    assert set(on_disk.sent_ids().values()) == {1}
    assert len(on_disk.mailer.sent) == 300


def test_two_processors_share_one_object(setup: ProcessorSetup) -> None:
    """Two processors in one process share a queue object; one of them may end before the other."""
    setup.put_many(50)
    with setup.running(poll=0.05):
        with setup.running(poll=0.05):
            setup.mailer.wait_for(50)
        setup.put_many(50)
        setup.mailer.wait_for(100)
        until(lambda: is_empty(setup))
    assert set(setup.sent_ids().values()) == {1}


@pytest.mark.parametrize('shift', [-10 * YEAR, -YEAR, YEAR, 10 * YEAR])
def test_a_clock_that_jumps(tmp_path: Path, shift: float) -> None:
    """Mail deferred before the jump is due after it: nothing is lost, sent twice, or expired."""
    clock = Clock(float(int(time.time())))
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail', clock=clock), clock=clock)
    setup.dispatcher.kinds = ('error',)
    setup.mailer.script('bob@example.org', DEFERRED)
    setup.put('bob@example.org')
    setup.put('eve@example.org')
    with setup.running():
        setup.mailer.wait_for(2)
        until(lambda: len(files(setup.queue)) == 1)
        clock.now += shift
        later = setup.put('ann@example.org')
        setup.mailer.wait_for(3)
    setup.processor().run_once()
    assert setup.mailer.accepted('bob@example.org') == 1
    assert setup.mailer.accepted('eve@example.org') == 1
    assert setup.sent_ids()[later.message_id] == 1
    assert setup.dispatcher.pending_events == []
    assert is_empty(setup)
    setup.queue.close()
