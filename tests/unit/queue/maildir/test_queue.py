"""The queue's folders and names: what is made, found, adopted, and moved to failed/."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.exceptions import DamagedMail, QueueError
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.filename import parse, record_of, ticket_of
from pyramid_sendmail.queue.ticket import Ticket
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
    open_to_others,
    reap,
    sent,
    the_file,
)

DAY = 24 * 3600.0


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    return queue


def _defer(queue: MaildirQueue, envelope: Any, until: float) -> None:
    claimed(queue).settle([deferred(envelope)], retry_at=until, report=False)


# Making it


@pytest.mark.parametrize('missing', ['tmp', 'new', 'cur', 'done', 'failed'])
def test_a_half_made_queue_is_completed(tmp_path: Path, missing: str) -> None:
    """If a process died while the folders were made, or one was removed, the next use makes it."""
    for work in ('put', 'scan', 'check_writable', 'prepare'):
        queue = MaildirQueue(str(tmp_path / work), clock=Clock())
        queue.prepare()
        queue.put([make_envelope()]).publish()
        shutil.rmtree(tmp_path / work / missing)
        if work == 'put':
            queue.put([make_envelope()]).publish()
        elif work == 'scan':
            tickets, next_due = queue.scan(NOW)
            assert tickets or missing == 'new' or next_due == NOW, 'scan again, now'
        else:
            getattr(queue, work)()
        queue.check_writable()
        assert (tmp_path / work / missing).is_dir()
        assert len(queue.scan(NOW)[0]) == (work == 'put') + (missing != 'new')


def test_many_may_make_it_at_once(tmp_path: Path) -> None:
    """Twenty processes use a queue that is not there yet: none fails, and no mail is lost."""
    path = str(tmp_path / 'deep' / 'queue')
    go = tmp_path / 'go'

    def work() -> None:
        while not go.exists():
            time.sleep(0.001)
        queue = MaildirQueue(path, clock=Clock())
        queue.prepare()
        queue.put([make_envelope()]).publish()

    pids = [forked(work) for _ in range(20)]
    go.touch()
    assert [reap(pid) for pid in pids] == [0] * 20
    assert len(MaildirQueue(path, clock=Clock()).scan(NOW)[0]) == 20


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    """The error names the queue and is a QueueError, not a bug."""
    (tmp_path / 'queue').write_text('')
    with pytest.raises(QueueError, match='cannot be created') as caught:
        MaildirQueue(str(tmp_path / 'queue')).prepare()
    assert caught.value.filename == str(tmp_path / 'queue')


def test_locks_without_effect_are_refused(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a second open gets the lock too, as on some network file systems, no mail is sent."""
    monkeypatch.setattr(fcntl, 'flock', lambda descriptor, operation: None)
    with pytest.raises(QueueError, match=r'mail\.queue_path to a local disk'):
        queue.prepare()


def test_a_file_system_without_locks_is_refused(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one where flock is an error."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(QueueError, match='cannot lock its files: No locks available'):
        queue.prepare()


def test_probes_are_not_left_behind(queue: MaildirQueue) -> None:
    """prepare and check leave the five folders and the trigger, and nothing else."""
    queue.prepare()
    queue.check_writable()
    assert sorted(path.name for path in Path(queue.path).iterdir()) == sorted(
        ['tmp', 'new', 'cur', 'done', 'failed', 'trigger']
    )


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EROFS])
def test_check_tells_that_nothing_can_be_recorded(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A full or read-only queue is found out before anything is sent."""

    def write(descriptor: int, data: bytes) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', write)
        with pytest.raises(QueueError, match='cannot record') as caught:
            queue.check_writable()
    assert caught.value.errno == error
    queue.check_writable()


def test_check_writes_all_of_its_probe(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for a part of the probe is full."""
    real = os.write
    written = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(real(descriptor, data[:1000]))
        return written[-1]

    monkeypatch.setattr(os, 'write', write)
    queue.check_writable()
    assert sum(written) == 4096


def test_check_finds_a_folder_that_cannot_be_written(queue: MaildirQueue) -> None:
    """Each folder has to take a rename, not only the place beside them."""
    if os.geteuid() != 0:
        pytest.skip('to become another user needs root')
    for path in [Path(queue.path), *Path(queue.path).iterdir()]:
        os.chown(path, 12345, 12345)
    os.chmod(queue.path, 0o755)
    open_to_others(Path(queue.path).parent)
    os.chown(f'{queue.path}/cur', 0, 0)

    def work() -> None:
        os.setuid(12345)
        with pytest.raises(QueueError, match=r'cur/ is not writable'):
            MaildirQueue(queue.path).check_writable()

    assert reap(forked(work)) == 0


def test_check_tells_what_is_in_the_way(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be created, and one that the system says is not writable, are errors."""
    with monkeypatch.context() as patch:
        patch.setattr(os, 'access', lambda name, mode, *, dir_fd: name != 'done')
        with pytest.raises(QueueError, match='done/ is not writable'):
            queue.check_writable()
    Path(queue.path, 'failed').rmdir()
    Path(queue.path, 'failed').write_text('')
    with pytest.raises(QueueError, match=r'cannot record .*: .*/failed is not a folder; see mail'):
        queue.check_writable()
    with pytest.raises(QueueError, match=r'cannot be created: .*/failed is not a folder; see mail'):
        queue.prepare()


def test_the_queue_says_what_it_is(queue: MaildirQueue) -> None:
    """The repr names the path."""
    assert repr(queue) == f'MaildirQueue({queue.path!r})'
    assert repr(queue._files) == f'QueueFiles({queue.path!r})'


# Names


def test_names_are_the_schedule() -> None:
    """Names sort as they are due, and say what they mean; digits are those of ASCII."""
    name = f'5-001700000000123-0002-{"a" * 32}'
    schedule = parse(name)
    assert schedule is not None
    assert (schedule.due, schedule.attempt, schedule.id) == (NOW + 0.123, 2, 'a' * 32)
    assert schedule.text == name
    assert parse(f'{name}:2,FS') == schedule, 'as a mail program has it'
    assert ticket_of('cur', name) == Ticket('deferred', name, 'a' * 32, NOW + 0.123)
    assert ticket_of('new', 'foreign') == Ticket('new', 'foreign', 'foreign', 0.0)
    for foreign in ('x', f'{name}x', f'4{name[1:]}', name.replace('17', '\u0661\u0667'), name[:-1]):
        assert parse(foreign) is None
    assert record_of(name) == name
    assert record_of(f'{name}.{name}') == name
    assert record_of(f'{name}.foreign') is None
    assert record_of('foreign') is None


def test_clocks_that_were_wrong_stop_no_retry(queue: MaildirQueue) -> None:
    """A retry later than the policy allows is due now; a time that the user asked for stays."""
    clock = queue._clock
    assert isinstance(clock, Clock)
    retried, planned = make_envelope(), make_envelope(due=NOW + 900 * DAY)
    clock.now = NOW + 800 * DAY
    queue.put([retried]).publish()
    claim = claimed(queue, clock.now)
    claim.settle([deferred(retried)], retry_at=clock.now + 60, report=False)
    clock.now = NOW
    queue.put([planned]).publish()
    claim = claimed(queue)
    assert claim.envelope == retried
    assert claim.todo == retried.recipients
    claim.release()
    assert queue.scan(NOW)[1] == NOW + 900 * DAY


def test_a_file_in_the_place_of_another_is_verified_again(queue: MaildirQueue) -> None:
    """A verified time is remembered for the file, not for its name."""
    id = '1' * 32
    later = NOW + DAY
    queue.put([make_envelope(id=id, due=later)]).publish()
    assert queue.scan(NOW) == ([], later)
    old = the_file(queue, 'new')
    # From another host, whose clock was ahead: the user did not ask for that day.
    other = MaildirQueue(f'{queue.path}-other', clock=Clock())
    other.put([make_envelope(id=id, queued_at=later)]).publish()
    the_file(other, 'new').rename(old)
    (ticket,), _ = queue.scan(NOW)
    assert ticket.order == old.name


def test_an_age_that_a_wrong_clock_gave_counts_from_now(queue: MaildirQueue) -> None:
    """A mail queued in the future is given up like any other: its age is not negative."""
    queue.put([make_envelope(queued_at=NOW + 800 * DAY, due=NOW)]).publish()
    claim = claimed(queue)
    assert claim.since == NOW
    claim.release()


def test_a_scan_that_fails_is_an_error_of_the_queue(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError of a scan becomes a QueueError with a remedy."""

    def scandir(path: str) -> Any:
        raise PermissionError(errno.EACCES, 'Permission denied', path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(QueueError, match='give this user the right'):
        queue.scan(NOW)


# What is ours under other names


@pytest.mark.parametrize('name', ['{name}:2,S', '{name}:2,', '{name}:2,FRS', 'welcome.eml', '{id}'])
@pytest.mark.parametrize('folder', ['new', 'cur'])
def test_a_renamed_file_is_still_ours(queue: MaildirQueue, name: str, folder: str) -> None:
    """A mail program, or a person, renames a file: it is sent as before, once, at its time."""
    envelope = make_envelope(due=NOW + 60)
    queue.put([envelope]).publish()
    path = the_file(queue, 'new')
    path.rename(Path(queue.path, folder, name.format(name=path.name, id=envelope.id)))
    for ticket in queue.scan(NOW)[0]:
        assert queue.claim(ticket) is None, 'its time has not come'
    assert queue.scan(NOW) == ([], NOW + 60)
    clock = queue._clock
    assert isinstance(clock, Clock)
    clock.now = NOW + 60
    claim = claimed(queue, NOW + 60)
    assert (claim.envelope, claim.todo, claim.attempt) == (envelope, envelope.recipients, 0)
    assert files(queue) == [f'{folder}/{path.name}']
    claim.settle([sent(envelope)], report=False)
    assert files(queue) == []


def test_a_renamed_retry_keeps_its_time(queue: MaildirQueue) -> None:
    """A deferred mail under a foreign name keeps its attempts and its time."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    _defer(queue, envelope, NOW + 60)
    path = the_file(queue, 'cur')
    path.rename(path.with_name('renamed.eml'))
    claim = claimed(queue)
    assert (claim.todo, claim.attempt) == ((), 1)
    claim.acknowledge(())
    assert files(queue) == [f'cur/{path.name}']


def test_opened_by_a_mail_program_while_it_is_sent(queue: MaildirQueue) -> None:
    """A file that is moved away while its mail is delivered is not sent again where it turns up."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    path = the_file(queue, 'new')
    path.rename(Path(queue.path, 'cur', f'{path.name}:2,S'))
    assert queue.claim(queue.scan(NOW)[0][0]) is None, 'it stays locked'
    claim.settle([sent(envelope)], report=False)
    claim = claimed(queue)
    assert claim.todo == ()
    claim.acknowledge(())
    assert files(queue) == []


def test_moved_away_while_it_is_deferred(
    queue: MaildirQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is removed while it is claimed is logged, and stops nothing."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claim = claimed(queue)
    the_file(queue, 'new').unlink()
    claim.settle([deferred(envelope)], retry_at=NOW + 60, report=False)
    assert 'its file was moved out of' in caplog.text
    assert files(queue) == []


# By hand from failed/ to new/


def test_moved_back_by_hand_only_the_failed_are_tried_again(queue: MaildirQueue) -> None:
    """mv failed/X new/: delivered recipients stay delivered, the others get a policy's whole
    patience again."""
    clock = queue._clock
    assert isinstance(clock, Clock)
    envelope = make_envelope('a@example.org', 'b@example.org', 'c@example.org')
    queue.put([envelope]).publish()
    first = [
        sent(envelope, 'a@example.org'),
        failed(envelope, 'b@example.org', group=1),
        deferred(envelope, 'c@example.org', group=2),
    ]
    claimed(queue).settle(first, retry_at=NOW + 60, report=False)
    clock.now = NOW + 60
    claim = claimed(queue, NOW + 60)
    claim.settle([failed(envelope, 'c@example.org', attempt=2)], report=False)
    path = the_file(queue, 'failed')
    clock.now = NOW + 30 * DAY
    path.rename(Path(queue.path, 'new', path.name))
    for _ in range(2):
        claim = claimed(queue, clock.now)
        assert claim.todo == ('b@example.org', 'c@example.org')
        assert (claim.attempt, claim.since, claim.interrupted) == (0, clock.now, '')
        assert claim.pending_events == []
        claim.release()
    claim = claimed(queue, clock.now)
    claim.settle([sent(envelope, 'b@example.org', 'c@example.org')], report=False)
    assert files(queue) == []


@pytest.mark.parametrize('name', ['{name}', 'again.eml'])
def test_moved_back_after_one_attempt(queue: MaildirQueue, name: str) -> None:
    """Also a mail that failed at its first attempt, and under a name that a person gave it."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claimed(queue).settle([failed(envelope)], report=False)
    path = the_file(queue, 'failed')
    path.rename(Path(queue.path, 'new', name.format(name=path.name)))
    claim = claimed(queue)
    assert (claim.todo, claim.attempt) == (envelope.recipients, 0)
    claim.settle([deferred(envelope)], retry_at=NOW + 60, report=False)
    assert files(queue)[0].startswith('cur/')


def test_a_crash_while_starting_over(queue: MaildirQueue) -> None:
    """The process stopped after each system call of the claim of what a person has moved back: it
    is tried again all the same, with a whole policy's patience."""
    envelope = make_envelope('a@example.org', 'b@example.org')
    queue.put([envelope]).publish()
    claimed(queue).settle(
        [sent(envelope, 'a@example.org'), failed(envelope, 'b@example.org', group=1)], report=False
    )
    path = the_file(queue, 'failed')
    data = path.read_bytes()

    def lay() -> None:
        for file in files(queue):
            Path(queue.path, file).unlink()
        Path(queue.path, 'new', path.name).write_bytes(data)

    def work() -> None:
        claimed(MaildirQueue(queue.path, clock=Clock())).release()

    def check() -> None:
        claim = claimed(queue)
        assert (claim.todo, claim.attempt, claim.pending_events) == (('b@example.org',), 0, [])
        assert claim.interrupted in ('', 'sending')
        claim.release()
        lay()

    lay()
    assert crashes(work, check) > 6


def test_a_deferred_mail_moved_by_hand_is_tried_now(queue: MaildirQueue) -> None:
    """mv cur/X new/: it need not wait any longer."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    _defer(queue, envelope, NOW + 7200)
    path = the_file(queue, 'cur')
    due = path.name.replace(f'{round((NOW + 7200) * 1000):015d}', f'{round(NOW * 1000):015d}')
    path.rename(Path(queue.path, 'new', due))
    claim = claimed(queue)
    assert claim.todo == envelope.recipients
    claim.release()


def test_a_settled_claim_does_not_touch_what_came_back(queue: MaildirQueue) -> None:
    """settled=True leaves a dead letter that was moved back for those that can send it."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    claimed(queue).settle([failed(envelope)], report=False)
    path = the_file(queue, 'failed')
    path.rename(Path(queue.path, 'new', path.name))
    before = Path(queue.path, 'new', path.name).read_bytes()
    (ticket,), _ = queue.scan(NOW)
    assert queue.claim(ticket, settled=True) is None
    assert Path(queue.path, 'new', path.name).read_bytes() == before


# What is not ours


FOREIGN: dict[str, Callable[[Path], object]] = {
    'empty': lambda path: path.write_bytes(b''),
    'noise': lambda path: path.write_bytes(b'\0' * 5000),
    'a message': lambda path: path.write_bytes(b'From: a@example.org\r\n\r\nHello.\r\n'),
    'a folder': lambda path: path.mkdir(),
    'a full folder': lambda path: (path / 'deep').mkdir(parents=True),
    'a link to nothing': lambda path: path.symlink_to('/nonexistent'),
    'a link to a mail': lambda path: path.symlink_to('../failed'),
    'a pipe': os.mkfifo,
}
NAMES = ['foreign', 'with blank', 'zeile\nzwei', b'\xff\xfe'.decode('utf-8', 'surrogateescape')]


@pytest.mark.parametrize('kind', FOREIGN)
@pytest.mark.parametrize('folder', ['new', 'cur'])
def test_foreign_files_are_moved_to_failed(
    queue: MaildirQueue, kind: str, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign file in new/ or cur/ is moved to failed/ with a reason, and the mail around it is
    delivered."""
    envelopes = [make_envelope(priority=priority) for priority in ('high', 'low')]
    queue.put(envelopes).publish()
    proper = f'5-{round(NOW * 1000):015d}-0000-{"f" * 32}'
    for name in [*NAMES, proper]:
        FOREIGN[kind](Path(queue.path, folder, name))
    sent_ids, reasons = [], {}
    for ticket in queue.scan(NOW)[0]:
        try:
            claim = queue.claim(ticket)
        except DamagedMail as error:
            reasons[error.name] = error.reason
        else:
            assert claim is not None
            sent_ids.append(claim.envelope.id)
            claim.settle([sent(claim.envelope)], report=False)
    assert sorted(sent_ids) == sorted(envelope.id for envelope in envelopes)
    assert sorted(reasons) == sorted([*NAMES, proper])
    assert sorted(files(queue)) == sorted(f'failed/{name}' for name in reasons)
    for name, reason in reasons.items():
        assert Path(queue.path, 'reasons', f'{name}.txt').read_text('utf-8') == f'{reason}\n'
    assert '\nzwei' not in caplog.text.replace('\\nzwei', '')
    assert queue.scan(NOW) == ([], None)


def test_dot_files_are_left_alone(queue: MaildirQueue) -> None:
    """A file whose name begins with a dot is not mail (maildir(5)), and stays."""
    Path(queue.path, 'new', '.rejected-1').write_text('x')
    assert queue.scan(NOW) == ([], None)
    assert files(queue) == ['new/.rejected-1']


def test_two_of_the_same_name_are_both_kept(queue: MaildirQueue) -> None:
    """A file moved to failed/ never takes the place of another."""
    for n in range(3):
        Path(queue.path, 'new', 'foreign').write_text(str(n))
        with pytest.raises(DamagedMail) as caught:
            claimed(queue)
        assert caught.value.raw == str(n).encode()
    texts = [Path(queue.path, file).read_text() for file in files(queue)]
    assert (files(queue), texts) == (
        ['failed/foreign', 'failed/foreign.1', 'failed/foreign.2'],
        ['0', '1', '2'],
    )


def test_two_processors_move_a_folder_to_failed_once(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be locked may be found by two: the second one finds it gone, and goes on."""
    Path(queue.path, 'new', 'foreign').mkdir()
    (ticket,), _ = queue.scan(NOW)
    other = MaildirQueue(queue.path, clock=Clock())
    real = os.stat
    raced: list[str] = []

    def stat(name: str, **options: Any) -> os.stat_result:
        if not raced:
            raced.append(name)
            with pytest.raises(DamagedMail):
                other.claim(ticket)
        return real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'stat', stat)
        assert queue.claim(ticket) is None
    assert files(queue) == ['failed/foreign']


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_a_file_that_cannot_be_moved_to_failed_stops_nothing(
    queue: MaildirQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """A mount point, say: it is logged, and left."""
    foreign = Path(queue.path, 'new', 'foreign')
    foreign.mkdir() if kind == 'folder' else foreign.write_text('?')

    def rename(*args: str, **folders: int) -> None:
        raise OSError(errno.EBUSY, 'Device or resource busy')

    (ticket,), _ = queue.scan(NOW)
    monkeypatch.setattr(os, 'rename', rename)
    assert queue.claim(ticket) is None
    assert 'cannot be moved to failed/' in caplog.text


def test_a_file_of_another_user_stops_nothing(tmp_path: Path) -> None:
    """A mail that this user may not read, because root has put it there, is moved to failed/; the
    others are sent."""
    if os.geteuid() != 0:
        pytest.skip('to become another user needs root')
    path = tmp_path / 'queue'
    queue = MaildirQueue(str(path), clock=Clock())
    envelope, locked = make_envelope(priority='low'), make_envelope(priority='high')
    queue.put([envelope, locked]).publish()
    for file in [path, *path.rglob('*')]:
        if locked.id not in file.name:
            os.chown(file, 12345, 12345)
    open_to_others(tmp_path)

    def work() -> None:
        os.setuid(12345)
        first, second = queue.scan(NOW)[0]
        with pytest.raises(DamagedMail, match='may not be read and written by user 12345'):
            queue.claim(first)
        claim = queue.claim(second)
        assert claim is not None
        claim.settle([sent(envelope)], report=False)

    assert reap(forked(work)) == 0
    assert [file.rpartition('-')[2] for file in files(queue)] == [locked.id]


def test_a_file_that_may_not_be_opened_is_moved_to_failed(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, from the system's answer, for users other than root."""
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)
    real = os.open

    def denied(path: str, *args: Any, **options: Any) -> int:
        if path.endswith(ticket.order):
            raise PermissionError(errno.EACCES, 'Permission denied')
        return real(path, *args, **options)

    monkeypatch.setattr(os, 'open', denied)
    with pytest.raises(DamagedMail, match='may not be read and written'):
        queue.claim(ticket)
    assert files(queue) == [f'failed/{ticket.order}']


def test_a_socket_is_no_mail(queue: MaildirQueue) -> None:
    """Nor is something that cannot be opened."""
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(f'{queue.path}/new')
        try:
            bound.bind('foreign')
        finally:
            os.chdir(here)
    with pytest.raises(DamagedMail, match='not a plain file'):
        claimed(queue)
    assert files(queue) == ['failed/foreign']


def test_other_errors_of_open_are_errors_of_the_queue(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files is not the mail's fault: no mail is moved to failed/ for it."""
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)

    def cannot(*args: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, 'Too many open files')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'open', cannot)
        with pytest.raises(QueueError, match='ulimit'):
            queue.claim(ticket)
    claimed(queue).release()


def test_other_errors_of_lock_are_errors_of_the_queue(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a lock that fails otherwise than by being held; nothing stays open."""
    queue.put([make_envelope()]).publish()
    (ticket,), _ = queue.scan(NOW)

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, 'flock', flock)
        with pytest.raises(QueueError, match='Input/output error'):
            queue.claim(ticket)
    assert queue._files._open == {}


def test_a_read_in_pieces_is_a_whole_read(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a read returns less than was requested, the rest is read."""
    envelope = make_envelope(body='x' * 5000)
    queue.put([envelope]).publish()
    real = os.pread
    monkeypatch.setattr(
        os, 'pread', lambda descriptor, size, at: real(descriptor, min(size, 100), at)
    )
    claim = claimed(queue)
    assert claim.envelope == envelope
    claim.release()


def test_a_file_exchanged_before_the_lock_is_not_claimed(
    queue: MaildirQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock the path may come to name another file: nothing is claimed then."""
    queue.put([make_envelope()]).publish()
    path = the_file(queue, 'new')
    flock = fcntl.flock

    def exchange(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            data = path.read_bytes()
            path.rename(tmp)
            path.write_bytes(data)
        flock(descriptor, operation)

    tmp = Path(queue.path, 'elsewhere')
    (ticket,), _ = queue.scan(NOW)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, 'flock', exchange)
        assert queue.claim(ticket) is None
    claimed(queue).release()
