"""mail.queue_sync = vote: the folder is synced soon, and no commit waits for it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import late_sync as module
from pyramid_sendmail.queue.maildir.directory import Directory
from pyramid_sendmail.queue.maildir.late_sync import LateSync
from tests.support.folders import folder as tmp_path
from tests.support.queues import Clock, forked, make_envelope, reap, until

__all__ = ['tmp_path']

FOLDER = Directory('/')


class Syncs:
    """Counts syncs; each waits until ``go`` is set."""

    def __init__(self) -> None:
        self.count = 0
        self.folders: list[Directory] = []
        self.go = threading.Event()
        self.go.set()
        self.error: OSError | None = None

    def __call__(self, folder: Directory) -> None:
        self.folders.append(folder)
        assert self.go.wait(60)
        self.count += 1
        if self.error is not None:
            raise self.error


def test_a_commit_waits_for_no_sync_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced by the vote; publish returns while the disk is still busy with new/."""
    synced: list[str] = []
    go = threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        path = Path(os.readlink(f'/proc/self/fd/{descriptor}'))
        if path.name == 'new':
            assert go.wait(60)
        fsync(descriptor)
        synced.append('new' if path.name == 'new' else path.parent.name)

    monkeypatch.setattr(os, 'fsync', slow)
    queue = MaildirQueue(str(tmp_path / 'queue'), late_sync=True, clock=Clock())
    queue.put([make_envelope(), make_envelope()]).publish()
    assert len(os.listdir(tmp_path / 'queue/new')) == 2
    assert synced == ['tmp', 'tmp']
    go.set()
    until(lambda: synced[2:] == ['new'])
    queue.close()


def test_commits_share_a_sync() -> None:
    """Those that come while one sync runs have one more; none is forgotten."""
    syncs = Syncs()
    late = LateSync(syncs, '/queue')
    syncs.go.clear()
    for _ in range(5):
        late.request(FOLDER)
    syncs.go.set()
    until(lambda: syncs.count >= 1)
    for _ in range(20):
        late.request(FOLDER)
        time.sleep(0.001)
    until(lambda: not late._wanted)
    assert 2 <= syncs.count <= 7


def test_the_thread_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next commit starts another one."""
    monkeypatch.setattr(module, 'IDLE_TIME', 0.01)
    syncs = Syncs()
    late = LateSync(syncs, '/queue')
    for count in (1, 2):
        late.request(FOLDER)
        until(lambda count=count: syncs.count == count)
        until(lambda: not any('late sync' in each.name for each in threading.enumerate()))


def test_a_sync_that_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The commit is over, so it is logged, and the next one syncs again."""
    syncs = Syncs()
    syncs.error = OSError(errno.EIO, 'Input/output error')
    late = LateSync(syncs, '/queue')
    late.request(FOLDER)
    until(lambda: bool(caplog.records))
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert '/queue: new/ could not be synced' in record.getMessage()
    syncs.error = None
    late.request(FOLDER)
    until(lambda: syncs.count == 2)


def test_without_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system starts no more threads, the commit syncs by itself."""

    def fail(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    syncs = Syncs()
    late = LateSync(syncs, '/queue')
    monkeypatch.setattr(late._threads, 'start', fail)
    late.request(FOLDER)
    late.request(FOLDER)
    assert syncs.count == 2


def test_a_process_that_exits_syncs_first() -> None:
    """What is requested last is synced at exit, and a fork before it does no harm."""
    code = (
        'import os\n'
        'from pyramid_sendmail.queue.maildir import late_sync as module\n'
        'from pyramid_sendmail.queue.maildir.directory import Directory\n'
        'module._GATHER_TIME = 60.0\n'
        'say = lambda folder: print("synced", os.getpid(), flush=True)\n'
        'late = module.LateSync(say, "/queue")\n'
        'late.request(Directory("/"))\n'
        'if not os.fork():\n'
        '    late.request(Directory("/"))\n'
        '    raise SystemExit\n'
        'os.wait()\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True
    )
    lines = run.stdout.split('\n')[:-1]
    assert len(set(lines)) == 2, run


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_fork_while_the_disk_is_busy() -> None:
    """The child syncs what it publishes, and exits, though the parent has begun a sync."""
    syncs = Syncs()
    late = LateSync(syncs, '/queue')
    syncs.go.clear()
    late.request(FOLDER)
    until(late._syncing.locked)

    def work() -> None:
        signal.alarm(20)  # ends a child that waits for ever
        syncs.go = threading.Event()
        syncs.go.set()
        late.request(FOLDER)
        until(lambda: syncs.count == 1)
        late._finish(1.0)

    assert reap(forked(work)) == 0
    syncs.go.set()
    until(lambda: syncs.count == 1)


@pytest.mark.parametrize('moment', ['before', 'after'])
def test_a_queue_that_was_replaced(
    moment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is synced is the folder that the mail is in: that of the vote, where the new queue must
    not have a second one, or where the queue is replaced before the sync."""
    path = tmp_path / 'queue'
    queue = MaildirQueue(str(path), late_sync=True, clock=Clock())
    synced = Syncs()
    assert queue._late_sync is not None
    queue._late_sync._sync = synced
    put = queue.put([make_envelope()])
    if moment == 'after':
        put.publish()
    shutil.copytree(path, tmp_path / 'copy', ignore=shutil.ignore_patterns('trigger'))
    path.rename(tmp_path / 'old')
    (tmp_path / 'copy').rename(path)
    queue.check_writable()
    if moment == 'before':
        put.publish()
    until(lambda: synced.count == 1)
    [name] = os.listdir(tmp_path / 'old/new')
    assert synced.folders[0].path() == str(tmp_path / 'old/new')
    assert synced.folders[0].holds(name)
    queue.close()
