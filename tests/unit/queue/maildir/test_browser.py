"""Browse and repair a queue on disk: crashes, damage, foreign files, errors of the file system."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.browsing import STATES, MailInfo
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
    the_file,
)


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    return queue


def one_mail(queue: MaildirQueue, state: str) -> MailInfo:
    """Put one mail to two recipients into the queue, in this state; one has it if it was tried."""
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    queue.put([envelope]).publish()
    if state in ('deferred', 'failed'):
        claim = claimed(queue)
        other = deferred if state == 'deferred' else failed
        events = [
            sent(envelope, 'ann@example.org'),
            other(envelope, 'bob@example.org', group=1),
        ]
        claim.settle(events, retry_at=NOW + 60 if state == 'deferred' else None, report=False)
    elif state == 'held':
        (info,) = queue.mails()
        assert queue.hold(info)
    (info,) = queue.mails()
    assert info.state == state
    return info


def the_file_of(queue: MaildirQueue, info: MailInfo) -> Path:
    (path,) = Path(queue.path).glob(f'*/{info.key}')
    return path


CHANGES = {
    'retry failed': ('failed', 'new'),
    'retry deferred': ('deferred', 'deferred'),
    'retry held': ('held', 'new'),
    'hold new': ('new', 'held'),
    'hold deferred': ('deferred', 'held'),
    'release held': ('held', 'new'),
    'drop new': ('new', None),
    'drop failed': ('failed', None),
}


@pytest.mark.slow
@pytest.mark.parametrize('change', CHANGES)
def test_a_crash_at_any_call_of_a_change(queue: MaildirQueue, change: str) -> None:
    """After a crash the mail is where it was or where it was to go, whole and once, and no history
    is left without its mail; the same change completes it."""
    before, after = CHANGES[change]
    info = one_mail(queue, before)
    path = the_file(queue, files(queue)[0].partition('/')[0])
    data = path.read_bytes()
    history = Path(queue.path, 'reasons', f'{info.id}.txt')
    lines = history.read_bytes() if history.exists() else b''
    seen = set()

    def work() -> bool:
        return getattr(queue, change.partition(' ')[0])(info)  # type: ignore[no-any-return]

    def check() -> None:
        left = list(queue.mails())
        assert len(left) == len(files(queue)) == (after is not None or bool(left))
        seen.add(left[0].state if left else None)
        assert left or not history.exists()
        for each in left:
            details = queue.get(each.id)
            assert details is not None
            assert details.damaged == ''
            waiting = {to for to, known in details.recipients.items() if known.status == 'waiting'}
            assert 'ann@example.org' not in waiting or before in ('new', 'held')
            if each == info:
                assert work()
                assert [mail.state for mail in queue.mails()] == ([after] if after else [])
        for name in files(queue):
            (Path(queue.path) / name).unlink()
        path.write_bytes(data)
        if lines:
            history.write_bytes(lines)

    assert crashes(work, check) >= 4
    assert seen == {before, after}


def test_a_damaged_mail_is_shown_as_such(queue: MaildirQueue) -> None:
    """A file with a flipped bit is listed; its details say what is wrong with it."""
    info = one_mail(queue, 'failed')
    path = the_file(queue, 'failed')
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    assert list(queue.mails()) == [info]
    details = queue.get(info.id)
    assert details is not None
    assert (details.envelope, dict(details.recipients)) == (None, {})
    assert 'checksum' in details.damaged
    assert details.reason == details.damaged
    assert not queue.retry(info)
    assert path.exists()


def test_a_foreign_file_is_listed_and_left_alone(queue: MaildirQueue) -> None:
    """A file that is not a mail of this queue has its name for an id, and stays where it is."""
    path = Path(queue.path) / 'failed' / 'notes.txt'
    path.write_text('Call Ann.')
    (info,) = queue.mails()
    assert (info.id, info.state, info.priority, info.due) == ('notes.txt', 'failed', '', 0.0)
    details = queue.get('notes.txt')
    assert details is not None
    assert details.damaged == 'it is not a file of this queue'
    for change in (queue.retry, queue.release, queue.drop):
        assert not change(info)
    assert path.read_text() == 'Call Ann.'


def test_a_file_that_begins_with_a_dot_is_no_mail(queue: MaildirQueue) -> None:
    """As for a processor: an editor's or a network's file is not listed, counted or returned."""
    info = one_mail(queue, 'new')
    for folder in ('new', 'cur', 'done', 'failed'):
        (Path(queue.path) / folder / '.nfs0001').write_text('left over')
    assert list(queue.mails()) == [info]
    assert sum(queue.stats().counts.values()) == 1
    assert queue.get('.nfs0001') is None
    path = the_file_of(queue, info)
    path.rename(path.with_name('.nfs0002'))
    hidden = MailInfo(id='.nfs0002', state='new', key='.nfs0002')
    assert not queue.hold(hidden)
    assert not queue.drop(hidden)


def test_a_foreign_file_is_not_overdue(queue: MaildirQueue) -> None:
    """It is counted, but its name says no time: a queue with nothing else is not late."""
    for folder in ('new', 'cur'):
        (Path(queue.path) / folder / 'notes.txt').write_text('Call Ann.')
    stats = queue.stats()
    assert (stats.counts['new'], stats.counts['deferred'], stats.oldest_due) == (1, 1, None)
    queue.put([make_envelope(queued_at=NOW - 60)]).publish()
    assert queue.stats().oldest_due == NOW - 60


@pytest.mark.parametrize('state', ['new', 'deferred', 'failed', 'held'])
def test_a_key_does_not_lead_out_of_its_folder(queue: MaildirQueue, state: str) -> None:
    """A forged MailInfo reaches no file of another folder or another queue."""
    info = one_mail(queue, state)
    before = files(queue)
    other = MaildirQueue(str(Path(queue.path).with_name('other')), clock=Clock())
    other.prepare()
    folder = before[0].partition('/')[0]
    for key in (f'../{folder}/{info.key}', f'./{info.key}', f'../../queue/{before[0]}'):
        for each in (queue, other):
            for id in (info.id, key):
                for name in STATES:
                    forged = info._replace(id=id, key=key, state=name)
                    bare = MailInfo(id=id, key=key, state=name)
                    for change in (each.retry, each.hold, each.release, each.drop):
                        assert not change(forged)
                        assert not change(bare)
    assert files(queue) == before


def fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, target: Path) -> None:
    path.mkdir()


def dangling_link(path: Path, target: Path) -> None:
    path.symlink_to(target.with_name('nothing'))


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def unix_socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            # An address has 107 bytes at most.
            listener.bind(f'/proc/self/fd/{here}/{path.name}')
        finally:
            os.close(here)


@pytest.mark.timeout(20)
@pytest.mark.parametrize('make', [fifo, folder, dangling_link, link, unix_socket])
@pytest.mark.parametrize('own', [True, False])
def test_what_is_not_a_plain_file_is_damaged(
    queue: MaildirQueue, tmp_path: Path, make: Callable[[Path, Path], None], own: bool
) -> None:
    """A FIFO, a folder, a link or a socket is listed, never read or waited for, and left alone,
    whatever its name; its details say what it is."""
    info = one_mail(queue, 'failed')
    path, target = the_file(queue, 'failed'), tmp_path / 'target'
    path.rename(target)
    if not own:
        path = path.with_name('notes.txt')
    make(path, target)
    (listed,) = queue.mails()
    assert listed.id == (info.id if own else 'notes.txt')
    details = queue.get(listed.id)
    assert details is not None
    assert (details.info, details.envelope) == (listed, None)
    assert details.damaged == details.reason == 'it is not a plain file'
    assert not queue.retry(listed)
    assert not queue.drop(listed)
    assert os.path.lexists(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize('make', [fifo, folder, link])
def test_a_history_that_is_not_a_plain_file_is_not_read(
    queue: MaildirQueue, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """The mail is shown, without a history."""
    info = one_mail(queue, 'failed')
    path, target = Path(queue.path, 'reasons', f'{info.id}.txt'), tmp_path / 'target'
    path.rename(target)
    make(path, target)
    details = queue.get(info.id)
    assert details is not None
    assert (details.damaged, details.history) == ('', ())


@pytest.mark.parametrize('error', [errno.EACCES, errno.EPERM, errno.EIO])
def test_a_file_that_cannot_be_read_is_damaged(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """One file of another user, or one on a bad block, is shown with the reason: the rest of the
    queue can be read."""
    info = one_mail(queue, 'new')
    path = the_file(queue, 'new').name
    opened = os.open

    def refusing(name: Any, *arguments: Any, **options: Any) -> int:
        if name == path:
            raise OSError(error, os.strerror(error), name)
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, 'open', refusing)
    details = queue.get(info.id)
    assert details is not None
    assert (details.info, details.envelope) == (info, None)
    assert details.damaged.endswith(f' cannot read it: {os.strerror(error)}')


def test_an_error_of_the_process_is_not_damage(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process has no descriptor left, that says nothing about the mail: QueueError."""
    info = one_mail(queue, 'new')

    def refusing(name: Any, *arguments: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    monkeypatch.setattr(os, 'open', refusing)
    with pytest.raises(QueueError, match='raise the limit of open files'):
        queue.get(info.id)


def test_a_link_is_not_followed(queue: MaildirQueue, tmp_path: Path) -> None:
    """What a link in the queue points at cannot be dropped or moved."""
    target = tmp_path / 'target'
    target.write_text('keep me')
    info = one_mail(queue, 'failed')
    path = the_file(queue, 'failed')
    path.unlink()
    path.symlink_to(target)
    assert not queue.drop(info)
    assert not queue.retry(info)
    assert (path.is_symlink(), target.read_text()) == (True, 'keep me')


def test_a_processor_that_writes_marks_while_a_mail_is_read(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that is half written at one reading is read again."""
    info = one_mail(queue, 'new')
    path = the_file(queue, 'new')
    data = path.read_bytes()
    at = data.index(b'T00000T')
    path.write_bytes(data[:at] + b'?' + data[at + 1 :])
    import pyramid_sendmail.queue.maildir.browser as browser

    decode: Callable[..., Any] = browser.decode
    reads = []

    def mended(read: bytes) -> Any:
        reads.append(read)
        path.write_bytes(data)
        return decode(read)

    monkeypatch.setattr(browser, 'decode', mended)
    details = queue.get(info.id)
    assert details is not None
    assert (details.damaged, len(reads)) == ('', 2)


def test_a_held_file_that_a_person_moves_back_is_sent(queue: MaildirQueue) -> None:
    """``mv failed/X new/`` works for held mail as for dead letters: it is due at once."""
    one_mail(queue, 'held')
    path = the_file(queue, 'failed')
    path.rename(Path(queue.path) / 'new' / path.name)
    claim = claimed(queue)
    assert claim.todo == ('ann@example.org', 'bob@example.org')
    claim.release()


def test_an_error_of_the_disk_names_the_queue(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that cannot be written raises QueueError, and the mail stays where it was."""
    info = one_mail(queue, 'new')

    def full(*arguments: Any, **folders: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'rename', full)
    with pytest.raises(
        QueueError, match='No space left on device; make room on the disk'
    ) as raised:
        queue.hold(info)
    assert raised.value.filename == queue.path
    monkeypatch.undo()
    assert list(queue.mails()) == [info]
    assert queue.hold(info), 'it is not locked any more'


@pytest.mark.parametrize('state', ['new', 'deferred'])
def test_a_released_mail_leaves_no_history(tmp_path: Path, state: str) -> None:
    """Delivered at its next attempt, be it the first, it takes the line about the hold along."""
    clock = Clock()
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
    queue.prepare()
    assert queue.hold(one_mail(queue, state), 'ask first')
    (history,) = Path(queue.path, 'reasons').iterdir()
    assert 'ask first' in history.read_text()
    clock.now += 7 * 24 * 3600
    (held,) = queue.mails()
    assert queue.release(held)
    claim = claimed(queue, clock())
    claim.settle([sent(claim.envelope, *claim.todo, attempt=claim.attempt + 1)], report=False)
    assert files(queue) == []
    assert list(Path(queue.path, 'reasons').iterdir()) == []


def test_a_release_keeps_what_is_pending_and_ambiguous(queue: MaildirQueue) -> None:
    """It writes the time alone: replies, pending events and marks stay as they were."""
    envelope = make_envelope('ann@example.org', 'bob@example.org')
    queue.put([envelope]).publish()
    event = sent(envelope, 'ann@example.org')
    later = deferred(envelope, 'bob@example.org', group=1, until=NOW)
    claim = claimed(queue)
    claim.settle([event, later], retry_at=NOW)
    claim.release()

    def stopped() -> None:
        claimed(queue).mark_ambiguous(['bob@example.org'])

    assert reap(forked(stopped)) == 0
    (info,) = queue.mails()
    assert queue.hold(info)
    (held,) = queue.mails()
    before = queue.get(held.id)
    assert queue.release(held)
    after = queue.get(held.id)
    assert before is not None
    assert after is not None
    assert (after.recipients, after.history) == (before.recipients, before.history)
    assert (after.envelope, after.pending_events) == (before.envelope, 1)
    claim = claimed(queue)
    assert (claim.pending_events, claim.ambiguous) == ([event], ('bob@example.org',))
    claim.release()


def test_a_queue_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """Browsing makes no folder and fails over none."""
    queue = MaildirQueue(str(tmp_path / 'nothing'))
    assert list(queue.mails()) == []
    assert queue.get('a' * 32) is None
    assert sum(queue.stats().counts.values()) == 0
    assert not (tmp_path / 'nothing').exists()


def test_a_change_makes_no_queue(queue: MaildirQueue, tmp_path: Path) -> None:
    """Where no queue is, nothing can be changed, and nothing is made."""
    info = one_mail(queue, 'new')
    other = MaildirQueue(str(tmp_path / 'nothing'), clock=Clock())
    assert not other.hold(info)
    assert not other.drop(info)
    assert not (tmp_path / 'nothing').exists()


@pytest.mark.parametrize('change', CHANGES)
def test_another_user_may_not_change_the_queue(
    queue: MaildirQueue, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another user, root's too, would leave files that the queue's own processes
    cannot read: QueueError, with both users and the remedy, and nothing is changed."""
    info = one_mail(queue, CHANGES[change][0])
    before = files(queue)
    other = MaildirQueue(queue.path, clock=Clock())
    owner = os.geteuid()
    monkeypatch.setattr(os, 'geteuid', lambda: owner + 4242)
    with pytest.raises(
        QueueError,
        match=rf'^queue {re.escape(queue.path)} belongs to user .* as user {owner + 4242}; run',
    ):
        getattr(other, change.partition(' ')[0])(info)
    assert files(queue) == before


@pytest.mark.parametrize('change', CHANGES)
def test_a_file_that_a_person_moves_during_a_change(
    queue: MaildirQueue,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The change returns False, and neither the log nor the history says that it was made."""
    caplog.set_level('INFO')
    info = one_mail(queue, CHANGES[change][0])
    path = the_file(queue, files(queue)[0].partition('/')[0])
    import pyramid_sendmail.queue.maildir.browser as browser

    before = queue.get(info.id)
    assert before is not None
    load: Callable[..., Any] = browser.load
    caplog.clear()

    def moved(*arguments: Any) -> Any:
        path.rename(tmp_path / path.name)
        return load(*arguments)

    monkeypatch.setattr(browser, 'load', moved)
    assert getattr(queue, change.partition(' ')[0])(info) is False
    assert files(queue) == []
    assert caplog.text == ''
    (tmp_path / path.name).rename(path)
    after = queue.get(info.id)
    assert after is not None
    assert (after.info, after.history) == (info, before.history)


def test_a_mail_that_all_recipients_had_is_dropped(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished mail that a person moved to failed/ can be dropped; the log says that all had
    it."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    claim.settle([sent(envelope)])
    claim.release()
    path = the_file(queue, 'done')
    path.rename(Path(queue.path) / 'failed' / path.name)
    (info,) = queue.mails('failed')
    assert queue.drop(info)
    assert f'{envelope.message_id}: dropped by request, sent to all recipients before' in (
        caplog.text
    )


def test_an_ambiguous_mail_is_retried(queue: MaildirQueue) -> None:
    """Held, it is tried again as if it were new; deferred, at once and still as ambiguous."""
    info = one_mail(queue, 'new')

    def stopped() -> None:
        claimed(queue).mark_ambiguous(['bob@example.org'])

    assert reap(forked(stopped)) == 0
    details = queue.get(info.id)
    assert details is not None
    assert details.recipients['bob@example.org'].status == 'ambiguous'
    assert queue.hold(info)
    (held,) = queue.mails()
    assert queue.retry(held)
    claim = claimed(queue)
    assert (claim.todo, claim.ambiguous) == (('ann@example.org', 'bob@example.org'), ())
    events = [deferred(claim.envelope, until=NOW + 60)]
    claim.settle(events, retry_at=NOW + 60, report=False)
    (tried,) = queue.mails()
    assert queue.retry(tried)
    assert reap(forked(stopped)) == 0
    (tried,) = queue.mails()
    assert queue.retry(tried)
    claim = claimed(queue)
    assert claim.todo == ('ann@example.org', 'bob@example.org')
    assert (claim.ambiguous, claim.attempt) == (('bob@example.org',), 1)
    claim.release()
