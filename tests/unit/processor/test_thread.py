"""``mail.processor = thread``: one queue processor in each web process."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail import QueueError
from pyramid_sendmail.interfaces import IMailQueueProcessor
from pyramid_sendmail.processor.thread import DRAIN_TIME, ProcessorThread
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.processes import PROCESSOR_THREAD
from tests.support.queues import NOW, make_envelope, until
from tests.support.smtp.server import ScriptedSMTPServer, reply

WAIT = 10.0


@implementer(IMailQueueProcessor)
class Processor:
    """Runs until it is stopped, or raises."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.runs = 0
        self.ended = 0
        self.woken = threading.Event()
        self.at_end: Callable[[], object] = lambda: None

    def run(self, stop: threading.Event) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        while not stop.is_set():
            self.woken.wait(WAIT)
        self.at_end()
        self.ended += 1

    def run_once(self, progress: Any = None, stop: Any = None) -> Any:
        raise NotImplementedError

    def wake(self) -> None:
        self.woken.set()


class Made:
    """Makes processors, and keeps them all."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = errors
        self.processors: list[Processor] = []

    def __call__(self) -> Processor:
        self.processors.append(Processor(*self.errors))
        return self.processors[-1]


def test_double() -> None:
    """The processor of these tests implements the interface."""
    assert verifyObject(IMailQueueProcessor, Processor())


def test_no_processor_before_the_first_request() -> None:
    """Neither the application's start nor a ``send`` in a script starts the processor."""
    made = Made()
    thread = ProcessorThread(made)
    thread.sent()
    thread.finish(WAIT)
    assert made.processors == []


def test_the_first_request_starts_it() -> None:
    """One processor in one thread, however many requests and mails come."""
    made = Made()
    thread = ProcessorThread(made)
    for _ in range(3):
        thread.serve()
        thread.sent()
    (processor,) = made.processors
    until(lambda: processor.runs == 1)
    thread.finish(WAIT)
    assert (processor.runs, processor.ended) == (1, 1)


class CountingLock:
    """A lock that counts the threads that ask for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = 0

    def __enter__(self) -> None:
        self.asked += 1
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_several_first_requests_at_once() -> None:
    """Requests that arrive at the same moment start one processor."""
    made = Made()
    lock: Any = CountingLock()

    def make() -> Processor:
        until(lambda: lock.asked == 4)
        return made()

    thread = ProcessorThread(make)
    thread._lock = lock
    requests = [threading.Thread(target=thread.serve) for _ in range(4)]
    for each in requests:
        each.start()
    for each in requests:
        each.join()
    (processor,) = made.processors
    until(lambda: processor.runs == 1)
    thread.finish(WAIT)
    assert processor.ended == 1


def test_finish_waits_for_mail_in_flight() -> None:
    """At exit the thread is joined, at most for the time-out."""
    made = Made()
    thread = ProcessorThread(made)
    thread.serve()
    (processor,) = made.processors
    going_on = threading.Event()
    processor.at_end = lambda: going_on.wait(WAIT)
    thread.finish(0.01)
    assert processor.ended == 0
    going_on.set()
    thread.finish(WAIT)
    assert processor.ended == 1


def test_finish_lets_queued_mail_leave_first() -> None:
    """At exit the processor sends what is due before it is stopped, and is not waited for where it
    does not run."""
    made = Made()
    thread = ProcessorThread(made)
    thread.serve()
    (processor,) = made.processors
    until(lambda: processor.runs == 1)
    drained: list[tuple[float, bool, bool]] = []

    def drain(timeout: float, *, give_up: Callable[[], bool]) -> bool:
        drained.append((timeout, give_up(), processor.woken.is_set()))
        return True

    processor.drain = drain  # type: ignore[attr-defined]
    thread.finish(WAIT)
    assert drained == [(DRAIN_TIME, False, False)]
    assert processor.ended == 1
    thread.finish(1.0)
    assert drained[1:] == [(1.0, True, True)]


def test_finish_of_a_processor_that_cannot_run() -> None:
    """Nothing is waited for while the queue cannot be used."""
    made = Made(QueueError(errno.EROFS, 'read-only'))
    thread = ProcessorThread(made)
    thread.serve()
    (processor,) = made.processors
    gave_up: list[bool] = []

    def drain(timeout: float, *, give_up: Callable[[], bool]) -> bool:
        until(give_up)
        gave_up.append(True)
        return False

    processor.drain = drain  # type: ignore[attr-defined]
    thread.finish(WAIT)
    assert gave_up == [True]


# A server's start


def call(load: Callable[[], object]) -> None:
    load()


def created(queue: Any, loader: str) -> list[Processor]:
    """Load an application whose queue this is from a module, and return the processors that
    started."""
    made = Made()
    thread = ProcessorThread(made)
    # A function of that module: its globals have the module's name.
    loads = FunctionType(call.__code__, {'__name__': loader})
    loads(lambda: thread.application_created(queue))
    for processor in made.processors:
        until(lambda processor=processor: processor.runs == 1)  # type: ignore[misc]
    thread.finish(WAIT)
    return made.processors


def queue_with(*dues: float, path: Any) -> MaildirQueue:
    queue = MaildirQueue(str(path), sync=False)
    for due in dues:
        queue.put([make_envelope(due=due)]).publish()
    return queue


@pytest.mark.parametrize(
    ('loader', 'starts'),
    [
        ('gunicorn.workers.base', True),
        ('pyramid.scripts.pserve', True),
        ('waitress.runner', True),
        ('gunicorn.arbiter', False),
        ('gunicorn.workersx', False),
        ('pyramid.scripts.pshell', False),
        ('shop.scripts', False),
    ],
)
def test_a_server_starts_it_at_once(loader: str, starts: bool, tmp_path: Any) -> None:
    """Mail that waits does not need a request. Scripts load applications too, and a master that
    forks its workers later must not run subscribers."""
    queue = queue_with(NOW, path=tmp_path / 'mail')
    assert len(created(queue, loader)) == starts


def test_a_server_with_nothing_to_send(tmp_path: Any) -> None:
    """An empty queue, one that is not there yet, one that cannot be read or listed: the first
    request starts the processor."""

    class Unreadable(MemoryQueue):
        def mails(self, state: Any = None) -> Any:
            raise QueueError(errno.EACCES, 'unreadable')

    queues: list[Any] = [
        queue_with(path=tmp_path / 'none'),
        MemoryQueue(),
        Unreadable(),
        object(),
    ]
    queues[1].prepare()
    for queue in queues:
        assert created(queue, 'gunicorn.workers.base') == []
    assert not (tmp_path / 'none').exists()


def test_it_is_not_started_again_at_the_end() -> None:
    """A request that arrives while the process ends starts no processor."""
    made = Made()
    thread = ProcessorThread(made)
    thread.serve()
    thread.finish(WAIT)
    thread.serve()
    (processor,) = made.processors
    assert processor.ended == 1


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (
            QueueError(errno.EROFS, 'read-only'),
            'cannot use the queue, no mail is sent; next try in',
        ),
        (ZeroDivisionError(), 'queue processor thread failed; it starts again in'),
    ],
)
def test_a_processor_that_fails_starts_again(
    error: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts again without a request, so that a process that only waits delivers mail as soon
    as the queue can be used."""
    made = Made(error, error)
    thread = ProcessorThread(made, queue_retry_delay=0.01, restart_delay=0.01)
    thread.serve()
    (processor,) = made.processors
    until(lambda: processor.runs == 3)
    thread.finish(WAIT)
    assert processor.ended == 1
    assert caplog.text.count(words) == 2


def test_a_failing_processor_does_not_keep_the_process() -> None:
    """A process that ends does not wait for the pause before the next start."""
    made = Made(QueueError(errno.EROFS, 'read-only'))
    thread = ProcessorThread(made)
    thread.serve()
    (processor,) = made.processors
    until(lambda: processor.runs == 1)
    thread.finish(WAIT)
    assert thread._thread is not None
    assert not thread._thread.is_alive()


# Real processes


def script(
    work: str, server: ScriptedSMTPServer, queue: Any, **settings: Any
) -> subprocess.CompletedProcess[str]:
    settings = {'url': server.url, 'queue_path': queue, **settings}
    return subprocess.run(
        [
            *(sys.executable, '-W', 'ignore', '-c', PROCESSOR_THREAD + textwrap.dedent(work)),
            *(f'mail.{name}={value}' for name, value in settings.items()),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_mail_of_the_last_request_leaves_before_the_exit(
    smtp_server: ScriptedSMTPServer, tmp_path: Any
) -> None:
    """A process that ends finishes the mail in flight."""
    done = script(
        """
        assert not running()
        app.get('/')
        assert running()
        while list(os.scandir(settings['mail.queue_path'] + '/new')):
            time.sleep(0.01)
        """,
        smtp_server,
        tmp_path / 'queue',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 1
    assert smtp_server.verbs()[-1] == 'QUIT'


def test_queued_mail_leaves_before_the_exit(smtp_server: ScriptedSMTPServer, tmp_path: Any) -> None:
    """A worker that is recycled after its first request sends the mail of that request, and what
    waited before."""
    done = script(
        """
        for subject in ('one', 'two', 'three'):
            send_outside(subject)
        app.get('/')
        """,
        smtp_server,
        tmp_path / 'queue',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 4
    assert smtp_server.verbs()[-1] == 'QUIT'


def test_an_unavailable_relay_does_not_keep_the_process(
    smtp_server: ScriptedSMTPServer, tmp_path: Any
) -> None:
    """Mail that cannot leave waits in the queue for another process."""
    smtp_server.always('connect', reply(421, '4.3.2 not now'))
    done = script(
        """
        app.get('/')
        """,
        smtp_server,
        tmp_path / 'queue',
    )
    assert done.returncode == 0
    assert 'did not stop within' not in done.stderr
    assert smtp_server.accepted('ann@example.org') == 0
    assert len(list((tmp_path / 'queue' / 'new').iterdir())) == 1


def test_a_script_never_starts_it(smtp_server: ScriptedSMTPServer, tmp_path: Any) -> None:
    """A process that serves no request leaves its mail to another processor."""
    done = script(
        """
        send_outside('script')
        assert not running()
        """,
        smtp_server,
        tmp_path / 'queue',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.connections == 0
    assert len(list((tmp_path / 'queue' / 'new').iterdir())) == 1


@pytest.mark.parametrize('again', ["app.get('/')", "send_outside('child')"])
def test_after_a_fork_it_starts_again(
    smtp_server: ScriptedSMTPServer, tmp_path: Any, again: str
) -> None:
    """The first request of a forked child, or its first ``send``, starts a processor of its own."""
    done = script(
        f"""
        app.get('/')
        while list(os.scandir(settings['mail.queue_path'] + '/new')):
            time.sleep(0.01)
        pid = os.fork()
        if pid == 0:
            assert not running()
            {again}
            assert running()
            while list(os.scandir(settings['mail.queue_path'] + '/new')):
                time.sleep(0.01)
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
        smtp_server,
        tmp_path / 'queue',
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert smtp_server.accepted('ann@example.org') == 2
