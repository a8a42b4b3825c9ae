"""Tracked claims: what they report to the worker pool, and the claim of a damaged file."""

from __future__ import annotations

from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import DamagedMail
from pyramid_sendmail.interfaces import IMailClaim
from pyramid_sendmail.processor.tracked_claim import DamagedClaim, TrackedClaim, dispatch_damaged
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.queue.ticket import Ticket
from tests.support.processors import RecordingDispatcher
from tests.support.queues import NOW, Clock, deferred, make_envelope, sent


class Pool:
    """Records what a claim reports to the worker pool."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def due_again(self, due: float) -> None:
        self.calls.append(('due again', due))

    def event_rejected(self) -> None:
        self.calls.append(('event rejected', None))

    def claim_released(self, ticket: Ticket) -> None:
        self.calls.append(('claim released', ticket))


@pytest.fixture
def pool() -> Any:
    return Pool()


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue(clock=Clock())


ENVELOPE = make_envelope('ann@example.org', 'bob@example.org', queued_at=NOW)


def tracked(queue: MemoryQueue, pool: Any) -> tuple[TrackedClaim, Ticket]:
    queue.put([ENVELOPE]).publish()
    [ticket], _ = queue.scan(NOW)
    claim = queue.claim(ticket)
    assert claim is not None
    return TrackedClaim(claim, pool, ticket), ticket


def test_interface(queue: MemoryQueue, pool: Any) -> None:
    """A tracked claim is a claim, with the values of the one that it tracks."""
    claim, _ = tracked(queue, pool)
    assert verifyObject(IMailClaim, claim)
    assert (claim.envelope, claim.todo) == (ENVELOPE, ENVELOPE.recipients)
    assert (claim.attempt, claim.since, claim.interrupted) == (0, NOW, '')
    assert (list(claim.ambiguous), list(claim.pending_events)) == ([], [])


def test_released_without_an_attempt(queue: MemoryQueue, pool: Any) -> None:
    """The pool learns which ticket was released."""
    claim, ticket = tracked(queue, pool)
    claim.mark_ambiguous(['ann@example.org'])
    claim.clear_ambiguous()
    claim.release()
    assert pool.calls == [('claim released', ticket)]
    assert queue.claim(ticket) is not None


def test_a_retry(queue: MemoryQueue, pool: Any) -> None:
    """The pool learns when deferred recipients are due again."""
    claim, _ = tracked(queue, pool)
    claim.settle([deferred(ENVELOPE)], retry_at=NOW + 60, report=False)
    assert pool.calls == [('due again', NOW + 60)]
    claim.release()
    assert pool.calls == [('due again', NOW + 60)], 'an attempt was made'


def test_an_event_that_was_rejected(queue: MemoryQueue, pool: Any) -> None:
    """The pool learns that a claim was released before its event was handled."""
    claim, _ = tracked(queue, pool)
    claim.settle([sent(ENVELOPE)])
    claim.release()
    assert pool.calls == [('event rejected', None)]


def test_events(queue: MemoryQueue, pool: Any) -> None:
    """The pool learns when an event is due again, and nothing of events that were handled."""
    claim, _ = tracked(queue, pool)
    event = sent(ENVELOPE)
    claim.settle([event])
    claim.retry_events([event], NOW + 5)
    assert pool.calls == [('due again', NOW + 5)]
    [ticket], _ = queue.scan(NOW + 5)
    again = queue.claim(ticket)
    assert again is not None
    claim = TrackedClaim(again, pool, ticket)
    claim.acknowledge(claim.pending_events)
    assert pool.calls == [('due again', NOW + 5)]
    assert queue.scan(NOW + 100)[0] == []


def test_a_damaged_file() -> None:
    """Its error event has the bytes of the file, and a claim that changes nothing."""
    dispatcher = RecordingDispatcher('error', takes=False)
    dispatch_damaged(DamagedMail('README', 'no header', b'nonsense'), dispatcher, now=NOW)
    [event], [claim] = dispatcher.pending_events, dispatcher.claims
    assert event.reason == 'damaged: no header'
    assert verifyObject(IMailClaim, claim)
    envelope: Envelope = claim.envelope
    assert (envelope.raw, envelope.queued_at, envelope.recipients) == (b'nonsense', NOW, ())
    assert isinstance(claim, DamagedClaim)
