"""Several processes at one queue: claims, deaths and forks."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.queues import (
    NOW,
    Clock,
    child,
    claimed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    until,
)


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    return queue


def test_two_processes_deliver_each_mail_once(queue: MaildirQueue, tmp_path: Path) -> None:
    """Two processes over five hundred mails: each mail is delivered by exactly one of them."""
    envelopes = [make_envelope() for _ in range(500)]
    for at in range(0, 500, 50):
        queue.put(envelopes[at : at + 50]).publish()
    start = tmp_path / 'start'

    def work(number: int) -> None:
        mine = MaildirQueue(queue.path, sync=False, clock=Clock())
        with open(tmp_path / f'log{number}', 'w') as log:
            while not start.exists():
                pass
            while tickets := mine.scan(NOW)[0]:
                for ticket in tickets:
                    claim = mine.claim(ticket)
                    if claim is not None:
                        log.write(f'{claim.envelope.id}\n')
                        claim.mark_ambiguous(claim.envelope.recipients)
                        claim.settle([sent(claim.envelope)], report=False)

    pids = [forked(lambda number=number: work(number)) for number in range(2)]  # type: ignore[misc]
    until(lambda: len(list(tmp_path.glob('log?'))) == 2)
    start.touch()
    assert [reap(pid) for pid in pids] == [0, 0]
    logs = [(tmp_path / f'log{number}').read_text().split() for number in range(2)]
    assert sorted(logs[0] + logs[1]) == sorted(envelope.id for envelope in envelopes)
    assert all(logs), 'both had a share'
    assert files(queue) == []


def test_kill_9_frees_a_claim_at_once(queue: MaildirQueue) -> None:
    """No lock file, no lease, no time-out: the lock goes with the process."""
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)

    held: list[Any] = []

    def hold() -> None:
        held.append(MaildirQueue(queue.path, clock=Clock()).claim(ticket))

    with child(hold):
        assert queue.claim(ticket) is None
    claim = queue.claim(ticket)
    assert claim is not None
    claim.release()


def test_processes_killed_at_random_lose_nothing(queue: MaildirQueue, tmp_path: Path) -> None:
    """kill -9 again and again over a hundred mails: each is delivered, and those delivered twice
    were found interrupted."""
    envelopes = [make_envelope() for _ in range(100)]
    queue.put(envelopes).publish()
    log = tmp_path / 'log'
    log.touch()

    def work() -> None:
        mine = MaildirQueue(queue.path, sync=False, clock=Clock())
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        while tickets := mine.scan(NOW)[0]:
            for ticket in tickets:
                claim = mine.claim(ticket)
                if claim is not None:
                    word = claim.interrupted or 'first'
                    claim.mark_ambiguous(claim.envelope.recipients)
                    os.write(descriptor, f'{claim.envelope.id} {word}\n'.encode())
                    claim.settle([sent(claim.envelope)], report=False)

    deliveries = 7
    while files(queue):
        pid = forked(work)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if len(log.read_bytes().splitlines()) > deliveries:
                deliveries += 7
                os.kill(pid, signal.SIGKILL)
                reap(pid)
                break
    lines = [line.split() for line in log.read_text().splitlines()]
    assert {id for id, _ in lines} == {envelope.id for envelope in envelopes}
    firsts = [id for id, word in lines if word == 'first']
    assert len(firsts) == len(set(firsts))
    assert {word for _, word in lines} <= {'first', 'ambiguous', 'sending'}


def test_a_forked_child_holds_no_lock(queue: MaildirQueue) -> None:
    """A fork while a mail is claimed: the child closes what it inherited, so that the lock is the
    parent's alone and free as soon as the parent gives it up, or dies."""
    queue.put([make_envelope()]).publish()
    claim = claimed(queue)
    (descriptor,) = queue._files._open
    inherited: list[bool] = []

    def check() -> None:
        with pytest.raises(OSError, match='Bad file descriptor'):
            os.fstat(descriptor)
        inherited.append(True)

    with child(check):
        assert MaildirQueue(queue.path, clock=Clock()).scan(NOW)[0]
        (ticket,), _ = queue.scan(NOW)
        assert queue.claim(ticket) is None, 'the parent has it still'
        # As a crash of the parent would: closed, and not unlocked.
        os.close(descriptor)
        other = MaildirQueue(queue.path, clock=Clock()).claim(ticket)
        assert other is not None
        other.release()
    queue._files._open.clear()
    assert claim.todo


def test_a_child_cannot_give_up_the_claim_of_its_parent(queue: MaildirQueue) -> None:
    """What the child does with its copy of a claim touches neither the mail nor the lock."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    (ticket,), _ = queue.scan(NOW)

    def work() -> None:
        others = [os.open('/dev/null', os.O_RDWR) for _ in range(3)]
        with pytest.raises(OSError, match='before a fork'):
            claim.mark_ambiguous(envelope.recipients)
        claim.release()
        for descriptor in others:
            os.fstat(descriptor)

    assert reap(forked(work)) == 0
    assert MaildirQueue(queue.path, clock=Clock()).claim(ticket) is None
    claim.settle([sent(envelope)], report=False)
    assert files(queue) == []


def test_what_a_fork_has_closed_is_not_used(queue: MaildirQueue) -> None:
    """After a fork an inherited claim writes nothing and closes nothing, even if its descriptor's
    number was used again."""
    queue.put([make_envelope()]).publish()
    claim = claimed(queue)
    (descriptor,) = queue._files._open
    queue._files.close_inherited()
    assert os.dup2(2, descriptor) == descriptor
    with pytest.raises(QueueError, match='before a fork'):
        claim.mark_ambiguous(claim.envelope.recipients)
    claim.release()
    os.close(descriptor)


def test_a_queue_that_is_gone_does_not_trouble_a_fork(tmp_path: Path) -> None:
    """The hook that closes what a child inherits keeps no queue alive."""
    for n in range(3):
        MaildirQueue(str(tmp_path / str(n)))
    assert reap(forked(lambda: None)) == 0


def test_locks_do_not_pass_to_commands(queue: MaildirQueue) -> None:
    """A command that a subscriber starts inherits no descriptor of the queue."""
    queue.put([make_envelope()]).publish()
    claim = claimed(queue)
    for descriptor in queue._files._open:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    claim.release()
    assert queue._files._open == {}


def test_the_memory_of_a_parent_is_not_the_childs(tmp_path: Path) -> None:
    """What a MemoryQueue holds at a fork is sent by the parent, and only by it; its lock, held by
    another thread at that moment, locks up no child."""
    parent = threading.current_thread()
    held, done = threading.Event(), threading.Event()

    def clock() -> float:
        # A retry by request reads the clock while it has the lock.
        if threading.current_thread() is not parent and not held.is_set():
            held.set()
            done.wait()
        return NOW

    queue = MemoryQueue(clock=clock)
    put = queue.put([make_envelope()])
    put.publish()
    (new,) = queue.mails()
    assert queue.hold(new)
    (info,) = queue.mails()
    thread = threading.Thread(target=queue.retry, args=(info,))

    def work() -> None:
        assert len(queue) == 0
        assert queue.scan(NOW) == ([], None)
        assert queue.claim(put.tickets[0]) is None
        queue.put([make_envelope()]).publish()
        assert len(queue) == 1
        claimed(queue)

    thread.start()
    assert held.wait(10)
    try:
        assert reap(forked(work)) == 0
    finally:
        done.set()
        thread.join()
    got = queue.scan(NOW)[0]
    assert len(got) == len(queue) == 1
