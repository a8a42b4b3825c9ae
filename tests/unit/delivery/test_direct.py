"""Direct delivery: the relay gets the mail at commit, from a thread of this process."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail import (
    MailerUnavailable,
    MessageError,
    QueueError,
)
from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply, Verdict
from pyramid_sendmail.interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailEventDispatcher,
)
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.threads import BackgroundThread
from tests.support.direct import WAIT, Direct
from tests.support.doubles import RecordingMailer
from tests.support.queues import Clock, files, make_envelope, until
from tests.support.smtp.server import ScriptedSMTPServer, drop, reply
from tests.support.transactions import OtherManager, message

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))
LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))
NO_ANSWER = Verdict('ambiguous', None, 'no answer to the whole message')


@pytest.fixture
def direct(mailer: RecordingMailer) -> Iterator[Direct]:
    """Without a queue: at most once."""
    direct = Direct(MemoryQueue(), mailer, durable=False)
    yield direct
    direct.finish()


@pytest.fixture
def durable(mailer: RecordingMailer, maildir: MaildirQueue) -> Iterator[Direct]:
    """With a Maildir."""
    direct = Direct(maildir, mailer, durable=True)
    yield direct
    direct.finish()


@pytest.fixture(params=['direct', 'durable'])
def either(request: pytest.FixtureRequest) -> Direct:
    direct: Direct = request.getfixturevalue(request.param)
    return direct


# The object


def test_the_interfaces_are_kept(direct: Direct) -> None:
    """The delivery, the bound one that ``request.mailer`` is, and the double keep their
    interfaces."""
    verifyObject(IDirectMailDelivery, direct.delivery)
    verifyObject(IMailDelivery, direct.bound)
    verifyObject(IMailEventDispatcher, direct.dispatcher)


def test_nothing_is_started_or_opened_before_a_vote(
    maildir: MaildirQueue, mailer: RecordingMailer
) -> None:
    """Making a delivery, sending, and an abort start no thread, open no connection and make no
    file."""
    before = set(threading.enumerate())
    direct = Direct(maildir, mailer, durable=True)
    direct.manager.begin()
    direct.bound.send(message())
    direct.manager.abort()
    assert set(threading.enumerate()) <= before
    assert mailer.connections == 0
    assert not os.path.exists(maildir.path)


# Direct delivery


def test_direct_delivery_waits_for_the_relay(either: Direct, mailer: RecordingMailer) -> None:
    """When the commit returns, the relay has answered, and the event is dispatched."""
    (message_id,) = either.commit()
    assert [envelope.message_id for envelope in mailer.sent] == [message_id]
    assert either.dispatcher.kinds == [('Hello', 'sent')]


def test_direct_delivery_of_an_abort(either: Direct, mailer: RecordingMailer) -> None:
    """An abort sends nothing and opens no connection."""
    either.manager.begin()
    either.bound.send(message())
    either.manager.abort()
    either.commit(message('after it'))
    assert [envelope.subject for envelope in mailer.sent] == ['after it']


def test_several_mails_over_one_connection(either: Direct, mailer: RecordingMailer) -> None:
    """All mail of a transaction, and of the next, goes over one connection, in its order."""
    either.commit(*(message(subject) for subject in 'abc'))
    either.commit(message('d'))
    assert [envelope.subject for envelope in mailer.sent] == ['a', 'b', 'c', 'd']
    assert mailer.connections == 1


def test_no_connection_before_all_have_finished(either: Direct, mailer: RecordingMailer) -> None:
    """Neither the vote nor the finish of another data manager waits for the relay."""
    seen: list[int] = []

    class Other:
        def sortKey(self) -> str:
            return 'a database'

        def step(self, transaction: Any) -> None:
            seen.append(mailer.connections)

        tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = abort = step

    either.manager.begin().join(Other())
    either.bound.send(message())
    either.manager.commit()
    assert seen[:4] == [0, 0, 0, 0]
    assert mailer.connections == 1


def test_direct_delivery_without_waiting(mailer: RecordingMailer) -> None:
    """With ``mail.direct_wait = false`` the commit returns before the relay has answered."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    assert mailer.sent == []
    answering.set()
    direct.finish()
    assert len(mailer.sent) == 1


def test_direct_delivery_waits_no_longer_than_its_timeout(
    mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """After ``mail.direct_timeout`` the commit returns, a warning is logged, and the mail is still
    being sent."""
    direct = Direct(MemoryQueue(), mailer, durable=False, timeout=0.01)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    assert mailer.sent == []
    assert 'mail.direct_timeout' in caplog.text
    answering.set()
    direct.finish()
    assert len(mailer.sent) == 1


@pytest.mark.parametrize('durable', [False, True])
def test_mail_that_is_lost_at_exit(
    durable: bool, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """If the process ends before the relay has taken all mail, the log says how many are lost, and
    which setting keeps such mail. With a queue none is."""
    direct = Direct(MemoryQueue(), mailer, durable=durable, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit(message(), message())
    direct.commit()
    direct.sender.finish(0.0)
    lost = '3 mails: not sent and lost: no queue is configured (mail.queue_path)'
    assert (lost in caplog.text) is not durable
    answering.set()
    caplog.clear()
    direct.finish()
    assert 'lost' not in caplog.text
    assert len(mailer.sent) == 3


def test_direct_delivery_never_waits_in_a_background_thread(mailer: RecordingMailer) -> None:
    """Code in a thread of this package, such as a subscriber, does not wait for the relay."""
    direct = Direct(MemoryQueue(), mailer, durable=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    thread = BackgroundThread(target=direct.commit)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert mailer.sent == []
    answering.set()
    direct.finish()
    assert len(mailer.sent) == 1


def test_a_mail_of_this_very_moment_is_due(maildir: MaildirQueue, mailer: RecordingMailer) -> None:
    """A file's name has milliseconds: a mail whose time was rounded up is sent nevertheless, and
    not left behind."""
    for queue in (MemoryQueue(), maildir):
        direct = Direct(queue, mailer, durable=isinstance(queue, MaildirQueue))
        for _ in range(20):
            direct.commit()
        direct.finish()
    assert len(mailer.sent) == 40


@pytest.mark.parametrize('back', [0.0005, 60, 3600, 365 * 86400.0])
@pytest.mark.parametrize('at', ['send', 'vote', 'finish', 'every call'])
@pytest.mark.parametrize('kind', ['direct', 'durable'])
def test_the_clock_is_set_back(
    kind: str, at: str, back: float, mailer: RecordingMailer, maildir: MaildirQueue
) -> None:
    """A mail for now is sent by its commit, whenever the clock is set back. It was taken for one
    that the user wanted later: never sent without a queue, left in ``new/`` with one."""
    clock = Clock()
    queue: Any = MemoryQueue(clock=clock)
    if kind == 'durable':
        queue = maildir
        maildir._clock = maildir._scanner._clock = clock
    direct = Direct(queue, mailer, durable=kind == 'durable', clock=clock)
    steps: dict[str, Any] = {}

    def set_back() -> None:
        clock.now -= back

    if at in ('vote', 'finish'):
        steps[at] = set_back
    with direct.manager as current:
        current.join(OtherManager('a database', **steps))
        direct.bound.send(message())
        if at == 'send':
            set_back()
        elif at == 'every call':
            clock.step = -back
    direct.finish()
    assert [envelope.subject for envelope in mailer.sent] == ['Hello']
    assert direct.dispatcher.kinds == [('Hello', 'sent')]
    assert direct.queue.scan(1e11) == ([], None)


def test_what_the_user_wants_later_stays_later(
    mailer: RecordingMailer, maildir: MaildirQueue
) -> None:
    """A mail with ``due`` is left to a queue processor, whether the clock is set back or not."""
    clock = Clock()
    maildir._clock = maildir._scanner._clock = clock
    direct = Direct(maildir, mailer, durable=True, clock=clock)
    direct.commit(due=timedelta(seconds=1))
    with direct.manager:
        direct.bound.send(message('set back'), due=timedelta(seconds=1))
        clock.now -= 3600
    direct.finish()
    assert mailer.sent == []
    assert maildir.scan(clock.now)[0] == []
    clock.now += 3602
    assert len(maildir.scan(clock.now)[0]) == 2


def test_a_refused_mail_is_an_error(either: Direct, mailer: RecordingMailer) -> None:
    """A recipient that the relay refuses is an error event, and the commit stands."""
    mailer.always('ann@example.org', REFUSED)
    either.commit()
    ((_, event),) = either.dispatcher.handled
    assert (event.kind, event.permanent, event.reply) == ('error', True, REFUSED.reply)


@pytest.mark.parametrize('verdict', [LATER, NO_ANSWER])
def test_without_a_queue_a_temporary_failure_is_final(
    direct: Direct, mailer: RecordingMailer, verdict: Verdict
) -> None:
    """Without a queue a temporary failure is an error event that is not permanent."""
    mailer.always('ann@example.org', verdict)
    direct.commit()
    ((_, event),) = direct.dispatcher.handled
    assert (event.kind, event.permanent, event.reply) == ('error', False, verdict.reply)


def test_with_a_queue_a_temporary_failure_stays_there(
    durable: Direct, mailer: RecordingMailer, maildir: MaildirQueue
) -> None:
    """With a Maildir a temporary failure counts as an attempt, is a deferred event, and waits for a
    queue processor."""
    mailer.always('ann@example.org', LATER)
    durable.commit()
    ((_, event),) = durable.dispatcher.handled
    assert (event.kind, event.attempt) == ('deferred', 1)
    tickets, _ = maildir.scan(time.time() + 3600)
    assert [(ticket.state, ticket.order[18:22]) for ticket in tickets] == [('deferred', '0001')]


def test_without_a_queue_an_unavailable_relay_is_an_error(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """Each mail that could not be sent is an error event that is not permanent, with the reason."""
    mailer.unavailable = 'connection refused'
    direct.commit(message('a'), message('b'))
    assert direct.dispatcher.kinds == [('a', 'error'), ('b', 'error')]
    events = [event for _, event in direct.dispatcher.handled]
    assert {event.permanent for event in events} == {False}
    assert all('connection refused' in event.reason for event in events)
    mailer.unavailable = None
    direct.commit(message('c'))
    assert [envelope.subject for envelope in mailer.sent] == ['c']


def test_with_a_queue_an_unavailable_relay_changes_nothing(
    durable: Direct,
    mailer: RecordingMailer,
    maildir: MaildirQueue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mail stays in the queue unchanged, without an event, and no attempt is counted."""
    mailer.unavailable = 'connection refused'
    durable.commit()
    assert durable.dispatcher.handled == []
    ((folder, name),) = [file.split('/') for file in files(maildir)]
    assert (folder, name[18:22]) == ('new', '0000')
    assert 'connection refused' in caplog.text


def test_a_relay_that_becomes_unavailable_between_two_mails(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """Mail that was answered is sent, the rest are errors; none is sent twice or forgotten."""

    def closes(envelope: Envelope) -> None:
        if envelope.subject == 'b':
            mailer.unavailable = 'gone'
            raise MailerUnavailable('421 closing')

    mailer.before = closes
    direct.commit(*(message(subject) for subject in 'abc'))
    assert direct.dispatcher.kinds == [('a', 'sent'), ('b', 'error'), ('c', 'error')]


def test_a_session_that_fails_harms_one_mail(direct: Direct, mailer: RecordingMailer) -> None:
    """A bug in the mailer over one mail does not keep the others from leaving."""

    def fails(envelope: Envelope) -> None:
        if envelope.subject == 'b':
            raise ZeroDivisionError

    mailer.before = fails
    direct.commit(*(message(subject) for subject in 'abc'))
    assert direct.dispatcher.kinds == [('a', 'sent'), ('b', 'error'), ('c', 'sent')]


def test_a_mailer_with_a_bug_loses_no_mail_silently(
    either: Direct, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """If ``connect`` has a bug, the mail is an error event or stays in the queue, the traceback is
    logged, and the next mail is sent."""
    connect = mailer.connect

    def faulty() -> Any:
        raise ZeroDivisionError

    mailer.connect = faulty  # type: ignore[method-assign]
    either.commit(message('a'))
    mailer.connect = connect  # type: ignore[method-assign]
    either.commit(message('b'))
    if isinstance(either.queue, MemoryQueue):
        assert either.dispatcher.kinds == [('a', 'error'), ('b', 'sent')]
        assert 'ZeroDivisionError' in either.dispatcher.handled[0][1].reason
    else:
        assert either.dispatcher.kinds == [('b', 'sent')]
        assert len(files(either.queue)) == 1
    assert 'Traceback' in caplog.text


def test_due_without_a_queue_is_refused(direct: Direct, durable: Direct) -> None:
    """Without a queue a mail cannot wait for its time, and ``send`` names the setting."""
    with direct.manager, pytest.raises(MessageError, match=r'^due: .*mail\.queue_path'):
        direct.bound.send(message(), due=timedelta(minutes=1))
    direct.commit(due=datetime.now(UTC) - timedelta(minutes=1))
    assert direct.dispatcher.kinds == [('Hello', 'sent')]
    durable.commit(due=timedelta(minutes=1))
    assert durable.dispatcher.handled == []
    assert len(files(durable.queue)) == 1


def test_a_queue_that_cannot_be_used_sends_nothing(
    durable: Direct,
    mailer: RecordingMailer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the queue cannot be written, the mail stays in it unchanged, and nothing is sent."""

    def read_only() -> None:
        raise QueueError(errno.EROFS, 'read-only')

    monkeypatch.setattr(durable.queue, 'check_writable', read_only)
    durable.commit()
    assert mailer.connections == 0
    assert len(files(durable.queue)) == 1
    assert 'read-only' in caplog.text


def test_an_outcome_that_was_not_written_is_written_later(
    durable: Direct, mailer: RecordingMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk fills between the relay's answer and the record, the claim is kept, and the
    outcome is written as soon as it can be, without another mail."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.QUEUE_RETRY_DELAY', 0.02)
    settle = OutcomeRecorder._write
    full = True

    def record(self: OutcomeRecorder, *args: Any) -> None:
        if full:
            raise QueueError(errno.ENOSPC, 'no space left on device')
        settle(self, *args)

    monkeypatch.setattr(OutcomeRecorder, '_write', record)
    durable.commit()
    assert len(mailer.sent) == 1
    assert len(durable.recorder.unrecorded) == 1
    until(lambda: durable.sender._scan_at < time.time() + 1)
    full = False
    until(lambda: durable.dispatcher.kinds == [('Hello', 'sent')])
    assert files(durable.queue) == []
    assert len(mailer.sent) == 1


def test_a_damaged_file_is_moved(
    durable: Direct, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that was damaged between finish and claim is moved to failed/, and stops no other."""

    def damage(transaction: Any, staged: Any) -> None:
        path = Path(durable.queue.path, 'new', staged.tickets[0].order)
        path.write_bytes(path.read_bytes()[:-3])
        published(transaction, staged)

    published = durable.delivery.on_published
    durable.delivery.on_published = damage  # type: ignore[method-assign]
    durable.commit(message('a'), message('b'))
    assert [envelope.subject for envelope in mailer.sent] == ['b']
    assert [file.split('/')[0] for file in files(durable.queue)] == ['failed']
    assert 'damaged' in caplog.text


# flush


def test_flush_waits_for_the_relay_and_the_subscribers(
    mailer: RecordingMailer,
) -> None:
    """``flush`` returns True when all mail is answered and its events are dispatched, mail that
    subscribers have sent included; the connection stays open."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    flushed: list[float] = []

    def flush(timeout: float) -> bool:
        if not flushed:
            direct.commit(message('of a subscriber'))
        flushed.append(timeout)
        return True

    direct.dispatcher.flush = flush  # type: ignore[method-assign]
    direct.commit(message('first'))
    assert direct.delivery.flush(WAIT)
    assert [envelope.subject for envelope in mailer.sent] == ['first', 'of a subscriber']
    assert len(flushed) == 2
    assert len(mailer.open_sessions) == 1
    direct.finish()


def test_flush_waits_no_longer_than_its_timeout(mailer: RecordingMailer) -> None:
    """``flush`` returns False if the relay has not answered in time; the mail is still being
    sent."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    assert not direct.delivery.flush(0.01)
    answering.set()
    assert direct.delivery.flush(WAIT)
    assert len(mailer.sent) == 1
    direct.finish()


def test_flush_returns_false_while_subscribers_run(direct: Direct) -> None:
    """``flush`` returns False if the event dispatcher is not done in time."""
    direct.commit()
    direct.dispatcher.flush = lambda timeout: False  # type: ignore[method-assign]
    assert not direct.delivery.flush(WAIT)


def test_flush_never_waits_in_a_background_thread(mailer: RecordingMailer) -> None:
    """A subscriber that calls ``flush`` does not wait for itself."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    results: list[bool] = []
    thread = BackgroundThread(target=lambda: results.append(direct.delivery.flush(WAIT)))
    thread.start()
    thread.join(WAIT / 2)
    assert results == [False]
    answering.set()
    direct.finish()


def test_flush_without_mail(direct: Direct) -> None:
    """With nothing to send ``flush`` returns True at once, and starts no thread."""
    before = set(threading.enumerate())
    assert direct.delivery.flush(0.0)
    assert set(threading.enumerate()) <= before


# Events of direct delivery


def test_an_event_that_failed_is_dispatched_again(either: Direct) -> None:
    """The sending thread finds an event that a subscriber could not handle: no queue processor is
    needed."""
    tries: list[int] = []

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        tries.append(events[0].tries)
        if len(tries) < 3:
            claim.retry_events(events, time.time() + 0.01)
            return False
        return True

    either.dispatcher.handle = handle
    either.commit()
    until(lambda: either.dispatcher.kinds == [('Hello', 'sent')])
    assert tries == [0, 1, 2]
    until(lambda: either.queue.scan(1e11) == ([], None))


class Monotonic:
    """A monotonic clock that only a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize('back', [0, 2, 60, 3600, 86400 * 365])
def test_an_event_is_not_later_because_the_clock_is_set_back(
    back: int, mailer: RecordingMailer, direct: Direct
) -> None:
    """An event is tried again after its pause; if the clock was set back meanwhile, after at most
    as much more as another pause takes."""
    clock, monotonic, tries = Clock(), Monotonic(), list[int]()
    direct.recorder.clock = direct.queue._store.now = clock
    direct.sender._monotonic = monotonic

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        tries.append(events[0].tries)
        if len(tries) == 1:
            claim.retry_events(events, clock() + 5)
        return len(tries) > 1

    direct.dispatcher.handle = handle
    direct.commit()
    until(direct.sender._is_idle)
    clock.now -= back
    for seconds in [6, *[30] * 20]:
        clock.now += seconds
        monotonic.now += seconds
        direct.sender._scan_in(inf)
        until(lambda: direct.sender._scan_at > monotonic() and direct.sender._is_idle())
        if len(tries) > 1:
            break
    assert tries == [0, 1]
    assert monotonic.now < 6 + min(back, 600) + 30


def test_the_event_that_is_due_last_is_not_forgotten(
    mailer: RecordingMailer, direct: Direct
) -> None:
    """Two events wait, one for longer: the scan for the first one left nothing that would scan
    for the second."""
    clock, monotonic, handled = Clock(), Monotonic(), list[str]()
    direct.recorder.clock = direct.queue._store.now = clock
    direct.sender._monotonic = monotonic

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        subject = claim.envelope.subject
        if not events[0].tries:
            claim.retry_events(events, clock() + {'soon': 5, 'later': 300}[subject])
            return False
        handled.append(subject)
        return True

    direct.dispatcher.handle = handle
    direct.commit(message('later'), message('soon'))
    for seconds, expected in [(6, ['soon']), (295, ['soon', 'later'])]:
        clock.now += seconds
        monotonic.now += seconds
        direct.sender._scan_in(inf)
        until(lambda expected=expected: handled == expected)  # type: ignore[misc]


def test_an_event_that_is_being_handled_is_left_alone(either: Direct) -> None:
    """A scan for events takes no claim that the dispatcher still holds."""
    held: list[Any] = []
    scanned = threading.Event()
    scan = either.queue.scan

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        held.append((claim, events))
        return False

    def scanning(now: float) -> Any:
        try:
            return scan(now)
        finally:
            scanned.set()

    either.dispatcher.handle = handle
    either.queue.scan = scanning
    either.commit()
    either.sender.scan()
    assert scanned.wait(WAIT)
    either.finish()
    ((claim, events),) = held
    claim.acknowledge(events)
    assert scan(1e11) == ([], None)


def test_an_event_is_found_beside_mail_that_waits(durable: Direct, mailer: RecordingMailer) -> None:
    """A scan for events changes no mail that waits for a queue processor."""
    mailer.always('bob@example.org', LATER)
    durable.commit(message('waits', to='bob@example.org'))
    durable.commit(message('waits too'), due=timedelta(hours=1))
    before = files(durable.queue)
    tries: list[int] = []

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        tries.append(events[0].tries)
        if len(tries) == 1:
            claim.retry_events(events, time.time())
        return len(tries) > 1

    durable.dispatcher.handle = handle
    durable.commit(message('handled'))
    until(lambda: ('handled', 'sent') in durable.dispatcher.kinds)
    until(lambda: files(durable.queue) == before)
    assert tries == [0, 1]


def test_an_event_beyond_the_backlog_is_dispatched_later(
    either: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the dispatcher's backlog is full, it releases the claim, and the event is not lost."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_claim.EVENT_RETRY_DELAY', 0.02)
    refused: list[Any] = []

    def handle(claim: Any, events: Sequence[PendingEvent]) -> bool:
        if not refused:
            refused.append(claim)
            claim.release()
            return False
        return True

    either.dispatcher.handle = handle
    either.commit()
    until(lambda: either.dispatcher.kinds == [('Hello', 'sent')])


def test_a_scan_for_events_that_failed_is_made_again(
    direct: Direct, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that cannot be read is scanned again after a while."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.QUEUE_RETRY_DELAY', 0.01)
    scan, failed = direct.queue.scan, threading.Event()

    def failing(now: float) -> Any:
        if failed.is_set():
            return scan(now)
        failed.set()
        raise QueueError(errno.EIO, 'input/output error')

    monkeypatch.setattr(direct.queue, 'scan', failing)
    direct.dispatcher.handle = lambda claim, events: (
        failed.is_set() or bool(claim.retry_events(events, 0))
    )
    direct.commit()
    until(lambda: direct.dispatcher.kinds == [('Hello', 'sent')])
    assert 'input/output error' in caplog.text


@pytest.mark.parametrize('subjects', ['a', 'ab'])
def test_mail_in_doubt_is_an_error_event(
    either: Direct, mailer: RecordingMailer, subjects: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the finish of another data manager failed before ours, the mail is kept, logged at
    CRITICAL and an error event, without a queue processor; nothing is sent."""

    class Other:
        def sortKey(self) -> str:
            return 'a database'

        def tpc_finish(self, transaction: Any) -> None:
            raise ZeroDivisionError

        def nothing(self, transaction: Any) -> None:
            pass

        tpc_begin = commit = tpc_vote = tpc_abort = abort = nothing

    either.manager.begin().join(Other())
    for subject in subjects:
        either.bound.send(message(subject))
    with pytest.raises(ZeroDivisionError):
        either.manager.commit()
    either.manager.abort()
    until(lambda: len(either.dispatcher.handled) == len(subjects))
    assert sorted(either.dispatcher.kinds) == [(subject, 'error') for subject in subjects]
    assert all('in doubt' in event.reason for _, event in either.dispatcher.handled)
    assert not any(event.permanent for _, event in either.dispatcher.handled)
    assert mailer.connections == 0
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


@pytest.mark.parametrize('stuck', [False, True], ids=['at the start', 'once it can be moved'])
def test_what_a_stopped_process_has_left_is_found(
    durable: Direct, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    """Mail in doubt is held, and its event dispatched, without a queue processor: with the first
    mail of the next process, or later if its file cannot be moved then."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.RECOVERY_INTERVAL', 0.05)
    put = MaildirQueue(durable.queue.path).put([make_envelope()])
    assert put._record is not None
    os.close(put._record)
    rename, failures = os.rename, [OSError(errno.EIO, 'input/output error')] * 2 * stuck

    def failing(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        folders = [
            Path(f'/proc/self/fd/{each}').resolve().name for each in (src_dir_fd, dst_dir_fd)
        ]
        if folders == ['tmp', 'done'] and failures:
            raise failures.pop()
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, 'rename', failing)
    durable.commit()
    until(lambda: 'error' in dict(durable.dispatcher.kinds).values())
    assert failures == []
    # It is moved once the event was handled.
    [path] = until(lambda: list(Path(durable.queue.path, 'failed').iterdir()))
    assert b'X-Envelope-Outcome' in path.read_bytes()


# The thread


def test_the_thread_survives_an_error(
    direct: Direct,
    mailer: RecordingMailer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An unexpected error is logged, and the next mail is sent."""

    def fails(*args: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeRecorder, 'record_outcome', fails)
        mailer.unavailable = 'connection refused'
        direct.commit(message('a'))
        mailer.unavailable = None
    direct.commit(message('b'))
    assert [envelope.subject for envelope in mailer.sent] == ['b']
    assert 'direct delivery failed' in caplog.text


def test_an_idle_connection_is_closed(direct: Direct, mailer: RecordingMailer) -> None:
    """After a while without mail the connection is closed, and the next mail has a new one."""
    direct.sender._connection.idle = 0.01
    direct.commit()
    until(lambda: not mailer.open_sessions)
    direct.commit()
    assert mailer.connections == 2


class Pauses(threading.Condition):
    """Counts the pauses that ended by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.over = 0

    def wait(self, timeout: float | None = None) -> bool:
        notified = super().wait(timeout)
        self.over += not notified
        return notified


def test_an_inherited_connection_is_left_alone(direct: Direct, mailer: RecordingMailer) -> None:
    """A forked child whose thread has sent nothing yet does not say QUIT on its parent's idle
    connection."""
    sender = direct.sender
    sender._connection.session()
    sender._connection.idle = 0.001
    sender._changed = pauses = Pauses()
    sender.start()
    until(lambda: pauses.over > 2)
    direct.finish()
    assert len(mailer.open_sessions) == 1


def test_finish_closes_the_connection(direct: Direct, mailer: RecordingMailer) -> None:
    """At exit the connection is closed; a second finish has nothing to do."""
    direct.commit()
    assert len(mailer.open_sessions) == 1
    direct.finish()
    assert mailer.open_sessions == []
    direct.finish()


def test_finish_waits_no_longer_than_its_timeout(mailer: RecordingMailer) -> None:
    """A relay that does not answer does not keep the process from ending."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    start = time.monotonic()
    direct.sender.finish(0.05)
    assert time.monotonic() - start < WAIT / 2
    answering.set()
    direct.finish()


def test_finish_waits_for_mail_of_subscribers(mailer: RecordingMailer) -> None:
    """Mail that a subscriber sends at the last moment is sent, too."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    flushed: list[float] = []
    rests = direct.sender._wait_until_idle

    def flush(timeout: float) -> bool:
        flushed.append(timeout)
        if len(flushed) == 1:
            mailer.before = lambda envelope: answering.wait(WAIT)
            direct.commit(message('of a subscriber'))
        return True

    def resting(end: float) -> bool:
        if flushed:
            answering.set()
        return rests(end)

    direct.dispatcher.flush = flush  # type: ignore[method-assign]
    direct.sender._wait_until_idle = resting  # type: ignore[method-assign]
    direct.commit(message('first'))
    direct.finish()
    assert [envelope.subject for envelope in mailer.sent] == ['first', 'of a subscriber']
    assert mailer.open_sessions == []


# SMTP, processes


def smtp_mailer(server: ScriptedSMTPServer) -> SMTPMailer:
    mailer: Any = mailer_from_url(server.url, hostname='web.example.org')
    return mailer


def test_direct_delivery_over_smtp(smtp_server: ScriptedSMTPServer) -> None:
    """All mail goes over one real connection, with QUIT at the end."""
    direct = Direct(MemoryQueue(), smtp_mailer(smtp_server), durable=False)
    direct.commit(message('a'), message('b'))
    direct.commit(message('c'))
    assert smtp_server.accepted('ann@example.org') == 3
    assert smtp_server.connections == 1
    direct.finish()
    smtp_server.wait_for(lambda server: not server.open_connections)
    assert smtp_server.verbs()[-1] == 'QUIT'
    assert smtp_server.violations == []


def test_a_stale_connection_costs_nothing(smtp_server: ScriptedSMTPServer) -> None:
    """A connection that the relay has closed meanwhile costs neither an event nor an attempt."""
    direct = Direct(MemoryQueue(), smtp_mailer(smtp_server), durable=False)
    direct.commit(message('a'))
    smtp_server.script('MAIL', drop())
    direct.commit(message('b'))
    assert direct.dispatcher.kinds == [('a', 'sent'), ('b', 'sent')]
    assert smtp_server.connections == 2
    direct.finish()


def test_535_at_auth_is_no_loss(smtp_server: ScriptedSMTPServer, maildir: MaildirQueue) -> None:
    """With a wrong password mail stays in the queue; without a queue it is an error event."""
    smtp_server.auth = {'shop': 'secret'}
    smtp_server.always('AUTH', reply(535, '5.7.8 wrong'))
    mailer: Any = mailer_from_url(
        smtp_server.url.replace('smtp:', 'smtp+insecure:'),
        hostname='web.example.org',
        username='shop',
        password='other',
    )
    durable = Direct(maildir, mailer, durable=True)
    durable.commit()
    assert durable.dispatcher.handled == []
    assert len(files(maildir)) == 1
    direct = Direct(MemoryQueue(), mailer, durable=False)
    direct.commit()
    ((_, event),) = direct.dispatcher.handled
    assert '535' in event.reason
    assert 'other' not in event.reason


CHILD = """
import os, sys, threading, warnings

import transaction
from pyramid.config import Configurator
from pyramid_sendmail import Message
from pyramid_sendmail.events.types import MailSentEvent
from pyramid_sendmail.interfaces import IMailDelivery

warnings.simplefilter('error')
warnings.filterwarnings('ignore', '.*fork.*', DeprecationWarning)
settings = dict(item.split('=', 1) for item in sys.argv[1:])
config = Configurator(settings=settings)
config.include('pyramid_sendmail')
"""

SENDING = """
config.commit()
delivery = config.registry.getUtility(IMailDelivery)

def send(subject):
    with transaction.manager:
        delivery.send(
            Message(subject=subject, to='ann@example.org', text='Hi', sender='shop@example.org')
        )
"""


def script(work: str, before: str = '', **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a script with a configured application; return its exit status and output."""
    source = CHILD + textwrap.dedent(before) + SENDING + textwrap.dedent(work)
    arguments = [f'mail.{name}={value}' for name, value in settings.items()]
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', source, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_pending_mail_is_sent_at_exit(smtp_server: ScriptedSMTPServer) -> None:
    """A script that does not wait ends when its mail is sent, with QUIT and without output."""
    done = script(
        "[send(f'mail {number}') for number in range(5)]",
        url=smtp_server.url,
        direct_wait='false',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 5
    assert smtp_server.connections == 1
    assert smtp_server.verbs()[-1] == 'QUIT'


def test_pending_events_are_dispatched_at_exit(smtp_server: ScriptedSMTPServer) -> None:
    """When a script ends, all events are handled, and mail of subscribers is sent."""
    done = script(
        "send('first')",
        before="""
            def subscriber(event):
                if event.subject == 'first':
                    event.request.mailer.send(
                        Message(subject='second', to='bob@example.org', text='Hi',
                                sender='shop@example.org'))
                print(event.subject, flush=True)
            config.add_subscriber(subscriber, MailSentEvent)
        """,
        url=smtp_server.url,
        direct_wait='false',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.split() == ['first', 'second']
    assert smtp_server.accepted('bob@example.org') == 1


def test_after_a_fork(smtp_server: ScriptedSMTPServer) -> None:
    """A forked child sends by threads and a connection of its own. It writes nothing to the
    inherited one, which its parent goes on using."""
    done = script(
        """
        send('parent 1')
        pid = os.fork()
        if pid == 0:
            send('child')
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        send('parent 2')
        """,
        url=smtp_server.url,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 3
    assert smtp_server.connections == 2
    assert smtp_server.verbs(1).count('QUIT') == 1
    assert smtp_server.verbs(1)[-1] == 'QUIT'
    assert smtp_server.verbs(1).count('MAIL') == 2
    assert smtp_server.verbs(2).count('MAIL') == 1


def test_a_fork_while_the_sending_thread_works(smtp_server: ScriptedSMTPServer) -> None:
    """A child sends though the sending thread of its parent was in the middle of a mail at the
    fork."""
    done = script(
        """
        dispatcher = delivery._sender._recorder.dispatcher
        working, forked = threading.Event(), threading.Event()
        real = dispatcher.wants
        dispatcher.wants = lambda kind: (working.set(), forked.wait(10), real(kind))[-1]
        send('parent')
        working.wait(10)
        pid = os.fork()
        if pid == 0:
            forked.set()
            send('child')
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        forked.set()
        """,
        url=smtp_server.url,
        direct_wait='false',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 2


def test_a_forked_child_that_sends_nothing_writes_nothing(smtp_server: ScriptedSMTPServer) -> None:
    """A child that only votes, or does nothing at all, writes no QUIT to its parent's
    connection."""
    done = script(
        """
        class No:
            def sortKey(self): return '~sqlalchemy'
            def tpc_vote(self, transaction): raise ZeroDivisionError
            tpc_begin = commit = tpc_abort = abort = lambda self, transaction: None

        send('parent 1')
        for aborting in (False, True):
            pid = os.fork()
            if pid == 0:
                if aborting:
                    try:
                        with transaction.manager as current:
                            current.join(No())
                            delivery.send(Message(subject='child', to='ann@example.org',
                                                  text='Hi', sender='shop@example.org'))
                    except ZeroDivisionError:
                        pass
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        send('parent 2')
        """,
        url=smtp_server.url,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.connections == 1
    assert smtp_server.verbs().count('QUIT') == 1
    assert smtp_server.accepted('ann@example.org') == 2


def test_a_fork_leaves_pending_mail_to_the_parent(smtp_server: ScriptedSMTPServer) -> None:
    """Mail that waits in the parent is sent once, by the parent and not by its children."""
    done = script(
        """
        sender = delivery._sender
        sending = threading.Event()
        real = sender._attempt
        sender._attempt = lambda tickets: (sending.wait(10), real(tickets))
        [send(f'parent {number}') for number in range(3)]
        pid = os.fork()
        if pid == 0:
            sending.set()
            send('child')
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        sending.set()
        """,
        url=smtp_server.url,
        direct_wait='false',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 4
