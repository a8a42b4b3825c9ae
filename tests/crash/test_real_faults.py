"""Real full disks, read-only mounts, limits and foreign users: the queue says what is wrong, and
keeps what it has."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.processor.options import ProcessorOptions
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.permissions import user_name
from pyramid_sendmail.sending.attempt import attempt
from tests.crash.place import Place, Relay, mail
from tests.support.processes import in_child
from tests.support.queues import NOW, files, make_envelope

OTHER_USER = 65534

MANY = tuple(mail(digit, 'good', 'later') for digit in '123')


def _mount(*arguments: str) -> None:
    program = shutil.which('mount')
    if os.geteuid() or program is None:
        pytest.skip('needs root and mount, for a file system of its own (run it in a container)')
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'mount is not allowed here: {done.stderr.strip()}')


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KB."""
    mounted = tmp_path / 'disk'
    mounted.mkdir()
    _mount('-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', str(mounted))
    yield mounted
    subprocess.run(['umount', '-l', str(mounted)], check=True)


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A read-only view of ``tmp_path / 'queue'``, by a bind mount."""
    source, view = tmp_path / 'queue', tmp_path / 'view'
    MaildirQueue(str(source)).prepare()
    view.mkdir()
    _mount('--bind', str(source), str(view))
    subprocess.run(['mount', '-o', 'remount,ro,bind', str(view)], check=True)
    yield view
    subprocess.run(['umount', '-l', str(view)], check=True)


def fill(path: Path, *, leave: int = 0) -> None:
    """Write until the disk is full, and free so many bytes."""
    with suppress(OSError), path.open('wb', 0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - leave)


def _processor(place: Place, queue: MaildirQueue) -> QueueProcessor:
    return QueueProcessor(
        queue,
        Relay(place.ledger),
        place.dispatcher,
        place.recorder(),
        ProcessorOptions(workers=1, pause=0.0),
    )


def _queued(place: Place) -> MaildirQueue:
    queue = place.queue()
    queue.prepare()
    queue.put(place.mails).publish()
    place.committed |= {envelope.id for envelope in place.mails}
    return queue


@pytest.mark.parametrize('left', [0, 4096, 8192, 16384])
def test_a_disk_that_fills_up_while_mail_is_put(disk: Path, left: int) -> None:
    """Whatever room is left, the vote says no with a remedy, nothing stays in tmp/, and what was
    committed before is there."""
    queue = MaildirQueue(str(disk / 'queue'))
    queue.put([make_envelope(queued_at=NOW)]).publish()
    before = files(queue)
    fill(disk / 'filler', leave=left)
    with pytest.raises(QueueError, match='make room on the disk'):
        queue.put([make_envelope(body='x' * 9000) for _ in range(3)])
    assert files(queue) == before
    (disk / 'filler').unlink()
    queue.put([make_envelope() for _ in range(3)]).publish()
    assert len(files(queue)) == 4


def test_what_is_voted_is_published_on_a_full_disk(disk: Path) -> None:
    """The disk fills up between vote and finish: a rename and one byte need no room."""
    queue = MaildirQueue(str(disk / 'queue'))
    put = queue.put([make_envelope() for _ in range(3)])
    fill(disk / 'filler')
    put.publish()
    assert [name.partition('/')[0] for name in files(queue)] == ['new'] * 3


def test_a_partly_delivered_mail_is_recorded_on_a_full_disk(disk: Path) -> None:
    """The disk fills up after the claim: the letter of a delivered recipient has its place, and the
    mail is not sent again."""
    place = Place(disk, mails=MANY, kinds=('sent', 'error'))
    queue = _queued(place)
    claims = [queue.claim(ticket) for ticket in queue.scan(NOW)[0]]
    # What the ledger is about to say needs room, which a relay elsewhere would have.
    place.ledger.mark('x' * 8192)
    fill(disk / 'filler')
    place.ledger.clear()
    recorder, tally = place.recorder(), Tally()
    attempt([claim for claim in claims if claim is not None], place.connection(), recorder, tally)
    assert (tally.deferred, recorder.unrecorded) == (3, [])
    assert {name.partition('/')[0] for name in files(queue)} == {'cur'}
    place.forget()
    (disk / 'filler').unlink()
    place.drain()
    assert files(place.queue()) == []
    assert set(place.ledger.copies().values()) == {1}
    assert len(place.ledger.copies()) == 6


def test_a_full_disk_sends_nothing(disk: Path) -> None:
    """Without room for a probe the processor logs it and does not connect."""
    place = Place(disk, mails=MANY)
    queue = _queued(place)
    fill(disk / 'filler')
    with pytest.raises(QueueError, match='make room on the disk'):
        _processor(place, queue).run_once()
    assert len(files(queue)) == 3
    (disk / 'filler').unlink()
    assert place.ledger.lines('connected') == []
    place.forget()
    place.drain()
    assert set(place.ledger.copies().values()) == {1}


def test_a_read_only_mount(tmp_path: Path, frozen: Path) -> None:
    """A queue that is mounted read-only takes nothing, sends nothing, and says why."""
    place = Place(tmp_path, mails=MANY)
    _queued(place)
    place.forget()
    view = MaildirQueue(str(frozen), clock=place.clock)
    for work in (view.prepare, view.check_writable, lambda: view.put([make_envelope()])):
        with pytest.raises(QueueError, match='read-only'):
            work()
    (ticket, *_), _ = view.scan(NOW)
    with pytest.raises(QueueError, match='read-only'):
        view.claim(ticket)
    with pytest.raises(QueueError, match='read-only'):
        _processor(place, view).run_once()
    assert place.ledger.lines('connected') == []
    place.drain()
    assert set(place.ledger.copies().values()) == {1}


def _short_of_files(left: int) -> None:
    """Leave room for so many descriptors more."""
    used = max(int(name) for name in os.listdir('/proc/self/fd')) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + left, used + left))
    for descriptor in range(used):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.dup2(0, descriptor)


@pytest.mark.parametrize('left', range(10))
def test_too_few_descriptors(tmp_path: Path, left: int) -> None:
    """RLIMIT_NOFILE: a QueueError with the remedy, or it works; nothing is half done, no connection
    is made that could not be written down. A put needs the queue's six folders and a file."""
    place = Place(tmp_path, mails=MANY)
    queue = _queued(place)
    before = files(queue)
    place.forget()

    def put() -> None:
        short = place.queue()
        _short_of_files(left)
        if left >= 7:
            short.put([mail('9', 'good')])
            return
        with pytest.raises(QueueError, match='ulimit -n'):
            short.put([mail('9', 'good')])

    def process() -> None:
        processor = _processor(place, place.queue())
        _short_of_files(left)
        with pytest.raises(QueueError, match='ulimit -n'):
            processor.run_once()

    in_child(put)
    assert [name for name in files(queue) if not name.startswith('tmp/')] == before
    in_child(process)
    assert place.ledger.lines('connected') == []
    place.drain()
    assert set(place.ledger.copies().values()) == {1}


@pytest.mark.parametrize('size', [0, 1, 100, 2000])
def test_a_limit_of_the_size_of_files(tmp_path: Path, size: int) -> None:
    """RLIMIT_FSIZE: the vote says no, and leaves nothing; a processor sends nothing."""
    place = Place(tmp_path, mails=MANY)
    queue = _queued(place)
    before = files(queue)
    place.forget()

    def limited(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            with pytest.raises(QueueError, match='File too large'):
                work()

        return run

    in_child(limited(lambda: place.queue().put([make_envelope(body='x' * 3000)])))
    assert files(queue) == before
    in_child(limited(_processor(place, place.queue()).run_once))
    assert place.ledger.lines('connected') == []
    place.drain()
    assert set(place.ledger.copies().values()) == {1}


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, which those of pytest are not."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root, to become another user (a container)')
def test_another_user_is_an_error_at_the_start(public: Path) -> None:
    """A processor or an application that runs as another user ends with an error that says as whom
    to run; it does not go over the queue again and again without a word."""
    place = Place(public, mails=MANY)
    queue = _queued(place)
    before = files(queue)
    place.forget()

    def work(error: str) -> Callable[[], None]:
        def run() -> None:
            processor, own = _processor(place, place.queue()), place.queue()
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            for each in (processor.run_once, own.prepare, lambda: own.put([make_envelope()])):
                with pytest.raises(QueueError, match=error):
                    each()

        return run

    owners = f'belongs to user root, but this process runs as user {user_name(OTHER_USER)}'
    # If the root's mode keeps this user out, its owner cannot be read.
    in_child(work(f'Permission denied|{owners}'))
    os.chmod(place.path, 0o755)
    in_child(work(f'{owners}; run both'))
    assert files(queue) == before
    assert place.ledger.lines('connected') == []
