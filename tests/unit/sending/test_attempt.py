"""``attempt``: the outcome of a mail for each answer of the relay, over both queues."""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Outcome, PendingEvent, Reply, Tally, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailer, IMailEventDispatcher, IMailSession
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER, RetryPolicy
from pyramid_sendmail.sending.attempt import Batch, attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder, report_settled
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.doubles import RecordingMailer
from tests.support.processors import RecordingDispatcher, UnwritableClaim
from tests.support.queues import NOW, Clock, files, make_envelope

DELIVERED = Verdict('delivered', Reply(250, '2.0.0 queued'))
REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))
LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))
NO_ANSWER = Verdict('ambiguous', None, 'no answer to the whole message')

POLICY = RetryPolicy(delays=(60.0, 600.0), give_up_after=86_400.0, jitter=0.0)

Script = Callable[..., Iterator[Outcome]]


@implementer(IMailer)
class Sessions:
    """A mailer whose sessions each follow a script; ``left`` must be used up.

    A script is a generator function of (envelopes, before_final_dot), or what ``connect`` raises.
    """

    name = 'smtp://relay.example.org:25'

    def __init__(self, *scripts: Script | Exception) -> None:
        self.left = deque(scripts)
        self.sent: list[tuple[str, tuple[str, ...]]] = []
        self.log: list[str] = []

    def connect(self) -> Session:
        self.log.append('connect')
        script = self.left.popleft()
        if isinstance(script, Exception):
            raise script
        return Session(self, script)


@implementer(IMailSession)
class Session:
    def __init__(self, mailer: Sessions, script: Script) -> None:
        self.name = mailer.name
        self._mailer = mailer
        self._script = script

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Any = None
    ) -> Iterator[Outcome]:
        return self._script(self._noted(envelopes), before_final_dot)

    def _noted(self, envelopes: Iterable[Envelope]) -> Iterator[Envelope]:
        for envelope in envelopes:
            self._mailer.sent.append((envelope.message_id, envelope.recipients))
            yield envelope

    def close(self) -> None:
        self._mailer.log.append('close')

    def abandon(self) -> None:
        self._mailer.log.append('abandon')


def answers(*outcomes: Verdict | dict[str, Verdict]) -> Script:
    """A session that marks and answers mail after mail; without an outcome it answers
    'delivered'."""
    queued = deque(outcomes)

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        for envelope in envelopes:
            outcome = queued.popleft() if queued else DELIVERED
            if isinstance(outcome, Verdict):
                outcome = dict.fromkeys(envelope.recipients, outcome)
            before_final_dot(
                envelope, tuple(to for to, v in outcome.items() if v.status == 'delivered')
            )
            yield outcome

    return script


def raises(error: Exception, *, after: int = 0, ambiguous: bool = False) -> Script:
    """A session that answers ``after`` mails, pulls one more, and raises."""

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        for number, envelope in enumerate(envelopes):
            if number < after:
                yield dict.fromkeys(envelope.recipients, DELIVERED)
                continue
            if ambiguous:
                before_final_dot(envelope, envelope.recipients)
            raise error

    return script


class World:
    """A queue with a clock, and everything that an attempt needs."""

    def __init__(self, queue: Any, clock: Clock) -> None:
        self.queue = queue
        self.clock = clock
        self.dispatcher = RecordingDispatcher()
        self.attempts = OutcomeRecorder(POLICY, self.dispatcher, clock=clock)
        self.tally = Tally()
        self.connections: list[RelayConnection] = []

    def put(self, *envelopes: Envelope) -> None:
        put = self.queue.put(envelopes)
        put.publish()

    def tickets(self) -> list[Any]:
        tickets: list[Any] = self.queue.scan(self.clock())[0]
        return tickets

    def claims(self) -> Iterator[Any]:
        for ticket in self.tickets():
            claim = self.queue.claim(ticket)
            if claim is not None:
                yield claim

    def connection(self, *scripts: Script | Exception, **options: Any) -> RelayConnection:
        connection = RelayConnection(Sessions(*scripts), **options)
        self.connections.append(connection)
        return connection

    def attempt(self, *scripts: Script | Exception) -> Sessions:
        """Attempt all that is due over sessions with these scripts."""
        connection = self.connection(*scripts)
        try:
            attempt(self.claims(), connection, self.attempts, self.tally)
        finally:
            connection.close()
        assert isinstance(connection.mailer, Sessions)
        return connection.mailer

    def claimable(self) -> int:
        """Return how many mails that are due could be claimed; nothing is changed."""
        claims = list(self.claims())
        for claim in claims:
            claim.release()
        return len(claims)


@pytest.fixture(params=['maildir', 'memory'])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    clock = Clock()
    if request.param == 'memory':
        return World(MemoryQueue(clock=clock), clock)
    return disk(tmp_path, clock)


@pytest.fixture
def on_disk(tmp_path: Path) -> World:
    return disk(tmp_path, Clock())


def disk(tmp_path: Path, clock: Clock) -> World:
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, longest=POLICY.longest, clock=clock)
    queue.prepare()
    queue.close()
    return World(queue, clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f'{record.levelname} {record.getMessage()}' for record in caplog.records]


def test_doubles() -> None:
    """The doubles of these tests keep the real contracts."""
    mailer = Sessions(answers())
    assert verifyObject(IMailEventDispatcher, RecordingDispatcher())
    assert verifyObject(IMailer, mailer)
    assert verifyObject(IMailSession, mailer.connect())


# What the relay answers


def test_delivered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Mail that was accepted leaves the queue; the log has one line for it, without its body."""
    caplog.set_level(logging.INFO)
    mail = make_envelope('ann@example.org', 'bob@example.org', body='a secret', subject='s3cret')
    world.put(mail)
    mailer = world.attempt(answers())
    assert mailer.sent == [(mail.message_id, mail.recipients)]
    assert world.tickets() == []
    assert world.tally == Tally(delivered=1)
    assert lines(caplog) == [
        f'INFO {mail.message_id}: sent for ann@example.org, bob@example.org '
        f'(attempt 1, smtp://relay.example.org:25): 250 2.0.0 queued'
    ]
    [record] = caplog.records
    assert record.__dict__['outcome'] == 'sent'
    assert record.__dict__['message_id'] == mail.message_id
    assert record.__dict__['mail_id'] == mail.id
    assert 'secret' not in str(record.__dict__)


def test_each_recipient_has_an_outcome_of_its_own(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """250, 550 and 450: the third is retried alone, and the first never gets a second copy."""
    caplog.set_level(logging.INFO)
    ann, bob, eve = 'ann@example.org', 'bob@example.org', 'eve@example.org'
    world.dispatcher.kinds = ('sent', 'deferred', 'error')
    mail = make_envelope(ann, bob, eve)
    world.put(mail)
    world.attempt(answers({ann: DELIVERED, bob: REFUSED, eve: LATER}))
    assert world.tally == Tally(deferred=1)
    assert world.dispatcher.dispatched() == [
        ('sent', (ann,)),
        ('error', (bob,)),
        ('deferred', (eve,)),
    ]
    sent, error, deferred = world.dispatcher.pending_events
    assert (sent.attempt, sent.reply, sent.reason) == (1, Reply(250, '2.0.0 queued'), '')
    assert (error.permanent, error.reason) == (True, '550 5.1.1 no such user')
    assert (deferred.permanent, deferred.retry_at) == (False, NOW + 60)
    assert len({event.id for event in world.dispatcher.pending_events}) == 3
    assert [line.split()[0] for line in lines(caplog)] == ['INFO', 'ERROR', 'WARNING']

    assert world.tickets() == [], 'not before its time'
    world.clock.now += 60
    mailer = world.attempt(answers())
    assert mailer.sent == [(mail.message_id, (eve,))]
    assert world.dispatcher.dispatched()[3:] == [('sent', (eve,))]
    assert world.dispatcher.pending_events[3].attempt == 2
    assert world.tickets() == []
    if isinstance(world.queue, MaildirQueue):
        assert [name.split('/')[0] for name in files(world.queue)] == ['failed']


def test_a_recipient_without_a_verdict_is_deferred(world: World) -> None:
    """A recipient that a mailer forgets is neither lost nor tried in a loop; one that a mailer
    invents changes nothing."""
    ann, bob = 'ann@example.org', 'bob@example.org'
    world.put(make_envelope(ann, bob))
    world.attempt(answers({ann: DELIVERED, 'x@example.org': REFUSED}))
    assert world.tickets() == []
    world.clock.now += 60
    assert world.attempt(answers()).sent[0][1] == (bob,)
    assert world.tickets() == []


def test_recipients_with_the_same_answer_share_an_event(world: World) -> None:
    """Recipients with the same answer share one event and one log line."""
    world.dispatcher.kinds = ('sent', 'error')
    ann, bob, eve = 'ann@example.org', 'bob@example.org', 'eve@example.org'
    world.put(make_envelope(ann, bob, eve))
    world.attempt(answers({ann: REFUSED, bob: DELIVERED, eve: REFUSED}))
    assert world.dispatcher.dispatched() == [('error', (ann, eve)), ('sent', (bob,))]
    assert world.tally == Tally(failed=1)


def test_without_subscribers(world: World) -> None:
    """Without subscribers no event is dispatched, and the claim is free at once."""
    world.put(make_envelope())
    world.attempt(answers(LATER))
    assert world.dispatcher.pending_events == []
    world.clock.now += 60
    assert world.claimable() == 1


def test_the_claim_is_kept_for_the_dispatcher(world: World) -> None:
    """Until subscribers have handled the event, the mail is neither sent again nor removed."""
    world.dispatcher = RecordingDispatcher('sent', takes=False)
    world.attempts.dispatcher = world.dispatcher
    world.put(make_envelope())
    world.attempt(answers())
    assert world.claimable() == 0
    [claim] = world.dispatcher.claims
    claim.release()
    [ticket] = world.tickets()
    assert ticket.state == 'done'


def test_an_older_event_is_dispatched_with_the_next_one(world: World) -> None:
    """An event that was not handled when the mail is tried again is dispatched then."""
    ann, bob = 'ann@example.org', 'bob@example.org'
    world.dispatcher = RecordingDispatcher('sent', takes=False)
    world.attempts.dispatcher = world.dispatcher
    world.put(make_envelope(ann, bob))
    world.attempt(answers({ann: DELIVERED, bob: LATER}))
    world.dispatcher.claims.pop().release()
    world.clock.now += 60
    world.dispatcher.takes = True
    world.attempt(answers())
    assert world.dispatcher.dispatched() == [('sent', (ann,)), ('sent', (ann,)), ('sent', (bob,))]
    assert world.dispatcher.pending_events[0].id == world.dispatcher.pending_events[1].id
    assert world.tickets() == []


# Giving up


def test_given_up_by_age(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A temporary failure is final once the mail is too old; the reason and the log say so."""
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope())
    world.clock.now += POLICY.give_up_after
    world.attempt(answers(LATER))
    [event] = world.dispatcher.pending_events
    assert event.reason == 'given up: 450 4.2.0 greylisted'
    assert event.permanent is False
    assert 'failed for ann@example.org' in lines(caplog)[0]
    assert 'given up: 450 4.2.0 greylisted (will not be tried again; see failed/)' in caplog.text
    assert world.tickets() == []


def test_mail_for_a_later_day_is_not_old_on_that_day(world: World) -> None:
    """The age counts from the time at which a mail was due; otherwise its first 450 would be its
    last."""
    week = 7 * 86_400.0
    world.put(make_envelope(due=NOW + week))
    world.clock.now += week
    world.attempt(answers(LATER))
    assert world.tally == Tally(deferred=1)
    world.clock.now += 60
    assert world.attempt(answers()).sent


def test_at_once_or_never(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Direct delivery without a queue: mail that cannot leave now has failed, and the log says that
    it is lost, and which setting keeps such mail."""
    world.attempts.policy = AT_ONCE_OR_NEVER
    world.attempts.durable = False
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope())
    world.attempt(answers(LATER))
    assert world.dispatcher.dispatched() == [('error', ('ann@example.org',))]
    assert 'not sent and lost for ann@example.org' in caplog.text
    assert caplog.text.endswith('no queue is configured (mail.queue_path): 450 4.2.0 greylisted\n')


def test_expired(world: World) -> None:
    """Expired mail is not sent: an error event, without a connection for it alone."""
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope(expires=NOW + 10))
    world.clock.now += 10
    assert world.attempt(answers()).sent == []
    [event] = world.dispatcher.pending_events
    assert event.reason.startswith('expired')
    assert (event.permanent, event.mailer) == (True, '')
    assert world.tally == Tally(failed=1)


# The relay is unavailable


def test_no_session(world: World) -> None:
    """Without a session nothing is claimed."""
    world.put(make_envelope(), make_envelope())
    with pytest.raises(MailerUnavailable):
        world.attempt(MailerUnavailable('refused'))
    assert world.claimable() == 2
    assert world.tally == Tally()


def test_the_relay_becomes_unavailable_in_the_middle(world: World) -> None:
    """530 at the second of three mails: it is released unchanged, and nothing is counted."""
    world.dispatcher.kinds = ('sent', 'deferred', 'error')
    world.put(*(make_envelope(id=f'{n:032x}') for n in range(3)))
    before = files(world.queue) if isinstance(world.queue, MaildirQueue) else []
    with pytest.raises(MailerUnavailable):
        world.attempt(raises(MailerUnavailable('530'), after=1))
    assert world.tally == Tally(delivered=1)
    assert [event.kind for event in world.dispatcher.pending_events] == ['sent']
    assert world.claimable() == 2
    if before:
        assert files(world.queue) == before[1:]
    mailer = world.attempt(answers())
    assert len(mailer.sent) == 2


def test_an_unavailable_relay_leaves_the_file_as_it_was(on_disk: World) -> None:
    """A release after MailerUnavailable leaves the file as it was, byte by byte."""
    on_disk.put(make_envelope())
    [name] = files(on_disk.queue)
    path = Path(on_disk.queue.path, name)
    before = path.read_bytes()
    with pytest.raises(MailerUnavailable):
        on_disk.attempt(raises(MailerUnavailable('421')))
    assert path.read_bytes() == before


# A stale connection


def test_stale(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """After a connection that has carried a mail is lost, the next mail goes at once over another
    one: nothing is counted, there is no event and no log line."""
    caplog.set_level(logging.INFO)
    world.dispatcher.kinds = ('sent', 'deferred', 'error')
    first, second = make_envelope(id='1' * 32), make_envelope(id='2' * 32)
    world.put(first, second)
    mailer = world.attempt(raises(MailerUnavailable('421', stale=True), after=1), answers())
    assert [message_id for message_id, _ in mailer.sent] == [
        first.message_id,
        second.message_id,
        second.message_id,
    ]
    assert mailer.log == ['connect', 'close', 'connect', 'close']
    assert [(event.kind, event.attempt) for event in world.dispatcher.pending_events] == [
        ('sent', 1)
    ] * 2
    assert world.tally == Tally(delivered=2)
    assert len(caplog.records) == 2
    assert world.tickets() == []


def test_stale_and_then_unavailable(world: World) -> None:
    """If no new connection can be opened, the mail is released unchanged."""
    world.put(make_envelope(), make_envelope())
    with pytest.raises(MailerUnavailable, match='refused'):
        world.attempt(
            raises(MailerUnavailable('421', stale=True), after=1), MailerUnavailable('refused')
        )
    assert world.claimable() == 1


def test_stale_is_believed_once_a_session(world: World) -> None:
    """A session that is stale before it has carried a mail means that the relay is unavailable: it
    is not reopened in a loop."""
    world.put(make_envelope())
    with pytest.raises(MailerUnavailable):
        world.attempt(raises(MailerUnavailable('closed', stale=True)))
    assert world.claimable() == 1


@pytest.mark.parametrize('stale', [True, False])
def test_unanswered_and_ambiguous(on_disk: World, stale: bool) -> None:
    """MailerUnavailable means that mail which was pulled and not answered is untouched: its marks
    are undone, and it is sent over another session, or is in the queue as before."""
    for name in ('ann', 'bob', 'eve'):
        on_disk.put(make_envelope(f'{name}@example.org'))

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        pulled = list(envelopes)
        for each in pulled:
            before_final_dot(each, each.recipients)
        yield dict.fromkeys(pulled[0].recipients, DELIVERED)
        raise MailerUnavailable('421', stale=stale)

    if stale:
        assert len(on_disk.attempt(script, answers()).sent) == 5
        assert on_disk.tally == Tally(delivered=3)
        return
    with pytest.raises(MailerUnavailable):
        on_disk.attempt(script)
    assert on_disk.tally == Tally(delivered=1)
    claims = list(on_disk.claims())
    assert [(claim.interrupted, claim.attempt) for claim in claims] == [('', 0)] * 2


def test_several_ambiguous_and_the_session_fails(on_disk: World) -> None:
    """After a bug in a session with several mails in flight, each marked mail is ambiguous, and the
    unmarked one is sent over another session."""
    for name in ('ann', 'bob', 'eve'):
        on_disk.put(make_envelope(f'{name}@example.org'))

    def script(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        pulled = list(envelopes)
        for each in pulled[:2]:
            before_final_dot(each, each.recipients)
        yield from ()
        raise ZeroDivisionError

    mailer = on_disk.attempt(script, answers())
    assert on_disk.tally == Tally(delivered=1, deferred=2)
    assert len(mailer.sent) == 4


def test_stale_with_several_pulled(world: World) -> None:
    """After a session that pulls ahead is lost, all unanswered mail is sent again, in order."""
    mails = [make_envelope(id=f'{n:032x}') for n in range(3)]
    world.put(*mails)

    def pulls_ahead(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        waiting = list(envelopes)
        yield dict.fromkeys(waiting[0].recipients, DELIVERED)
        raise MailerUnavailable('lost', stale=True)

    mailer = world.attempt(pulls_ahead, answers())
    assert [message_id for message_id, _ in mailer.sent[3:]] == [
        mail.message_id for mail in mails[1:]
    ]
    assert world.tally == Tally(delivered=3)
    assert world.tickets() == []


# A session with a bug


def test_a_bug_in_the_session(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A bug defers the mail, counts as an attempt, and has its traceback in the log; the other mail
    is sent over the next session."""
    world.dispatcher.kinds = ('sent', 'deferred')
    world.put(make_envelope(id='1' * 32), make_envelope(id='2' * 32))
    mailer = world.attempt(raises(ZeroDivisionError('a\nbug')))
    assert mailer.log == ['connect', 'close']
    assert world.tally == Tally(deferred=1)
    assert world.dispatcher.pending_events[0].reason == 'ZeroDivisionError: a bug'
    assert any(record.exc_info for record in caplog.records)
    assert len(world.tickets()) == 1
    world.attempt(answers())
    world.clock.now += 60
    world.attempt(answers())
    assert [event.attempt for event in world.dispatcher.pending_events] == [1, 1, 2]


def test_a_bug_after_the_mark_is_ambiguous(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The whole mail may have been sent, so the outcome is ambiguous."""
    world.put(make_envelope())
    world.attempt(raises(ZeroDivisionError('a bug'), ambiguous=True))
    assert 'ambiguous for ann@example.org (attempt 1' in lines(caplog)[-1]
    world.clock.now += 60
    assert len(world.attempt(answers()).sent) == 1


def test_a_bug_after_the_mark_for_some(world: World) -> None:
    """With hold, the recipients that were not marked are tried again."""
    world.attempts.ambiguous = 'hold'
    world.dispatcher.kinds = ('error', 'deferred')
    world.put(make_envelope('ann@example.org', 'bob@example.org', 'cyd@example.org'))

    def in_parts(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        envelope = next(iter(envelopes))
        for recipient in envelope.recipients[:2]:
            before_final_dot(envelope, [recipient])
        raise ZeroDivisionError('a bug')
        yield {}

    world.attempt(in_parts)
    assert [(event.kind, event.recipients) for event in world.dispatcher.pending_events] == [
        ('error', ('ann@example.org', 'bob@example.org')),
        ('deferred', ('cyd@example.org',)),
    ]


def test_a_bug_while_several_are_in_flight(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each marked mail is ambiguous; mail that was pulled and not marked is sent again at once."""
    mails = [make_envelope(id=f'{n:032x}') for n in range(3)]
    world.put(*mails)

    def pulls_ahead(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        waiting = list(envelopes)
        for envelope in waiting[:2]:
            before_final_dot(envelope, envelope.recipients)
        raise ZeroDivisionError('a bug')
        yield {}

    mailer = world.attempt(pulls_ahead, answers())
    assert [message_id for message_id, _ in mailer.sent[3:]] == [mails[2].message_id]
    assert world.tally == Tally(delivered=1, deferred=2)
    assert sum('ambiguous for' in line for line in lines(caplog)) == 2


def test_a_session_that_ends_without_an_answer(world: World) -> None:
    """It counts as an attempt of that mail, which would be pulled for ever otherwise."""

    def mute(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        for _ in envelopes:
            return
            yield {}

    world.put(make_envelope())
    world.attempt(mute)
    assert world.tally == Tally(deferred=1)
    assert world.tickets() == []


def test_a_bug_before_any_mail(world: World) -> None:
    """A session that fails before it has pulled a mail means that the relay is unavailable."""

    def broken(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        raise ZeroDivisionError('a bug')
        yield {}

    world.put(make_envelope())
    with pytest.raises(MailerUnavailable, match='ZeroDivisionError'):
        world.attempt(broken)
    assert world.claimable() == 1


def test_an_interrupt_releases_what_was_pulled(world: World) -> None:
    """After a KeyboardInterrupt, which is raised on, the claims are free."""
    world.put(make_envelope())
    with pytest.raises(KeyboardInterrupt):
        world.attempt(raises(KeyboardInterrupt()))  # type: ignore[arg-type]
    assert world.claimable() == 1
    assert world.connections[0].mailer.log == ['connect', 'close']  # type: ignore[attr-defined]


# Ambiguous


def test_ambiguous_is_sent_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without an answer to the final dot a mail is sent again with the same Message-ID; the log
    calls it ambiguous."""
    world.dispatcher.kinds = ('deferred', 'error')
    mail = make_envelope()
    world.put(mail)
    world.attempt(answers(NO_ANSWER))
    [line] = lines(caplog)
    assert line.startswith(f'WARNING {mail.message_id}: ambiguous for ann@example.org')
    [event] = world.dispatcher.pending_events
    assert (event.kind, event.reason) == ('deferred', 'ambiguous: no answer to the whole message')
    world.clock.now += 60
    assert world.attempt(answers()).sent == [(mail.message_id, mail.recipients)]


def test_ambiguous_is_held(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With ``mail.ambiguous = hold`` it is not sent again: an error event, not permanent."""
    world.attempts.ambiguous = 'hold'
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope())
    world.attempt(answers(NO_ANSWER))
    [event] = world.dispatcher.pending_events
    assert (event.permanent, event.reason) == (False, 'ambiguous: no answer to the whole message')
    assert 'ambiguous for' in lines(caplog)[0]
    world.clock.now += 10**6
    assert world.tickets() == []
    if isinstance(world.queue, MaildirQueue):
        assert [name.split('/')[0] for name in files(world.queue)] == ['failed']


def test_ambiguous_and_too_old(world: World) -> None:
    """The reason of an ambiguous mail that is too old to be sent again says both."""
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope())
    world.clock.now += POLICY.give_up_after
    world.attempt(answers(NO_ANSWER))
    assert (
        world.dispatcher.pending_events[0].reason
        == 'given up: ambiguous: no answer to the whole message'
    )


# What stopped processes have left


def died(world: World, *, ambiguous: Sequence[str] = ()) -> None:
    """Claim the mail, and stop as kill -9 does: the lock is gone, everything written stays."""
    [ticket] = world.tickets()
    claim = world.queue.claim(ticket)
    if ambiguous:
        claim.mark_ambiguous(tuple(ambiguous))
    os.close(claim._descriptor)
    claim._descriptor = None


def test_interrupted_before_the_dot(on_disk: World, caplog: pytest.LogCaptureFixture) -> None:
    """``S``: it counts as an attempt and waits by the policy, so that a mail that kills its process
    is not tried in a loop."""
    on_disk.dispatcher.kinds = ('deferred',)
    mail = make_envelope()
    on_disk.put(mail)
    died(on_disk)
    assert on_disk.attempt(answers()).sent == []
    [event] = on_disk.dispatcher.pending_events
    assert (event.attempt, event.retry_at) == (1, NOW + 60)
    assert 'a process stopped while it was sending' in event.reason
    assert 'ambiguous' not in lines(caplog)[0]
    on_disk.clock.now += 60
    assert on_disk.attempt(answers()).sent == [(mail.message_id, mail.recipients)]
    assert on_disk.tally == Tally(delivered=1, deferred=1)


def test_interrupted_after_the_dot(on_disk: World, caplog: pytest.LogCaptureFixture) -> None:
    """``?``: ambiguous, in the log too, with the mailer over which it may have been sent."""
    mail = make_envelope()
    on_disk.put(mail)
    died(on_disk, ambiguous=mail.recipients)
    assert on_disk.attempt(answers()).sent == []
    assert lines(caplog) == [
        f'WARNING {mail.message_id}: ambiguous for ann@example.org (attempt 1, '
        'smtp://relay.example.org:25): ambiguous: a process stopped while it was sending this mail'
    ]
    on_disk.clock.now += 60
    assert on_disk.attempt(answers()).sent == [(mail.message_id, mail.recipients)]


def test_interrupted_after_the_dot_and_held(on_disk: World) -> None:
    """With hold it is moved to failed/, and is not sent."""
    on_disk.attempts.ambiguous = 'hold'
    on_disk.dispatcher.kinds = ('error',)
    mail = make_envelope()
    on_disk.put(mail)
    died(on_disk, ambiguous=mail.recipients)
    on_disk.attempt(answers())
    assert on_disk.dispatcher.pending_events[0].reason.startswith('ambiguous: a process stopped')
    assert [name.split('/')[0] for name in files(on_disk.queue)] == ['failed']


def test_interrupted_after_the_dot_for_some_and_held(on_disk: World) -> None:
    """With hold, a recipient that was not marked is tried again: nothing was sent for it."""
    on_disk.attempts.ambiguous = 'hold'
    on_disk.dispatcher.kinds = ('error', 'deferred')
    mail = make_envelope('ann@example.org', 'bob@example.org')
    on_disk.put(mail)
    died(on_disk, ambiguous=['ann@example.org'])
    on_disk.attempt(answers())
    assert [(event.kind, event.recipients) for event in on_disk.dispatcher.pending_events] == [
        ('error', ('ann@example.org',)),
        ('deferred', ('bob@example.org',)),
    ]
    on_disk.clock.now += 60
    assert on_disk.attempt(answers()).sent == [(mail.message_id, ('bob@example.org',))]


def test_poison_is_given_up(on_disk: World) -> None:
    """A mail that kills each process is given up by its age, like any other."""
    on_disk.put(make_envelope())
    for _ in range(3):
        died(on_disk)
        on_disk.attempt(answers())
        on_disk.clock.now += 600
    on_disk.clock.now += POLICY.give_up_after
    died(on_disk)
    on_disk.attempt(answers())
    assert on_disk.tally == Tally(deferred=3, failed=1)


def test_settled_mail_is_dispatched_without_being_sent(on_disk: World) -> None:
    """The pending events of a settled mail are dispatched; without one the mail is moved."""
    on_disk.dispatcher = RecordingDispatcher('sent', takes=False)
    on_disk.attempts.dispatcher = on_disk.dispatcher
    on_disk.put(make_envelope())
    on_disk.attempt(answers())
    on_disk.dispatcher.claims.pop().release()
    on_disk.dispatcher.takes = True
    assert on_disk.attempt(answers()).sent == []
    assert on_disk.dispatcher.dispatched() == [('sent', ('ann@example.org',))] * 2
    assert files(on_disk.queue) == []


class Settled:
    """A claim with nothing to send and nothing to report, that cannot be moved."""

    pending_events: tuple[PendingEvent, ...] = ()
    todo: tuple[str, ...] = ()
    envelope = make_envelope()
    released = 0

    def acknowledge(self, events: object) -> None:
        raise QueueError(errno.EROFS, 'read-only')

    def release(self) -> None:
        self.released += 1


def test_a_settled_mail_that_cannot_be_moved_is_released(world: World) -> None:
    """Its lock must not be kept: no process could try again."""
    claim: Any = Settled()
    with pytest.raises(QueueError):
        attempt([claim], world.connection(answers()), world.attempts, world.tally)
    assert claim.released == 1
    claim = Settled()
    claim.acknowledge = lambda events: None
    report_settled(claim, world.dispatcher)
    assert claim.released == 0


# Recording


@pytest.fixture
def full() -> type[UnwritableClaim]:
    UnwritableClaim.broken = True
    return UnwritableClaim


def test_recording_fails_after_acceptance(
    world: World, full: type[UnwritableClaim], caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is kept and the outcome remembered. Nothing more is claimed. It is recorded later,
    and the mail is never sent twice."""
    world.dispatcher.kinds = ('sent',)
    world.put(make_envelope(id='1' * 32), make_envelope(id='2' * 32))
    claims = map(full, world.claims())
    connection = world.connection(answers(), answers())
    with pytest.raises(QueueError):
        attempt(claims, connection, world.attempts, world.tally)
    assert len(connection.mailer.sent) == 1  # type: ignore[attr-defined]
    assert len(world.attempts.unrecorded) == 1
    assert 'CRITICAL' in lines(caplog)[-1]
    assert world.claimable() == 1, 'the first one is locked, the second one untouched'
    assert world.tally == Tally(delivered=1), 'it counts, though it cannot be written'
    with pytest.raises(QueueError):
        world.attempts.write_unrecorded()
    assert len(world.attempts.unrecorded) == 1
    assert world.dispatcher.pending_events == []

    full.broken = False
    world.attempts.write_unrecorded()
    assert world.attempts.unrecorded == []
    assert world.dispatcher.dispatched() == [('sent', ('ann@example.org',))]
    attempt(world.claims(), connection, world.attempts, world.tally)
    assert [message_id[1:3] for message_id, _ in connection.mailer.sent] == ['11', '22']  # type: ignore[attr-defined]
    assert world.tickets() == []
    assert world.tally == Tally(delivered=2)
    connection.close()


def test_recording_fails_for_an_interrupted_mail(
    on_disk: World, full: type[UnwritableClaim]
) -> None:
    """The outcome of a mail that is settled without being sent is kept in the same way."""
    on_disk.put(make_envelope())
    died(on_disk)
    connection = on_disk.connection(answers())
    with pytest.raises(QueueError):
        attempt(map(full, on_disk.claims()), connection, on_disk.attempts, on_disk.tally)
    [(claim, _, retry_at)] = on_disk.attempts.unrecorded
    assert retry_at == NOW + 60
    assert claim.releases == 0  # type: ignore[attr-defined]
    full.broken = False
    on_disk.attempts.write_unrecorded()
    assert on_disk.tickets() == []


def test_marking_fails(on_disk: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the mark before the dot cannot be written, the dot is not sent: the session ends, and the
    mail stays in the queue."""
    on_disk.put(make_envelope())

    def claims() -> Iterator[Any]:
        for claim in on_disk.claims():

            def mark_ambiguous(recipients: Sequence[str]) -> None:
                raise QueueError(errno.EROFS, 'read-only')

            monkeypatch.setattr(claim, 'mark_ambiguous', mark_ambiguous)
            yield claim

    connection = on_disk.connection(answers())
    with pytest.raises(QueueError):
        attempt(claims(), connection, on_disk.attempts, on_disk.tally)
    assert connection.mailer.log == ['connect', 'close']  # type: ignore[attr-defined]
    assert on_disk.claimable() == 1
    assert on_disk.tally == Tally()


def test_claiming_fails_in_the_middle(world: World) -> None:
    """If the queue fails between two mails, mail that was sent is settled, and the error is
    raised."""

    def claims() -> Iterator[Any]:
        yield next(world.claims())
        raise QueueError(errno.EIO, 'broken')

    world.put(make_envelope(), make_envelope())
    with pytest.raises(QueueError):
        attempt(claims(), world.connection(answers()), world.attempts, world.tally)
    assert world.tally == Tally(delivered=1)
    assert world.claimable() == 1


def test_age_of_mail_that_was_sent_by_a_wrong_clock(world: World) -> None:
    """The age counts from now, not from the day that the wrong clock showed; that of mail which is
    due on that day counts from there."""
    year = 365 * 86_400.0
    world.put(make_envelope(queued_at=NOW + year, due=NOW + year))
    [claim] = world.claims()
    world.clock.now = NOW + 86_401
    world.attempts.record_outcome(claim, dict.fromkeys(claim.todo, LATER), 'null:', world.tally)
    assert world.tally == Tally(failed=1), 'older than give_up_after'


def test_recording_alone(world: World) -> None:
    """An outcome may be recorded without an attempt, and without a tally."""
    world.dispatcher.kinds = ('error',)
    world.put(make_envelope())
    [claim] = world.claims()
    world.attempts.record_outcome(claim, dict.fromkeys(claim.todo, REFUSED), 'null:')
    assert world.dispatcher.dispatched() == [('error', ('ann@example.org',))]
    assert world.tally == Tally()


# The relay connection


def test_one_connection_for_many_mails(world: World) -> None:
    """A session stays open from attempt to attempt."""
    connection = world.connection(answers())
    for _ in range(3):
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
    assert connection.mailer.log == ['connect']  # type: ignore[attr-defined]
    assert (connection.mails_total, connection.mails_on_session) == (3, 3)
    connection.close()
    connection.close()
    assert connection.mailer.log == ['connect', 'close']  # type: ignore[attr-defined]


def test_a_used_up_session_is_closed(world: World) -> None:
    """After a batch of mails the session is closed, and the rest goes over another one."""
    world.put(*(make_envelope() for _ in range(5)))
    connection = world.connection(answers(), answers(), answers(), batch=2)
    for sent in (2, 4, 5):
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.sent) == sent  # type: ignore[attr-defined]
    assert connection.mailer.log == ['connect', 'close'] * 2 + ['connect']  # type: ignore[attr-defined]
    connection.close()


def test_a_session_that_pulls_ahead_gets_one_batch(world: World) -> None:
    """A mail that is pulled while the one before waits for its answer counts for the batch."""

    def ahead(envelopes: Iterable[Envelope], before_final_dot: Any) -> Iterator[Outcome]:
        source = iter(envelopes)
        mail = next(source, None)
        while mail is not None:
            follower = next(source, None)
            yield dict.fromkeys(mail.recipients, DELIVERED)
            mail = follower

    world.put(*(make_envelope() for _ in range(5)))
    connection = world.connection(ahead, ahead, ahead, batch=2)
    for sent in (2, 4, 5):
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.sent) == sent  # type: ignore[attr-defined]
    assert world.tally == Tally(delivered=5)
    connection.close()


@pytest.mark.parametrize('script', [answers(*[REFUSED] * 9), raises(ValueError('oops'))])
def test_outcomes_name_the_relay_of_the_session(world: World, script: Script) -> None:
    """A mailer may have several relays: events name the session's. For a session without a name
    they name the mailer."""
    world.dispatcher.kinds = ('error', 'deferred')
    for name, expected in {
        'smtp://second': 'smtp://second',
        None: 'smtp://relay.example.org:25',
    }.items():
        connection = world.connection(script)
        session = connection.session()
        del session.name
        if name is not None:
            session.name = name
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert [event.mailer for event in world.dispatcher.pending_events] == [expected]
        world.dispatcher.pending_events.clear()
        connection.close()


def test_an_idle_session_is_replaced(world: World) -> None:
    """A session that was not used for ``idle`` seconds is replaced before the next mail."""
    now = [0.0]
    connection = world.connection(answers(), answers(), idle=60, monotonic=lambda: now[0])
    for pause, log in ((0, 1), (60, 1), (61, 3)):
        now[0] += pause
        world.put(make_envelope())
        attempt(world.claims(), connection, world.attempts, world.tally)
        assert len(connection.mailer.log) == log  # type: ignore[attr-defined]
    connection.close()


def test_an_inherited_session_is_abandoned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child abandons its parent's session: it sends nothing on it."""
    connection = world.connection(answers(), answers())
    connection.session()
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    connection.session()
    assert connection.mailer.log == ['connect', 'abandon', 'connect']  # type: ignore[attr-defined]
    monkeypatch.setattr('os.getpid', lambda: -2)
    connection.close()
    assert connection.mailer.log[-1] == 'abandon'  # type: ignore[attr-defined]
    connection.close()


def test_connecting_is_shown(world: World) -> None:
    """``connecting`` is True while a connection is opened, unless its thread holds mail."""
    seen = []

    class Watched(Sessions):
        def connect(self) -> Session:
            seen.append(connection.connecting)
            return super().connect()

    connection = RelayConnection(Watched(answers(), answers()))
    connection.session()
    connection.close()
    connection.session(holding=True)
    assert seen == [True, False]
    assert connection.connecting is False
    connection.close()


# Counts


@pytest.mark.parametrize(
    ('kinds', 'tally'),
    [
        (['sent'], Tally(delivered=1)),
        (['sent', 'error'], Tally(failed=1)),
        (['sent', 'error', 'deferred'], Tally(deferred=1)),
    ],
)
def test_tally(kinds: list[Any], tally: Tally) -> None:
    """A mail counts once: as deferred, else as failed, else as delivered."""
    event = PendingEvent(id='x', kind='sent', recipients=(), attempt=1, mailer='')
    count = Tally()
    count.count([replace(event, kind=kind) for kind in kinds])
    assert count == tally
    assert count.total == 1
    count.add(tally)
    assert count.total == 2


class Forwarding:
    """A wrapper around a session, which forwards everything."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.mark.parametrize('wrapped', [False, True])
def test_a_wrapper_does_not_inherit_the_flag(wrapped: bool) -> None:
    """The lock is held only over a session whose own class is cooperative: others may wait without
    releasing it."""

    class Session:
        cooperative = True
        name = 'session:'

        def send(self, envelopes: Any, *, before_final_dot: Any = None) -> Iterator[Any]:
            held.append(attempts.cooperative_lock._lock.locked())
            return iter(())

    held: list[bool] = []
    attempts = OutcomeRecorder(POLICY, RecordingDispatcher())
    session = Forwarding(Session()) if wrapped else Session()
    connection = RelayConnection(RecordingMailer())
    Batch(iter(()), connection, attempts, Tally()).send(session)
    assert held == [not wrapped]
