"""The FIFO that wakes a sleeping processor."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import stat
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.wakeup import WakeUp
from tests.support.queues import NOW, Clock, forked, make_envelope, open_files, reap, until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'trigger'


def _wait(wake_up: WakeUp) -> tuple[threading.Thread, list[float]]:
    """Wait in a thread, which notes when it was woken."""
    woken: list[float] = []

    def wait() -> None:
        if wake_up.wait(30):
            woken.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, woken


def test_a_pull_wakes_another_process_at_once(path: Path) -> None:
    """A publish in one process ends the sleep of another without delay."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    thread, woken = _wait(wake_up)
    assert reap(forked(WakeUp(QueueFiles(str(path.parent))).notify)) == 0
    pulled = time.monotonic()
    thread.join()
    assert woken[0] - pulled < 1
    wake_up.close()


def test_a_pull_before_the_wait_is_not_missed(path: Path) -> None:
    """What is published between a scan of the queue and the sleep after it ends the sleep."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    for _ in range(3):
        WakeUp(QueueFiles(str(path.parent))).notify()
    assert wake_up.wait(30) is True
    assert wake_up.wait(0) is False, 'one wake-up for both'
    wake_up.close()


def test_the_wait_costs_no_processor_time(path: Path) -> None:
    """Writers that come and go leave no end of file that would turn the sleep into a busy loop."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    for _ in range(3):
        WakeUp(QueueFiles(str(path.parent))).notify()
        assert wake_up.wait(30) is True
    before = resource.getrusage(resource.RUSAGE_THREAD)
    assert wake_up.wait(0.3) is False
    after = resource.getrusage(resource.RUSAGE_THREAD)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.1
    wake_up.close()


def test_the_names_of_new_files(path: Path) -> None:
    """Each is known once, from all writers; whatever else wakes means that a scan has to look."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    other = WakeUp(QueueFiles(str(path.parent)))
    other.notify(['a', 'b'])
    other.notify(['c'])
    assert wake_up.wait(30)
    assert wake_up.take_names() == ['a', 'b', 'c']
    assert wake_up.take_names() is None
    other.notify(['a'])
    other.notify()
    assert wake_up.wait(30)
    assert wake_up.take_names() is None
    other.notify(['a'])
    wake_up.wake()
    assert wake_up.wait(30)
    assert wake_up.take_names() is None
    other.notify(['a'])
    assert wake_up.wait(30)
    assert not wake_up.wait(0)
    assert wake_up.take_names() is None
    wake_up.close()


@pytest.mark.parametrize('pages', [1, 16])
@pytest.mark.parametrize('length', [56, 2100, 4096, 5000])
def test_no_name_is_missed(path: Path, pages: int, length: int) -> None:
    """Where the FIFO was so full that a name may have found no room, a scan has to look: whatever
    the size of the FIFO, and of what was written."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    assert wake_up._fifo is not None
    fcntl.fcntl(wake_up._fifo, fcntl.F_SETPIPE_SZ, pages * 4096)
    wake_up._room = fcntl.fcntl(wake_up._fifo, fcntl.F_GETPIPE_SZ) // 2
    other = WakeUp(QueueFiles(str(path.parent)))
    seen = Counter({True: 0, False: 0})
    most = 2 * pages * 4096 // length + 3
    for count in range(1, most, -(-most // 20)):
        for _ in range(count):
            other.notify(['x' * (length - 1)])
        assert wake_up.wait(30)
        names = wake_up.take_names()
        assert names is None or len(names) == count
        seen[names is None] += 1
    assert seen[True]
    assert seen[False] or length > min(pages * 2048, 4096)
    wake_up.close()


def test_a_queue_knows_what_is_new(tmp_path: Path) -> None:
    """The tickets of what was published, for a processor that need not scan for them; mail for
    later is found by a scan."""
    clock = Clock()
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=clock)
    queue.prepare()
    assert queue.take_new() is None
    envelopes = [make_envelope(), make_envelope(priority='high')]
    queue.put(envelopes).publish()
    assert queue.wait(30)
    tickets = queue.take_new()
    assert tickets is not None
    assert sorted(tickets, key=lambda ticket: ticket.order) == queue.scan(clock())[0]
    queue.put([make_envelope(), make_envelope(due=NOW + 60)]).publish()
    assert queue.wait(30)
    assert queue.take_new() is None
    queue.put([make_envelope()]).discard()
    assert not queue.wait(0)
    queue.close()


def test_it_is_private(path: Path) -> None:
    """No other user can wake this process, nor listen."""
    old = os.umask(0)
    try:
        wake_up = WakeUp(QueueFiles(str(path.parent)))
        wake_up.listen()
    finally:
        os.umask(old)
    mode = path.stat().st_mode
    assert stat.S_ISFIFO(mode)
    assert stat.S_IMODE(mode) == 0o600
    wake_up.close()


def test_without_a_listener(path: Path) -> None:
    """A pull without a wake_up, and one without a listener, does nothing and does not wait."""
    WakeUp(QueueFiles(str(path.parent))).notify()
    assert not path.exists()
    os.mkfifo(path)
    WakeUp(QueueFiles(str(path.parent))).notify()


def test_a_full_trigger_does_not_stop_a_publisher(path: Path) -> None:
    """As long as the listener does not read, pulls are dropped; it is awake by then anyway."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(descriptor, b'\0' * 4096):
            pass
    WakeUp(QueueFiles(str(path.parent))).notify()
    os.close(descriptor)
    assert wake_up.wait(30) is True
    wake_up.close()


@pytest.mark.parametrize('kind', ['file', 'folder', 'link', 'link to a pipe'])
def test_what_is_no_pipe_costs_time_not_mail(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Anything else in its place is left as it is, said once, and woken by wake all the same."""
    if kind == 'file':
        path.write_bytes(b'')
    elif kind == 'folder':
        path.mkdir()
    else:
        target = path.with_name('target')
        if kind == 'link to a pipe':
            os.mkfifo(target)
        path.symlink_to(target)
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    WakeUp(QueueFiles(str(path.parent))).notify()
    assert wake_up.wait(0) is False
    assert wake_up.wait(0) is False
    assert caplog.text.count('cannot be used as a wake-up FIFO') == 1
    wake_up.wake()
    assert wake_up.wait(30) is True
    if kind == 'file':
        assert path.read_bytes() == b''
    wake_up.close()


def test_a_pipe_that_cannot_be_written_stops_no_publisher(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that goes at the wrong moment is not an error of the commit."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()

    def write(descriptor: int, data: bytes) -> int:
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', write)
        WakeUp(QueueFiles(str(path.parent))).notify()
        wake_up.wake()
    wake_up.close()
    wake_up.close()


def test_close_gives_up_everything(path: Path) -> None:
    """close leaves no descriptor, and the wake_up can be used again."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.notify()  # opens the folder, which is not the FIFO's
    before = open_files()
    for _ in range(2):
        wake_up.listen()
        wake_up.listen()
        assert len(open_files() - before) == 3
        wake_up.close()
        assert open_files() - before == set()


def test_a_queue_that_is_dropped_leaves_nothing_open(path: Path) -> None:
    """An application that makes many queues, as tests do, does not run out of descriptors."""
    before = open_files()
    for _ in range(3):
        queue = MaildirQueue(str(path.parent), sync=False)
        queue.prepare()
        queue.wait(0)
        queue.put([make_envelope()]).publish()
        assert open_files() - before
        del queue
    assert open_files() - before == set()


def test_a_child_listens_for_itself(path: Path) -> None:
    """After a fork the child's wake wakes the child, and the parent sleeps on."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()

    def work() -> None:
        wake_up.wake()
        assert wake_up.wait(30) is True

    assert reap(forked(work)) == 0
    assert wake_up.wait(0) is False
    WakeUp(QueueFiles(str(path.parent))).notify()
    assert wake_up.wait(30) is True
    wake_up.close()


def test_another_reader_may_be_quicker(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors wake at one ``notify``, and one of them finds the pipe empty: no error."""
    wake_up = WakeUp(QueueFiles(str(path.parent)))
    wake_up.listen()
    other = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    class Racing:
        def __init__(self) -> None:
            self._poll = real()
            self.register = self._poll.register

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            ready = self._poll.poll(timeout)
            os.read(other, 100)
            return ready

    real = select.poll
    WakeUp(QueueFiles(str(path.parent))).notify()
    with monkeypatch.context() as patch:
        patch.setattr(select, 'poll', Racing)
        assert wake_up.wait(30) is True
    assert wake_up.wait(0) is False
    os.close(other)
    wake_up.close()


def test_a_publish_wakes_a_processor_that_sleeps(tmp_path: Path) -> None:
    """From a publish in another process to the end of the wait, with the mail ready to be
    claimed."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    found: list[int] = []

    def wait() -> None:
        assert queue.wait(30)
        found.append(len(queue.scan(NOW, fresh=True)[0]))

    thread = threading.Thread(target=wait)
    thread.start()
    publish = MaildirQueue(queue.path, clock=Clock())
    assert reap(forked(lambda: publish.put([make_envelope()]).publish())) == 0
    until(lambda: found)
    thread.join()
    assert found == [1]
    queue.close()


@pytest.mark.parametrize('case', ['removed', 'exchanged', 'the whole queue'])
def test_a_trigger_that_is_removed_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """Under a running processor: the next scan and wait notice it, say so, and mail wakes it."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    path = tmp_path / 'queue' / 'trigger'
    if case == 'the whole queue':
        path.parent.rename(tmp_path / 'old')
    else:
        path.unlink()
    if case == 'exchanged':
        os.mkfifo(path, 0o600)
    queue.scan(NOW)
    assert queue.wait(0) is True, 'mail may have come meanwhile'
    assert 'trigger was removed or replaced' in caplog.text
    caplog.clear()
    assert queue.wait(0) is False
    MaildirQueue(queue.path).put([make_envelope()]).publish()
    assert queue.wait(30) is True
    assert not caplog.records
    queue.close()


def test_a_trigger_that_cannot_be_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file took its place: a line says that the regular scan has to do; when the file has gone,
    the FIFO is back."""
    queue = MaildirQueue(str(tmp_path / 'queue'), clock=Clock())
    queue.prepare()
    path = tmp_path / 'queue' / 'trigger'
    path.unlink()
    path.write_text('')
    assert queue.wait(0) is False
    assert 'new mail is only noticed by the regular scan' in caplog.text
    path.unlink()
    assert queue.wait(0) is True
    MaildirQueue(queue.path).put([make_envelope()]).publish()
    assert queue.wait(30) is True
    queue.close()
