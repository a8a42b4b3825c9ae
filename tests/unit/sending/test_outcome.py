"""``OutcomeRecorder``: the outcome of a mail for each answer of the relay, over both queues."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest

from pyramid_sendmail.envelope import PendingEvent, Reply, Tally
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import report_settled
from tests.support.attempts import (
    DELIVERED,
    LATER,
    NO_ANSWER,
    POLICY,
    REFUSED,
    World,
    answers,
    died,
    lines,
)
from tests.support.processors import RecordingDispatcher, UnwritableClaim
from tests.support.queues import NOW, files, make_envelope


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


def test_an_older_event_is_settled_once(world: World) -> None:
    """However often a mail is deferred while a subscriber fails, the event of an earlier attempt
    stays one event, and each attempt has one set of lines in the history."""
    ann, bob = 'ann@example.org', 'bob@example.org'
    world.dispatcher = RecordingDispatcher('sent', takes=False)
    world.attempts.dispatcher = world.dispatcher
    envelope = make_envelope(ann, bob)
    world.put(envelope)
    for number in (1, 2, 3, 4):
        world.attempt(answers({ann: DELIVERED, bob: LATER} if number == 1 else {bob: LATER}))
        claim = world.dispatcher.claims.pop()
        assert [event.recipients for event in claim.pending_events] == [(ann,)]
        claim.release()
        assert world.dispatcher.dispatched() == [('sent', (ann,))] * number
        world.clock.now += 3600
    details = world.queue.get(envelope.id)
    assert details.pending_events == 1
    words = [line.partition(' ')[2].partition(' (')[0] for line in details.history]
    assert words == [
        f'attempt 1: delivered for {ann}',
        *(f'attempt {number}: deferred for {bob}' for number in (1, 2, 3, 4)),
    ]


def test_the_log_says_when_it_is_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of a deferred mail has the time until the next try, the event its moment."""
    world.dispatcher.kinds = ('deferred',)
    world.put(make_envelope())
    world.attempt(answers(LATER))
    assert lines(caplog)[-1].endswith(': 450 4.2.0 greylisted (next try in 60 s)')
    assert world.dispatcher.pending_events[0].retry_at == world.clock.now + 60


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


def test_ambiguous_is_sent_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without an answer to the final dot a mail is sent again with the same Message-ID; the log
    calls it ambiguous."""
    world.dispatcher.kinds = ('deferred', 'error')
    mail = make_envelope()
    world.put(mail)
    world.attempt(answers(NO_ANSWER))
    [line] = lines(caplog)
    assert line.startswith(f'WARNING {mail.message_id}: ambiguous for ann@example.org')
    assert line.endswith(
        ': no answer to the whole message (sent again in 60 s: it may arrive twice)'
    )
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
    [(claim, _, retry_at, _)] = on_disk.attempts.unrecorded
    assert retry_at == NOW + 60
    assert claim.releases == 0  # type: ignore[attr-defined]
    full.broken = False
    on_disk.attempts.write_unrecorded()
    assert on_disk.tickets() == []


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
    count.count([event._replace(kind=kind) for kind in kinds])
    assert count == tally
    assert count.total == 1
    count.add(tally)
    assert count.total == 2
