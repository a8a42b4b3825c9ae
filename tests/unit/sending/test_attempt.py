"""``attempt``: which mail is sent over which session, and what stays in the queue."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Outcome, Tally
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailer, IMailEventDispatcher, IMailSession
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.sending.attempt import attempt
from tests.support.attempts import (
    DELIVERED,
    POLICY,
    Sessions,
    World,
    answers,
    died,
    lines,
    raises,
)
from tests.support.processors import RecordingDispatcher
from tests.support.queues import NOW, files, make_envelope


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


# What stopped processes have left


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
        'smtp://relay.example.org:25): a process stopped while it was sending this mail '
        '(sent again in 60 s: it may arrive twice)'
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


# The queue fails


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
