"""The file by which a queue processor shows that it runs."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.interfaces import IMonitoredQueue
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.heartbeat import _version
from tests.support.queues import NOW, Clock, make_envelope

DAY = 86_400.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, clock=clock)
    queue.prepare()
    return queue


def test_the_interface_is_kept(queue: MaildirQueue) -> None:
    """The queue on disk is one that can be monitored."""
    assert verifyObject(IMonitoredQueue, queue)


def renewed(queue: MaildirQueue) -> Path:
    queue.renew_heartbeat(NOW)
    return Path(queue.path) / 'processor'


def test_it_names_the_process(queue: MaildirQueue, clock: Clock) -> None:
    """It says which process runs, where, since when and of which release; its time is that of the
    last renewal, by the queue's own clock."""
    assert queue.last_heartbeat() is None
    clock.now = NOW + 60
    lines = dict(line.split(': ') for line in renewed(queue).read_text().splitlines())
    assert lines.pop('version')[0].isdigit()
    assert lines == {
        'pid': str(os.getpid()),
        'host': os.uname().nodename,
        'since': '2023-11-14T22:13:20+00:00',
    }
    assert queue.last_heartbeat() == NOW + 60
    clock.now = NOW - DAY  # the clock was set back
    renewed(queue)
    assert queue.last_heartbeat() == NOW - DAY
    assert sorted(os.listdir(queue.path)) == sorted(
        ['tmp', 'new', 'cur', 'done', 'failed', 'trigger', 'processor']
    )


def test_a_release_without_a_number(queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that is not installed has none; the heartbeat does not depend on it."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr('importlib.metadata.version', version)
    _version.cache_clear()
    assert 'version: unknown\n' in renewed(queue).read_text()
    _version.cache_clear()


@pytest.mark.parametrize(('group', 'mode'), [(False, 0o600), (True, 0o660)])
def test_mode(group: bool, mode: int, tmp_path: Path) -> None:
    """Private, or of both users of a shared queue, whatever the umask."""
    before = os.umask(0o077)
    try:
        queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, group=group)
        queue.prepare()
        path = renewed(queue)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    other = MaildirQueue(queue.path, sync=False, group=group)
    other.renew_heartbeat(NOW)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_in_its_place(queue: MaildirQueue, tmp_path: Path) -> None:
    """A link is replaced, not followed, and means no heartbeat."""
    victim = tmp_path / 'victim'
    victim.write_text('untouched')
    path = Path(queue.path) / 'processor'
    path.symlink_to(victim)
    assert queue.last_heartbeat() is None
    renewed(queue)
    assert victim.read_text() == 'untouched'
    assert not path.is_symlink()


def test_it_cannot_be_written(queue: MaildirQueue, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says what follows from that; a later success makes room for another."""
    path = Path(queue.path) / 'processor'
    path.mkdir()
    for _ in range(3):
        renewed(queue)
    assert queue.last_heartbeat() is None
    assert caplog.text.count('applications will warn that no queue processor runs') == 1
    path.rmdir()
    assert renewed(queue).is_file()
    assert [name for name in os.listdir(queue.path) if name.startswith('making')] == []


def test_a_folder_that_was_removed(
    queue: MaildirQueue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next scan makes the folder again; meanwhile nothing is logged."""
    os.rename(queue.path, tmp_path / 'away')
    os.unlink(tmp_path / 'away' / 'trigger')
    for name in ('tmp', 'new', 'cur', 'done', 'failed'):
        os.rmdir(tmp_path / 'away' / name)
    os.rmdir(tmp_path / 'away')
    queue.renew_heartbeat(NOW)
    assert queue.last_heartbeat() is None
    assert caplog.messages == []


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_folder(queue: MaildirQueue, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and raises nothing."""
    os.chmod(queue.path, 0o500)
    try:
        queue.renew_heartbeat(NOW)
    finally:
        os.chmod(queue.path, 0o700)
    assert os.strerror(errno.EACCES) in caplog.text


def test_a_queue_with_a_heartbeat_is_a_queue(queue: MaildirQueue) -> None:
    """The file does not make its folder look like another's."""
    renewed(queue)
    os.rmdir(f'{queue.path}/failed')
    again = MaildirQueue(queue.path, sync=False)
    again.prepare()
    again.put([make_envelope()]).publish()


def test_what_waits(queue: MaildirQueue, clock: Clock) -> None:
    """New and deferred mail is counted, and no hidden file; never further than the limit."""
    assert queue.count_waiting() == queue.count_waiting(0) == (0, None)
    queue.put([make_envelope(due=NOW + 60)]).publish()
    assert queue.count_waiting(1) == (1, None)
    for folder, name in (
        ('new', '.hidden'),
        ('failed', 'old'),
        ('done', 'old'),
        ('cur', 'foreign'),
    ):
        (Path(queue.path) / folder / name).touch()
    clock.now = NOW + 90
    assert queue.count_waiting() == queue.count_waiting(2) == (2, NOW + 60)
    assert queue.count_waiting(1) is queue.count_waiting(0) is None
    shutil.rmtree(queue.path)
    assert queue.count_waiting() == (0, None)
    Path(queue.path).touch()
    with pytest.raises(QueueError):
        queue.count_waiting()
