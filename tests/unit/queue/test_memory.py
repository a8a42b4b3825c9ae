"""What only the queue in memory has; the rest is in the contract."""

from __future__ import annotations

from pyramid_sendmail.queue import MemoryQueue
from tests.support.queues import (
    Clock,
    claimed,
    deferred,
    failed,
    forked,
    make_envelope,
    reap,
    sent,
)


def test_it_counts_what_waits() -> None:
    """len is the number of mails waiting for delivery; dead letters are in failed, in order."""
    queue = MemoryQueue(clock=Clock())
    envelopes = [make_envelope(priority=priority) for priority in ('high', 'normal', 'low')]
    queue.put(envelopes).publish()
    assert len(queue) == 3
    claimed_one = queue.claim(queue.scan(Clock().now)[0][0])
    assert claimed_one is not None
    claimed_one.settle([failed(envelopes[0])], report=False)
    assert (len(queue), queue.failed) == (2, envelopes[:1])
    second, third = (queue.claim(ticket) for ticket in queue.scan(Clock().now)[0])
    assert second is not None
    assert third is not None
    second.settle([deferred(envelopes[1])], retry_at=Clock().now, report=False)
    third.settle([sent(envelopes[2])], report=False)
    assert (len(queue), queue.failed) == (1, envelopes[:1])
    claimed(queue).settle([failed(envelopes[1])], report=False)
    assert (len(queue), queue.failed) == (0, envelopes[:2])


def test_dead_letters_need_not_be_kept() -> None:
    """A web process that delivers directly does not grow with each refused mail."""
    queue = MemoryQueue(keep_failed=False, clock=Clock())
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claimed(queue).settle([failed(envelope)], report=False)
    assert (len(queue), queue.failed, list(queue.mails())) == (0, [], [])


def test_a_claim_is_released_once() -> None:
    """A second release does not release the next claim of the mail."""
    queue = MemoryQueue(clock=Clock())
    queue.put([make_envelope()]).publish()
    first = claimed(queue)
    first.release()
    claimed(queue)
    first.release()
    assert queue.claim(queue.scan(Clock().now)[0][0]) is None


def test_a_child_starts_with_an_empty_queue() -> None:
    """A forked child does not have the mail of its parent."""
    queue = MemoryQueue(clock=Clock())
    queue.put([make_envelope()]).publish()

    def child() -> None:
        assert len(queue) == 0
        queue.put([make_envelope(), make_envelope()]).publish()
        assert len(queue) == 2

    assert reap(forked(child)) == 0
    assert len(queue) == 1
