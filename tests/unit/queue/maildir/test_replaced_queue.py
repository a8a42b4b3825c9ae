"""A queue that is replaced between the vote and the finish of a transaction: no mail is lost, none
is sent twice, and a line says where it is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue
from tests.support.folders import folder as tmp_path
from tests.support.queues import NOW, Clock, files, interrupted_rename, make_envelope, sent

__all__ = ['tmp_path']

RECIPIENTS = [f'r{n}@example.org' for n in range(3)]


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    return queue


def _move(queue: MaildirQueue) -> Path:
    """Move the queue away; return where it is."""
    return Path(queue.path).rename(Path(queue.path).with_name('old'))


def _left(old: Path) -> list[str]:
    return sorted(f'{path.parent.name}/{path.name}' for path in old.glob('*/*') if path.is_file())


def _delivered(queue: MaildirQueue) -> list[str]:
    """Send what another process finds in the queue; return its recipients."""
    other = MaildirQueue(queue.path, clock=Clock())
    found: list[str] = []
    for ticket in other.scan(NOW)[0]:
        claim = other.claim(ticket)
        if claim is not None:
            found.extend(claim.todo)
            claim.settle([sent(claim.envelope)], report=False)
    return sorted(found)


def _make_new(queue: MaildirQueue) -> None:
    MaildirQueue(queue.path, clock=Clock()).prepare()


def _use_new(queue: MaildirQueue) -> None:
    """Another thread of the process sends mail meanwhile, and opens the new folders."""
    queue.put([make_envelope('other@example.org')]).publish()


@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('meanwhile', [lambda queue: None, _make_new, _use_new])
def test_the_mail_of_a_queue_that_was_moved_away(
    queue: MaildirQueue,
    caplog: pytest.LogCaptureFixture,
    count: int,
    meanwhile: Callable[[MaildirQueue], None],
) -> None:
    """It goes into the queue that has the path now, by the one rename that publishes it anyway, so
    that it is in one place at any time. One line says so."""
    envelopes = [make_envelope(to) for to in RECIPIENTS[:count]]
    put = queue.put(envelopes)
    old = _move(queue)
    meanwhile(queue)
    caplog.clear()
    put.publish()
    assert _left(old) == []
    [record] = [record for record in caplog.records if record.name.endswith('staging')]
    assert record.levelname == 'WARNING'
    assert 'goes into the new one' in record.getMessage()
    assert all(envelope.message_id in record.getMessage() for envelope in envelopes)
    others = ['other@example.org'] if meanwhile is _use_new else []
    assert _delivered(queue) == sorted(others + RECIPIENTS[:count])
    assert files(queue) == []


def _copy(queue: MaildirQueue, old: Path) -> None:
    shutil.copytree(old, queue.path, ignore=shutil.ignore_patterns('trigger'))


def _link(queue: MaildirQueue, old: Path) -> None:
    Path(queue.path).mkdir(0o700)
    Path(queue.path, 'new').symlink_to(old / 'new')


@pytest.mark.parametrize(
    ('replace', 'reason'),
    [
        (_copy, 'has a copy of it in tmp/'),
        (_link, 'cannot be used: '),
        (lambda queue, old: Path(queue.path).write_text('x'), 'is not a folder'),
    ],
)
def test_mail_that_could_be_doubled_or_lost_on_its_way(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, replace: Any, reason: str
) -> None:
    """It stays in the folder that was there at the vote, published; a CRITICAL line says where."""
    put = queue.put([make_envelope(to) for to in RECIPIENTS])
    old = _move(queue)
    replace(queue, old)
    caplog.clear()
    put.publish()
    assert [name.partition('/')[0] for name in _left(old)] == ['new'] * 3
    [record] = [record for record in caplog.records if record.name.endswith('staging')]
    assert record.levelname == 'CRITICAL'
    text = record.getMessage()
    assert all(each in text for each in (reason, str(old / 'new')))
    assert text.count('@web.example.org') == 3
    assert _delivered(MaildirQueue(str(old), clock=Clock())) == RECIPIENTS


@pytest.mark.skipif(
    os.stat('/dev/shm').st_dev == os.stat('/tmp').st_dev, reason='needs two file systems'
)
def test_a_queue_on_another_disk(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No rename leads there: the mail stays where it is, and the line says where."""
    here, there = Path(queue.path).parent, tmp_path_factory.mktemp('other')
    if os.stat(here).st_dev == os.stat(there).st_dev:
        pytest.skip('needs two file systems')
    for folder in (here, there):
        (folder / 'root').mkdir()
    current = here / 'current'
    current.symlink_to(here / 'root')
    own = MaildirQueue(str(current / 'mail'), clock=Clock())
    put = own.put([make_envelope()])
    current.unlink()
    current.symlink_to(there / 'root')
    put.publish()
    assert 'is on another file system' in caplog.text
    assert str(here / 'root' / 'mail' / 'new') in caplog.text
    assert len(_left(here / 'root' / 'mail')) == 1


def test_mail_of_an_abort_is_removed_where_it_is(queue: MaildirQueue) -> None:
    """Nothing of an aborted transaction is left in the old folder."""
    put = queue.put([make_envelope(to) for to in RECIPIENTS])
    old = _move(queue)
    _use_new(queue)
    put.discard()
    assert _left(old) == []
    assert _delivered(queue) == ['other@example.org']


def test_mail_in_doubt_stays_where_it_is(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """The line that says that it is kept says where."""
    put = queue.put([make_envelope()])
    old = _move(queue)
    put.keep_in_doubt()
    assert f'the mail is kept in {old}/tmp, as the queue was replaced' in caplog.text
    assert len(_left(old)) == 1


@pytest.mark.parametrize('count', [1, 3])
@pytest.mark.parametrize('remove', ['queue', 'tmp', 'files'])
def test_mail_that_was_removed_before_its_finish(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture, count: int, remove: str
) -> None:
    """The transaction has committed and its mail is still in memory: it is written again, once."""
    put = queue.put([make_envelope(to) for to in RECIPIENTS[:count]])
    root = Path(queue.path)
    if remove == 'files':
        for path in (root / 'tmp').iterdir():
            path.unlink()
    else:
        shutil.rmtree(root if remove == 'queue' else root / 'tmp')
    caplog.clear()
    put.publish()
    [text] = [each.getMessage() for each in caplog.records if each.levelname == 'CRITICAL']
    assert 'removed from tmp/ before it could be moved to new/, and was written again' in text
    assert text.count('@web.example.org') == count
    put.publish()
    assert _delivered(queue) == RECIPIENTS[:count]
    assert files(queue) == []


def test_one_file_of_three_that_was_removed(queue: MaildirQueue) -> None:
    """Only that one is written again."""
    envelopes = [make_envelope(to) for to in RECIPIENTS]
    put = queue.put(envelopes)
    [path] = Path(queue.path, 'tmp').glob(f'*{envelopes[1].id}.*')
    path.unlink()
    put.publish()
    assert _delivered(queue) == RECIPIENTS


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.ENOENT])
def test_mail_that_cannot_be_written_again(
    queue: MaildirQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    """Then it is lost, and a CRITICAL line says so: with a full disk, or where the files are
    removed each time."""
    put = queue.put([make_envelope()])
    rename, pwrite = os.rename, os.pwrite

    def removed(name: str, to: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.unlink(name, dir_fd=src_dir_fd)
        rename(name, to, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def full(descriptor: int, data: bytes, at: int) -> int:
        if len(data) > 1 and error == errno.ENOSPC:
            raise OSError(error, os.strerror(error))
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, 'rename', removed)
    monkeypatch.setattr(os, 'pwrite', full)
    put.publish()
    *_, text = [each.getMessage() for each in caplog.records if each.levelname == 'CRITICAL']
    assert ' and is lost (' in text
    assert ('make room' if error == errno.ENOSPC else 'a second time') in text
    assert files(queue) == []


@pytest.mark.parametrize('nth', [1, 2, 3])
def test_an_interrupt_makes_no_double(queue: MaildirQueue, nth: int) -> None:
    """A file that the interrupted call has moved is not taken for removed, even if it was delivered
    meanwhile; one that was removed behind it is."""
    envelopes = [make_envelope(to) for to in RECIPIENTS]
    put = queue.put(envelopes)
    with interrupted_rename(nth):
        put.publish()
    found = _delivered(queue)
    for path in Path(queue.path, 'tmp').glob(f'*{envelopes[2].id}.*'):
        path.unlink()
    put.publish()
    assert sorted(found + _delivered(queue)) == RECIPIENTS
