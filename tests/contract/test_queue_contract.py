"""What every queue promises, on disk or in memory (IMailQueue, IStagedMail, IMailClaim)."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
from zope.interface.verify import verifyClass, verifyObject

from pyramid_sendmail.envelope import Envelope, PendingEvent, Priority, Reply
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.interfaces import IMailClaim, IScannableQueue, IStagedMail
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.filename import ticket_of
from pyramid_sendmail.queue.maildir.scan import ScanLimits
from tests.support.folders import folder as tmp_path
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    deferred,
    failed,
    files,
    make_envelope,
    sent,
    the_file,
    until,
)

__all__ = ['tmp_path']


@dataclass(frozen=True)
class Case:
    """A queue with its clock; ``reopen`` gives what another process would work with; ``dead``
    the ids of the dead letters, ``empty`` whether nothing at all is kept."""

    queue: Any
    clock: Clock
    reopen: Callable[[], Any]
    dead: Callable[[], list[str]]
    empty: Callable[[], bool]


def _maildir(path: Path, *, sync: bool) -> Case:
    clock = Clock()

    def reopen() -> MaildirQueue:
        return MaildirQueue(str(path), sync=sync, clock=clock)

    queue = reopen()
    queue.prepare()

    def dead() -> list[str]:
        return [file.name.rpartition('-')[2] for file in (path / 'failed').iterdir()]

    return Case(queue, clock, reopen, dead, lambda: not files(queue))


def _memory() -> Case:
    clock = Clock()
    queue = MemoryQueue(clock=clock)

    def dead() -> list[str]:
        return [envelope.id for envelope in queue.failed]

    return Case(queue, clock, lambda: queue, dead, lambda: not list(queue.mails()))


@pytest.fixture(params=['maildir', 'maildir without sync', 'memory'])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == 'memory':
        case = _memory()
    else:
        case = _maildir(tmp_path / 'queue', sync=request.param == 'maildir')
    yield case
    case.queue.close()


def _queued(case: Case, *recipients: str, **options: Any) -> Envelope:
    envelope = make_envelope(*recipients, **options)
    case.queue.put([envelope]).publish()
    return envelope


def _order(case: Case, **options: Any) -> list[str]:
    tickets, _ = case.queue.scan(case.clock(), **options)
    return [ticket.key for ticket in tickets]


def _defer(case: Case, envelope: Envelope, until: float) -> None:
    """Make a mail one that has been tried."""
    tickets, _ = case.queue.scan(case.clock())
    (ticket,) = (ticket for ticket in tickets if ticket.key == envelope.id)
    claim = case.queue.claim(ticket)
    claim.settle([deferred(envelope, until=until)], retry_at=until, report=False)


def _gone(case: Case) -> bool:
    return _order(case) == [] and case.dead() == [] and case.empty()


# Interfaces


def test_interfaces_are_kept(case: Case) -> None:
    """The queue, what put returns and what claim returns have what their interfaces name."""
    put = case.queue.put([make_envelope()])
    put.publish()
    claim = claimed(case.queue)
    for interface, thing in (
        (IScannableQueue, case.queue),
        (IStagedMail, put),
        (IMailClaim, claim),
    ):
        assert verifyObject(interface, thing)
        assert verifyClass(interface, type(thing))
    claim.release()


def test_a_large_mail_can_be_read_in_blocks(case: Case) -> None:
    """The blocks of a claimed mail are its bytes, and ``size`` and the other attributes are known
    before they are read."""
    envelope = _queued(case, body='Grüße.\r\n' * 100_000)
    claim = claimed(case.queue)
    stored = claim.envelope
    blocks = list(stored.blocks())
    assert b''.join(blocks) == stored.raw == envelope.raw
    assert max(map(len, blocks)) < 0.1 * len(envelope.raw)
    assert (stored.size, stored.has_crlf) == (len(envelope.raw), True)
    assert (stored.is_ascii, stored.has_ascii_head) == (False, True)
    settled = failed(envelope)
    claim.settle([settled])
    assert claim.envelope.raw == envelope.raw
    claim.acknowledge([settled])
    assert case.dead() == [envelope.id]


# Put


def test_no_claim_before_publish(case: Case) -> None:
    """What was put and not published is neither seen nor claimed."""
    put = case.queue.put([make_envelope(), make_envelope()])
    assert case.queue.scan(NOW) == ([], None)
    assert [case.queue.claim(ticket) for ticket in put.tickets] == [None, None]
    put.discard()


def test_tickets_are_in_the_order_of_the_envelopes(case: Case) -> None:
    """The tickets of a put claim its envelopes, in their order."""
    envelopes = [make_envelope(priority=priority) for priority in ('low', 'high', 'normal')]
    put = case.queue.put(envelopes)
    put.publish()
    claims = [case.queue.claim(ticket) for ticket in put.tickets]
    assert [claim.envelope for claim in claims] == envelopes
    for claim in claims:
        claim.release()


def test_what_is_claimed_equals_what_was_put(case: Case) -> None:
    """An envelope comes back with every field as it was, whatever its texts contain."""
    envelope = replace(
        make_envelope('ann@example.org', 'jürgen@exämple.org'),
        sender='',
        subject='A  subject of two   blanks, "quotes", \\ and ünïcode'
        + ' word' * 1000
        + '  ' * 999,
        tag='welcome',
        metadata=MappingProxyType({'order': '17', 'note': 'X-Envelope-To: T\r\n' + 'a' * 5000}),
        raw=bytes(range(256)) * 9,
        expires=NOW + 60.25,
        queued_at=NOW - 0.1234567,
        depth=1,
        priority='high',
    )
    case.queue.put([envelope]).publish()
    claim = claimed(case.reopen())
    assert claim.envelope == envelope
    assert claim.envelope.metadata == envelope.metadata
    assert claim.todo == envelope.recipients
    assert claim.attempt == 0
    assert claim.since == pytest.approx(envelope.queued_at, abs=0.001)
    assert claim.interrupted == ''
    assert claim.pending_events == []
    claim.release()


ENDS = ('publish', 'discard', 'keep_in_doubt')


@pytest.mark.parametrize('calls', list(product(ENDS, repeat=3)), ids='-'.join)
def test_the_first_call_decides(case: Case, calls: tuple[str, ...]) -> None:
    """publish, discard and keep_in_doubt may be called in any order, any number of times: the
    first one counts."""
    envelopes = [make_envelope(), make_envelope()]
    put = case.queue.put(envelopes)
    for call in calls:
        getattr(put, call)()
    assert len(put.tickets) == 2
    queue = case.reopen()
    tickets, next_due = queue.scan(NOW)
    claims = [queue.claim(ticket) for ticket in tickets]
    assert next_due is None
    if calls[0] == 'discard':
        assert tickets == []
        assert _gone(case)
        return
    assert {claim.envelope.id for claim in claims} == {envelope.id for envelope in envelopes}
    for claim in claims:
        if calls[0] == 'publish':
            assert claim.todo == claim.envelope.recipients
            assert claim.pending_events == []
            claim.settle([sent(claim.envelope)], report=False)
        else:
            assert claim.todo == ()
            (event,) = claim.pending_events
            assert (event.kind, event.permanent) == ('error', False)
            assert 'in doubt' in event.reason
            claim.acknowledge([event])
    if calls[0] == 'publish':
        assert _gone(case)
    else:
        assert sorted(case.dead()) == sorted(envelope.id for envelope in envelopes)


def test_doubt_is_logged(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """Mail in doubt is one CRITICAL line that says 'in doubt' and names the id."""
    envelope = make_envelope()
    case.queue.put([envelope]).keep_in_doubt()
    assert any(
        record.levelname == 'CRITICAL'
        and 'in doubt' in record.getMessage()
        and envelope.id in record.getMessage()
        for record in caplog.records
    )


# Scan


def test_finished_mail_comes_first(case: Case) -> None:
    """Mail whose events wait comes before all mail that has to be sent, whatever its priority."""
    finished = _queued(case, priority='low')
    claim = claimed(case.queue)
    claim.settle([sent(finished)])
    claim.release()
    fresh = _queued(case, priority='high', due=NOW - 100)
    assert _order(case) == [finished.id, fresh.id]
    assert _order(case, limit=1) == [finished.id]


def test_a_scan_for_all_events_does_not_wait_for_their_time(case: Case) -> None:
    """Events that subscribers failed to handle are due with ``all_events``; mail for later is
    not."""
    finished = _queued(case)
    claim = claimed(case.queue)
    claim.settle([sent(finished)])
    claim.retry_events([sent(finished)], NOW + 600)
    _queued(case, due=NOW + 900)
    assert _order(case) == []
    assert case.queue.scan(NOW)[1] == NOW + 600
    assert _order(case, all_events=True) == [finished.id]
    assert case.queue.scan(NOW, all_events=True)[1] == NOW + 900


def test_the_first_page_comes_at_most_once_and_in_order(case: Case) -> None:
    """What a scan hands out early, it returns again; a queue that is never slow hands out
    nothing."""
    envelopes = [_queued(case, due=NOW - n) for n in range(4)]
    pages: list[list[Any]] = []
    tickets, _ = case.queue.scan(NOW, on_first_page=pages.append)
    assert [ticket.key for ticket in tickets] == [each.id for each in reversed(envelopes)]
    assert len(pages) <= 1
    for page in pages:
        assert page == tickets[: len(page)]


def test_the_next_page_is_what_the_scan_left(case: Case) -> None:
    """A queue returns further tickets of the last full scan, in order, or has the caller scan
    again."""
    envelopes = [_queued(case, due=NOW - n) for n in range(5)]
    in_order = [each.id for each in reversed(envelopes)]
    assert case.queue.next_page(5) == [], 'there was no scan'
    assert _order(case, limit=2) == in_order[:2]
    following = [ticket.key for ticket in case.queue.next_page(2)]
    assert following == in_order[2 : 2 + len(following)]
    rest = [ticket.key for ticket in case.queue.next_page(9)]
    assert following + rest in ([], in_order[2:])
    assert case.queue.next_page(9) == []


def test_a_queue_that_pages(tmp_path: Path) -> None:
    """A slow scan hands out its first page, and the next pages need no scan."""
    limits = ScanLimits(first_page_after=0.0)
    queue = MaildirQueue(str(tmp_path / 'queue'), limits=limits, clock=Clock())
    queue.put([make_envelope(due=NOW - n) for n in range(5)]).publish()
    pages: list[list[Any]] = []
    tickets, _ = queue.scan(NOW, limit=2, on_first_page=pages.append)
    assert pages == [tickets]
    following = queue.next_page(2)
    assert [*tickets, *following, *queue.next_page(9)] == queue.scan(NOW)[0]
    queue.close()


def test_order_is_by_priority_then_due(case: Case) -> None:
    """high before normal before low, and what was due first comes first."""
    priorities: list[Priority] = ['low', 'high', 'normal']
    envelopes = {
        (priority, due): _queued(case, priority=priority, due=NOW + due)
        for due in (-1, -3, -2)
        for priority in priorities
    }
    assert _order(case) == [
        envelopes[priority, due].id
        for priority in ('high', 'normal', 'low')
        for due in (-3, -2, -1)
    ]


@pytest.mark.finding(95)
def test_a_time_that_the_user_did_not_ask_for(case: Case) -> None:
    """Mail sent while a clock was a year ahead is due when the clock is right again; mail that the
    user wants to leave in a year is not."""
    year = 365 * 86_400.0
    unasked = _queued(case, queued_at=NOW + year, due=NOW + year)
    asked = _queued(case, queued_at=NOW, due=NOW + year)
    for _ in range(2):
        claim = claimed(case.queue)
        assert claim.envelope.id == unasked.id
        claim.release()
    case.clock.now = NOW + year
    assert {ticket.key for ticket in case.queue.scan(NOW + year)[0]} == {
        unasked.id,
        asked.id,
    }


def test_fresh_and_retried_mail_take_turns(case: Case) -> None:
    """Neither a flood of fresh mail nor one of retried mail starves the other."""
    retried = [_queued(case, due=NOW - 10 + n) for n in range(3)]
    for n, envelope in enumerate(retried):
        _defer(case, envelope, NOW + n)
    case.clock.now = NOW + 10
    fresh = [_queued(case, due=NOW + n) for n in range(5)]
    assert _order(case) == [
        fresh[0].id,
        retried[0].id,
        fresh[1].id,
        retried[1].id,
        fresh[2].id,
        retried[2].id,
        fresh[3].id,
        fresh[4].id,
    ]
    assert _order(case, limit=3) == [fresh[0].id, retried[0].id, fresh[1].id]
    assert _order(case, fresh=True) == [envelope.id for envelope in fresh]


def test_mail_for_later_waits(case: Case) -> None:
    """What is due later is not there yet, and next_due says when."""
    later = _queued(case, due=NOW + 60)
    last = _queued(case, due=NOW + 30 * 24 * 3600.0)
    assert case.queue.scan(NOW) == ([], NOW + 60)
    case.clock.now = NOW + 60
    assert _order(case) == [later.id]
    assert case.queue.scan(NOW + 61)[1] == NOW + 30 * 24 * 3600.0
    case.clock.now = NOW + 31 * 24 * 3600.0
    assert _order(case) == [later.id, last.id]


def test_a_ticket_before_its_time_claims_nothing(case: Case) -> None:
    """Mail that is due later cannot be claimed early by the ticket that put gave."""
    put = case.queue.put([make_envelope(due=NOW + 60)])
    put.publish()
    assert case.queue.claim(put.tickets[0]) is None
    case.clock.now += 60
    claimed(case.queue, NOW + 60).release()


def test_an_empty_queue_has_nothing_due(case: Case) -> None:
    """Nothing waits, so there is no next time."""
    assert case.queue.scan(NOW) == ([], None)
    assert case.queue.scan(NOW, fresh=True) == ([], None)


# Errors of the disk


def _unusable(path: Path) -> MaildirQueue:
    """A queue with one mail, of which ``path`` has not been a folder for a second."""
    clock = Clock()
    queue = MaildirQueue(str(path.parent), clock=clock)
    queue.put([make_envelope()]).publish()
    path.rename(path.with_name('hidden'))
    path.write_text('not a folder')
    clock.now += 1
    return queue


@pytest.mark.parametrize('folder', ['tmp', 'new', 'cur', 'done'])
def test_a_queue_that_cannot_be_scanned(tmp_path: Path, folder: str) -> None:
    """A scan raises QueueError with the queue and a remedy, and works when it can again."""
    path = tmp_path / 'queue' / folder
    queue = _unusable(path)
    with pytest.raises(QueueError, match=rf'{re.escape(queue.path)} cannot be read: .*; '):
        queue.scan(NOW)
    path.unlink()
    path.with_name('hidden').rename(path)
    assert len(queue.scan(NOW)[0]) == 1


def test_a_queue_that_cannot_be_claimed_from(tmp_path: Path) -> None:
    """A claim raises QueueError; the mail can be claimed when the queue is usable again."""
    path = tmp_path / 'queue' / 'new'
    queue = _unusable(path)
    [name] = path.with_name('hidden').iterdir()
    ticket = ticket_of('new', name.name)
    with pytest.raises(QueueError, match=r'cannot be claimed from: .*; '):
        queue.claim(ticket)
    path.unlink()
    path.with_name('hidden').rename(path)
    claimed(queue).release()


def test_a_put_that_fails_keeps_no_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second of three mails cannot be stored, none is, and the next put works."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    envelopes = [make_envelope() for _ in range(3)]
    create, made = queue._files.create, []

    def full(folder: str, name: str) -> int | None:
        if len(made) == 2:
            raise OSError(28, 'No space left on device')
        made.append(name)
        return create(folder, name)

    monkeypatch.setattr(queue._files, 'create', full)
    with pytest.raises(QueueError, match='No space left on device; make room on the disk'):
        queue.put(envelopes)
    assert (len(made), files(queue)) == (2, [])
    monkeypatch.undo()
    queue.put(envelopes).publish()
    assert len(queue.scan(NOW)[0]) == 3


def test_a_put_into_an_unusable_queue(tmp_path: Path) -> None:
    """A put raises QueueError, which is an OSError."""
    queue = _unusable(tmp_path / 'queue' / 'tmp')
    with pytest.raises(QueueError, match=rf'{re.escape(queue.path)} .*: .*; ') as raised:
        queue.put([make_envelope()])
    assert isinstance(raised.value, OSError)


def test_a_damaged_mail_is_moved_and_raised(tmp_path: Path) -> None:
    """A claim of a damaged file moves it to failed/ unchanged, raises DamagedMail, and leaves
    nothing to claim."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    put = queue.put([make_envelope()])
    put.publish()
    path = the_file(queue, 'new')
    damaged = path.read_bytes()[:-1] + b'x'
    path.write_bytes(damaged)
    with pytest.raises(DamagedMail, match='checksum') as raised:
        queue.claim(put.tickets[0])
    assert raised.value.raw == damaged
    assert the_file(queue, 'failed').name == raised.value.name
    assert the_file(queue, 'failed').read_bytes() == damaged
    assert queue.claim(put.tickets[0]) is None
    assert queue.scan(NOW) == ([], None)


# Claim


def test_a_claim_is_exclusive(case: Case) -> None:
    """While a claim is held there is no other claim of the mail, from whatever queue object."""
    _queued(case)
    (ticket,), _ = case.queue.scan(NOW)
    claim = case.queue.claim(ticket)
    assert case.queue.claim(ticket) is None
    assert case.reopen().claim(ticket) is None
    claim.release()
    again = case.reopen().claim(ticket)
    assert again is not None
    again.release()


def test_threads_claim_each_mail_once(case: Case) -> None:
    """Eight threads over sixty mails: each mail goes to exactly one of them."""
    envelopes = [make_envelope() for _ in range(60)]
    case.queue.put(envelopes).publish()
    tickets, _ = case.queue.scan(NOW)
    got: list[str] = []
    start = threading.Barrier(8)

    def work() -> None:
        queue = case.reopen()
        start.wait()
        for ticket in tickets:
            claim = queue.claim(ticket)
            if claim is not None:
                got.append(claim.envelope.id)
                claim.settle([sent(claim.envelope)], report=False)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(envelope.id for envelope in envelopes)
    assert _gone(case)


def test_a_stale_ticket_claims_nothing(case: Case) -> None:
    """A ticket from before the mail moved on, or left, claims nothing."""
    envelope = _queued(case)
    (ticket,), _ = case.queue.scan(NOW)
    _defer(case, envelope, NOW + 60)
    assert case.queue.claim(ticket) is None
    case.clock.now = NOW + 60
    (retry,), _ = case.queue.scan(NOW + 60)
    case.queue.claim(retry).settle([sent(envelope, attempt=2)], report=False)
    assert case.queue.claim(retry) is None
    assert _gone(case)


def test_release_changes_nothing(case: Case) -> None:
    """A claim without an attempt leaves the mail as it was, however often it is released."""
    _queued(case, 'ann@example.org', 'bob@example.org')
    before = case.queue.scan(NOW)
    for _ in range(3):
        claim = claimed(case.reopen())
        assert (claim.attempt, claim.interrupted) == (0, '')
        assert claim.todo == ('ann@example.org', 'bob@example.org')
        claim.release()
        claim.release()
    assert case.reopen().scan(NOW) == before


def test_settled_claims_leave_alone_what_must_be_sent(case: Case) -> None:
    """settled=True takes only what needs no relay."""
    envelope = _queued(case)
    (ticket,), _ = case.queue.scan(NOW)
    before = case.queue.scan(NOW)
    assert case.queue.claim(ticket, settled=True) is None
    assert case.reopen().scan(NOW) == before
    claim = case.queue.claim(ticket)
    claim.settle([sent(envelope)])
    claim.release()
    (done,), _ = case.queue.scan(NOW)
    claim = case.queue.claim(done, settled=True)
    assert claim.pending_events == [sent(envelope)]
    claim.acknowledge(claim.pending_events)
    assert _gone(case)


# Settle


def test_a_claim_that_is_not_ambiguous_is_as_it_was(case: Case) -> None:
    """A mail that the relay has certainly not taken can be sent, or given back, as if it had never
    been about to leave."""
    envelope = _queued(case, 'ann@example.org', 'bob@example.org')
    claim = claimed(case.queue)
    claim.mark_ambiguous(['ann@example.org'])
    claim.clear_ambiguous()
    claim.release()
    claim = claimed(case.queue)
    assert (claim.interrupted, claim.ambiguous, claim.attempt) == ('', (), 0)
    assert claim.todo == envelope.recipients
    claim.mark_ambiguous(envelope.recipients)
    claim.clear_ambiguous()
    claim.settle([sent(envelope)], report=False)
    assert _gone(case)


@pytest.mark.parametrize('report', [True, False])
def test_delivered_mail_leaves(case: Case, report: bool) -> None:
    """Delivered to all: gone, but not before its event was taken, where there is one."""
    envelope = _queued(case, 'ann@example.org', 'bob@example.org')
    claim = claimed(case.queue)
    claim.mark_ambiguous(envelope.recipients)
    claim.settle([sent(envelope)], report=report)
    if report:
        assert _order(case) == [envelope.id]
        (ticket,), _ = case.queue.scan(NOW)
        assert case.reopen().claim(ticket) is None, 'it is kept for reported'
        claim.acknowledge([sent(envelope)])
    assert _gone(case)


@pytest.mark.parametrize('report', [True, False])
def test_failed_mail_is_a_dead_letter(case: Case, report: bool) -> None:
    """Refused for good: kept as a dead letter, which no scan returns any more."""
    envelope = _queued(case)
    claim = claimed(case.queue)
    claim.settle([failed(envelope)], report=report)
    if report:
        assert case.dead() == []
        claim.acknowledge([failed(envelope)])
    assert case.dead() == [envelope.id]
    assert case.reopen().scan(NOW) == ([], None)


def test_partly_failed_mail_is_a_dead_letter(case: Case) -> None:
    """One delivered, one refused: a dead letter once both events were taken."""
    envelope = _queued(case, 'ann@example.org', 'bob@example.org')
    events = [
        sent(envelope, 'ann@example.org'),
        failed(envelope, 'bob@example.org', group=1),
    ]
    claim = claimed(case.queue)
    claim.settle(events)
    claim.acknowledge([deferred(envelope)])
    assert claim.pending_events == events, 'deferred is nothing to be taken'
    claim.acknowledge(events[:1])
    assert case.dead() == []
    assert claim.pending_events == events[1:]
    claim.acknowledge(events[1:])
    assert case.dead() == [envelope.id]


def test_deferred_mail_waits_for_its_time(case: Case) -> None:
    """Deferred: due again when it was said to be, one attempt the richer."""
    envelope = _queued(case)
    claim = claimed(case.queue)
    claim.settle([deferred(envelope, until=NOW + 300)], retry_at=NOW + 300, report=False)
    queue = case.reopen()
    assert queue.scan(NOW + 299) == ([], NOW + 300)
    case.clock.now = NOW + 300
    claim = claimed(queue, NOW + 300)
    assert (claim.attempt, claim.todo, claim.interrupted) == (1, envelope.recipients, '')
    assert claim.since == NOW
    claim.settle([sent(envelope, attempt=2)], report=False)
    assert _gone(case)


def test_only_deferred_recipients_are_tried_again(case: Case) -> None:
    """Each recipient on its own: the retry is for those that are still to do."""
    envelope = _queued(case, 'a@example.org', 'b@example.org', 'c@example.org')
    events = [
        sent(envelope, 'a@example.org'),
        deferred(envelope, 'b@example.org', group=1, until=NOW + 60),
        failed(envelope, 'c@example.org', group=2),
    ]
    claim = claimed(case.queue)
    claim.settle(events, retry_at=NOW + 60, report=False)
    case.clock.now = NOW + 60
    claim = claimed(case.reopen(), NOW + 60)
    assert claim.todo == ('b@example.org',)
    assert claim.envelope == envelope, 'it keeps every recipient it ever had'
    claim.settle([sent(envelope, 'b@example.org', attempt=2)], report=False)
    assert case.dead() == [envelope.id], 'for the one that failed'


def test_events_are_not_lost_without_a_report(case: Case) -> None:
    """What subscribers have not taken comes back, equal to the last letter, by another process."""
    envelope = _queued(case, 'a@example.org', 'b@example.org', 'c@example.org')
    events = [
        sent(envelope, 'a@example.org'),
        failed(envelope, 'b@example.org', group=1),
        PendingEvent(
            id=f'{envelope.id}-1-error-2',
            kind='error',
            recipients=('c@example.org',),
            attempt=1,
            mailer='',
            reason='given up: no answer',
            permanent=False,
        ),
    ]
    claim = claimed(case.queue)
    claim.settle(events)
    claim.release()
    claim = claimed(case.reopen())
    assert claim.todo == ()
    assert claim.pending_events == events
    claim.acknowledge(events)
    assert case.dead() == [envelope.id]


def test_events_of_an_earlier_attempt_stay_what_they_were(case: Case) -> None:
    """A second attempt through another mailer changes nothing in the events of the first."""
    envelope = _queued(case, 'a@example.org', 'b@example.org')
    first = [sent(envelope, 'a@example.org'), deferred(envelope, 'b@example.org', group=1)]
    claim = claimed(case.queue)
    claim.settle(first, retry_at=NOW + 60)
    claim.release()
    case.clock.now = NOW + 60
    claim = claimed(case.reopen(), NOW + 60)
    assert claim.pending_events == first[:1]
    second = sent(envelope, 'b@example.org', attempt=2)._replace(mailer='smtp://second.example.org')
    claim.settle([second])
    claim.release()
    claim = claimed(case.reopen(), NOW + 60)
    assert claim.pending_events == [first[0], second]
    claim.acknowledge(claim.pending_events)
    assert _gone(case)


def test_events_to_retry_come_back_later(case: Case) -> None:
    """Subscribers that raise get the same event again, at its time, with the tries counted."""
    envelope = _queued(case)
    claim = claimed(case.queue)
    claim.settle([sent(envelope)])
    claim.retry_events([sent(envelope)], NOW + 5)
    assert case.reopen().scan(NOW) == ([], NOW + 5)
    case.clock.now = NOW + 5
    claim = claimed(case.reopen(), NOW + 5)
    assert claim.todo == ()
    assert claim.pending_events == [sent(envelope)._replace(tries=1)]
    claim.retry_events(claim.pending_events, NOW + 10)
    case.clock.now = NOW + 10
    claim = claimed(case.reopen(), NOW + 10)
    assert claim.pending_events == [sent(envelope)._replace(tries=2)]
    claim.acknowledge(claim.pending_events)
    assert _gone(case)


def test_events_do_not_wait_for_a_retry(case: Case) -> None:
    """Pending events of a partly delivered mail that were not dispatched are found at once."""
    envelope = _queued(case, 'a@example.org', 'b@example.org')
    events = [sent(envelope, 'a@example.org'), deferred(envelope, 'b@example.org', group=1)]
    claim = claimed(case.queue)
    claim.settle(events, retry_at=NOW + 7200)
    claim.release()
    claim = claimed(case.reopen())
    assert (claim.todo, claim.pending_events) == ((), events[:1])
    claim.acknowledge(claim.pending_events)
    assert case.reopen().scan(NOW) == ([], NOW + 7200)


def test_events_to_retry_do_not_hurry_the_retry(case: Case) -> None:
    """A mail that waits for its retry comes earlier for an event, which sends nothing."""
    envelope = _queued(case, 'a@example.org', 'b@example.org')
    first = sent(envelope, 'a@example.org')
    claim = claimed(case.queue)
    claim.settle([first, deferred(envelope, 'b@example.org', group=1)], retry_at=NOW + 60)
    claim.retry_events([first], NOW + 5)
    case.clock.now = NOW + 5
    claim = claimed(case.reopen(), NOW + 5)
    assert (claim.todo, claim.attempt) == ((), 1)
    claim.acknowledge(claim.pending_events)
    assert case.reopen().scan(NOW + 59) == ([], NOW + 60)
    case.clock.now = NOW + 60
    assert claimed(case.reopen(), NOW + 60).todo == ('b@example.org',)


def test_settling_twice_is_settling_once(case: Case) -> None:
    """settle called again, as after an error, completes and repeats nothing."""
    envelope = _queued(case)
    claim = claimed(case.queue)
    for _ in range(2):
        claim.settle([failed(envelope)])
    assert claim.pending_events == [failed(envelope)]
    assert claim.attempt == 1
    claim.acknowledge(claim.pending_events)
    assert case.dead() == [envelope.id]


TO = [f'r{n}@example.org' for n in range(40)]


@pytest.mark.parametrize('seed', range(25))
def test_any_run_of_attempts_ends_with_every_event_handled_once(case: Case, seed: int) -> None:
    """Whatever the relay answers, and whichever process dies: each recipient has one outcome, each
    event one id, with the text of the relay's reply."""
    random = Random(seed)
    count = random.choice([1, 2, 3, 40])
    envelope = _queued(case, *TO[:count])
    taken: dict[str, PendingEvent] = {}
    expected: dict[str, PendingEvent] = {}
    attempt = 0
    while True:
        tickets, next_due = case.reopen().scan(case.clock.now)
        if not tickets and next_due is None:
            break
        case.clock.now = case.clock.now if tickets else next_due
        claim = claimed(case.reopen(), case.clock.now)
        assert claim.pending_events == [
            event for event in expected.values() if event.id not in taken
        ]
        assert claim.attempt == attempt
        if claim.todo:
            attempt += 1
            kinds = ['sent', 'deferred', 'error'] if attempt < 6 else ['sent']
            events = _events(
                envelope, claim.todo, random.choices(kinds, k=len(claim.todo)), attempt
            )
            again = any(event.kind == 'deferred' for event in events)
            expected |= {event.id: event for event in events if event.kind != 'deferred'}
            claim.settle(events, retry_at=case.clock.now + 60 if again else None)
        if claim.pending_events and random.random() < 0.3:
            claim.release()  # a crash before the events
        elif claim.pending_events:
            some = random.sample(claim.pending_events, random.randint(1, len(claim.pending_events)))
            taken |= {event.id: event for event in some}
            claim.acknowledge(some)
            claim.release()
    assert taken == expected
    dead = any(event.kind == 'error' for event in expected.values())
    assert case.dead() == [envelope.id] * dead


def _events(envelope: Envelope, todo: Any, words: list[str], attempt: int) -> list[PendingEvent]:
    """A reply of its own for each recipient that is refused, as relays give; one for the rest."""
    delivered = tuple(to for to, word in zip(todo, words, strict=True) if word == 'sent')
    events = []
    if delivered:
        events.append(sent(envelope, *delivered, attempt=attempt, group=0))
    for group, (to, word) in enumerate(zip(todo, words, strict=True), 1):
        if word != 'sent':
            kind = failed if word == 'error' else deferred
            event = kind(envelope, to, attempt=attempt, group=group)
            text = f'5.1.1 <{to}>: user unknown'
            event = event._replace(reply=Reply(550, text), reason=f'550 {text}')
            events.append(event._replace(retry_at=None))
    return events


# Dead letters


def test_old_dead_letters_expire(case: Case) -> None:
    """What failed before the given time is removed, at most ``limit`` mails at once; mail that
    waits, and mail that failed later, stay."""
    for _ in range(3):
        envelope = _queued(case)
        claimed(case.queue).settle([failed(envelope)], report=False)
    waiting = _queued(case)
    assert len(case.dead()) == 3
    assert case.queue.purge_failed(case.clock() - 60) == 0
    later = time.time() + 60
    assert case.queue.purge_failed(later, limit=2) == 2
    assert len(case.dead()) == 1
    assert case.queue.purge_failed(later) == 1
    assert case.queue.purge_failed(later) == 0
    assert case.dead() == []
    assert _order(case) == [waiting.id]


def test_what_is_in_doubt_does_not_expire(case: Case) -> None:
    """Mail held in doubt or as ambiguous stays for a person, however old."""
    case.queue.put([make_envelope()]).keep_in_doubt()
    claim = claimed(case.queue)
    claim.acknowledge(claim.pending_events)
    for reason in ('ambiguous: the line was lost', 'given up: ambiguous: the line was lost'):
        envelope = _queued(case)
        event = failed(envelope)._replace(reply=None, reason=reason, permanent=False)
        claimed(case.queue).settle([event], report=False)
    assert case.queue.purge_failed(time.time() + 60) == 0
    assert len(case.dead()) == 3


def test_mail_with_an_event_to_report_does_not_expire(case: Case) -> None:
    """A dead letter whose event is pending is not old before the event was handled."""
    envelope = _queued(case)
    claim = claimed(case.queue)
    event = failed(envelope)
    claim.settle([event])
    later = time.time() + 60
    assert case.queue.purge_failed(later) == 0
    claim.acknowledge([event])
    assert case.queue.purge_failed(later) in (0, 1), 'it may be claimed until it is released'
    claim.release()
    case.queue.purge_failed(later)
    assert case.empty()


# Wait and wake


def test_wake_ends_a_wait(case: Case) -> None:
    """A thread that waits is woken at once; without being woken it waits its time."""
    begin = time.monotonic()
    assert case.queue.wait(0.02) is False
    assert time.monotonic() - begin >= 0.02
    threading.Timer(0.05, case.queue.wake).start()
    begin = time.monotonic()
    assert case.queue.wait(30) is True
    assert time.monotonic() - begin < 10


def test_wake_before_wait_is_not_lost(case: Case) -> None:
    """wake ends the wait of this process, now or next, even the very first."""
    queue = case.reopen()
    queue.wake()
    assert queue.wait(30) is True
    queue.wake()
    queue.wake()
    assert queue.wait(30) is True
    assert queue.wait(0) is False, 'it is not woken for ever'
    queue.close()


def test_publish_wakes(case: Case) -> None:
    """Published mail ends a wait; discarded mail does not."""
    assert case.queue.wait(0) is False
    case.queue.put([make_envelope()]).discard()
    assert case.queue.wait(0) is False
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(case.queue.wait(30)))
    thread.start()
    _queued(case)
    until(lambda: woken)
    thread.join()
    assert woken == [True]


def test_housekeeping_is_harmless(case: Case) -> None:
    """prepare, check, sync and close work on a queue that is in use, and it goes on."""
    envelope = _queued(case)
    for _ in range(2):
        case.queue.prepare()
        case.queue.check_writable()
        case.queue.sync()
        case.queue.close()
    assert _order(case) == [envelope.id]


def test_a_closed_queue_opens_again(case: Case) -> None:
    """Whatever is used after close works: put, scan, claim, and a wait that publish ends."""
    case.queue.close()
    envelope = _queued(case)
    case.queue.close()
    claim = claimed(case.queue)
    case.queue.close()
    claim.settle([sent(envelope)], report=False)
    assert _gone(case)
    case.queue.wait(0)
    case.queue.close()
    case.queue.wait(0)
    _queued(case)
    assert case.queue.wait(10) is True
