"""``mail.keep_failed``: which dead letters are removed, when, and which stay for a person."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, PendingEvent
from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.processor.processor import PURGE_INTERVAL, PURGE_LIMIT
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.filename import NEVER, parse, ticket_of
from tests.support.folders import folder as tmp_path
from tests.support.processors import ProcessorSetup, running_processor
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
    until,
)

__all__ = ['tmp_path']

LOGGER = 'pyramid_sendmail.queue.maildir.dead_letters'


def later() -> float:
    """A time after all that has been done so far."""
    return time.time() + 60


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    yield queue
    queue.close()


def _dead(queue: Any, *events: PendingEvent, **options: Any) -> Envelope:
    """A dead letter, by these events or a plain refusal."""
    envelope = make_envelope(**options)
    queue.put([envelope]).publish()
    claimed(queue).settle(list(events) or [failed(envelope)], report=False)
    return envelope


def _reason(reason: str, **options: Any) -> PendingEvent:
    return failed(make_envelope())._replace(reply=None, reason=reason, permanent=False, **options)


def _reasons(queue: MaildirQueue) -> list[str]:
    return sorted(path.name for path in Path(queue.path, 'reasons').glob('*'))


def test_an_old_dead_letter_goes_with_its_history(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """It is removed, its history with it, and one INFO line names the message and the reason."""
    envelope, other = _dead(queue), _dead(queue)
    assert _reasons(queue) == sorted(f'{mail.id}.txt' for mail in (envelope, other))
    with caplog.at_level(logging.INFO):
        assert queue.purge_failed(later()) == 2
    assert files(queue) == []
    assert _reasons(queue) == []
    lines = [record for record in caplog.records if record.name == LOGGER]
    assert {record.levelname for record in lines} == {'INFO'}
    for mail in (envelope, other):
        (line,) = (line for line in caplog.messages if mail.message_id in line)
        assert 'mail.keep_failed' in line
        assert line.endswith('550 5.1.1 no such user')


def test_partly_delivered_and_given_up_is_over(queue: MaildirQueue) -> None:
    """A mail that some have got, and one that was given up after temporary failures, are over."""
    _dead(queue, _reason('given up: 451 4.3.0 try again later'))
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()
    claimed(queue).settle(
        [sent(envelope, 'a@example.org'), failed(envelope, 'b@example.org', group=1)],
        report=False,
    )
    assert queue.purge_failed(later()) == 2
    assert files(queue) == []


def test_what_is_not_old_stays(queue: MaildirQueue) -> None:
    """The newer of the file's two times counts, and a time to come means not old."""
    _dead(queue)
    path = the_file(queue, 'failed')
    came = path.stat().st_ctime
    assert queue.purge_failed(came) == 0
    os.utime(path, (NOW, NOW))
    assert queue.purge_failed(came) == 0, 'it came to failed/ later than it was written'
    os.utime(path, (came + 10**6, came + 10**6))
    assert queue.purge_failed(later()) == 0, 'a clock was wrong'
    os.utime(path, (NOW, NOW))
    assert queue.purge_failed(later()) == 1


def test_held_mail_stays_whatever_its_recipients_got(queue: MaildirQueue) -> None:
    """A person has stopped it: a file with a held mail's name is not removed, nor opened, though
    all its recipients have an outcome. One beside it is removed in spite of the limit."""
    _dead(queue)
    path = the_file(queue, 'failed')
    schedule = parse(path.name)
    assert schedule is not None
    held = path.with_name(schedule._replace(due=NEVER).text)
    path.rename(held)
    other = _dead(queue)
    assert queue.purge_failed(later(), limit=1) == 1
    assert [info.state for info in queue.mails()] == ['held']
    assert queue.get(other.id) is None
    assert queue.purge_failed(later()) == 0
    assert held.exists()


@pytest.mark.parametrize(
    'reason',
    [
        'ambiguous: the line was lost',
        'given up: ambiguous: the line was lost',
        'ambig',
        'given up',
        '',
    ],
)
def test_held_as_ambiguous_stays(queue: MaildirQueue, reason: str) -> None:
    """The relay may have it: a person decides, also where the slot has cut the reason short."""
    _dead(queue, _reason(reason))
    assert queue.purge_failed(later()) == 0
    assert len(files(queue)) == 1


def test_one_ambiguous_recipient_keeps_the_mail(queue: MaildirQueue) -> None:
    """A mail stays for a person's eye because of a single recipient."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()
    claimed(queue).settle(
        [
            failed(envelope, 'a@example.org'),
            _reason('ambiguous: silence')._replace(recipients=('b@example.org',)),
        ],
        report=False,
    )
    assert queue.purge_failed(later()) == 0


@pytest.mark.parametrize('report', [False, True], ids=['to be tried', 'event pending'])
def test_unfinished_mail_stays(queue: MaildirQueue, report: bool) -> None:
    """A mail that a person has moved to failed/ stays if a recipient is still to be tried or an
    event is pending."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()
    claim = claimed(queue)
    events = [failed(envelope, 'a@example.org')]
    claim.settle(events, retry_at=NOW + 60)
    claim.acknowledge(() if report else events)
    claim.release()
    the_file(queue, 'cur').rename(Path(queue.path, 'failed', the_file(queue, 'cur').name))
    assert queue.purge_failed(later()) == 0


def test_in_doubt_stays(queue: MaildirQueue) -> None:
    """Mail that is in doubt stays for a person to decide."""
    envelope = make_envelope()
    with child(lambda: MaildirQueue(queue.path, clock=Clock()).put([envelope])):
        pass
    claim = claimed(queue)
    claim.acknowledge(claim.pending_events)
    assert [name.partition('/')[0] for name in files(queue)] == ['failed']
    assert queue.purge_failed(later()) == 0
    assert len(files(queue)) == 1


def test_a_lost_reason_stays(queue: MaildirQueue) -> None:
    """If the slot is damaged, the mail may have been held: it stays."""
    _dead(queue)
    path = the_file(queue, 'failed')
    data = path.read_bytes()
    assert b'Outcome: [[' in data
    path.write_bytes(data.replace(b'Outcome: [[', b'Outcome: [?'))
    assert queue.purge_failed(later()) == 0
    assert path.exists()


def test_damaged_and_foreign_files_stay(queue: MaildirQueue) -> None:
    """Damaged mail, foreign files, a folder and a link are not removed, nor are their reasons."""
    _dead(queue)
    whole = the_file(queue, 'failed')
    failed_folder = whole.parent
    name = whole.name
    data = whole.read_bytes()
    whole.unlink()
    torn = Path(queue.path, 'new', name[:-1] + 'f')
    torn.write_bytes(data[:-1])
    with pytest.raises(DamagedMail):
        queue.claim(ticket_of('new', torn.name))
    (failed_folder / 'notes.txt').write_bytes(data)
    (failed_folder / f'{name[:-1]}0').mkdir()
    (failed_folder / f'{name[:-1]}1').symlink_to(failed_folder / 'notes.txt')
    (failed_folder / f'{name[:-1]}2').write_bytes(data.replace(b'F00000F ', b'T00000T '))
    before, reasons = files(queue), _reasons(queue)
    assert len(before) == 5
    assert f'{torn.name}.txt' in reasons
    for _ in range(2):
        assert queue.purge_failed(later()) == 0
    assert files(queue) == before
    assert _reasons(queue) == reasons


def test_other_folders_are_left_alone(queue: MaildirQueue) -> None:
    """Mail that waits, in whatever folder, does not expire."""
    queue.put([make_envelope()]).publish()
    envelope = make_envelope()
    queue.put([envelope]).publish()
    tickets, _ = queue.scan(NOW)
    (ticket,) = (ticket for ticket in tickets if ticket.order.endswith(envelope.id))
    claim: Any = queue.claim(ticket)
    claim.settle([deferred(envelope)], retry_at=NOW + 60, report=False)
    before = files(queue)
    assert queue.purge_failed(later()) == 0
    assert files(queue) == before
    assert len(before) == 2


def test_it_is_claimed_first(queue: MaildirQueue) -> None:
    """A dead letter that another process has claimed stays; after that it goes."""
    _dead(queue)
    path = the_file(queue, 'failed')
    descriptor = MaildirQueue(queue.path)._files.open('failed', path.name)
    assert descriptor is not None
    assert queue.purge_failed(later()) == 0
    assert path.exists()
    os.close(descriptor)
    assert queue.purge_failed(later()) == 1


def test_a_bounded_number_goes_at_a_time(queue: MaildirQueue) -> None:
    """At most ``limit`` files are opened; those that stay are not in the way of the others."""
    for _ in range(6):
        _dead(queue, _reason('ambiguous: silence'))
    for _ in range(6):
        _dead(queue)
    removed = [queue.purge_failed(later(), limit=3) for _ in range(4)]
    assert sum(removed) == 6
    assert max(removed) <= 3
    assert len(files(queue)) == 6
    assert queue.purge_failed(later(), limit=3) == 0


def test_one_bad_file_stops_only_one_purge(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error over a file is a QueueError that names the queue; the next purge skips it."""
    _dead(queue)
    _dead(queue)
    unlink, asked = os.unlink, []

    def refusing(name: str, *, dir_fd: int) -> None:
        if not name.endswith('.txt') and (not asked or name in asked):
            asked.append(name)
            raise OSError(errno.EIO, 'Input/output error')
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, 'unlink', refusing)
    with pytest.raises(QueueError, match='cannot remove old dead letters') as caught:
        queue.purge_failed(later())
    assert queue.path in str(caught.value)
    assert queue.purge_failed(later()) == 1
    assert asked == [the_file(queue, 'failed').name]


def test_a_missing_folder_holds_nothing(queue: MaildirQueue) -> None:
    """If failed/ was removed, there is nothing to purge."""
    Path(queue.path, 'failed').rmdir()
    assert queue.purge_failed(later()) == 0


def test_stopped_at_any_call_it_leaves_the_mail_or_nothing(queue: MaildirQueue) -> None:
    """A process that is stopped while it expires a dead letter has left it whole, or removed it."""
    data = b''
    path = Path()

    def work() -> None:
        MaildirQueue(queue.path, clock=Clock()).purge_failed(later())

    _dead(queue)
    path = the_file(queue, 'failed')
    data = path.read_bytes()
    (name,) = _reasons(queue)
    history = Path(queue.path, 'reasons', name)
    outcomes = set()

    def check() -> None:
        outcomes.add(path.exists())
        assert path.exists() or not history.exists()
        if path.exists():
            assert path.read_bytes() == data
        path.write_bytes(data)
        history.write_text('attempt 1: failed')

    assert crashes(work, check) >= 4
    assert outcomes == {True, False}


def test_memory_keeps_what_is_in_doubt() -> None:
    """The memory queue counts from when the mail failed, by its own clock."""
    clock = Clock()
    queue = MemoryQueue(clock=clock)
    first = _dead(queue)
    clock.now += 10
    second = _dead(queue)
    held = _dead(queue, _reason('ambiguous: silence', recipients=('ann@example.org',)))
    doubted = make_envelope()
    queue.put([doubted]).keep_in_doubt()
    claim = claimed(queue, clock())
    claim.acknowledge(claim.pending_events)
    assert queue.purge_failed(NOW) == 0
    assert queue.purge_failed(NOW + 5) == 1
    assert first not in queue.failed
    assert queue.purge_failed(NOW + 100, limit=1) == 1
    assert queue.failed == [held, doubted]
    assert second not in queue.failed
    assert queue.purge_failed(NOW + 100) == 0


# The processor


class Watched(MemoryQueue):
    """Remembers each call of purge_failed. ``fails``: raises an error."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.scans = 0
        self.asked: list[tuple[float, int]] = []

    def scan(self, *arguments: Any, **options: Any) -> Any:
        self.scans += not options.get('fresh')
        return super().scan(*arguments, **options)

    def purge_failed(self, before: float, *, limit: int = 1_000) -> int:
        self.asked.append((before, limit))
        if self.fails:
            raise QueueError(errno.EROFS, 'the queue is read-only', '/mail')
        return super().purge_failed(before, limit=limit)


def test_the_processor_removes_at_its_start_and_each_hour() -> None:
    """Once at the start, then at the first scan after an hour, a bounded number each time."""
    queue, hands, clock = Watched(), Clock(1000.0), Clock()
    setup = ProcessorSetup(queue, clock=clock)
    with setup.running(keep_failed=86400.0, monotonic=hands, poll=0.01) as processor:
        until(lambda: queue.asked)
        for passed, times in ((PURGE_INTERVAL - 1, 1), (1, 2), (PURGE_INTERVAL - 1, 2), (1, 3)):
            hands.now += passed
            for _ in range(2):
                # The second scan comes after all that the first has led to.
                hands.now += 0.1
                scans = queue.scans
                processor.wake()
                until(lambda scans=scans: queue.scans > scans)
            assert len(queue.asked) == times
    assert queue.asked == [(NOW - 86400.0, PURGE_LIMIT)] * 3


def test_without_the_setting_nothing_goes() -> None:
    """By default dead letters are kept for ever."""
    queue = Watched()
    setup = ProcessorSetup(queue)
    envelope = _dead(queue)
    setup.processor().run_once()
    with setup.running():
        until(lambda: queue.scans)
    assert queue.asked == []
    assert queue.failed == [envelope]


def test_run_once_removes_once(tmp_path: Path) -> None:
    """``run_once`` removes what is old, after it has sent what is due."""
    with closing(MaildirQueue(str(tmp_path / 'queue'))) as queue:
        queue.prepare()
        envelope = make_envelope(queued_at=time.time() - 10)
        queue.put([envelope]).publish()
        claimed(queue, time.time()).settle([failed(envelope)], report=False)
        setup = ProcessorSetup(queue, clock=lambda: time.time() + 86400 + 60)
        setup.put(queued_at=time.time() - 10)
        setup.processor(keep_failed=2 * 86400.0).run_once()
        assert len(files(queue)) == 1
        setup.processor(keep_failed=86400.0).run_once()
        assert files(queue) == []
        assert len(setup.mailer.sent) == 1


def test_an_error_stops_no_mail(caplog: pytest.LogCaptureFixture) -> None:
    """Where old dead letters cannot be removed it is logged, and mail leaves all the same."""
    queue = Watched()
    queue.fails = True
    setup = ProcessorSetup(queue)
    processor = setup.processor(keep_failed=86400.0, poll=0.01)
    with running_processor(processor):
        until(lambda: queue.asked)
        setup.put()
        until(lambda: setup.mailer.sent)
    errors = [record.getMessage() for record in caplog.records if record.levelname == 'ERROR']
    assert len(errors) == 1
    assert 'old dead letters could not be removed' in errors[0]
    assert 'read-only' in errors[0]
