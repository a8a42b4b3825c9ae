"""What deliberate defects have survived before: the tests that were missing."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Tally
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import FOLDER_OF
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.format import STATE_AT, decode
from pyramid_sendmail.queue.maildir.recovery import recover
from pyramid_sendmail.queue.maildir.staging import StagedMail
from pyramid_sendmail.queue.maildir.wakeup import WakeUp
from tests.support.processors import ProcessorSetup
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    crashes,
    deferred,
    failed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    until,
)


class Observer:
    """A trigger that keeps the folders of the mail that its pulls have found."""

    def __init__(self, queue: MaildirQueue) -> None:
        self.queue = queue
        self.found: list[list[str]] = []

    def notify(self, names: Sequence[str]) -> None:
        self.found.append([name.partition('/')[0] for name in files(self.queue)])


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was synced, in order."""
    names: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        names.append(Path(os.readlink(f'/proc/self/fd/{descriptor}')).name)

    monkeypatch.setattr(os, 'fsync', noting)
    return names


def test_the_trigger_is_pulled_last(tmp_path: Path) -> None:
    """A processor that a commit wakes finds all of its mail in new/."""
    queue = MaildirQueue(str(tmp_path / 'mail'))
    queue.prepare()
    observer = Observer(queue)
    put = StagedMail(QueueFiles(queue.path), observer, [make_envelope(), make_envelope()])  # type: ignore[arg-type]
    put.write()
    put.publish()
    assert observer.found == [['new', 'new']]
    queue.close()


def test_recovery_syncs_what_it_publishes(tmp_path: Path, synced: list[str]) -> None:
    """What recovery has moved into new/ does not fall back into tmp/ by a power cut."""
    queue = MaildirQueue(str(tmp_path / 'mail'))
    put = queue.put([make_envelope()])
    record = tmp_path / 'mail' / 'tmp' / put.tickets[0].order
    copy = record.read_bytes()
    put.discard()
    record.write_bytes(copy[:STATE_AT] + b'C' + copy[STATE_AT + 1 :])
    del synced[:]
    assert recover(QueueFiles(queue.path), send_in_doubt=False, clock=Clock())
    assert synced == ['new']
    queue.close()


def test_what_was_delivered_is_synced(tmp_path: Path, synced: list[str]) -> None:
    """``sync`` makes the removal of fresh and of retried mail survive a power cut."""
    queue = MaildirQueue(str(tmp_path / 'mail'))
    queue.prepare()
    del synced[:]
    queue.sync()
    assert sorted(synced) == ['cur', 'new']
    queue.close()


def test_a_release_unlocks_what_a_child_shares(tmp_path: Path) -> None:
    """A claim that was released is free, though a child that is about to run a command still has
    the open file."""
    queue = MaildirQueue(str(tmp_path / 'mail'))
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)
    store = QueueFiles(queue.path)
    folder, name = FOLDER_OF[ticket.state], ticket.order
    descriptor = store.open(folder, name)
    assert descriptor is not None
    shared = os.dup(descriptor)
    try:
        store.close(descriptor)
        again = store.open(folder, name)
        assert again is not None
        store.close(again)
    finally:
        os.close(shared)
    queue.close()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail of which the system writes three bytes at a time is whole in the end."""
    pwrite = os.pwrite
    queue = MaildirQueue(str(tmp_path / 'mail'))
    envelope = make_envelope()
    monkeypatch.setattr(os, 'pwrite', lambda to, data, at: pwrite(to, data[:3], at))
    queue.put([envelope]).publish()
    monkeypatch.undo()
    (ticket,), _ = queue.scan(NOW)
    claim = queue.claim(ticket)
    assert claim is not None
    assert claim.envelope == envelope
    claim.release()
    queue.close()


def test_a_discard_that_stops_is_completed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the first system call of a discard on nothing is in doubt and nothing is published,
    wherever the process stops."""
    path = str(tmp_path / 'mail')
    MaildirQueue(path).prepare()
    begun = os.open(tmp_path / 'begun', os.O_RDWR | os.O_CREAT)
    checked = 0

    def work() -> None:
        put = MaildirQueue(path, clock=Clock()).put([make_envelope(), make_envelope()])
        # No call that is counted: the next one is the discard's own.
        os.write(begun, b'.')
        put.discard()

    def check() -> None:
        nonlocal checked
        caplog.clear()
        queue = MaildirQueue(path, clock=Clock(), in_doubt='send')
        queue.scan(NOW)
        if os.fstat(begun).st_size:
            checked += 1
            assert files(queue) == []
            assert caplog.text == ''
        os.ftruncate(begun, 0)
        for file in files(queue):
            (tmp_path / 'mail' / file).unlink()

    assert crashes(work, check) > checked >= 4
    os.close(begun)


class Busy(QueueFiles):
    """A store whose writer makes another file of the transaction, and dies, after recovery has
    listed tmp/ and before it has the record."""

    late = ''

    def open(self, folder: str, name: str) -> int | None:
        if self.late:
            Path(self.path(folder, self.late)).write_bytes(b'half a mail')
            self.late = ''
        return super().open(folder, name)


def test_recovery_lists_again_behind_the_lock(tmp_path: Path) -> None:
    """A file that a writer made after recovery's listing, and before it died, goes with the
    others."""
    queue = MaildirQueue(str(tmp_path / 'mail'))
    put = queue.put([make_envelope(), make_envelope()])
    record, follower = (ticket.order for ticket in put.tickets)
    left = (tmp_path / 'mail' / 'tmp' / record).read_bytes()
    put.discard()
    (tmp_path / 'mail' / 'tmp' / record).write_bytes(left[:STATE_AT] + b'W' + left[STATE_AT + 1 :])
    store = Busy(queue.path)
    store.late = f'{follower}.{record}'
    assert recover(store, send_in_doubt=False, clock=Clock())
    assert not store.late
    assert files(queue) == []
    queue.close()


def test_a_new_file_is_new(tmp_path: Path) -> None:
    """What lies where a new file is to be is never written over."""
    store = QueueFiles(str(tmp_path))
    path = tmp_path / 'tmp' / 'other'
    path.parent.mkdir()
    path.write_bytes(b'not ours')
    with pytest.raises(FileExistsError):
        store.create('tmp', 'other')
    assert path.read_bytes() == b'not ours'


@pytest.mark.parametrize('report', [True, False])
def test_letters_are_written_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: bool
) -> None:
    """A file in its next folder contains the outcome of the mail."""
    queue = MaildirQueue(str(tmp_path / 'mail'), clock=Clock())
    envelope = make_envelope('ann@example.org', 'bob@example.org', 'eve@example.org')
    queue.put([envelope]).publish()
    claim = claimed(queue)
    claim.mark_ambiguous(envelope.recipients[:2])
    found: list[tuple[str, str]] = []
    rename = os.rename

    def noting(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        block = decode(Path(f'/proc/self/fd/{src_dir_fd}', source).read_bytes())
        found.append((block.state, ''.join(block.letters)))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, 'rename', noting)
    events = [
        sent(envelope, 'ann@example.org'),
        deferred(envelope, 'bob@example.org', group=1),
        failed(envelope, 'eve@example.org', group=2),
    ]
    claim.settle(events, retry_at=NOW + 60, report=report)
    assert found == [('C', 'dTf' if report else 'DTF')]
    claim.release()
    queue.close()


def test_a_signal_wakes_a_child(tmp_path: Path) -> None:
    """In a forked child, whose parent listens too, a signal handler's wake ends the wait that it
    interrupts."""
    trigger = WakeUp(QueueFiles(str(tmp_path)))
    trigger.listen()

    def work() -> None:
        signal.signal(signal.SIGALRM, lambda *_: trigger.wake())
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        trigger.wait(60)

    pid = forked(work)
    try:
        until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), 3)
    finally:
        os.kill(pid, signal.SIGKILL)
        status = reap(pid)
    assert status == 0
    trigger.close()


class Full(MaildirQueue):
    """A queue that is full when it comes to recording what became of a mail to bob, and that
    cannot claim a mail to eve."""

    full = True
    checks = 0
    claims = 0

    def check_writable(self) -> None:
        self.checks += 1

    def claim(self, ticket: Any, *, settled: bool = False) -> Any:
        claim = super().claim(ticket, settled=settled)
        if claim is not None and claim.envelope.recipients == ('bob@example.org',):
            return FullClaim(self, claim)
        if claim is not None and claim.envelope.recipients == ('eve@example.org',) and self.full:
            self.claims += 1
            claim.release()
            raise QueueError(errno.EACCES, 'permission denied')
        return claim


class FullClaim:
    def __init__(self, queue: Full, claim: Any) -> None:
        self._queue = queue
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    def settle(self, *arguments: Any, **options: Any) -> None:
        if self._queue.full:
            raise QueueError(errno.ENOSPC, 'no space left')
        self._claim.settle(*arguments, **options)


def test_who_has_a_session_claims_nothing_more(tmp_path: Path) -> None:
    """One worker cannot record what became of its mail: the other, in the middle of one of its own,
    finishes that and takes no other."""
    queue = Full(str(tmp_path / 'mail'), sync=False)
    setup = ProcessorSetup(queue)
    ann, bob = (setup.put(to, priority='high') for to in ('ann@example.org', 'bob@example.org'))
    in_flight = threading.Event()

    def before(envelope: Envelope) -> None:
        if envelope == bob:
            # A worker that comes too late would find the circuit breaker open.
            assert in_flight.wait(20)
        elif envelope == ann:
            in_flight.set()
            until(lambda: bob in setup.mailer.sent and queue.checks > 3, 20)

    setup.mailer.before = before
    others = setup.put_many(5)
    with setup.running(workers=2, pause=0.001):
        until(lambda: ann in setup.mailer.sent, 40)
        checks = queue.checks
        # Each pause is twice the one before: a machine that was slow so far has long ones now.
        until(lambda: queue.checks > checks + 2, 60.0)
        assert setup.mailer.sent == [bob, ann]
        queue.full = False
        setup.mailer.wait_for(2 + len(others))
        until(lambda: not files(queue))
    assert set(setup.sent_ids().values()) == {1}


def test_once_ends_although_a_file_cannot_be_claimed(tmp_path: Path) -> None:
    """``run_once`` takes no file twice: one that may not be read does not keep it for ever."""
    queue = Full(str(tmp_path / 'mail'), sync=False)
    setup = ProcessorSetup(queue)
    setup.put('eve@example.org')
    setup.put()
    stop = threading.Event()
    processor = setup.processor()
    tally = processor.run_once(lambda *_: queue.claims < 5 or stop.set(), stop)
    assert tally == Tally(delivered=1)
    assert queue.claims == 1
