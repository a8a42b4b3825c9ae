"""What a claim writes, when, and what is found where it was not written to the end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import ticket_of
from pyramid_sendmail.queue.maildir.format import STATE_AT, decode
from tests.support.folders import folder as tmp_path
from tests.support.queues import (
    NOW,
    Clock,
    child,
    claimed,
    crashes,
    deferred,
    failed,
    files,
    make_envelope,
    sent,
    the_file,
)

__all__ = ['tmp_path']


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    return queue


def _letters(path: Path) -> str:
    """The letter of the mail, and those of its recipients, as they stand on disk."""
    block = decode(path.read_bytes())
    return ''.join([block.state, *block.letters])


def test_the_letters_on_disk_tell_each_step(queue: MaildirQueue) -> None:
    """W, V, C, S; T, ?, d, f, D, F: each is there before the next step is taken."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    put = queue.put([envelope])
    assert _letters(the_file(queue, 'tmp')) == 'VTT'
    put.publish()
    assert _letters(the_file(queue, 'new')) == 'CTT'
    claim = claimed(queue)
    assert _letters(the_file(queue, 'new')) == 'STT'
    claim.mark_ambiguous(['a@example.org'])
    assert _letters(the_file(queue, 'new')) == 'S?T'
    events = [sent(envelope, 'a@example.org'), failed(envelope, 'b@example.org', group=1)]
    claim.settle(events)
    assert _letters(the_file(queue, 'done')) == 'Cdf'
    claim.acknowledge(events[:1])
    assert _letters(the_file(queue, 'done')) == 'CDf'
    claim.acknowledge(events[1:])
    assert _letters(the_file(queue, 'failed')) == 'CDF'


def test_a_release_writes_back_what_stood_there(queue: MaildirQueue) -> None:
    """A claim that sends nothing leaves the file as it was, to the byte."""
    queue.put([make_envelope()]).publish()
    before = the_file(queue, 'new').read_bytes()
    claim = claimed(queue)
    assert the_file(queue, 'new').read_bytes() != before
    claim.release()
    assert the_file(queue, 'new').read_bytes() == before


def test_a_release_after_the_mark_stays_ambiguous(queue: MaildirQueue) -> None:
    """Once the dot may have left, giving the mail back does not make it unsent."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()
    claim = claimed(queue)
    claim.mark_ambiguous(['a@example.org'])
    claim.release()
    claim = claimed(queue)
    assert claim.interrupted == 'ambiguous'
    assert claim.todo == envelope.recipients
    claim.release()
    assert claimed(queue).interrupted == 'ambiguous', 'still'


@pytest.mark.parametrize(
    ('ambiguous', 'word'), [([], 'sending'), (['a@example.org'], 'ambiguous')], ids=['S', '?']
)
def test_a_mail_says_that_its_process_died(
    queue: MaildirQueue, ambiguous: list[str], word: str
) -> None:
    """kill -9 in the middle of an attempt: the lock is free at once, and the mail says so."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()

    def work() -> None:
        claim = claimed(MaildirQueue(queue.path, clock=Clock()))
        claim.mark_ambiguous(ambiguous)

    (ticket,), _ = queue.scan(NOW)
    with child(work):
        assert queue.claim(ticket) is None
    claim = queue.claim(ticket)
    assert claim is not None
    assert (claim.interrupted, claim.todo) == (word, envelope.recipients)
    assert claim.ambiguous == tuple(ambiguous)
    claim.settle([deferred(envelope)], retry_at=NOW + 60, report=False)
    clock = queue._clock
    assert isinstance(clock, Clock)
    clock.now = NOW + 60
    claim = claimed(queue, NOW + 60)
    assert (claim.interrupted, claim.attempt) == ('', 1)
    claim.release()


def _settle(case: str) -> tuple[list[Any], float | None]:
    events = {
        'delivered': [sent(ENVELOPE)],
        'failed': [failed(ENVELOPE)],
        'deferred': [deferred(ENVELOPE)],
        'partly': [
            sent(ENVELOPE, 'a@example.org'),
            deferred(ENVELOPE, 'b@example.org', group=1),
        ],
        'mixed': [
            sent(ENVELOPE, 'a@example.org'),
            failed(ENVELOPE, 'b@example.org', group=1),
        ],
    }[case]
    retry = any(event.kind == 'deferred' for event in events)
    return events, NOW + 60 if retry else None


ENVELOPE = make_envelope('a@example.org', 'b@example.org')
CASES = ['delivered', 'failed', 'deferred', 'partly', 'mixed']


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('report', [True, False], ids=['acknowledge', 'quiet'])
def test_a_crash_at_any_call_of_an_attempt(tmp_path: Path, case: str, report: bool) -> None:
    """The process dies after each system call of an attempt. Before the outcome is recorded, the
    mail is found interrupted, with all its recipients; afterwards each recipient has its outcome,
    none is tried twice, and no event is lost."""
    path = tmp_path / 'queue'
    events, retry_at = _settle(case)
    seen = []

    def fresh() -> MaildirQueue:
        return MaildirQueue(str(path), sync=False, clock=Clock())

    def prepare() -> None:
        shutil.rmtree(path, ignore_errors=True)
        fresh().put([ENVELOPE]).publish()

    def work() -> None:
        claim = claimed(fresh())
        claim.mark_ambiguous(ENVELOPE.recipients)
        claim.settle(events, retry_at=retry_at, report=report)
        if claim.pending_events:
            claim.acknowledge(claim.pending_events)

    def check() -> None:
        queue = fresh()
        assert len(files(queue)) <= 1, 'one mail is one file'
        tickets, next_due = queue.scan(NOW)
        claim: Any = queue.claim(tickets[0]) if tickets else None
        if claim is None:
            gone = not files(queue)
            dead = bool(files(queue)) and files(queue)[0].startswith('failed/')
            assert gone is (case == 'delivered')
            assert dead is (case in ('failed', 'mixed'))
            assert (next_due == NOW + 60) is (case in ('deferred', 'partly'))
            seen.append('settled')
        elif claim.todo:
            assert claim.todo == ENVELOPE.recipients
            assert claim.pending_events == []
            seen.append(claim.interrupted or 'untouched')
            claim.release()
        else:
            waiting = [event for event in events if event.kind != 'deferred'] if report else []
            assert claim.pending_events in ([], waiting, waiting[1:])
            seen.append('recorded')
            assert claim.attempt == 1
            claim.acknowledge(claim.pending_events)
            claim.release()
            check()
            seen.pop()
        prepare()

    prepare()
    assert crashes(work, check) >= 8
    order = ['untouched', 'sending', 'ambiguous', 'recorded', 'settled']
    assert sorted(seen, key=order.index) == seen
    assert set(seen) >= {'untouched', 'sending', 'ambiguous', 'settled'}


class Failing:
    """Makes a call of the os module fail while ``on`` is True."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: int = errno.EIO) -> None:
        self.on = False
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            if self.on:
                raise OSError(error, os.strerror(error))
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize('call', ['pwrite', 'rename', 'unlink', 'fsync'])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('report', [True, False], ids=['acknowledge', 'quiet'])
def test_an_outcome_that_could_not_be_recorded_is_kept_and_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, case: str, report: bool
) -> None:
    """settle raises QueueError and keeps the lock; called again once the disk works, it completes
    what it began, and nothing is counted twice."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.put([ENVELOPE]).publish()
    events, retry_at = _settle(case)
    claim = claimed(queue)
    failing = Failing(monkeypatch, call)
    failing.on = True
    for _ in range(3):
        try:
            claim.settle(events, retry_at=retry_at, report=report)
        except QueueError as error:
            assert error.errno == errno.EIO  # noqa: PT017
            path = Path(queue.path, files(queue)[0])
            ticket = ticket_of(path.parent.name, path.name)
            assert MaildirQueue(queue.path, clock=Clock()).claim(ticket) is None, 'it is kept'
        else:
            break
    else:
        failing.on = False
        claim.settle(events, retry_at=retry_at, report=report)
    failing.on = False
    pending = [event for event in events if event.kind != 'deferred'] if report else []
    assert claim.pending_events == pending
    if pending:
        claim.acknowledge(pending)
    folder = {'delivered': '', 'failed': 'failed', 'mixed': 'failed'}.get(case, 'cur')
    assert [file.partition('/')[0] for file in files(queue)] == [folder] * bool(folder)
    if folder:
        assert '-0001-' in files(queue)[0]


def test_delivered_mail_that_cannot_be_removed_is_not_sent_again(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unlink fails after acceptance, and the process ends: the next claim removes the mail."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    failing = Failing(monkeypatch, 'unlink')
    failing.on = True
    with pytest.raises(QueueError, match='cannot record the outcome of a mail'):
        claim.settle([sent(ENVELOPE)], report=False)
    claim.release()
    failing.on = False
    claim = claimed(queue)
    assert (claim.todo, claim.pending_events) == ((), [])
    claim.acknowledge(())
    assert files(queue) == []


def test_a_mark_that_cannot_be_written_is_an_error_of_the_queue(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final dot is not sent, no recipient is ambiguous, and no attempt is counted."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    failing = Failing(monkeypatch, 'pwrite')
    failing.on = True
    with pytest.raises(QueueError, match='cannot record that a mail is about to be sent'):
        claim.mark_ambiguous(ENVELOPE.recipients)
    failing.on = False
    claim.release()
    claim = claimed(queue)
    assert (claim.interrupted, claim.attempt) == ('', 0)
    claim.release()


def test_a_release_that_cannot_be_written_counts_as_an_attempt(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then S stays, which is the safe side; the lock is free all the same."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    failing = Failing(monkeypatch, 'pwrite')
    failing.on = True
    claim.release()
    failing.on = False
    assert claimed(queue).interrupted == 'sending'


def test_a_claim_that_cannot_begin_is_none(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where S cannot be written nothing is sent, and nothing stays locked."""
    queue.put([ENVELOPE]).publish()
    (ticket,), _ = queue.scan(NOW)
    failing = Failing(monkeypatch, 'pwrite', errno.EROFS)
    failing.on = True
    with pytest.raises(QueueError, match='read-only'):
        queue.claim(ticket)
    failing.on = False
    claimed(queue).release()


def test_an_event_whose_retry_cannot_be_recorded_is_released(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the event is found again at once: reported once more, never lost."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    claim.settle([sent(ENVELOPE)])
    failing = Failing(monkeypatch, 'pwrite')
    failing.on = True
    with pytest.raises(QueueError, match='cannot record the outcome of an event'):
        claim.retry_events(claim.pending_events, NOW + 5)
    failing.on = False
    claim = claimed(queue)
    assert claim.pending_events == [sent(ENVELOPE)]
    claim.acknowledge(claim.pending_events)


def test_a_mark_that_cannot_be_cleared_stays(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk refuses the earlier letters, the mail is ambiguous, not lost."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    claim.mark_ambiguous(ENVELOPE.recipients)

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(os, 'pwrite', full)
        claim.clear_ambiguous()
    claim.release()
    assert claimed(queue).interrupted == 'ambiguous'


def test_a_released_claim_writes_nothing(queue: MaildirQueue) -> None:
    """A released claim cannot record anything: others may have claimed the mail."""
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    claim.release()
    before = the_file(queue, 'new').read_bytes()
    with pytest.raises(QueueError, match='released'):
        claim.mark_ambiguous(ENVELOPE.recipients)
    for report in (False, True):
        with pytest.raises(QueueError, match='released'):
            claim.settle([sent(ENVELOPE)], report=report)
    with pytest.raises(QueueError, match='released'):
        claim.acknowledge([sent(ENVELOPE)])
    assert the_file(queue, 'new').read_bytes() == before


@pytest.mark.parametrize('hold', [True, False])
def test_the_mark_is_synced_if_ambiguous_mail_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: bool
) -> None:
    """With mail.ambiguous = hold the mark for the final dot survives a power cut."""
    queue = MaildirQueue(str(tmp_path / 'queue'), hold_ambiguous=hold, clock=Clock())
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    synced: list[int] = []
    monkeypatch.setattr(os, 'fsync', synced.append)
    claim.mark_ambiguous(ENVELOPE.recipients)
    assert len(synced) == hold
    claim.release()


@pytest.mark.parametrize(('case', 'count'), [('partly', 1), ('deferred', 0), ('delivered', 0)])
def test_partly_delivered_letters_are_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, count: int
) -> None:
    """After a power cut, recipients that have the mail are not tried again."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.put([ENVELOPE]).publish()
    claim = claimed(queue)
    calls: list[str] = []
    real = os.rename

    def rename(source: str, target: str, **folders: int) -> None:
        calls.append('rename')
        real(source, target, **folders)

    monkeypatch.setattr(os, 'fsync', lambda descriptor: calls.append('fsync'))
    monkeypatch.setattr(os, 'rename', rename)
    events, retry_at = _settle(case)
    claim.settle(events, retry_at=retry_at, report=False)
    assert calls == ['fsync'] * count + ['rename'] * (case != 'delivered')


@pytest.mark.parametrize('folder', ['new', 'cur'])
def test_an_outcome_recorded_before_a_crash_does_not_start_over(
    queue: MaildirQueue, folder: str
) -> None:
    """Letters written, file not moved yet: the failed recipients are reported, not tried again."""
    queue.put([ENVELOPE]).publish()
    if folder == 'cur':
        claimed(queue).settle([deferred(ENVELOPE)], retry_at=NOW, report=False)
    path = the_file(queue, folder)
    claim = claimed(queue)
    claim.settle([failed(ENVELOPE, attempt=2)])
    claim.release()
    the_file(queue, 'done').rename(path)
    claim = claimed(queue)
    assert claim.todo == ()
    assert claim.pending_events == [failed(ENVELOPE, attempt=2)]
    # Nor is it if subscribers need several tries.
    claim.retry_events(claim.pending_events, NOW)
    claim = claimed(queue)
    assert claim.todo == ()
    claim.acknowledge(claim.pending_events)
    assert [file.partition('/')[0] for file in files(queue)] == ['failed']


def test_a_mail_in_done_without_its_letters_is_tried_again(queue: MaildirQueue) -> None:
    """If the rename to done/ survived a power cut and the letters did not, the mail is sent again,
    not lost."""
    queue.put([ENVELOPE]).publish()
    before = the_file(queue, 'new').read_bytes()
    claim = claimed(queue)
    claim.settle([sent(ENVELOPE)])
    claim.release()
    the_file(queue, 'done').write_bytes(before)
    claim = claimed(queue)
    assert (claim.todo, claim.pending_events) == ((), [])
    claim.acknowledge(())
    claim = claimed(queue)
    assert claim.todo == ENVELOPE.recipients
    claim.release()


def test_an_event_that_is_handled_leaves_an_interruption_known(tmp_path: Path) -> None:
    """A process died while it tried the rest of a mail, and the clock was set back: the events of
    the mail are dispatched before the next attempt, and the one that was interrupted counts."""
    clock = Clock()
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    queue.put([envelope]).publish()
    claim = claimed(queue, clock.now)
    events = [sent(envelope, 'ann@example.org'), deferred(envelope, 'bob@example.org', group=1)]
    claim.settle(events, retry_at=clock.now + 60)
    claim.release()
    clock.now += 60
    claim = claimed(queue, clock.now)
    path = the_file(queue, 'cur')
    data = path.read_bytes()
    assert data[STATE_AT : STATE_AT + 1] == b'S'
    claim.release()
    path.write_bytes(data)
    clock.now -= 30
    claim = claimed(queue, clock.now)
    assert (claim.todo, claim.interrupted) == ((), 'sending')
    claim.acknowledge(claim.pending_events)
    claim.release()
    clock.now += 30
    assert claimed(queue, clock.now).interrupted == 'sending'


def test_a_state_in_place_needs_no_parsing(queue: MaildirQueue) -> None:
    """S is one byte at a fixed place: a claim writes nothing else before the attempt."""
    queue.put([ENVELOPE]).publish()
    before = bytearray(the_file(queue, 'new').read_bytes())
    claim = claimed(queue)
    after = the_file(queue, 'new').read_bytes()
    before[STATE_AT] = ord('S')
    assert after == before
    claim.release()
