"""The deliveries: what becomes of a message at the commit, by a queue, at once, and now."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import transaction
from transaction import TransactionManager
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail import (
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    Message,
    MessageError,
    NoActiveTransaction,
    QueueError,
)
from pyramid_sendmail.delivery.queued import DirectMailDelivery, QueuedMailDelivery
from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply, Verdict
from pyramid_sendmail.interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailEventDispatcher,
    IQueuedMailDelivery,
)
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER, RetryPolicy
from pyramid_sendmail.sending.attempt import OutcomeRecorder
from pyramid_sendmail.threads import BackgroundThread
from tests.support.doubles import RecordingMailer
from tests.support.queues import files, make_envelope, until
from tests.support.smtp.server import ScriptedSMTPServer, drop, reply

WAIT = 10.0

REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))
LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))
NO_ANSWER = Verdict('ambiguous', None, 'no answer to the whole message')


def message(subject: str = 'Hello', to: Any = 'ann@example.org') -> Message:
    return Message(subject=subject, to=to, text='Hi', sender='shop@example.org')


@implementer(IMailEventDispatcher)
class Reporter:
    """Takes events in the sender's thread; ``takes`` says what becomes of each."""

    def __init__(self) -> None:
        self.told: list[tuple[str, PendingEvent]] = []
        self.takes: Callable[[Any, Sequence[PendingEvent]], bool] = lambda claim, events: True

    def wants(self, kind: str) -> bool:
        return True

    def dispatch(self, claim: Any, events: Sequence[PendingEvent]) -> None:
        if self.takes(claim, events):
            self.told += [(claim.envelope.subject, fate) for fate in events]
            lasting = [fate for fate in events if fate.kind != 'deferred']
            if lasting:
                claim.acknowledge(lasting)

    def join(self, timeout: float) -> bool:
        return True

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(subject, fate.kind) for subject, fate in self.told]


class Direct:
    """A direct delivery and everything around it."""

    def __init__(self, queue: Any, mailer: Any, *, durable: bool, **options: Any) -> None:
        self.queue = queue
        self.mailer = mailer
        self.dispatcher = Reporter()
        policy = RetryPolicy() if durable else AT_ONCE_OR_NEVER
        self.attempts = OutcomeRecorder(policy, self.dispatcher)
        self.manager = TransactionManager(explicit=True)
        self.delivery = DirectMailDelivery(
            queue, mailer, EnvelopeFactory(), self.attempts, durable=durable, **options
        )
        self.sender = self.delivery._sender
        self.bound = self.delivery.bind(self.manager)

    def commit(self, *messages: Message, **options: Any) -> list[str]:
        with self.manager:
            return [self.bound.send(each, **options) for each in messages or [message()]]

    def finish(self) -> None:
        self.sender.finish(WAIT)


@pytest.fixture
def mailer() -> RecordingMailer:
    return RecordingMailer()


@pytest.fixture
def direct(mailer: RecordingMailer) -> Iterator[Direct]:
    """Without a queue: at most once."""
    direct = Direct(MemoryQueue(), mailer, durable=False)
    yield direct
    direct.finish()


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'))
    yield queue
    queue.close()


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


# What they are


def test_the_interfaces_are_kept(maildir: MaildirQueue, direct: Direct) -> None:
    """The deliveries, and what ``request.mailer`` is, provide what they say."""
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    verifyObject(IQueuedMailDelivery, queued)
    verifyObject(IDirectMailDelivery, direct.delivery)
    verifyObject(IMailDelivery, direct.bound)
    verifyObject(IMailEventDispatcher, direct.dispatcher)


def test_nothing_is_started_or_opened_before_a_vote(
    maildir: MaildirQueue, mailer: RecordingMailer
) -> None:
    """Making a delivery, sending, and an abort start no thread, open no connection and make no
    file."""
    before = threading.active_count()
    direct = Direct(maildir, mailer, durable=True)
    direct.manager.begin()
    direct.bound.send(message())
    direct.manager.abort()
    assert threading.active_count() == before
    assert mailer.connections == 0
    assert not os.path.exists(maildir.path)


def test_a_bound_delivery_can_be_bound_again(maildir: MaildirQueue) -> None:
    """``request.mailer.bind(tm)`` sends with another manager's commit."""
    first, second = TransactionManager(explicit=True), TransactionManager(explicit=True)
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    with second:
        queued.bind(first).bind(second).send(message())
    assert len(files(maildir)) == 1


def test_send_tells_whoever_has_to_know(maildir: MaildirQueue) -> None:
    """``sent`` is called for each message taken, and for no message refused."""
    calls: list[int] = []
    queued = QueuedMailDelivery(
        maildir, RecordingMailer(), EnvelopeFactory(), sent=lambda: calls.append(1)
    )
    manager = TransactionManager(explicit=True)
    with manager:
        queued.bind(manager).send(message())
        with pytest.raises(MessageError):
            queued.bind(manager).send(message(to=()))
    with pytest.raises(NoActiveTransaction):
        queued.bind(manager).send(message())
    assert calls == [1]


def test_queued_options_reach_the_envelope(maildir: MaildirQueue) -> None:
    """The options of ``send`` are in the envelope that a queue processor claims."""
    queued = QueuedMailDelivery(maildir, RecordingMailer(), EnvelopeFactory())
    with transaction.manager:
        queued.send(
            message(),
            sender='bounces@example.org',
            recipients=['bob@example.org'],
            due=timedelta(hours=1),
            expires=timedelta(days=1),
            priority='high',
            metadata={'order': '7'},
        )
    tickets, next_due = maildir.scan(time.time() + 3601)
    assert next_due is None
    (data,) = [Path(maildir.path, 'new', ticket.order).read_bytes() for ticket in tickets]
    assert b'bounces@example.org' in data
    assert b'bob@example.org' in data
    assert tickets[0].order.startswith('1-')
    assert tickets[0].due == pytest.approx(time.time() + 3600, abs=WAIT)


# send_now


def test_send_now_needs_no_transaction(direct: Direct, mailer: RecordingMailer) -> None:
    """``send_now`` sends over a connection of its own, outside any transaction."""
    report = direct.bound.send_now(message())
    (envelope,) = mailer.sent
    assert report.message_id == envelope.message_id
    assert report.accepted == ('ann@example.org',)
    assert report.refused == {}
    assert report.reply == Reply(250, '2.0.0 recorded')
    assert mailer.connections == 1
    assert mailer.open_sessions == []


def test_send_now_leaves_though_the_transaction_aborts(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """What becomes of a transaction is nothing to ``send_now``, even of one that has failed."""
    direct.manager.begin()
    direct.bound.send_now(message('now'))
    direct.bound.send(message('aborted'))
    direct.manager.abort()
    assert [envelope.subject for envelope in mailer.sent] == ['now']


def test_send_now_takes_an_envelope_of_its_own(direct: Direct, mailer: RecordingMailer) -> None:
    """``sender`` and ``recipients`` are the SMTP envelope."""
    direct.delivery.send_now(message(), sender='', recipients=['bob@example.org'])
    (envelope,) = mailer.sent
    assert (envelope.sender, envelope.recipients) == ('', ('bob@example.org',))


def test_send_now_returns_a_report_if_anybody_was_accepted(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """One accepted recipient is enough; the others are in ``refused`` with their replies."""
    mailer.always('bob@example.org', REFUSED)
    mailer.always('eve@example.org', LATER)
    report = direct.bound.send_now(
        message(to=['bob@example.org', 'ann@example.org', 'eve@example.org'])
    )
    assert report.accepted == ('ann@example.org',)
    assert report.refused == {
        'bob@example.org': REFUSED.reply,
        'eve@example.org': LATER.reply,
    }
    assert report.reply == Reply(250, '2.0.0 recorded')


@pytest.mark.parametrize(
    ('verdict', 'error'), [(REFUSED, MailRefused), (LATER, MailRefused), (NO_ANSWER, MailAmbiguous)]
)
def test_send_now_raises_where_nobody_was_accepted(
    direct: Direct, mailer: RecordingMailer, verdict: Verdict, error: type[MailRefused]
) -> None:
    """MailRefused, or MailAmbiguous where the last word never came: with the report, and the
    recipient and the reason in the text."""
    mailer.always('ann@example.org', verdict)
    with pytest.raises(MailRefused) as caught:
        direct.bound.send_now(message())
    assert type(caught.value) is error
    assert caught.value.report.accepted == ()
    assert caught.value.report.refused == {'ann@example.org': verdict.reply}
    assert caught.value.report.reply == verdict.reply
    assert f'ann@example.org: {verdict}' in str(caught.value)
    assert mailer.open_sessions == []


def test_send_now_without_a_road(direct: Direct, mailer: RecordingMailer) -> None:
    """MailerUnavailable, whatever was wrong with the relay."""
    mailer.unavailable = 'connection refused'
    with pytest.raises(MailerUnavailable, match='connection refused'):
        direct.bound.send_now(message())


def test_send_now_raises_for_a_bad_message_before_it_connects(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """What is wrong with the message is found first."""
    with pytest.raises(MessageError):
        direct.bound.send_now(message('two\nlines'))
    assert mailer.connections == 0


def test_send_now_over_smtp(smtp_server: ScriptedSMTPServer, maildir: MaildirQueue) -> None:
    """Over a real connection: the relay's own words are in the report."""
    queued = QueuedMailDelivery(maildir, smtp_mailer(smtp_server), EnvelopeFactory())
    smtp_server.script('RCPT', reply(550, '5.1.1 no such user'), match='bob@')
    report = queued.send_now(message(to=['ann@example.org', 'bob@example.org']))
    assert report.accepted == ('ann@example.org',)
    refused = report.refused['bob@example.org']
    assert refused is not None
    assert refused.code == 550
    smtp_server.wait_for(lambda server: not server.open_connections)
    assert smtp_server.verbs()[-1] == 'QUIT'


# Direct delivery


def test_direct_delivery_waits_for_the_relay(either: Direct, mailer: RecordingMailer) -> None:
    """When the commit returns the relay has answered, and the event is reported."""
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


def test_no_connection_before_everybody_has_finished(
    either: Direct, mailer: RecordingMailer
) -> None:
    """Neither vote nor another's finish waits for the relay."""
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
    """With ``mail.direct_wait = false`` the commit returns while the relay still thinks."""
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.commit()
    assert mailer.sent == []
    answering.set()
    direct.finish()
    assert len(mailer.sent) == 1


def test_direct_delivery_waits_no_longer_than_it_was_told(
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


def test_direct_delivery_never_waits_in_a_thread_of_ours(mailer: RecordingMailer) -> None:
    """Code in one of our own threads, such as a subscriber, does not wait for the relay."""
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
    """A file's name tells milliseconds: a mail whose time was rounded up to the next one is sent
    all the same, and not left behind."""
    for queue in (MemoryQueue(), maildir):
        direct = Direct(queue, mailer, durable=isinstance(queue, MaildirQueue))
        for _ in range(20):
            direct.commit()
        direct.finish()
    assert len(mailer.sent) == 40


def test_a_ticket_that_looks_due_a_moment_later_is_awaited(
    direct: Direct, mailer: RecordingMailer
) -> None:
    """The same, forced: the clock stands half a millisecond before the time in the name."""
    composed: list[float] = []

    def clock() -> float:
        composed.append(1_700_000_000.0006)
        return composed[-1]

    direct.attempts.clock = clock
    object.__setattr__(direct.delivery._envelope_factory, 'clock', clock)
    direct.queue._clock = clock
    direct.commit()
    assert len(mailer.sent) == 1


def test_a_refused_mail_is_an_error(either: Direct, mailer: RecordingMailer) -> None:
    """A recipient that the relay refuses is an error event, and the commit stands."""
    mailer.always('ann@example.org', REFUSED)
    either.commit()
    ((_, fate),) = either.dispatcher.told
    assert (fate.kind, fate.permanent, fate.reply) == ('error', True, REFUSED.reply)


@pytest.mark.parametrize('verdict', [LATER, NO_ANSWER])
def test_without_a_queue_a_temporary_failure_is_final(
    direct: Direct, mailer: RecordingMailer, verdict: Verdict
) -> None:
    """Without a queue a temporary failure is an error event that is not permanent."""
    mailer.always('ann@example.org', verdict)
    direct.commit()
    ((_, fate),) = direct.dispatcher.told
    assert (fate.kind, fate.permanent, fate.reply) == ('error', False, verdict.reply)


def test_with_a_queue_a_temporary_failure_stays_there(
    durable: Direct, mailer: RecordingMailer, maildir: MaildirQueue
) -> None:
    """With a Maildir it is counted, is a deferred event, and waits for a queue processor."""
    mailer.always('ann@example.org', LATER)
    durable.commit()
    ((_, fate),) = durable.dispatcher.told
    assert (fate.kind, fate.attempt) == ('deferred', 1)
    tickets, _ = maildir.scan(time.time() + 3600)
    assert [(ticket.state, ticket.order[18:22]) for ticket in tickets] == [('deferred', '0001')]


def test_without_a_queue_a_closed_road_is_an_error(direct: Direct, mailer: RecordingMailer) -> None:
    """Every mail that could not leave is an error event that is not permanent, and says why."""
    mailer.unavailable = 'connection refused'
    direct.commit(message('a'), message('b'))
    assert direct.dispatcher.kinds == [('a', 'error'), ('b', 'error')]
    events = [fate for _, fate in direct.dispatcher.told]
    assert {fate.permanent for fate in events} == {False}
    assert all('connection refused' in fate.reason for fate in events)
    mailer.unavailable = None
    direct.commit(message('c'))
    assert [envelope.subject for envelope in mailer.sent] == ['c']


def test_with_a_queue_a_closed_road_changes_nothing(
    durable: Direct,
    mailer: RecordingMailer,
    maildir: MaildirQueue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The mail waits in the queue as it was, with no event and no attempt counted."""
    mailer.unavailable = 'connection refused'
    durable.commit()
    assert durable.dispatcher.told == []
    ((folder, name),) = [file.split('/') for file in files(maildir)]
    assert (folder, name[18:22]) == ('new', '0000')
    assert 'connection refused' in caplog.text


def test_a_road_that_closes_between_two_mails(direct: Direct, mailer: RecordingMailer) -> None:
    """What was answered stands, the rest are errors; nothing is sent twice or forgotten."""

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
    """Where ``connect`` raises what it should not, the mail is an error event or waits in the
    queue, the traceback is logged, and the next mail leaves."""
    connect = mailer.connect

    def faulty() -> Any:
        raise ZeroDivisionError

    mailer.connect = faulty  # type: ignore[method-assign]
    either.commit(message('a'))
    mailer.connect = connect  # type: ignore[method-assign]
    either.commit(message('b'))
    if isinstance(either.queue, MemoryQueue):
        assert either.dispatcher.kinds == [('a', 'error'), ('b', 'sent')]
        assert 'ZeroDivisionError' in either.dispatcher.told[0][1].reason
    else:
        assert either.dispatcher.kinds == [('b', 'sent')]
        assert len(files(either.queue)) == 1
    assert 'Traceback' in caplog.text


def test_due_without_a_queue_is_refused(direct: Direct, durable: Direct) -> None:
    """Without a queue a mail cannot wait for its time, and ``send`` says what to set."""
    with direct.manager, pytest.raises(MessageError, match=r'^due: .*mail\.queue_path'):
        direct.bound.send(message(), due=timedelta(minutes=1))
    direct.commit(due=datetime.now(UTC) - timedelta(minutes=1))
    assert direct.dispatcher.kinds == [('Hello', 'sent')]
    durable.commit(due=timedelta(minutes=1))
    assert durable.dispatcher.told == []
    assert len(files(durable.queue)) == 1


def test_a_queue_that_cannot_be_used_sends_nothing(
    durable: Direct,
    mailer: RecordingMailer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where an outcome could not be recorded the mail waits, untouched."""

    def read_only() -> None:
        raise QueueError(errno.EROFS, 'read-only')

    monkeypatch.setattr(durable.queue, 'check_writable', read_only)
    durable.commit()
    assert mailer.connections == 0
    assert len(files(durable.queue)) == 1
    assert 'read-only' in caplog.text


def test_an_outcome_that_was_not_recorded_is_recorded_later(
    durable: Direct, mailer: RecordingMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk fills between the relay's answer and the record, the claim is kept and the
    outcome recorded as soon as it can be, though nobody sends another mail."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.AGAIN', 0.02)
    settle = OutcomeRecorder._record
    full = True

    def record(self: OutcomeRecorder, *args: Any) -> None:
        if full:
            raise QueueError(errno.ENOSPC, 'no space left on device')
        settle(self, *args)

    monkeypatch.setattr(OutcomeRecorder, '_record', record)
    durable.commit()
    assert len(mailer.sent) == 1
    assert len(durable.attempts.unrecorded) == 1
    until(lambda: durable.sender._look_at < time.time() + 1)
    full = False
    until(lambda: durable.dispatcher.kinds == [('Hello', 'sent')])
    assert files(durable.queue) == []
    assert len(mailer.sent) == 1


def test_a_damaged_file_is_put_aside(
    durable: Direct, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that was damaged between finish and claim is not sent, and stops no other."""

    def damage(transaction: Any, put: Any) -> None:
        path = Path(durable.queue.path, 'new', put.tickets[0].order)
        path.write_bytes(path.read_bytes()[:-3])
        published(transaction, put)

    published = durable.delivery.published
    durable.delivery.published = damage  # type: ignore[method-assign]
    durable.commit(message('a'), message('b'))
    assert [envelope.subject for envelope in mailer.sent] == ['b']
    assert [file.split('/')[0] for file in files(durable.queue)] == ['failed']
    assert 'damaged' in caplog.text


# Events of direct delivery


def test_an_event_that_was_postponed_is_reported_again(either: Direct) -> None:
    """Nobody else need look: what a subscriber could not take is found again by our own thread."""
    tries: list[int] = []

    def takes(claim: Any, events: Sequence[PendingEvent]) -> bool:
        tries.append(events[0].tries)
        if len(tries) < 3:
            claim.retry_events(events, time.time() + 0.01)
            return False
        return True

    either.dispatcher.takes = takes
    either.commit()
    until(lambda: either.dispatcher.kinds == [('Hello', 'sent')])
    assert tries == [0, 1, 2]
    until(lambda: either.queue.scan(1e11) == ([], None))


def test_an_event_that_is_being_told_is_left_alone(either: Direct) -> None:
    """Looking for events takes no claim away from the reporter, who still has it."""
    held: list[Any] = []
    looked = threading.Event()
    look = either.queue.scan

    def takes(claim: Any, events: Sequence[PendingEvent]) -> bool:
        held.append((claim, events))
        return False

    def looking(now: float) -> Any:
        try:
            return look(now)
        finally:
            looked.set()

    either.dispatcher.takes = takes
    either.queue.scan = looking
    either.commit()
    either.sender.scan()
    assert looked.wait(WAIT)
    either.finish()
    ((claim, events),) = held
    claim.acknowledge(events)
    assert look(1e11) == ([], None)


def test_an_event_is_found_beside_mail_that_waits(durable: Direct, mailer: RecordingMailer) -> None:
    """Looking for events again touches no mail that waits for a queue processor."""
    mailer.always('bob@example.org', LATER)
    durable.commit(message('waits', to='bob@example.org'))
    durable.commit(message('waits too'), due=timedelta(hours=1))
    before = files(durable.queue)
    tries: list[int] = []

    def takes(claim: Any, events: Sequence[PendingEvent]) -> bool:
        tries.append(events[0].tries)
        if len(tries) == 1:
            claim.retry_events(events, time.time())
        return len(tries) > 1

    durable.dispatcher.takes = takes
    durable.commit(message('told'))
    until(lambda: ('told', 'sent') in durable.dispatcher.kinds)
    until(lambda: files(durable.queue) == before)
    assert tries == [0, 1]


def test_an_event_that_found_no_room_is_reported_later(either: Direct) -> None:
    """Where the reporter's backlog is full it releases the claim, and the event is not lost."""
    refused: list[Any] = []

    def takes(claim: Any, events: Sequence[PendingEvent]) -> bool:
        if not refused:
            refused.append(claim)
            claim.release()
            return False
        return True

    either.dispatcher.takes = takes
    either.commit()
    until(lambda: either.dispatcher.kinds == [('Hello', 'sent')])


def test_events_that_cannot_be_looked_for_are_looked_for_again(
    direct: Direct, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue that cannot be read is tried again after a while."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.AGAIN', 0.01)
    look, failed = direct.queue.scan, threading.Event()

    def failing(now: float) -> Any:
        if failed.is_set():
            return look(now)
        failed.set()
        raise QueueError(errno.EIO, 'input/output error')

    monkeypatch.setattr(direct.queue, 'scan', failing)
    direct.dispatcher.takes = lambda claim, events: (
        failed.is_set() or bool(claim.retry_events(events, 0))
    )
    direct.commit()
    until(lambda: direct.dispatcher.kinds == [('Hello', 'sent')])
    assert 'input/output error' in caplog.text


@pytest.mark.parametrize('subjects', ['a', 'ab'])
def test_mail_in_doubt_is_an_error_event(
    either: Direct, mailer: RecordingMailer, subjects: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another's finish failed before ours, the mail is kept, logged at CRITICAL and an error
    event, though no queue processor looks; nothing is sent."""

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
    until(lambda: len(either.dispatcher.told) == len(subjects))
    assert sorted(either.dispatcher.kinds) == [(subject, 'error') for subject in subjects]
    assert all('in doubt' in fate.reason for _, fate in either.dispatcher.told)
    assert not any(fate.permanent for _, fate in either.dispatcher.told)
    assert mailer.connections == 0
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


@pytest.mark.parametrize('stuck', [False, True], ids=['at the start', 'once it can be moved'])
def test_what_a_stopped_process_has_left_is_found(
    durable: Direct, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    """Mail in doubt is held and told though no queue processor looks: with the first mail of the
    next process, or later if its file cannot be moved then."""
    monkeypatch.setattr('pyramid_sendmail.delivery.direct_sender.EVERY', 0.05)
    put = MaildirQueue(durable.queue.path).put([make_envelope()])
    assert put._record is not None
    os.close(put._record)
    rename, failures = os.rename, [OSError(errno.EIO, 'input/output error')] * 2 * stuck

    def failing(source: str, target: str) -> None:
        if '/queue/tmp/' in source and '/done/' in target and failures:
            raise failures.pop()
        rename(source, target)

    monkeypatch.setattr(os, 'rename', failing)
    durable.commit()
    until(lambda: 'error' in dict(durable.dispatcher.kinds).values())
    assert failures == []
    # It is moved once the event has been taken.
    [path] = until(lambda: list(Path(durable.queue.path, 'failed').iterdir()))
    assert b'X-Envelope-Outcome' in path.read_bytes()


# The thread


def test_the_thread_goes_on_after_an_error(
    direct: Direct,
    mailer: RecordingMailer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What nobody foresaw is logged, and the next mail leaves."""

    def fails(*args: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeRecorder, 'settle', fails)
        mailer.unavailable = 'connection refused'
        direct.commit(message('a'))
        mailer.unavailable = None
    direct.commit(message('b'))
    assert [envelope.subject for envelope in mailer.sent] == ['b']
    assert 'direct delivery failed' in caplog.text


def test_an_idle_connection_is_closed(direct: Direct, mailer: RecordingMailer) -> None:
    """After a while without mail the connection is given up, and the next mail has a new one."""
    direct.sender._road.idle = 0.01
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
    """In a forked child whose thread has sent nothing yet, the parent's connection is no idle one
    to say good-bye on."""
    sender = direct.sender
    sender._road.session()
    sender._road.idle = 0.001
    sender._changed = pauses = Pauses()
    sender.start()
    until(lambda: pauses.over > 2)
    direct.finish()
    assert len(mailer.open_sessions) == 1


def test_finish_says_good_bye(direct: Direct, mailer: RecordingMailer) -> None:
    """At exit the connection is closed, and a second finish has nothing to do."""
    direct.commit()
    assert len(mailer.open_sessions) == 1
    direct.finish()
    assert mailer.open_sessions == []
    direct.finish()


def test_finish_waits_no_longer_than_it_was_told(direct: Direct, mailer: RecordingMailer) -> None:
    """A relay that is silent does not keep the process from ending."""
    answering = threading.Event()
    mailer.before = lambda envelope: answering.wait(WAIT)
    direct.delivery._wait = False
    direct.commit()
    start = time.monotonic()
    direct.sender.finish(0.05)
    assert time.monotonic() - start < WAIT / 2
    answering.set()
    direct.finish()


def test_finish_waits_for_what_subscribers_send(direct: Direct, mailer: RecordingMailer) -> None:
    """Mail that an event's subscriber sends at the last moment leaves too."""
    direct.delivery._wait = False
    answering = threading.Event()
    joined: list[float] = []
    rests = direct.sender._rests

    def join(timeout: float) -> bool:
        joined.append(timeout)
        if len(joined) == 1:
            mailer.before = lambda envelope: answering.wait(WAIT)
            direct.commit(message('of a subscriber'))
        return True

    def resting(end: float) -> bool:
        if joined:
            answering.set()
        return rests(end)

    direct.dispatcher.join = join  # type: ignore[method-assign]
    direct.sender._rests = resting  # type: ignore[method-assign]
    direct.commit(message('first'))
    direct.finish()
    assert [envelope.subject for envelope in mailer.sent] == ['first', 'of a subscriber']
    assert mailer.open_sessions == []


# SMTP, processes


def smtp_mailer(server: ScriptedSMTPServer) -> SMTPMailer:
    mailer: Any = mailer_from_url(server.url, hostname='web.example.org')
    return mailer


def test_direct_delivery_over_smtp(smtp_server: ScriptedSMTPServer) -> None:
    """Over a real connection: all mail on one, and QUIT at the end."""
    direct = Direct(MemoryQueue(), smtp_mailer(smtp_server), durable=False)
    direct.commit(message('a'), message('b'))
    direct.commit(message('c'))
    assert smtp_server.accepted('ann@example.org') == 3
    assert smtp_server.connections == 1
    direct.finish()
    smtp_server.wait_for(lambda server: not server.open_connections)
    assert smtp_server.verbs()[-1] == 'QUIT'
    assert smtp_server.violations == []


def test_a_stale_connection_is_nobodys_fault(smtp_server: ScriptedSMTPServer) -> None:
    """A connection that the relay has closed meanwhile costs neither an event nor the mail."""
    direct = Direct(MemoryQueue(), smtp_mailer(smtp_server), durable=False)
    direct.commit(message('a'))
    smtp_server.script('MAIL', drop())
    direct.commit(message('b'))
    assert direct.dispatcher.kinds == [('a', 'sent'), ('b', 'sent')]
    assert smtp_server.connections == 2
    direct.finish()


def test_535_at_auth_is_no_loss(smtp_server: ScriptedSMTPServer, maildir: MaildirQueue) -> None:
    """A changed password keeps the mail in the queue, or is an error event: never silence."""
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
    assert durable.dispatcher.told == []
    assert len(files(maildir)) == 1
    direct = Direct(MemoryQueue(), mailer, durable=False)
    direct.commit()
    ((_, fate),) = direct.dispatcher.told
    assert '535' in fate.reason
    assert 'other' not in fate.reason


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
    """Run a script with a configured application; its exit and its words."""
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
    """A script that does not wait ends when its mail has left, with QUIT and without a word."""
    done = script(
        "[send(f'mail {number}') for number in range(5)]",
        url=smtp_server.url,
        direct_wait='false',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 5
    assert smtp_server.connections == 1
    assert smtp_server.verbs()[-1] == 'QUIT'


def test_pending_events_are_reported_at_exit(smtp_server: ScriptedSMTPServer) -> None:
    """Subscribers have heard of everything when a script ends, and what they sent has left."""
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
    """A forked child sends by threads and a connection of its own; it says nothing on the one it
    has inherited, which its parent goes on using."""
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
    """A child sends though its parent's thread, which it has not, was in the middle of a mail."""
    done = script(
        """
        reporter = delivery._sender._recorder.dispatcher
        working, forked = threading.Event(), threading.Event()
        real = reporter.wants
        reporter.wants = lambda kind: (working.set(), forked.wait(10), real(kind))[-1]
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


def test_a_forked_child_that_sends_nothing_says_nothing(smtp_server: ScriptedSMTPServer) -> None:
    """A child that only votes, or does nothing at all, never says QUIT on its parent's
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


def test_a_fork_drops_what_the_parent_has_pending(smtp_server: ScriptedSMTPServer) -> None:
    """What waits in the parent is the parent's to send: once, and not by its children too."""
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
