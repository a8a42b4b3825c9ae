"""What every queue promises to people who browse and repair it (IBrowsableQueue)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyClass, verifyObject

from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply, Verdict
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.interfaces import IBrowsableQueue
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.browsing import STATES, MailInfo
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.support.processors import RecordingDispatcher
from tests.support.queues import NOW, Clock, deferred, failed, make_envelope, sent

ANN, BOB = 'ann@example.org', 'bob@example.org'


class Case:
    """A queue and its clock, with mail in any state."""

    def __init__(self, queue: Any, clock: Clock) -> None:
        self.queue, self.clock = queue, clock

    def put(self, *recipients: str, **options: Any) -> Envelope:
        envelope = make_envelope(*recipients, **options)
        self.queue.put([envelope]).publish()
        return envelope

    def claim(self, envelope: Envelope) -> Any:
        tickets, _ = self.queue.scan(self.clock(), all_events=True)
        (ticket,) = (ticket for ticket in tickets if ticket.key == envelope.id)
        return self.queue.claim(ticket)

    def settle(
        self,
        envelope: Envelope,
        *events: PendingEvent,
        retry_at: float | None = None,
        report: bool = False,
    ) -> None:
        claim = self.claim(envelope)
        claim.settle(events, retry_at=retry_at, report=report)
        claim.release()

    def failed(self, *recipients: str) -> Envelope:
        envelope = self.put(*recipients)
        self.settle(envelope, failed(envelope))
        return envelope

    def deferred(self, *recipients: str, until: float = NOW + 600) -> Envelope:
        envelope = self.put(*recipients)
        self.settle(envelope, deferred(envelope, until=until), retry_at=until)
        return envelope

    def info(self, envelope: Envelope) -> MailInfo:
        details = self.queue.get(envelope.id)
        assert details is not None
        return details.info  # type: ignore[no-any-return]

    def due(self) -> list[str]:
        return [ticket.key for ticket in self.queue.scan(self.clock())[0]]


@pytest.fixture(params=['maildir', 'memory'])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    clock = Clock()
    queue: Any = MemoryQueue(clock=clock)
    if request.param == 'maildir':
        queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
        queue.prepare()
    yield Case(queue, clock)
    queue.close()


def test_the_interface_is_kept(case: Case) -> None:
    """The queue has what the interface names."""
    assert verifyObject(IBrowsableQueue, case.queue)
    assert verifyClass(IBrowsableQueue, type(case.queue))


def test_a_mail_in_each_state_is_listed(case: Case) -> None:
    """Every mail is listed once, in its state, with its priority, its time and its attempts."""
    new = case.put(priority='high')
    later = case.put(due=NOW + 60)
    tried = case.deferred()
    dead = case.failed()
    done = case.put()
    case.settle(done, sent(done), report=True)
    held = case.put()
    assert case.queue.hold(case.info(held))
    listed = {info.id: info for info in case.queue.mails()}
    assert {id: info.state for id, info in listed.items()} == {
        new.id: 'new',
        later.id: 'new',
        tried.id: 'deferred',
        dead.id: 'failed',
        done.id: 'done',
        held.id: 'held',
    }
    assert (listed[new.id].priority, listed[tried.id].priority) == ('high', 'normal')
    assert (listed[later.id].due, listed[tried.id].due) == (NOW + 60, NOW + 600)
    assert (listed[new.id].attempt, listed[tried.id].attempt) == (0, 1)
    for state in STATES:
        assert {info.id for info in case.queue.mails(state)} == {
            id for id, info in listed.items() if info.state == state
        }


@pytest.mark.parametrize('state', ['bogus', 'cur', '', 'New'])
def test_an_unknown_state(case: Case, state: str) -> None:
    """The call itself refuses a state that is misspelt, and names those that there are."""
    with pytest.raises(ValueError, match=r'^state: .* new, deferred, done, failed, held, or None$'):
        case.queue.mails(state)


def test_the_most_urgent_is_listed_first(case: Case) -> None:
    """A listing begins with the highest priority, then with what has been due for longest."""
    low = case.put(priority='low')
    second = case.put(due=NOW + 20)
    first = case.put(due=NOW + 10)
    high = case.put(priority='high', due=NOW + 30)
    listed = [info.id for info in case.queue.mails('new')]
    assert listed == [high.id, first.id, second.id, low.id]


def test_a_listing_goes_state_by_state(case: Case) -> None:
    """All mails are listed in the order of the states, and in each by priority."""
    envelopes = {
        (state, priority): _in_state(case, state, priority)
        for priority in ('low', 'high', 'normal')
        for state in ('held', 'failed', 'new', 'done', 'deferred')
    }
    listed = [info.id for info in case.queue.mails()]
    assert listed == [
        envelopes[state, priority].id for state in STATES for priority in ('high', 'normal', 'low')
    ]


def _in_state(case: Case, state: str, priority: str) -> Envelope:
    envelope = case.put(priority=priority)
    if state == 'held':
        assert case.queue.hold(case.info(envelope))
    elif state == 'deferred':
        case.settle(envelope, deferred(envelope, until=NOW + 60), retry_at=NOW + 60)
    elif state == 'failed':
        case.settle(envelope, failed(envelope))
    elif state == 'done':
        case.settle(envelope, sent(envelope), report=True)
    assert case.info(envelope).state == state
    return envelope


def test_the_history_has_each_attempt_that_failed_and_each_hold(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """One line each, the oldest first, each with its time; no line is broken by its text."""
    caplog.set_level('INFO')
    envelope = case.put(ANN, BOB)
    until = NOW + 60
    first = deferred(envelope, BOB, until=until, group=1)
    case.settle(envelope, sent(envelope, ANN), first._replace(reason='a\nb'), retry_at=until)
    case.clock.now = until
    assert case.queue.hold(case.info(envelope), 'ask\r\nthe\u2028customer\x1b[2J')
    assert case.queue.release(case.info(envelope))
    assert case.queue.hold(case.info(envelope))
    assert case.queue.release(case.info(envelope))
    case.settle(envelope, failed(envelope, BOB, attempt=2))
    relay = '(smtp://relay.example.org:25)'
    assert case.queue.get(envelope.id).history == (
        f'2023-11-14T22:13:20Z attempt 1: delivered for {ANN} {relay}: 250 2.0.0 queued as 4B7C',
        f'2023-11-14T22:13:20Z attempt 1: deferred for {BOB} {relay}: a?b',
        '2023-11-14T22:14:20Z held: ask the customer?[2J',
        '2023-11-14T22:14:20Z held',
        f'2023-11-14T22:14:20Z attempt 2: failed for {BOB} {relay}: 550 5.1.1 no such user',
    )
    assert f'{envelope.message_id}: held: ask the customer?[2J\n' in caplog.text


def test_the_history_is_bounded(case: Case) -> None:
    """A mail that is held again and again does not grow without end."""
    envelope = case.put()
    for _ in range(80):
        assert case.queue.hold(case.info(envelope), 'x' * 2000)
        assert case.queue.release(case.info(envelope))
    history = case.queue.get(envelope.id).history
    assert len(history) == 65
    assert {len(line) for line in history} == {999}


def test_details_of_a_mail(case: Case) -> None:
    """A mail is returned with its envelope, and with what has become of each recipient."""
    envelope = case.put(ANN, BOB, 'cid@example.org')
    until = NOW + 600
    events = (
        sent(envelope, ANN, group=0),
        failed(envelope, BOB, group=1),
        deferred(envelope, 'cid@example.org', group=2, until=until),
    )
    case.settle(envelope, *events, retry_at=until)
    details = case.queue.get(envelope.id)
    assert details.envelope == envelope
    assert details.envelope.raw == envelope.raw
    assert {to: each.status for to, each in details.recipients.items()} == {
        ANN: 'delivered',
        BOB: 'failed',
        'cid@example.org': 'waiting',
    }
    assert details.recipients[BOB].reason == '550 5.1.1 no such user'
    assert details.recipients[BOB].reply == events[1].reply
    assert details.recipients['cid@example.org'].reason == '451 4.3.0 try again later'
    assert details.reason == '550 5.1.1 no such user'
    assert (details.damaged, details.pending_events) == ('', 0)


def test_pending_events_are_counted(case: Case) -> None:
    """A finished mail shows how many events subscribers have not handled."""
    envelope = case.put()
    case.settle(envelope, sent(envelope), report=True)
    details = case.queue.get(envelope.id)
    assert (details.info.state, details.pending_events) == ('done', 1)


def test_an_unknown_mail(case: Case) -> None:
    """There are no details of a mail that is not there, and nothing can be done with it."""
    envelope = case.put()
    info = case.info(envelope)
    case.settle(envelope, sent(envelope))
    assert case.queue.get(envelope.id) is None
    for change in (case.queue.retry, case.queue.hold, case.queue.release, case.queue.drop):
        assert not change(info)
    assert list(case.queue.mails()) == []


def test_a_failed_mail_is_retried(case: Case) -> None:
    """Its failed recipients are tried again at once, its delivered ones are not, and its attempts
    and its age count from now."""
    envelope = case.put(ANN, BOB)
    case.settle(envelope, sent(envelope, ANN), failed(envelope, BOB, group=1))
    assert case.due() == []
    case.clock.now += 3600
    assert case.queue.retry(case.info(envelope))
    assert (case.info(envelope).state, case.info(envelope).attempt) == ('new', 0)
    claim = case.claim(envelope)
    assert (claim.todo, claim.attempt, claim.since) == ((BOB,), 0, case.clock.now)
    claim.release()


def test_a_deferred_mail_is_retried(case: Case) -> None:
    """It is due at once, and keeps its attempts and its age."""
    envelope = case.deferred()
    assert case.due() == []
    case.clock.now += 5
    assert case.queue.retry(case.info(envelope))
    claim = case.claim(envelope)
    assert (claim.todo, claim.attempt, claim.since) == ((ANN,), 1, NOW)
    claim.release()


@pytest.mark.parametrize('state', ['new', 'deferred'])
def test_a_held_mail_waits_until_it_is_released(case: Case, state: str) -> None:
    """No scan finds it, however late it is; released, it goes on where it was, with a new retry
    period."""
    envelope = case.put() if state == 'new' else case.deferred(until=NOW + 60)
    before = case.info(envelope)
    assert case.queue.hold(before, 'ask the customer\nfirst')
    assert case.info(envelope).state == 'held'
    case.clock.now += 1_000_000
    assert case.due() == []
    assert any('held: ask the customer' in line for line in case.queue.get(envelope.id).history)
    assert case.queue.release(case.info(envelope))
    assert case.info(envelope) == before
    assert case.due() == [envelope.id]
    claim = case.claim(envelope)
    assert (claim.todo, claim.attempt, claim.since) == ((ANN,), before.attempt, case.clock())
    claim.release()


def test_a_held_mail_for_later_is_not_sent_early(case: Case) -> None:
    """Released, a mail with a time of its own still waits for it."""
    envelope = case.put(due=NOW + 600)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.release(case.info(envelope))
    assert case.due() == []
    case.clock.now = NOW + 600
    assert case.due() == [envelope.id]


def test_a_held_mail_is_retried(case: Case) -> None:
    """A retry releases it and makes it due now."""
    envelope = case.deferred(until=NOW + 1_000)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.retry(case.info(envelope))
    assert case.due() == [envelope.id]


def test_a_held_mail_for_later_is_retried_now(case: Case) -> None:
    """A retry makes a mail due now, even if its user wanted it sent later."""
    envelope = case.put(due=NOW + 600)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.retry(case.info(envelope))
    assert case.due() == [envelope.id]
    claim = case.claim(envelope)
    assert claim.todo == (ANN,)
    claim.release()


@pytest.mark.parametrize('reason', ['ambiguous: the line was lost', 'given up: ambiguous: no'])
def test_an_ambiguous_dead_letter_is_retried(case: Case, reason: str) -> None:
    """Recipients that may have the mail are tried again: a person has decided so."""
    envelope = case.put(ANN, BOB)
    event = failed(envelope, BOB, group=1)._replace(reply=None, reason=reason, permanent=False)
    case.settle(envelope, sent(envelope, ANN), event)
    assert case.queue.retry(case.info(envelope))
    claim = case.claim(envelope)
    assert (claim.todo, claim.attempt) == ((BOB,), 0)
    claim.release()


def test_a_mail_in_doubt_is_retried(case: Case) -> None:
    """A person has decided that its transaction committed: all recipients are tried."""
    envelope = make_envelope(ANN, BOB)
    case.queue.put([envelope]).keep_in_doubt()
    claim = case.claim(envelope)
    claim.acknowledge(claim.pending_events)
    assert case.queue.retry(case.info(envelope))
    claim = case.claim(envelope)
    assert (claim.todo, claim.pending_events) == ((ANN, BOB), [])
    claim.release()


def test_a_retry_replaces_an_error_that_is_not_handled_yet(case: Case) -> None:
    """The error of a recipient that is tried again is not dispatched; a delivery still is."""
    envelope = case.put(ANN, BOB, 'cid@example.org')
    until = NOW + 60
    events = (
        sent(envelope, ANN),
        failed(envelope, BOB, group=1),
        deferred(envelope, 'cid@example.org', group=2, until=until),
    )
    case.settle(envelope, *events, retry_at=until, report=True)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.retry(case.info(envelope))
    claim = case.claim(envelope)
    assert claim.todo == (BOB, 'cid@example.org')
    assert claim.pending_events == [events[0]]
    claim.release()


def test_no_two_events_have_the_same_id(case: Case) -> None:
    """A dead letter that is tried again, and fails again, has another event: a subscriber that
    recognizes what it has handled by the id takes it for a new one. Found again, each keeps its
    id."""
    envelope = case.put(ANN)
    seen = []
    for _ in range(3):
        dispatcher = RecordingDispatcher('error', takes=False)
        recorder = OutcomeRecorder(RetryPolicy(), dispatcher, clock=case.clock)
        refused = Verdict('failed', Reply(550, '5.1.1 no such user'))
        recorder.record_outcome(case.claim(envelope), {ANN: refused}, 'smtp://relay')
        (event,) = dispatcher.pending_events
        seen.append(event.id)
        dispatcher.claims[0].release()
        claim = case.claim(envelope)
        assert [each.id for each in claim.pending_events] == seen[-1:]
        case.clock.now += 1
        claim.retry_events(claim.pending_events, case.clock.now)
        claim = case.claim(envelope)
        (again,) = claim.pending_events
        assert (again.id, again.tries) == (seen[-1], 1)
        claim.acknowledge(claim.pending_events)
        claim.release()
        case.clock.now += 60
        assert case.queue.retry(case.info(envelope))
    assert seen[0] == f'{envelope.id}-1-error-0'
    assert len(set(seen)) == 3
    assert {event_id.rpartition('-')[0].rpartition('-')[2] for event_id in seen} == {'error'}


def test_attempts_go_on_from_a_pending_event(case: Case) -> None:
    """An event of a mail that was started over never has the id of one that is pending still."""
    envelope = case.put(ANN, BOB)
    until = NOW + 60
    first = sent(envelope, ANN)
    case.settle(envelope, first, deferred(envelope, BOB, until=until), retry_at=until, report=True)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.retry(case.info(envelope))
    claim = case.claim(envelope)
    assert (claim.todo, claim.attempt) == ((BOB,), first.attempt)
    second = sent(envelope, BOB, attempt=claim.attempt + 1)
    claim.settle([second])
    assert claim.attempt == second.attempt
    assert claim.pending_events == [first, second]
    claim.acknowledge([first])
    assert claim.pending_events == [second]
    claim.release()
    assert case.info(envelope).attempt == second.attempt


def test_events_of_a_held_mail_wait_as_long(case: Case) -> None:
    """No scan finds a held mail, not even one for all pending events."""
    envelope = case.put(ANN, BOB)
    until = NOW + 600
    events = sent(envelope, ANN), deferred(envelope, BOB, group=1, until=until)
    case.settle(envelope, *events, retry_at=until, report=True)
    assert case.queue.hold(case.info(envelope))
    for options in ({}, {'all_events': True}, {'fresh': True}):
        assert case.queue.scan(NOW + 1_000_000, **options) == ([], None)


def test_events_of_a_held_mail_wait_and_are_not_lost(case: Case) -> None:
    """Events that subscribers have not handled are dispatched after the release."""
    envelope = case.put(ANN, BOB)
    until = NOW + 600
    events = sent(envelope, ANN), deferred(envelope, BOB, group=1, until=until)
    case.settle(envelope, *events, retry_at=until, report=True)
    assert case.queue.hold(case.info(envelope))
    assert case.queue.release(case.info(envelope))
    claim = case.claim(envelope)
    assert [event.kind for event in claim.pending_events] == ['sent']
    claim.release()


def test_held_mail_is_not_purged(case: Case) -> None:
    """``mail.keep_failed`` removes dead letters, and no mail that a person has stopped."""
    envelope = case.put()
    assert case.queue.hold(case.info(envelope))
    assert case.queue.purge_failed(4_000_000_000.0) == 0
    assert case.info(envelope).state == 'held'


@pytest.mark.parametrize('state', ['new', 'deferred', 'failed', 'held'])
def test_a_mail_is_dropped(case: Case, state: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is gone, and a line in the log says to whom it was not sent."""
    envelope = case.put()
    if state == 'deferred':
        case.settle(envelope, deferred(envelope, until=NOW + 60), retry_at=NOW + 60)
    elif state == 'failed':
        case.settle(envelope, failed(envelope))
    elif state == 'held':
        assert case.queue.hold(case.info(envelope))
    assert case.queue.drop(case.info(envelope))
    assert case.queue.get(envelope.id) is None
    assert f'{envelope.message_id}: dropped by request, not sent to {ANN}' in caplog.text


def test_a_finished_mail_keeps_its_events(case: Case) -> None:
    """Mail whose events are not handled yet cannot be dropped, held or retried."""
    envelope = case.put()
    case.settle(envelope, sent(envelope), report=True)
    info = case.info(envelope)
    for change in (case.queue.retry, case.queue.hold, case.queue.release, case.queue.drop):
        assert not change(info)
    assert case.info(envelope) == info


def test_nothing_changes_while_a_mail_is_being_sent(case: Case) -> None:
    """A claimed mail belongs to its worker; it can be read all the same."""
    envelope = case.put()
    info = case.info(envelope)
    claim = case.claim(envelope)
    for change in (case.queue.hold, case.queue.drop):
        assert not change(info)
    assert case.queue.get(envelope.id).envelope == envelope
    claim.release()
    assert case.queue.hold(info)


def test_no_retry_and_no_release_while_a_mail_is_claimed(case: Case) -> None:
    """A deferred mail that is being sent, and one that was held before, are left to the worker."""
    envelope = case.put()
    assert case.queue.hold(case.info(envelope))
    held = case.info(envelope)
    assert case.queue.release(held)
    case.settle(envelope, deferred(envelope, until=NOW), retry_at=NOW)
    info = case.info(envelope)
    claim = case.claim(envelope)
    assert not case.queue.retry(info)
    assert not case.queue.release(held)
    claim.release()
    assert case.info(envelope) == info
    assert case.queue.retry(info)


def test_a_listing_that_is_out_of_date(case: Case) -> None:
    """A mail that has moved on since it was listed is left alone."""
    envelope = case.put()
    old = case.info(envelope)
    case.settle(envelope, deferred(envelope, until=NOW + 60), retry_at=NOW + 60)
    assert not case.queue.hold(old)
    assert not case.queue.drop(old)
    assert case.info(envelope).state == 'deferred'


@pytest.mark.parametrize(
    'forged',
    [
        {'state': 'held'},
        {'state': 'new'},
        {'state': 'deferred'},
        {'state': 'bogus'},
        {'id': 'a' * 32},
        {'priority': 'high'},
        {'due': NOW + 1},
        {'attempt': 7},
        {'key': ''},
        {'key': '..'},
        {'key': 'no such mail'},
        {'key': 'a\0b'},
    ],
)
def test_a_listing_that_is_forged(case: Case, forged: dict[str, Any]) -> None:
    """A MailInfo that does not describe the mail in every field changes nothing."""
    envelope = case.failed()
    info = case.info(envelope)
    for change in (case.queue.retry, case.queue.hold, case.queue.release, case.queue.drop):
        assert not change(info._replace(**forged))
    assert case.info(envelope) == info


def test_a_state_that_a_change_is_not_for(case: Case) -> None:
    """Only waiting mail can be held, only held mail be released, and new mail needs no retry."""
    new, dead = case.put(), case.failed()
    assert not case.queue.retry(case.info(new))
    assert not case.queue.release(case.info(new))
    assert not case.queue.hold(case.info(dead))
    assert not case.queue.release(case.info(dead))


def test_stats(case: Case) -> None:
    """Every state has its count; the most overdue mail tells how late the queue is."""
    assert case.queue.stats().oldest_due is None
    assert set(case.queue.stats().counts.values()) == {0}
    case.put(due=NOW + 50)
    case.put(due=NOW + 30)
    case.failed()
    held = case.put()
    case.queue.hold(case.info(held))
    stats = case.queue.stats()
    assert stats.counts == {'new': 2, 'deferred': 0, 'done': 0, 'failed': 1, 'held': 1}
    assert stats.oldest_due is None
    case.clock.now = NOW + 100
    assert case.queue.stats().oldest_due == NOW + 30


def test_a_change_wakes_the_processor(case: Case) -> None:
    """A processor that waits sends a retried or released mail at once."""
    dead, held = case.failed(), case.put()
    assert case.queue.hold(case.info(held))
    while case.queue.wait(0.01):
        pass
    assert case.queue.retry(case.info(dead))
    assert case.queue.wait(0.5)
    assert case.queue.release(case.info(held))
    assert case.queue.wait(0.5)


def test_a_queue_that_cannot_be_read(tmp_path: Path) -> None:
    """Listing, reading and counting raise QueueError, with the queue and a remedy."""
    queue = MaildirQueue(str(tmp_path / 'queue'))
    queue.prepare()
    (tmp_path / 'queue' / 'new').rmdir()
    (tmp_path / 'queue' / 'new').write_text('not a folder')
    for read in (lambda: list(queue.mails()), lambda: queue.get('a' * 32), queue.stats):
        with pytest.raises(QueueError, match=rf'{re.escape(queue.path)} cannot be read: .*; '):
            read()
