"""The history of a mail's attempts in ``reasons/<id>.txt``: for people, and never an obstacle."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, PendingEvent
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.history import HISTORY_SIZE, LINE_SIZE, attempt_lines
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.history import append_history
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
    open_files,
    sent,
    the_file,
)

__all__ = ['tmp_path']

RELAY = 'smtp://relay.example.org:25'
LATER = f'({RELAY}): 451 4.3.0 try again later'
BAD = f'({RELAY}): 550 5.1.1 no such user'


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
    queue.prepare()
    yield queue
    queue.close()


def _put(queue: MaildirQueue, *recipients: str, **options: Any) -> Envelope:
    envelope = make_envelope(*recipients, **options)
    queue.put([envelope]).publish()
    return envelope


def _path(queue: MaildirQueue, envelope: Envelope) -> Path:
    return Path(queue.path, 'reasons', f'{envelope.id}.txt')


def _lines(queue: MaildirQueue, envelope: Envelope) -> list[str]:
    return _path(queue, envelope).read_text('utf-8').splitlines()


def _attempt(
    queue: MaildirQueue, clock: Clock, event: Any, number: int = 1, **options: Any
) -> None:
    """One attempt, after which the mail is due again in a minute."""
    claim = claimed(queue, clock())
    events = [event(claim.envelope, attempt=number)]
    claim.settle(events, retry_at=clock() + 60 if event is deferred else None, **options)
    clock.now += 60


def test_a_dead_letter_has_its_history(queue: MaildirQueue, clock: Clock) -> None:
    """Each attempt that did not deliver to all is a line, with time, number, kind, recipients,
    mailer and reply; the history stays with the dead letter."""
    envelope = _put(queue)
    _attempt(queue, clock, deferred, 1, report=False)
    _attempt(queue, clock, failed, 2, report=False)
    assert [name.partition('/')[0] for name in files(queue)] == ['failed']
    assert _lines(queue, envelope) == [
        f'2023-11-14T22:13:20Z attempt 1: deferred for ann@example.org {LATER}',
        f'2023-11-14T22:14:20Z attempt 2: failed for ann@example.org {BAD}',
    ]


def test_a_mixed_attempt_has_a_line_for_each_answer(queue: MaildirQueue) -> None:
    """Where an attempt had several answers each has its line, that of the delivered too."""
    envelope = _put(queue, 'a@example.org', 'b@example.org', 'c@example.org')
    claimed(queue).settle(
        [
            sent(envelope, 'a@example.org', group=0),
            deferred(envelope, 'b@example.org', group=1),
            failed(envelope, 'c@example.org', group=2),
        ],
        retry_at=NOW + 60,
        report=False,
    )
    assert [line.split(' (')[0].partition(': ')[2] for line in _lines(queue, envelope)] == [
        'delivered for a@example.org',
        'deferred for b@example.org',
        'failed for c@example.org',
    ]


def test_an_event_to_be_reported_adds_no_line(queue: MaildirQueue) -> None:
    """Notifying subscribers, late or at last, is no attempt."""
    envelope = _put(queue)
    claim = claimed(queue)
    event = failed(envelope)
    claim.settle([event])
    claim.retry_events([event], NOW + 1)
    claim = claimed(queue, NOW + 1)
    claim.acknowledge(claim.pending_events)
    assert len(_lines(queue, envelope)) == 1
    assert len(list(Path(queue.path, 'failed').iterdir())) == 1


def test_the_first_delivery_leaves_and_costs_nothing(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail that is delivered at its first attempt has no history, and costs no system call."""
    _put(queue)
    claim = claimed(queue)
    touched = []
    unlink = os.unlink

    def noting(name: str, *, dir_fd: int) -> None:
        touched.append(os.readlink(f'/proc/self/fd/{dir_fd}'))
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, 'unlink', noting)
    claim.settle([sent(claim.envelope)], report=False)
    assert touched == [f'{queue.path}/new']
    assert not Path(queue.path, 'reasons').exists()


def test_delivered_mail_with_a_pending_event_has_no_history(queue: MaildirQueue) -> None:
    """Delivered mail has no history, while its event is pending and afterwards."""
    _put(queue)
    claim = claimed(queue)
    claim.settle([sent(claim.envelope)])
    assert [name.split('/')[0] for name in files(queue)] == ['done']
    claim.acknowledge(claim.pending_events)
    assert files(queue) == []
    assert not Path(queue.path, 'reasons').exists()


def test_delivered_at_last_it_goes(queue: MaildirQueue, clock: Clock) -> None:
    """The history is removed with the mail, also where an event was reported in between."""
    for report in (False, True):
        envelope = _put(queue)
        _attempt(queue, clock, deferred, 1, report=False)
        assert _path(queue, envelope).exists()
        claim = claimed(queue, clock())
        event = sent(envelope, attempt=2)
        claim.settle([event], report=report)
        if report:
            claim.acknowledge([event])
            claim.release()
        assert files(queue) == []
        assert not _path(queue, envelope).exists()


def test_moved_back_it_goes_on(queue: MaildirQueue, clock: Clock) -> None:
    """A dead letter that a person moves back to new/ goes on with its history, which is removed
    when the mail is delivered at the first attempt after that."""
    envelope = _put(queue)
    _attempt(queue, clock, failed, 1, report=False)
    for _ in range(2):
        path = the_file(queue, 'failed')
        path.rename(Path(queue.path, 'new', path.name))
        _attempt(queue, clock, failed, 1, report=False)
    assert [line.partition(' ')[0] for line in _lines(queue, envelope)] == [
        '2023-11-14T22:13:20Z',
        '2023-11-14T22:14:20Z',
        '2023-11-14T22:15:20Z',
    ]
    path = the_file(queue, 'failed')
    path.rename(Path(queue.path, 'new', path.name))
    _attempt(queue, clock, sent, 1, report=False)
    assert files(queue) == []
    assert not _path(queue, envelope).exists()


def test_what_a_crash_has_interrupted_is_said(queue: MaildirQueue, clock: Clock) -> None:
    """An attempt that a stopped process left is a line that says 'interrupted'; one after the
    final dot says 'ambiguous'."""
    envelope = _put(queue)
    with child(lambda: claimed(MaildirQueue(queue.path, clock=clock))):
        pass
    claim = claimed(queue)
    assert claim.interrupted == 'sending'
    stopped = deferred(envelope)._replace(reply=None, reason='a process stopped')
    claim.settle([stopped], retry_at=NOW + 60, report=False)
    clock.now += 60
    claim = claimed(queue, clock())
    claim.settle(
        [failed(envelope, attempt=2)._replace(reply=None, reason='ambiguous: the line was lost')],
        report=False,
    )
    first, second = _lines(queue, envelope)
    assert 'attempt 1: interrupted for ann@example.org' in first
    assert f'attempt 2: ambiguous for ann@example.org ({RELAY}): ambiguous: the line' in second


def test_files_are_the_users_alone(queue: MaildirQueue) -> None:
    """The file is 0600, its folder 0700."""
    envelope = _put(queue)
    before = os.umask(0)
    try:
        claimed(queue).settle([failed(envelope)], report=False)
    finally:
        os.umask(before)
    path = _path(queue, envelope)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def _event(**options: Any) -> PendingEvent:
    return failed(make_envelope())._replace(**options)


def test_a_line_is_bounded_and_keeps_its_reason() -> None:
    """A line has at most 1,000 bytes, whole characters, one line end; many recipients leave the
    reason its place."""
    many = tuple(f'recipient{n}@example.org' for n in range(1000))
    (line,) = attempt_lines([_event(recipients=many, reason='the reason')], at=NOW)
    assert '(1000 recipients)' in line
    assert line.endswith('the reason')
    for letter in ('x', '\u00e4', '\u20ac', '\U0001f600'):
        (line,) = attempt_lines([_event(reason=letter * 5000)], at=NOW)
        assert LINE_SIZE - 4 <= len(line.encode()) + 1 <= LINE_SIZE
        assert '\n' not in line
        assert line.endswith(letter)


@pytest.mark.parametrize(
    'text', ['\r\n2023 attempt 9: delivered', '\x1b[2J', '\u202e', '\x85', '\u2028', '\0', '\udcff']
)
def test_control_characters_do_no_harm(text: str) -> None:
    """What a relay says can neither begin a line of its own nor move a cursor."""
    (line,) = attempt_lines([_event(reason=f'550 a{text}b', mailer=text)], at=NOW)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert line.endswith('b')


def test_any_clock_will_do() -> None:
    """A time that no calendar has costs the line its time, and nothing else."""
    for at in (1e30, float('inf'), float('nan'), -1e18):
        (line,) = attempt_lines([_event()], at=at)
        assert line.startswith('(no time) attempt 1: failed for ann@')


def test_a_history_is_bounded(tmp_path: Path) -> None:
    """No line is added beyond 64 KB, and none is cut."""
    store = QueueFiles(str(tmp_path))
    lines = attempt_lines([_event(reason='x' * 5000)], at=NOW)
    line = lines[0].encode() + b'\n'
    for _ in range(40):
        append_history(store, 'a' * 32, lines * 3)
    data = (tmp_path / 'reasons' / f'{"a" * 32}.txt').read_bytes()
    assert HISTORY_SIZE - LINE_SIZE < len(data) <= HISTORY_SIZE
    assert data == line * (len(data) // len(line))


@contextmanager
def _unwritable(queue: MaildirQueue, kind: str, envelope: Envelope) -> Iterator[None]:
    reasons = Path(queue.path, 'reasons')
    if kind == 'a file in place of the folder':
        reasons.write_text('mine')
    elif kind == 'a link that leads nowhere':
        reasons.symlink_to('/nowhere/at/all')
    else:
        reasons.mkdir()
        path = _path(queue, envelope)
        if kind == 'a pipe':
            os.mkfifo(path)
        elif kind == 'a link to somewhere':
            path.symlink_to(Path(queue.path).parent / 'elsewhere')
        else:
            path.mkdir()
    yield


@pytest.mark.parametrize(
    'kind',
    [
        'a file in place of the folder',
        'a link that leads nowhere',
        'a pipe',
        'a link to somewhere',
        'a folder in place of the file',
    ],
)
def test_an_error_of_the_history_is_none_of_the_mail(
    queue: MaildirQueue, clock: Clock, kind: str
) -> None:
    """Where no history can be written or removed the mail is deferred and delivered all the same,
    and nothing is written anywhere else."""
    envelope = _put(queue)
    with _unwritable(queue, kind, envelope):
        _attempt(queue, clock, deferred, 1, report=False)
        (name,) = files(queue)
        assert name.startswith('cur/')
        _attempt(queue, clock, sent, 2, report=False)
    assert files(queue) == []
    assert not (Path(queue.path).parent / 'elsewhere').exists()


def test_a_full_disk_is_no_error_of_the_mail(
    queue: MaildirQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC while the line is written leaves the mail deferred, and no descriptor open."""
    full = os.open('/dev/full', os.O_WRONLY)
    envelope = _put(queue)
    queue._files.folders.make_reasons()
    claim = claimed(queue)
    before = open_files()
    write = os.write
    asked = []

    def refusing(descriptor: int, data: bytes) -> int:
        if descriptor == full:
            return write(descriptor, data)
        asked.append(data)
        return write(full, data)

    monkeypatch.setattr(os, 'write', refusing)
    claim.settle([deferred(envelope)], retry_at=NOW + 60, report=False)
    monkeypatch.undo()
    assert len(asked) == 1
    assert _path(queue, envelope).read_bytes() == b''
    assert the_file(queue, 'cur').exists()
    assert open_files() < before, 'the mail has been released, no more is open'
    os.close(full)


def test_the_outcome_is_written_first(queue: MaildirQueue) -> None:
    """A process that dies at any call while it writes a history loses no outcome: if there is a
    line, the outcome is in the mail."""
    envelope = make_envelope()
    with_line = 0

    def work() -> None:
        own = MaildirQueue(queue.path, clock=Clock())
        own.put([envelope]).publish()
        claimed(own).settle([failed(envelope)], report=False)

    def check() -> None:
        nonlocal with_line
        path = _path(queue, envelope)
        if path.exists() and path.read_bytes():
            with_line += 1
            (name,) = files(queue)
            assert b'5.1.1 no such user' in Path(queue.path, name).read_bytes()
            path.unlink()
        for name in files(queue):
            Path(queue.path, name).unlink()

    calls = crashes(work, check)
    assert calls > 10
    assert with_line >= 2
