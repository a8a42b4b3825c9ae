"""The folders of a queue are opened once: no link is followed, and a replaced folder is noticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.processor.claims import SINGLE_FILE_ERRNOS
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.directory import Directory
from tests.support.folders import folder as tmp_path
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    deferred,
    failed,
    files,
    make_envelope,
    open_files,
    reap,
    sent,
)
from tests.support.queues import forked as fork

__all__ = ['tmp_path']


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
    queue.prepare()
    return queue


def _replace(queue: MaildirQueue, folder: str) -> Path:
    """Put a link in the place of a folder, as a member of the queue's group can; return the folder
    that it leads to."""
    target = Path(queue.path).parent / 'elsewhere'
    target.mkdir(0o700)
    here = Path(queue.path, folder)
    here.rename(Path(queue.path).parent / f'old-{folder}')
    here.symlink_to(target)
    return target


_scandir = os.scandir


def _scandir_without_proc(path: Any) -> Any:
    if isinstance(path, str):
        raise FileNotFoundError(path)
    return _scandir(path)


def _publish(queue: MaildirQueue) -> None:
    queue.put([make_envelope()]).publish()


def _fail(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([failed(claim.envelope)], report=False)


def _defer(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([deferred(claim.envelope)], retry_at=NOW + 60, report=False)


def _report(queue: MaildirQueue) -> None:
    claim = claimed(queue)
    claim.settle([sent(claim.envelope)])
    claim.release()


def _set_aside(queue: MaildirQueue) -> None:
    with pytest.raises(DamagedMail):
        claimed(queue)


@pytest.mark.parametrize(
    ('folder', 'work'),
    [
        ('failed', _fail),
        ('failed', _set_aside),
        ('cur', _defer),
        ('done', _report),
        ('reasons', _defer),
        ('reasons', _set_aside),
    ],
)
def test_nothing_is_written_through_a_link(queue: MaildirQueue, folder: str, work: Any) -> None:
    """A link that takes the place of a folder, between a scan and what follows, leads nowhere: no
    mail and no foreign file gets into the folder that it names."""
    queue._files.folders.make_reasons()
    if work is _set_aside:
        Path(queue.path, 'new', 'evil.pth').write_text('import evil')
    else:
        queue.put([make_envelope()]).publish()
    tickets, _ = queue.scan(NOW)
    queue.scan = lambda *args, **options: (tickets, None)  # type: ignore[method-assign]
    target = _replace(queue, folder)
    work(queue)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize('folder', ['new', 'cur', 'done', 'tmp'])
def test_nothing_is_taken_through_a_link(queue: MaildirQueue, folder: str) -> None:
    """Private files of the folder that a link names are not moved to failed/; the next scan says
    what is wrong."""
    target = _replace(queue, folder)
    (target / 'private').write_text('a key')
    with pytest.raises(QueueError, match=f'{folder} is a symbolic link; remove'):
        queue.scan(NOW)
    with pytest.raises(QueueError, match=f'{folder} is a symbolic link; remove'):
        queue.put([make_envelope()])
    assert [path.name for path in target.iterdir()] == ['private']


def test_a_put_in_progress_keeps_its_folders(queue: MaildirQueue) -> None:
    """A link that takes the place of new/ between vote and finish gets nothing: the mail is in the
    folder that was there."""
    put = queue.put([make_envelope()])
    target = _replace(queue, 'new')
    put.publish()
    assert list(target.iterdir()) == []
    assert len(list((Path(queue.path).parent / 'old-new').iterdir())) == 1


@pytest.mark.parametrize('folder', ['', 'new', 'tmp', 'cur', 'done', 'failed'])
@pytest.mark.parametrize('use', [_publish, lambda queue: queue.scan(NOW)])
def test_a_removed_folder_is_made_again(
    queue: MaildirQueue, clock: Clock, caplog: pytest.LogCaptureFixture, folder: str, use: Any
) -> None:
    """A folder, or the whole queue, was removed and made again under a running process: the next
    put or scan uses the new one, and a line says so."""
    old = Path(queue.path, folder)
    old.rename(Path(queue.path).parent / 'old')
    clock.now += 60
    use(queue)
    assert 'a folder was removed or replaced' in caplog.text
    caplog.clear()
    _publish(queue)
    (name, *_) = files(queue)
    assert name.startswith('new/')
    assert queue.claim(queue.scan(NOW)[0][0]) is not None
    assert not caplog.records, 'it is logged once'


def test_a_folder_is_removed_during_a_scan(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made again, and the next scan is due at once."""

    def remove() -> None:
        queue.close()  # in another thread
        Path(queue.path, 'new').rmdir()

    with monkeypatch.context() as patch:
        patch.setattr(queue._files.folders, 'check', remove)
        assert queue.scan(NOW) == ([], NOW)
    _publish(queue)
    assert len(queue.scan(NOW)[0]) == 1


def test_a_history_is_written_where_people_look(queue: MaildirQueue) -> None:
    """The folder of the histories was moved away: the next scan notices it."""
    reasons = Path(queue.path, 'reasons')
    for n in range(2):
        _publish(queue)
        _fail(queue)
        assert len(list(reasons.iterdir())) == 1
        reasons.rename(reasons.with_name(f'reasons-{n}'))
        queue.scan(NOW)


def test_a_queue_that_was_exchanged_is_used_at_once(queue: MaildirQueue, clock: Clock) -> None:
    """Mail goes to the folder that has the queue's path now, without waiting for a check."""
    root = Path(queue.path)
    root.rename(root.parent / 'old')
    MaildirQueue(queue.path, clock=clock).prepare()
    _publish(queue)
    assert len(files(queue)) == 1


def test_a_claim_is_made_in_the_queue_that_is_there(queue: MaildirQueue, clock: Clock) -> None:
    """A queue that was copied to another disk under a running process is the one whose mail is
    sent: a claim in the old one would leave the copy to be sent again."""
    _publish(queue)
    [ticket], _ = queue.scan(NOW)
    root = Path(queue.path)
    old = root.rename(root.parent / 'old')
    shutil.copytree(old, root, ignore=shutil.ignore_patterns('trigger'))
    clock.now += 1
    claim = queue.claim(ticket)
    assert claim is not None
    claim.settle([sent(claim.envelope)], report=False)
    assert files(queue) == []
    assert len(list(Path(old, 'new').iterdir())) == 1


@pytest.mark.parametrize('folder', ['failed', 'cur'])
def test_an_outcome_that_has_no_folder(queue: MaildirQueue, clock: Clock, folder: str) -> None:
    """A folder was removed under a running process and a file lies there: the outcome stays in the
    mail's file, the error says what is wrong, and the mail is not sent again."""
    _publish(queue)
    claim = claimed(queue)
    path = Path(queue.path, folder)
    path.rmdir()
    path.write_text('not a folder')
    events = [(failed if folder == 'failed' else deferred)(claim.envelope)]
    with pytest.raises(QueueError, match=rf'cannot record .*: {path} is not a folder; see mail'):
        claim.settle(events, report=False, retry_at=NOW + 60 if folder == 'cur' else None)
    claim.release()
    path.unlink()
    [ticket], _ = queue.scan(NOW)
    found = queue.claim(ticket)
    assert found is None or found.todo == ()


def test_a_browser_sees_the_queue_that_is_there(queue: MaildirQueue, clock: Clock) -> None:
    """A page that lists the queue shows the folder that has its path now, and makes none."""
    _publish(queue)
    assert len(list(queue.mails())) == 1
    root = Path(queue.path)
    root.rename(root.parent / 'old')
    assert list(queue.mails()) == []
    assert not root.exists()
    _publish(MaildirQueue(queue.path, clock=clock))
    assert len(list(queue.mails())) == 1


def test_a_folder_that_is_opened_to_all_is_noticed_while_running(
    queue: MaildirQueue, clock: Clock
) -> None:
    """Owner and mode are looked at again: at a scan at once, at a put and a claim within a second.
    The error says once what is wrong."""
    new = Path(queue.path, 'new')
    put = queue.put([make_envelope()])
    put.publish()
    uses: list[tuple[float, Callable[[], object]]] = [
        (0, lambda: queue.scan(NOW)),
        (1, lambda: queue.claim(put.tickets[0])),
        (1, lambda: queue.put([make_envelope()])),
        (-1, lambda: queue.put([make_envelope()])),
    ]
    for passed, use in uses:
        _publish(queue)
        new.chmod(0o777)
        clock.now += passed
        with pytest.raises(QueueError, match=rf'^every user may write to {new}, .*below it$'):
            use()
        with pytest.raises(QueueError, match=r'^every user may write to '):
            queue.put([make_envelope()])
        new.chmod(0o700)


def test_a_folder_that_cannot_be_used_ends_the_claims(queue: MaildirQueue, clock: Clock) -> None:
    """A processor tries the next file after an error of one file, but not after one of the queue:
    each mail of a long queue would be a line of the log."""
    put = queue.put([make_envelope()])
    put.publish()
    _replace(queue, 'new')
    clock.now += 1
    with pytest.raises(QueueError, match='new is a symbolic link; remove') as raised:
        queue.claim(put.tickets[0])
    assert raised.value.errno not in SINGLE_FILE_ERRNOS


def test_a_child_opens_its_own_folders(queue: MaildirQueue) -> None:
    """A forked child that becomes a daemon closes all descriptors; the queue works in it."""

    def work() -> None:
        os.closerange(3, 1000)
        _publish(queue)

    assert reap(fork(work)) == 0
    assert len(files(queue)) == 1
    _publish(queue)
    assert len(files(queue)) == 2


def test_a_queue_that_is_gone_keeps_nothing_open(tmp_path: Path) -> None:
    """A thousand queues, each used once, leave no descriptor."""
    before = open_files()
    for n in range(3):
        _publish(MaildirQueue(str(tmp_path / str(n))))
    assert open_files() - before == set()


def test_listings_without_proc(queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc a folder is listed by its descriptor."""
    _publish(queue)
    monkeypatch.setattr(os, 'scandir', _scandir_without_proc)
    before = open_files()
    directory = Directory(f'{queue.path}/new')
    assert directory.names() == directory.names() != []
    del directory
    assert open_files() - before == set()
