"""The folders above the queue: a user that may write to one of them can replace the queue."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from tests.support.queues import NOW, Clock, make_envelope, reap
from tests.support.queues import forked as fork

as_root = pytest.mark.skipif(os.geteuid() != 0, reason='to give files away needs root')

STRANGER = 52003


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A queue's path, two folders deep."""
    root = tmp_path / 'srv' / 'app' / 'queue'
    root.parent.mkdir(parents=True)
    return root


@pytest.mark.parametrize(('umask', 'mode'), [(0o000, 0o755), (0o022, 0o755), (0o077, 0o700)])
def test_missing_parents_are_not_open_to_others(tmp_path: Path, umask: int, mode: int) -> None:
    """Made 0755 at most, whatever the umask; the queue itself is private."""

    def work() -> None:
        os.umask(umask)
        MaildirQueue(str(tmp_path / 'one' / 'two' / 'queue')).put([make_envelope()]).publish()

    assert reap(fork(work)) == 0
    for path in (tmp_path / 'one', tmp_path / 'one' / 'two'):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / 'one' / 'two' / 'queue').stat().st_mode) == 0o700


@pytest.mark.parametrize('level', [0, 1])
def test_a_parent_that_every_user_may_write_to_is_refused(root: Path, level: int) -> None:
    """The error names the folder and what to do, and nothing is made."""
    root.parents[level].chmod(0o777)
    queue = MaildirQueue(str(root))
    for use in (queue.prepare, lambda: queue.put([make_envelope()])):
        with pytest.raises(QueueError, match=f'chmod o-w {root.parents[level]},'):
            use()
    assert not root.exists()
    root.parents[level].chmod(0o1777)
    queue.prepare()


def test_a_parent_is_looked_at_again(root: Path) -> None:
    """A folder that is opened to all while the queue is in use stops the next scan and put."""
    clock = Clock()
    queue = MaildirQueue(str(root), clock=clock)
    queue.prepare()
    root.parent.chmod(0o777)
    clock.now += 60
    with pytest.raises(QueueError, match='chmod o-w'):
        queue.scan(NOW)
    with pytest.raises(QueueError, match='chmod o-w'):
        queue.put([make_envelope()])
    root.parent.chmod(0o755)
    queue.scan(NOW)


def test_what_a_link_leads_through_is_looked_at(root: Path, tmp_path: Path) -> None:
    """A link above the queue is accepted, if no other user may write to the folders behind it."""
    target = tmp_path / 'disk' / 'app'
    target.mkdir(parents=True)
    root.parent.rmdir()
    root.parent.symlink_to('../disk/app')
    MaildirQueue(str(root)).prepare()
    assert (target / 'queue' / 'new').is_dir()
    target.parent.chmod(0o777)
    with pytest.raises(QueueError, match=f'chmod o-w {target.parent}'):
        MaildirQueue(str(root)).prepare()


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    """It ends, with the system's own error."""
    (tmp_path / 'a').symlink_to('b')
    (tmp_path / 'b').symlink_to('a')
    with pytest.raises(QueueError, match='cannot be created: Too many levels'):
        MaildirQueue(str(tmp_path / 'a' / 'queue')).prepare()


@as_root
def test_a_strangers_folder_below_a_sticky_one_is_refused(root: Path) -> None:
    """In a folder such as /tmp each user can replace what is theirs."""
    root.parents[1].chmod(0o1777)
    os.chown(root.parent, STRANGER, STRANGER)
    with pytest.raises(QueueError, match=f'belongs to user {STRANGER}, who can replace it'):
        MaildirQueue(str(root)).prepare()


@as_root
@pytest.mark.parametrize('case', ['group', 'user'])
def test_who_else_can_replace_the_queue_is_logged_once(
    root: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """A group, or another owner, is a warning: it may be the administrator."""
    if case == 'group':
        os.chown(root.parent, 0, STRANGER)
        root.parent.chmod(0o775)
    else:
        os.chown(root.parent, STRANGER, 0)
    queue = MaildirQueue(str(root))
    queue.prepare()
    queue.prepare()
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert f'{case} {STRANGER}' in record.getMessage()
    assert f'may write to {root.parent}, and so replace the queue' in record.getMessage()
