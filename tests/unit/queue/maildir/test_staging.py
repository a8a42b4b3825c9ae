"""The two-phase put: what survives, what is left, and in which order it is made to survive."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir import files as store
from pyramid_sendmail.queue.maildir.format import STATE_AT, encode
from tests.support.folders import folder as tmp_path
from tests.support.queues import (
    NOW,
    Clock,
    claimed,
    crashes,
    files,
    forked,
    interrupted_rename,
    make_envelope,
    open_files,
    reap,
    sent,
    until,
)

__all__ = ['tmp_path']


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    return queue


class Calls:
    """Records system calls, and makes some of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, str]] = []
        self.failing: Callable[[str, str], int | None] = lambda call, path: None
        for name in ('open', 'pwrite', 'posix_fadvise', 'fsync', 'rename', 'unlink'):
            monkeypatch.setattr(os, name, self._wrapper(name, getattr(os, name)))

    def _wrapper(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(target: Any, *args: Any, **options: Any) -> Any:
            folder = options.get('dir_fd', options.get('src_dir_fd'))
            path = os.readlink(f'/proc/self/fd/{target}') if isinstance(target, int) else target
            if folder is not None:
                path = os.readlink(f'/proc/self/fd/{folder}') + f'/{target}'
            path = '/'.join(Path(path).parts[-2:])
            error = self.failing(name, path)
            if error:
                raise OSError(error, os.strerror(error), path)
            self.made.append((name, path))
            return call(target, *args, **options)

        return wrapper


def _three() -> list[Any]:
    return [make_envelope(f'r{n}@example.org') for n in range(3)]


# Order and number of syncs


def test_a_mail_is_synced_before_it_is_published(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, synced, renamed, and then the folder: a power cut at any point keeps the promise."""
    calls = Calls(monkeypatch)
    put = queue.put([make_envelope()])
    name = put.tickets[0].order
    voted = [call for call in calls.made if call[0] != 'open']
    assert voted == [
        ('pwrite', f'tmp/{name}'),
        ('pwrite', f'tmp/{name}'),
        ('fsync', f'tmp/{name}'),
    ]
    del calls.made[:]
    put.publish()
    published = [call for call in calls.made if call[0] != 'open']
    assert published == [
        ('pwrite', f'tmp/{name}'),
        ('rename', f'tmp/{name}'),
        ('fsync', 'queue/new'),
    ]


@pytest.mark.parametrize('mails', [10, 100])
def test_ten_mails_are_ten_syncs_and_one_of_the_folder(
    queue: MaildirQueue, mails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of ten mails, or of a hundred, syncs each file once, and the folder once."""
    calls = Calls(monkeypatch)
    queue.put([make_envelope() for _ in range(mails)]).publish()
    synced = [path for call, path in calls.made if call == 'fsync']
    assert len(synced) == len(set(synced)) == mails + 1
    assert synced[-1] == 'queue/new'
    assert all(path.startswith('tmp/') for path in synced[:-1])


def test_the_vote_of_the_record_comes_after_its_followers(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says that the transaction may commit only once every follower is on disk, and it
    is the last to be synced, and the last to move."""
    calls = Calls(monkeypatch)
    put = queue.put(_three())
    record = f'tmp/{put.tickets[0].order}'
    synced = [path for call, path in calls.made if call == 'fsync']
    vote = max(n for n, call in enumerate(calls.made) if call == ('pwrite', record))
    assert synced[-1] == record
    assert vote > calls.made.index(('fsync', synced[-2]))
    put.publish()
    moved = [path for call, path in calls.made if call == 'rename']
    assert len(moved) == 3
    assert moved[-1] == record


def test_mails_of_a_transaction_are_written_before_one_is_synced(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All syncs come after all writes but that of the vote, and the system has the hint for each
    file before the first sync: they wait for the disk at the same time."""
    calls = Calls(monkeypatch)
    queue.put(_three())
    made = [call for call, _ in calls.made if call != 'open']
    syncs = ['posix_fadvise'] * 2 + ['fsync'] * 2
    assert made == [*['pwrite'] * 3, *syncs, 'pwrite', 'fsync']


def test_a_hint_that_is_not_taken_changes_nothing(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system, or a file system, that knows no such hint has the mail synced all the same."""
    calls = Calls(monkeypatch)
    calls.failing = lambda call, path: errno.EINVAL if call == 'posix_fadvise' else None
    queue.put(_three()).publish()
    monkeypatch.setattr(store, '_CAN_ADVISE', False)
    monkeypatch.delattr(os, 'posix_fadvise')
    queue.put(_three()).publish()
    assert len(files(queue)) == 6
    assert len([call for call, _ in calls.made if call == 'fsync']) == 8


@pytest.mark.parametrize('size', [1000, 262_143, 262_144, 3_000_000])
def test_a_mail_of_any_size_is_in_its_file(queue: MaildirQueue, size: int) -> None:
    """A large mail is written without a copy of it, and read back as it was."""
    mails = [replace(make_envelope(), raw=b'Subject: x\r\n\r\n' + b'y' * size) for _ in range(2)]
    put = queue.put(mails)
    put.publish()
    for ticket, mail in zip(put.tickets, mails, strict=True):
        path = Path(queue.path, 'new', ticket.order)
        assert path.read_bytes() == encode(mail, 'C')


def test_a_large_transaction_has_few_files_open_at_once(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More mails than a process may have open files are put, each of them synced."""
    most = 0
    calls = Calls(monkeypatch)

    def opened(call: str, path: str) -> None:
        nonlocal most
        most = max(most, len(open_files() - before))

    before = open_files()
    calls.failing = opened
    queue.put([make_envelope(f'r{n}@example.org') for n in range(160)]).publish()
    assert 50 <= most <= 53
    assert len(files(queue)) == 160
    assert len({path for call, path in calls.made if call == 'fsync'}) == 161


def test_without_sync_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mail.queue_sync = off asks for no fsync at all."""
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    calls = Calls(monkeypatch)
    queue.put(_three()).publish()
    queue.sync()
    assert not {'fsync', 'posix_fadvise'} & {call for call, _ in calls.made}
    assert len(files(queue)) == 3


# Errors


@pytest.mark.parametrize(
    'error', [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.EIO]
)
@pytest.mark.parametrize('call', ['open', 'pwrite', 'fsync'])
@pytest.mark.parametrize('nth', [1, 2, 3])
def test_a_put_that_fails_leaves_nothing(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, error: int, call: str, nth: int
) -> None:
    """A full or read-only disk votes no, with a remedy, and leaves nothing to be found later."""
    calls = Calls(monkeypatch)
    count = 0

    def failing(name: str, path: str) -> int | None:
        nonlocal count
        count += name == call
        return error if name == call and count == nth else None

    calls.failing = failing
    with pytest.raises(QueueError, match='cannot take the mail') as caught:
        queue.put(_three())
    assert caught.value.errno == error
    assert queue.path in str(caught.value)
    assert files(queue) == []
    queue.put(_three()).publish()
    assert len(queue.scan(NOW)[0]) == 3


def test_an_interrupted_put_leaves_nothing(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only errors: a KeyboardInterrupt in the vote leaves nothing either."""

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue.put(_three())
    assert files(queue) == []


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the error comes out of put, and nothing is left."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()

    def work() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        with pytest.raises(QueueError):
            queue.put([make_envelope(), make_envelope(body='x' * 9000)])
        assert files(queue) == []

    assert reap(forked(work)) == 0


def test_an_error_of_another_user_names_the_remedy(tmp_path: Path) -> None:
    """The vote of a process of another user fails, and says which user to run as."""
    path = tmp_path / 'queue'
    MaildirQueue(str(path)).prepare()
    os.chown(path, 12345, -1) if os.geteuid() == 0 else pytest.skip('chown needs root')
    queue = MaildirQueue(str(path), clock=Clock())
    with pytest.raises(QueueError, match=r'belongs to user 12345.*as user 12345'):
        queue.put([make_envelope()])
    assert files(queue) == []
    with pytest.raises(QueueError, match='belongs to user 12345'):
        queue.prepare()


def test_put_makes_what_is_missing(tmp_path: Path) -> None:
    """The first mail makes the queue, and so does the next one after the queue was removed."""
    queue = MaildirQueue(str(tmp_path / 'not' / 'there'), clock=Clock())
    queue.put([make_envelope()]).publish()
    shutil.rmtree(tmp_path / 'not')
    queue.put([make_envelope()]).publish()
    assert len(queue.scan(NOW)[0]) == 1


def test_files_are_private_from_the_start(tmp_path: Path) -> None:
    """Mail is never readable by others, not even while it is written."""
    old = os.umask(0)
    try:
        queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
        put = queue.put([make_envelope(), make_envelope()])
        modes = {stat.S_IMODE((tmp_path / 'queue' / path).stat().st_mode) for path in files(queue)}
        assert modes == {0o600}
        put.publish()
    finally:
        os.umask(old)


# Publish, discard


def test_a_publish_that_cannot_move_is_completed_by_a_processor(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Committed mail that cannot be moved now is a CRITICAL line, and moved by the next scan."""
    envelopes = _three()
    put = queue.put(envelopes)
    calls = Calls(monkeypatch)
    moved = 0

    def failing(name: str, path: str) -> int | None:
        nonlocal moved
        moved += name == 'rename'
        return errno.EIO if name == 'rename' and moved == 2 else None

    calls.failing = failing
    put.publish()
    assert [record.levelname for record in caplog.records] == ['CRITICAL']
    assert all(envelope.message_id in caplog.text for envelope in envelopes)
    assert len([path for path in files(queue) if path.startswith('tmp/')]) == 2
    calls.failing = lambda name, path: None
    assert len(queue.scan(NOW)[0]) == 3
    assert all(path.startswith('new/') for path in files(queue))


def test_a_letter_that_cannot_be_written_stops_no_commit(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where C cannot be written but the files can be moved, the mail is published all the same."""
    put = queue.put(_three())
    calls = Calls(monkeypatch)
    calls.failing = lambda name, path: errno.EIO if name == 'pwrite' else None
    put.publish()
    assert len(queue.scan(NOW)[0]) == 3


def test_publish_makes_a_missing_folder(queue: MaildirQueue) -> None:
    """If new/ was removed between vote and finish, the mail is published nevertheless."""
    put = queue.put(_three())
    os.rmdir(f'{queue.path}/new')
    put.publish()
    assert len(queue.scan(NOW)[0]) == 3


@pytest.mark.parametrize('second', ['publish', 'discard', 'keep_in_doubt'])
@pytest.mark.parametrize('nth', [1, 2, 3])
def test_an_interrupted_publish_is_completed_by_any_call(
    queue: MaildirQueue, second: str, nth: int
) -> None:
    """A KeyboardInterrupt in finish: whatever is called next completes the publishing."""
    put = queue.put(_three())
    with interrupted_rename(nth):
        put.publish()
    getattr(put, second)()
    assert len(queue.scan(NOW)[0]) == 3
    assert all(path.startswith('new/') for path in files(queue))


@pytest.mark.parametrize('nth', [1, 2, 3])
def test_a_discard_that_cannot_remove_leaves_it_to_recovery(
    queue: MaildirQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nth: int,
) -> None:
    """Mail of an aborted transaction that cannot be removed now is removed by the next scan, and
    never taken for mail in doubt."""
    put = queue.put(_three())
    calls = Calls(monkeypatch)
    removed = 0

    def failing(name: str, path: str) -> int | None:
        nonlocal removed
        removed += name == 'unlink'
        return errno.EIO if name == 'unlink' and removed >= nth else None

    calls.failing = failing
    put.discard()
    put.discard()
    assert 'aborted' in caplog.text
    assert len(files(queue)) == 4 - nth
    calls.failing = lambda name, path: None
    caplog.clear()
    assert queue.scan(NOW) == ([], None)
    assert files(queue) == []
    assert 'in doubt' not in caplog.text


def test_discard_of_what_was_never_made_removes_nothing(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that finds its name taken does not remove the other's file."""
    envelope = make_envelope()
    put = queue.put([envelope])
    monkeypatch.setattr('pyramid_sendmail.queue.maildir.staging.time.sleep', lambda seconds: None)
    with pytest.raises(QueueError):
        queue.put([envelope])
    put.publish()
    assert len(queue.scan(NOW)[0]) == 1


def test_a_child_that_inherits_a_put_cannot_touch_it(queue: MaildirQueue) -> None:
    """A fork between vote and finish: the child's copy of the put has no lock, and no descriptor
    that could write into another file by now."""
    put = queue.put(_three())
    record = Path(queue.path, 'tmp', put.tickets[0].order)

    def work() -> None:
        others = [os.open('/dev/null', os.O_RDWR) for _ in range(3)]
        put.keep_in_doubt()
        for descriptor in others:
            os.fstat(descriptor)

    assert reap(forked(work)) == 0
    assert record.read_bytes()[STATE_AT : STATE_AT + 1] == b'V'
    assert MaildirQueue(queue.path, clock=Clock()).scan(NOW) == ([], None), 'still locked'
    put.publish()
    assert len(queue.scan(NOW)[0]) == 3


# Crashes


@pytest.mark.slow
def test_a_crash_at_any_call_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The process stopped after each system call of put and publish: all mails of the transaction
    have one outcome, by the table: removed, in doubt, or published."""
    path = tmp_path / 'queue'
    events: list[str] = []

    def work() -> None:
        queue = MaildirQueue(str(path), clock=Clock())
        put = queue.put(_three())
        put.publish()

    def check() -> None:
        queue = MaildirQueue(str(path), clock=Clock())
        queue.prepare()
        tickets, _ = queue.scan(NOW)
        assert len(tickets) in (0, 3)
        assert len(files(queue)) == len(tickets)
        claims = [queue.claim(ticket) for ticket in tickets]
        assert len({claim.envelope.id for claim in claims if claim}) == len(tickets)
        folders = {ticket.state for ticket in tickets}
        assert folders in (set(), {'done'}, {'new'})
        events.append({'done': 'in doubt', 'new': 'published'}.get(''.join(folders), 'removed'))
        for claim in claims:
            assert claim is not None
            assert (claim.todo == ()) is (folders == {'done'})
            claim.release()
        shutil.rmtree(path)

    steps = crashes(work, check)
    assert steps > 30
    order = ['removed', 'in doubt', 'published']
    assert sorted(events, key=order.index) == events, 'each phase comes once'
    assert set(events) == set(order)


def test_a_writer_may_find_its_new_file_gone(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that takes a file just made, not yet locked, for a dead one and removes it only
    costs a second try."""
    other = MaildirQueue(queue.path, clock=Clock())
    flock = fcntl.flock
    raced = 0

    def racing(descriptor: int, operation: int) -> None:
        nonlocal raced
        name = os.readlink(f'/proc/self/fd/{descriptor}')
        if '/tmp/5-' in name and operation & fcntl.LOCK_EX and not raced:
            raced = 1
            other.scan(NOW)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', racing)
    queue.put([make_envelope()]).publish()
    assert raced
    claim = claimed(queue)
    claim.release()


def test_recovery_leaves_a_live_writer_alone(queue: MaildirQueue) -> None:
    """Processors that scan all the time touch no transaction that is in progress."""
    stop = Path(queue.path, 'stop')

    def scan() -> None:
        other = MaildirQueue(queue.path, clock=Clock())
        while not stop.exists():
            other.scan(NOW)

    pids = [forked(scan) for _ in range(2)]
    for n in range(60):
        put = queue.put(_three())
        if n % 3:
            put.publish()
        else:
            put.discard()
    stop.touch()
    assert [reap(pid) for pid in pids] == [0, 0]
    until(lambda: len(queue.scan(NOW)[0]) == 120)
    assert len(files(queue)) == 120
    assert all(path.startswith('new/') for path in files(queue))


class Interrupting:
    """Raises KeyboardInterrupt at the nth line of the queue's modules, as Ctrl-C may."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        if '/queue/maildir/' not in frame.f_code.co_filename:
            return None
        if event == 'line':
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], object]) -> bool:
        """Return whether the interrupt came."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def test_an_interrupt_leaves_no_file_locked(queue: MaildirQueue) -> None:
    """Wherever the interrupt comes in finish, the call that follows it completes the rest: all mail
    can be claimed while this process lives, and a processor was woken."""
    other = MaildirQueue(queue.path, clock=Clock())
    nth = 1
    while True:
        put = queue.put([make_envelope(), make_envelope()])
        interrupted = Interrupting(nth).during(put.publish)
        put.publish()
        assert queue.wait(0) is True
        claims = [other.claim(ticket) for ticket in other.scan(NOW)[0]]
        assert len(claims) == 2, nth
        for claim in claims:
            assert claim is not None, nth
            claim.settle([sent(claim.envelope)], report=False)
        if not interrupted:
            break
        nth += 1
    assert nth > 40


def test_an_interrupted_release_leaves_no_file_locked(queue: MaildirQueue) -> None:
    """A second release unlocks what the first one did not."""
    queue.put([make_envelope()]).publish()
    other = MaildirQueue(queue.path, clock=Clock())
    nth = 1
    while True:
        claim = claimed(queue)
        interrupted = Interrupting(nth).during(claim.release)
        claim.release()
        again = other.claim(other.scan(NOW)[0][0])
        assert again is not None, nth
        again.release()
        if not interrupted:
            break
        nth += 1
    assert nth > 8
