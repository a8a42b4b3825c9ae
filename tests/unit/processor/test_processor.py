"""The queue processor: what it sends, in which order, over how many connections, and what of all
that goes wrong it survives."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailQueueProcessor
from pyramid_sendmail.processor.circuit_breaker import CircuitBreaker
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir import queue as maildir_module
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import OutcomeRecorder, Tally
from tests.support.doubles import RecordingMailer
from tests.support.queues import Clock, files, make_envelope, until
from tests.unit.sending.test_attempt import Faulty, Reporter

LATER = Verdict('deferred', Reply(450, '4.2.0 greylisted'))
REFUSED = Verdict('failed', Reply(550, '5.1.1 no such user'))
NEVER = 3600.0
"""Seconds between looks, where a test proves that nobody has to wait for one."""

POLICY = RetryPolicy(delays=(60.0,), jitter=0.0)


class Setup:
    """A queue, a mailer, and the processors between them."""

    def __init__(self, queue: Any, *, clock: Callable[[], float] = time.time) -> None:
        self.queue = queue
        self.clock = clock
        self.mailer = RecordingMailer()
        self.dispatcher = Reporter()

    def put(self, *recipients: str, **options: Any) -> Envelope:
        """One mail into the queue."""
        options.setdefault('queued_at', self.clock())
        envelope = make_envelope(*recipients, **options)
        self.queue.put([envelope]).publish()
        return envelope

    def put_many(self, count: int, **options: Any) -> list[Envelope]:
        options.setdefault('queued_at', self.clock())
        envelopes = [make_envelope(**options) for _ in range(count)]
        self.queue.put(envelopes).publish()
        return envelopes

    def processor(self, *, policy: RetryPolicy = POLICY, **options: Any) -> QueueProcessor:
        options.setdefault('pause', 0.02)
        options.setdefault('poll', NEVER)
        dispatcher: Any = self.dispatcher
        attempts = OutcomeRecorder(policy, dispatcher, clock=self.clock)
        return QueueProcessor(
            options.pop('queue', self.queue), self.mailer, dispatcher, attempts, **options
        )

    @contextmanager
    def running(self, **options: Any) -> Iterator[QueueProcessor]:
        """A processor at work in a thread, that must end in peace."""
        processor = self.processor(**options)
        with at_work(processor):
            yield processor

    def sent_ids(self) -> Counter[str]:
        return Counter(envelope.message_id for envelope in self.mailer.sent)


@contextmanager
def at_work(processor: QueueProcessor) -> Iterator[threading.Event]:
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            processor.run(stop)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        processor.wake()
        thread.join(20)
    assert not thread.is_alive()
    assert failures == []


def maildir(path: Path, *, clock: Callable[[], float] = time.time, cls: Any = MaildirQueue) -> Any:
    queue = cls(str(path), sync=False, longest=POLICY.longest, clock=clock)
    queue.prepare()
    return queue


@pytest.fixture(params=['maildir', 'memory'])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    if request.param == 'memory':
        yield Setup(MemoryQueue())
    else:
        queue = maildir(tmp_path / 'mail')
        yield Setup(queue)
        queue.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Setup]:
    queue = maildir(tmp_path / 'mail')
    yield Setup(queue)
    queue.close()


def empty(setup: Setup) -> bool:
    if isinstance(setup.queue, MaildirQueue):
        return not files(setup.queue)
    return not len(setup.queue)


def levels(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.levelname for record in caplog.records if text in record.getMessage()]


CLOSED = 'nothing can be sent now'
OPEN = 'mail is sent again'


def test_interface(setup: Setup) -> None:
    """It keeps its contract."""
    assert verifyObject(IMailQueueProcessor, setup.processor())


# The ordinary day


def test_one_mail_opens_one_connection(setup: Setup) -> None:
    """Four workers, one mail at a time: published, woken, sent, all of them over one connection."""
    with setup.running():
        until(processor_threads)
        pending = crew_of(processor_threads()).pending
        for count in range(1, 6):
            until(lambda: pending.waiting == 4)
            setup.put()
            setup.mailer.wait_for(count)
            until(lambda: empty(setup))
    assert setup.mailer.connections == 1
    assert setup.mailer.open_sessions == []


def test_one_worker_keeps_its_connection(setup: Setup) -> None:
    """Mail after mail goes over the same connection."""
    with setup.running(workers=1):
        for count in range(1, 6):
            setup.put()
            setup.mailer.wait_for(count)
    assert setup.mailer.connections == 1


def test_a_connection_is_opened_anew_after_its_share(setup: Setup) -> None:
    """250 mails, 100 a connection: three of them."""
    setup.put_many(250)
    with setup.running(workers=1, batch=100):
        setup.mailer.wait_for(250)
    assert setup.mailer.connections == 3
    assert set(setup.sent_ids().values()) == {1}
    assert empty(setup)


def test_workers_send_at_the_same_time(setup: Setup) -> None:
    """Three workers have three mails in flight."""
    barrier = threading.Barrier(3)
    setup.mailer.before = lambda envelope: barrier.wait(10)
    setup.put_many(3)
    with setup.running(workers=3):
        setup.mailer.wait_for(3)
    assert setup.mailer.connections == 3


def test_mail_for_later(setup: Setup) -> None:
    """It leaves at its time, without anybody looking in between."""
    due = time.time() + 0.3
    setup.put(due=due)
    with setup.running():
        setup.put()
        setup.mailer.wait_for(2)
    assert time.time() >= due
    assert setup.mailer.sent[1].due == due


def test_deferred_mail_is_tried_again(setup: Setup) -> None:
    """By the policy, for the recipients that are left."""
    setup.dispatcher.kinds = ('sent',)
    setup.mailer.script('bob@example.org', LATER, LATER)
    setup.put('ann@example.org', 'bob@example.org')
    with setup.running(policy=RetryPolicy(delays=(0.05,), jitter=0.0)):
        setup.mailer.wait_for(3)
        until(lambda: empty(setup))
    assert [envelope.recipients for envelope in setup.mailer.sent[1:]] == [
        ('bob@example.org',),
        ('bob@example.org',),
    ]
    assert [fate.attempt for fate in setup.dispatcher.pending_events] == [1, 3]


def test_fresh_mail_is_not_starved_by_deferred_mail(on_disk: Setup) -> None:
    """A mail that comes while 300 deferred ones wait is among the next to leave."""
    on_disk.put_many(300)
    on_disk.mailer.always('ann@example.org', LATER)
    on_disk.processor(policy=RetryPolicy(delays=(0.01,), jitter=0.0)).run_once()
    assert {name.split('/')[0] for name in files(on_disk.queue)} == {'cur'}
    until(lambda: len(on_disk.queue.scan(time.time())[0]) == 300)
    go_on, reached = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        if len(on_disk.mailer.sent) == 310:
            reached.set()
            assert go_on.wait(10)

    on_disk.mailer.before = before
    with on_disk.running(workers=1):
        assert reached.wait(10)
        looks = count_looks(on_disk.queue)
        fresh = on_disk.put('bob@example.org')
        until(lambda: looks)
        go_on.set()
        on_disk.mailer.wait_for(400)
    place = [envelope.message_id for envelope in on_disk.mailer.sent].index(fresh.message_id)
    assert place < 340


def processor_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith('pyramid_sendmail wor')]


def crew_of(threads: list[threading.Thread]) -> Any:
    return threads[0]._target.__self__  # type: ignore[attr-defined]


def test_one_slow_mail_holds_nobody_up(setup: Setup) -> None:
    """Others go on; and looking again while it is in flight opens no connection for it."""
    go_on = threading.Event()
    slow = setup.put('slow@example.org')

    def before(envelope: Envelope) -> None:
        if envelope.id == slow.id:
            assert go_on.wait(10)

    setup.mailer.before = before
    with setup.running(workers=2, poll=0.01) as processor:
        until(lambda: setup.mailer.connections == 1)
        setup.put_many(50)
        setup.mailer.wait_for(50)
        looks = count_looks(setup.queue)
        until(lambda: len(looks) > 10)
        assert setup.mailer.connections == 2
        go_on.set()
        setup.mailer.wait_for(51)
        assert processor
    assert set(setup.sent_ids().values()) == {1}


def count_looks(queue: Any) -> list[float]:
    looks: list[float] = []
    original = queue.scan

    def scan(now: float, **options: Any) -> Any:
        found = original(now, **options)
        looks.append(now)
        return found

    queue.scan = scan
    return looks


@pytest.mark.parametrize('once', [False, True])
def test_a_limit_smaller_than_the_queue(setup: Setup, once: bool) -> None:
    """Few names are kept at a time, and everything is sent, without waiting for the poll."""
    setup.put_many(100)
    processor = setup.processor(limit=7, workers=2)
    if once:
        assert processor.run_once() == Tally(delivered=100)
    else:
        with at_work(processor):
            setup.mailer.wait_for(100)
    assert set(setup.sent_ids().values()) == {1}
    assert empty(setup)


def test_a_limit_while_fresh_mail_comes(on_disk: Setup) -> None:
    """A look at fresh mail does not make a processor forget that more was there than it kept."""
    on_disk.mailer.always('ann@example.org', LATER)
    on_disk.put_many(60)
    on_disk.processor(policy=RetryPolicy(delays=(0.01,), jitter=0.0)).run_once()
    on_disk.mailer.always('ann@example.org', Verdict('delivered', Reply(250, 'ok')))
    until(lambda: len(on_disk.queue.scan(time.time())[0]) == 60)
    on_disk.mailer.before = lambda envelope: (
        on_disk.put('bob@example.org') if len(on_disk.mailer.sent) in (63, 65) else None
    )
    with on_disk.running(workers=1, limit=10):
        on_disk.mailer.wait_for(60 + 62)
    assert empty(on_disk)


@pytest.mark.parametrize('once', [False, True])
def test_a_large_queue_is_listed_seldom(
    on_disk: Setup, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    """What a look has found beyond the limit is sent without another."""
    monkeypatch.setattr(maildir_module, '_KEPT', 40)
    on_disk.put_many(100)
    looks = count_looks(on_disk.queue)
    processor = on_disk.processor(limit=8, workers=1, batch=4)
    if once:
        assert processor.run_once() == Tally(delivered=100)
    else:
        with at_work(processor):
            on_disk.mailer.wait_for(100)
    assert set(on_disk.sent_ids().values()) == {1}
    # Three, those before the end, and a few more where mail in work was found once more.
    assert len(looks) <= 8


@pytest.mark.parametrize('fresh', [True, False])
def test_slow_looks_leave_time_for_the_sending(setup: Setup, fresh: bool) -> None:
    """However often mail comes, or is due again: the next look comes after ten times as long as
    the last one took."""
    began: list[float] = []
    ended: list[float] = []
    original = setup.queue.scan

    def scan(now: float, **options: Any) -> Any:
        if options['fresh'] is not fresh:
            return original(now, **options)
        began.append(time.monotonic())
        time.sleep(0.01)
        tickets, _ = original(now, **options)
        ended.append(time.monotonic())
        return tickets, None if fresh else now

    setup.queue.scan = scan
    with setup.running():
        for _ in range(8):
            setup.put()
            time.sleep(0.01)
        setup.mailer.wait_for(8)
        until(lambda: len(ended) > 2 or fresh)
    assert began
    assert all(begin - end >= 0.1 for end, begin in zip(ended, began[1:], strict=False))


# A closed road


class Timed(RecordingMailer):
    """Notes when somebody connects."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def connect(self) -> Any:
        self.times.append(time.monotonic())
        return super().connect()


@pytest.mark.parametrize('kind', ['maildir', 'memory'])
def test_a_closed_road_is_nobodys_fault(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 mails: one connect a step, pauses that grow, no attempt counted, one line; then the
    road opens, one line, and all are delivered once."""
    setup = Setup(MemoryQueue() if kind == 'memory' else maildir(tmp_path / 'mail'))
    setup.mailer = mailer = Timed()
    setup.dispatcher.kinds = ('deferred', 'error')
    mailer.unavailable = 'Connection refused'
    setup.put_many(1000)
    before = files(setup.queue) if kind == 'maildir' else []
    with setup.running(poll=0.05):
        until(lambda: mailer.connections == 5)
        assert levels(caplog, CLOSED) == ['ERROR']
        pauses = [b - a for a, b in zip(mailer.times, mailer.times[1:], strict=False)]
        for step, pause in enumerate(pauses):
            assert pause >= 0.8 * 0.02 * 2**step
        if before:
            assert files(setup.queue) == before
        mailer.unavailable = None
        mailer.wait_for(1000)
        until(lambda: empty(setup))
    assert levels(caplog, OPEN) == ['WARNING']
    assert levels(caplog, CLOSED) == ['ERROR']
    assert set(setup.sent_ids().values()) == {1}
    assert setup.dispatcher.pending_events == []
    setup.queue.close()


def test_the_road_closes_in_the_middle(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """421 at MAIL on a new connection: the mail is given back, and found again when the road is
    tried again, not half a minute later."""
    troubles = iter([True, True, False, True, False])

    def before(envelope: Envelope) -> None:
        if next(troubles, False):
            raise MailerUnavailable('421')

    setup.mailer.before = before
    setup.dispatcher.kinds = ('deferred', 'error')
    setup.put_many(5)
    with setup.running(workers=1):
        setup.mailer.wait_for(5)
        until(lambda: empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    assert setup.dispatcher.pending_events == []
    assert levels(caplog, CLOSED) == ['ERROR', 'ERROR']


def test_a_relay_that_takes_two_connections(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """Four workers: two send all of it, and the log does not say that nothing can be sent."""
    lock = threading.Lock()

    class Narrow(RecordingMailer):
        def connect(self) -> Any:
            with lock:
                if len(self.open_sessions) >= 2:
                    self.connections += 1
                    raise MailerUnavailable('421 4.7.0 too many connections')
                return super().connect()

    setup.mailer = mailer = Narrow()
    barrier = threading.Barrier(2)
    met: set[int] = set()

    def before(envelope: Envelope) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            barrier.wait(10)

    mailer.before = before
    setup.put_many(400)
    with setup.running(batch=1000):
        mailer.wait_for(400)
    assert levels(caplog, CLOSED) == []
    assert set(setup.sent_ids().values()) == {1}
    assert mailer.connections < 20


def test_the_done_folder_needs_no_relay(setup: Setup) -> None:
    """An event that is still owed is told while the road is closed."""
    owed(setup)
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.told() == [('sent', ('eve@example.org',))])
    assert setup.mailer.accepted('eve@example.org') == 1


def owed(setup: Setup) -> None:
    """A mail in done/, with an event that nobody has taken."""
    setup.dispatcher = Reporter('sent', takes=False)
    setup.put('eve@example.org')
    setup.processor().run_once()
    for claim in setup.dispatcher.claims:
        claim.release()
    setup.dispatcher = Reporter('sent', 'error')


def test_what_only_needs_settling_is_settled_while_the_road_is_closed(setup: Setup) -> None:
    """A deferred mail that owes an event for another recipient: the event is told."""
    setup.mailer.script('bob@example.org', LATER)
    setup.dispatcher = Reporter('sent', takes=False)
    setup.put('ann@example.org', 'bob@example.org')
    setup.processor().run_once()
    [claim] = setup.dispatcher.claims[:1]
    claim.release()
    setup.dispatcher = Reporter('sent')
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.told() == [('sent', ('ann@example.org',))])
    assert len(setup.mailer.sent) == 1


def test_what_was_published_while_the_road_was_closed(setup: Setup) -> None:
    """Mail that comes while others wait is not looked at one by one, and leaves with them."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with setup.running(pause=0.5):
        until(lambda: setup.mailer.connections == 1)
        looks = count_looks(setup.queue)
        for _ in range(20):
            setup.put()
        assert len(looks) <= 2
        setup.mailer.unavailable = None
        setup.mailer.wait_for(21)
    assert empty(setup)


# A queue that cannot be used


class Ailing(MaildirQueue):
    """A queue of which something fails as long as ``ails`` has an error for it."""

    ails: dict[str, BaseException]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ails = {}
        self.calls: Counter[str] = Counter()

    def _ail(self, what: str) -> None:
        self.calls[what] += 1
        if what in self.ails:
            error = self.ails[what]
            raise type(error)(*error.args)

    def check_writable(self) -> None:
        self._ail('check_writable')
        super().check_writable()

    def scan(self, *args: Any, **options: Any) -> Any:
        self._ail('scan')
        return super().scan(*args, **options)

    def claim(self, ticket: Any, **options: Any) -> Any:
        self._ail('claim')
        self._ail(ticket.state)
        self._ail(ticket.order)
        claim = super().claim(ticket, **options)
        return claim and Faulty(claim)

    def sync(self) -> None:
        self._ail('sync')


@pytest.fixture
def ailing(tmp_path: Path) -> Iterator[Setup]:
    Faulty.broken = False
    queue = maildir(tmp_path / 'mail', cls=Ailing)
    yield Setup(queue)
    queue.close()


READ_ONLY = QueueError(errno.EROFS, 'the queue cannot record what becomes of its mail')


@pytest.mark.parametrize('call', ['check_writable', 'scan', 'claim'])
@pytest.mark.parametrize('error', [READ_ONLY, ZeroDivisionError('a bug')])
def test_a_queue_that_fails(
    ailing: Setup, call: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent, nothing spins, nothing ends; once it is mended everything goes on."""
    ailing.queue.ails[call] = error
    with ailing.running(poll=0.02):
        ailing.put_many(3)
        until(lambda: ailing.queue.calls[call] >= 3)
        until(lambda: caplog.records)
        assert ailing.mailer.sent == []
        if call == 'check_writable':
            assert ailing.mailer.connections == 0
        if error is READ_ONLY:
            assert levels(caplog, CLOSED) == ['ERROR']
        else:
            assert any(record.exc_info for record in caplog.records)
        ailing.queue.ails.clear()
        ailing.mailer.wait_for(3)
    assert set(ailing.sent_ids().values()) == {1}
    assert empty(ailing)


@pytest.mark.parametrize(
    'error', [QueueError(errno.EACCES, 'permission denied'), ZeroDivisionError('a bug')]
)
def test_a_file_that_cannot_be_claimed_stops_nobody(
    ailing: Setup, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else's file, a bad sector, a bug over one mail: the log names it once, the others
    are sent, and it is, too, when it can be."""
    bad = ailing.put()
    [name] = files(ailing.queue)
    name = name.partition('/')[2]
    ailing.queue.ails[name] = error
    with ailing.running(poll=0.02):
        ailing.put_many(10)
        ailing.mailer.wait_for(10)
        until(lambda: ailing.queue.calls[name] >= 3)
        assert levels(caplog, f'{name} cannot be claimed') == ['ERROR']
        assert levels(caplog, CLOSED) == []
        assert len(files(ailing.queue)) == 1
        ailing.queue.ails.clear()
        ailing.mailer.wait_for(11)
    assert ailing.sent_ids()[bad.message_id] == 1


def test_a_done_folder_that_cannot_be_used(ailing: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """The mail goes on."""
    owed(ailing)
    ailing.queue.ails['done'] = READ_ONLY
    with ailing.running(poll=0.02):
        ailing.put()
        ailing.mailer.wait_for(2)
        until(lambda: levels(caplog, 'done/ could not be reported'))
    assert empty_but_done(ailing)


def empty_but_done(setup: Setup) -> bool:
    return [name.split('/')[0] for name in files(setup.queue)] == ['done']


def test_an_outcome_that_cannot_be_recorded(
    ailing: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepted, and the disk is full: nobody claims more, nothing is sent twice, and everything
    goes on when there is room."""
    ailing.dispatcher.kinds = ('sent',)
    first, second = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        # Two mails are in flight; the second one is answered after the first could not be recorded.
        if envelope.recipients == ('second@example.org',):
            assert second.wait(10)
        else:
            assert first.wait(10)

    ailing.mailer.before = before
    ailing.put('first@example.org')
    with ailing.running(workers=2, poll=0.02):
        until(lambda: ailing.mailer.connections == 1)
        ailing.put('second@example.org')
        until(lambda: ailing.mailer.connections == 2)
        ailing.put_many(20)
        Faulty.broken = True
        first.set()
        until(lambda: levels(caplog, 'could not be recorded') == ['CRITICAL'])
        second.set()
        until(lambda: len(levels(caplog, 'could not be recorded')) == 2)
        sent = len(ailing.mailer.sent)
        checks = ailing.queue.calls['check_writable']
        until(lambda: ailing.queue.calls['check_writable'] >= checks + 3)
        assert len(ailing.mailer.sent) == sent == 2
        assert ailing.dispatcher.pending_events == []
        Faulty.broken = False
        ailing.mailer.wait_for(22)
        until(lambda: empty(ailing))
    assert set(ailing.sent_ids().values()) == {1}
    assert len(ailing.dispatcher.pending_events) == 22
    assert levels(caplog, OPEN) == ['WARNING']


def test_an_outcome_is_recorded_at_the_end(ailing: Setup) -> None:
    """What could not be recorded is tried once more before the locks are given up."""
    Faulty.broken = True
    ailing.put()
    processor = ailing.processor()
    original = ailing.queue.close

    def mended(timeout: float) -> bool:
        Faulty.broken = False
        return True

    ailing.dispatcher.join = mended  # type: ignore[method-assign]
    with pytest.raises(QueueError):
        processor.run_once()
    assert original
    assert empty(ailing)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that a test may fill or make read-only."""
    mounted = tmp_path / 'disk'
    mounted.mkdir()
    mount = shutil.which('mount')
    if os.geteuid() or not mount:
        pytest.skip('needs root and mount, for a small file system (run the tests in a container)')
    command = [mount, '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'mount is not allowed here: {done.stderr.strip()}')
    yield mounted
    subprocess.run(['umount', '-l', str(mounted)], check=True)


def test_a_read_only_file_system(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Remounted read-only: no connection at all. Remounted: everything is sent once."""
    setup = Setup(maildir(small_disk / 'mail'))
    setup.mailer.unavailable = 'Connection refused'
    setup.put_many(3)
    with setup.running(poll=0.02, pause=0.05):
        until(lambda: setup.mailer.connections == 1)
        subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
        setup.mailer.unavailable = None
        until(lambda: 'read-only' in caplog.text)
        connections = setup.mailer.connections
        failures = len(caplog.records)
        caplog.set_level(logging.DEBUG)
        until(lambda: len(caplog.records) >= failures + 2)
        assert setup.mailer.connections == connections
        assert setup.mailer.sent == []
        subprocess.run(['mount', '-o', 'remount,rw', str(small_disk)], check=True)
        setup.mailer.wait_for(3)
        until(lambda: empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    setup.queue.close()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open('ab', 0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_file_system(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No room for a probe: nothing is sent until there is."""
    setup = Setup(maildir(small_disk / 'mail'))
    setup.put_many(3)
    filler = small_disk / 'filler'
    with setup.running(poll=0.02, pause=0.05):
        setup.mailer.wait_for(3)
        until(lambda: empty(setup))
        # Written while there is room, and published, which needs none, when there is none.
        put = setup.queue.put([make_envelope(queued_at=setup.clock()) for _ in range(2)])
        for _ in range(10):
            # Files that were removed and not yet closed, and a last probe, still take room.
            fill(filler)
            time.sleep(0.02)
        put.publish()
        until(lambda: 'No space left' in caplog.text)
        assert len(setup.mailer.sent) == 3
        filler.unlink()
        setup.mailer.wait_for(5)
        until(lambda: empty(setup))
    assert set(setup.sent_ids().values()) == {1}
    setup.queue.close()


# What else goes wrong


def damage(setup: Setup) -> list[str]:
    """Everything that a queue should not hold; the names."""
    new = Path(setup.queue.path, 'new')
    names = [f'5-{1700000000000:015d}-0000-{n:032x}' for n in range(6)]
    whole = make_envelope()
    setup.queue.put([whole]).publish()
    [path] = [each for each in new.iterdir() if whole.id in each.name]
    data = path.read_bytes()
    path.unlink()
    (new / names[0]).write_bytes(b'')
    (new / names[1]).write_bytes(data[:-3])
    (new / names[2]).write_bytes(data.replace(b'Hello', b'Hallo'))
    (new / names[3]).write_bytes(os.urandom(4096))
    (new / names[4]).mkdir()
    (new / names[5]).symlink_to('nowhere')
    (new / 'README').write_text('who put this here?')
    (new / 'nul').write_bytes(b'\0' * 100)
    return [*names, 'README', 'nul']


@pytest.mark.parametrize('once', [False, True])
def test_damaged_files_stop_nobody(on_disk: Setup, once: bool) -> None:
    """They become error events and lie in failed/, and all mail around them is delivered."""
    on_disk.dispatcher.kinds = ('error', 'sent')
    on_disk.put_many(10)
    names = damage(on_disk)
    on_disk.put_many(10)
    processor = on_disk.processor()
    if once:
        assert processor.run_once() == Tally(delivered=20)
    else:
        with at_work(processor):
            on_disk.mailer.wait_for(20)
            until(lambda: len(files(on_disk.queue)) == len(names))
    damaged = [fate for fate in on_disk.dispatcher.pending_events if fate.kind == 'error']
    assert len(damaged) == len(names)
    assert all(fate.reason.startswith('damaged: ') for fate in damaged)
    assert sorted(files(on_disk.queue)) == sorted(f'failed/{name}' for name in names)


def test_damaged_files_in_done(on_disk: Setup) -> None:
    """There, too."""
    on_disk.dispatcher.kinds = ('error',)
    Path(on_disk.queue.path, 'done', f'5-{1:015d}-0001-{1:032x}').write_bytes(b'nonsense')
    on_disk.put()
    assert on_disk.processor().run_once() == Tally(delivered=1)
    assert len(on_disk.dispatcher.pending_events) == 1


def test_a_damaged_file_whose_subscriber_fails(on_disk: Setup) -> None:
    """It is in the log and in failed/: what stands for it in the reporter changes nothing."""
    submitted: list[Any] = []
    on_disk.dispatcher.dispatch = lambda claim, events: submitted.append((claim, events))  # type: ignore[method-assign]
    Path(on_disk.queue.path, 'new', 'README').write_bytes(b'nonsense')
    on_disk.processor().run_once()
    [(claim, events)] = submitted
    assert claim.envelope.raw == b'nonsense'
    assert list(claim.pending_events) == []
    claim.retry_events(events, 0.0)
    claim.acknowledge(events)
    claim.release()


def test_a_file_that_vanishes(on_disk: Setup) -> None:
    """Between the look and the claim somebody takes a file away: the others are sent."""
    envelopes = on_disk.put_many(5)
    original = on_disk.queue.scan

    def scan(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        for path in Path(on_disk.queue.path, 'new').glob(f'*{envelopes[2].id}'):
            path.unlink()
        return found

    on_disk.queue.scan = scan
    with on_disk.running():
        on_disk.mailer.wait_for(4)
    assert len(on_disk.mailer.sent) == 4


def test_old_queues_of_one_host(on_disk: Setup) -> None:
    """zope.sendmail's names end alike where the host's name has a hyphen: one that comes during
    the run is not taken for one that was there before."""
    left = [1, 2]

    def write(number: int) -> None:
        Path(on_disk.queue.path, 'new', f'17000000{number}.123.web-1').write_bytes(
            b'X-Zope-From: a@example.org\nX-Zope-To: ann@example.org\nSubject: x\n\nHello\n'
        )

    on_disk.mailer.before = lambda envelope: write(left.pop()) if left else None
    write(0)
    assert on_disk.processor().run_once() == Tally(delivered=3)


def test_a_subscriber_thread_that_cannot_start(setup: Setup) -> None:
    """The reporter fails: the loop goes on, and so does the mail."""
    owed(setup)

    def dispatch(claim: Any, events: Any) -> None:
        claim.release()
        raise RuntimeError("can't start new thread")

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.dispatcher.kinds = ()
    with setup.running(poll=0.02):
        setup.put()
        setup.mailer.wait_for(2)
    assert len(setup.mailer.sent) == 2


def test_an_event_that_is_postponed_is_told_in_time(setup: Setup) -> None:
    """A subscriber that raises gets its event again when the policy says so, not at the next
    poll, which may be half a minute later."""
    setup.dispatcher.kinds = ('sent',)
    taken = setup.dispatcher.dispatch
    refuse = [True, True]

    def dispatch(claim: Any, events: Any) -> None:
        if refuse:
            refuse.pop()
            claim.retry_events(events, time.time() + 0.05)
        else:
            taken(claim, events)

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.put()
    with setup.running():
        until(lambda: setup.dispatcher.pending_events)
        until(lambda: empty(setup))
    assert len(setup.mailer.sent) == 1


@pytest.mark.parametrize('once', [True, False])
def test_a_postponed_event_is_told_at_each_start(setup: Setup, once: bool) -> None:
    """What subscribers could not take from one processor, the next one tells them at once."""
    setup.dispatcher = Reporter('sent', takes=False)
    setup.put('eve@example.org')
    setup.processor().run_once()
    [claim] = setup.dispatcher.claims[:1]
    claim.retry_events(claim.pending_events, setup.clock() + 300.0)
    setup.dispatcher = Reporter('sent')
    if once:
        setup.processor().run_once()
    else:
        with setup.running():
            until(lambda: setup.dispatcher.pending_events)
    assert setup.dispatcher.told() == [('sent', ('eve@example.org',))]
    assert empty(setup)
    assert setup.mailer.accepted('eve@example.org') == 1


def test_once_takes_what_subscribers_send(setup: Setup) -> None:
    """Mail that a subscriber of the last event sends leaves in the same run."""

    class Answering(Reporter):
        def join(self, timeout: float) -> bool:
            if len(self.pending_events) == 1:
                setup.put('second@example.org')
            return True

    setup.dispatcher = Answering('sent')
    setup.put('first@example.org')
    assert setup.processor().run_once() == Tally(delivered=2)
    assert setup.mailer.accepted('second@example.org') == 1


def test_many_events_wait(on_disk: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long done/ does not keep fresh mail waiting; --once tells all of it."""
    monkeypatch.setattr('pyramid_sendmail.processor.processor.REPORTS', 5)
    on_disk.dispatcher = Reporter('sent', takes=False)
    on_disk.put_many(12)
    on_disk.processor().run_once()
    for claim in on_disk.dispatcher.claims:
        claim.release()
    on_disk.dispatcher = Reporter('sent')
    on_disk.processor().run_once()
    assert len(on_disk.dispatcher.pending_events) == 12


# Sync


def test_the_folder_is_synced(ailing: Setup) -> None:
    """After a hundred deliveries, or a second; an error is told and changes nothing."""
    ailing.put_many(250)
    with ailing.running(workers=1):
        ailing.mailer.wait_for(250)
        assert ailing.queue.calls['sync'] >= 2
        before = ailing.queue.calls['sync']
        until(lambda: ailing.queue.calls['sync'] > before)
        until(lambda: empty(ailing))
        ailing.queue.ails['sync'] = OSError(errno.EIO, 'Input/output error')
        ailing.put()
        ailing.mailer.wait_for(251)
    assert empty(ailing)


def test_a_sync_that_fails(ailing: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """It is an error in the log."""
    ailing.queue.ails['sync'] = OSError(errno.EIO, 'Input/output error')
    ailing.put()
    assert ailing.processor().run_once() == Tally(delivered=1)
    assert levels(caplog, 'could not be synced') == ['ERROR']


# The end


def test_stop_while_idle(setup: Setup) -> None:
    """At once."""
    start = time.monotonic()
    with setup.running():
        setup.put()
        setup.mailer.wait_for(1)
    assert time.monotonic() - start < 5
    assert setup.mailer.open_sessions == []


def test_stop_while_connecting(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """Who waits for a relay holds no mail, and is not waited for; later it claims nothing."""
    entered, leave = threading.Event(), threading.Event()

    class Hanging(RecordingMailer):
        def connect(self) -> Any:
            entered.set()
            assert leave.wait(10)
            raise MailerUnavailable('the greeting: timed out')

    setup.mailer = Hanging()
    setup.put()
    start = time.monotonic()
    with setup.running(grace=30):
        assert entered.wait(10)
        workers = processor_threads()
    assert time.monotonic() - start < 5
    looks = count_looks(setup.queue)
    leave.set()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    assert (looks, levels(caplog, CLOSED)) == ([], [])
    assert not empty(setup)


def test_stop_in_the_middle_of_a_mail(setup: Setup) -> None:
    """What is in flight is finished, what is not begun stays; nothing is sent twice."""
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    setup.mailer.before = before
    setup.put_many(5)
    processor = setup.processor(workers=1)
    with at_work(processor) as stop:
        assert entered.wait(10)
        crew = crew_of(processor_threads())
        stop.set()
        processor.wake()
        until(lambda: crew.pending.closed)
        leave.set()
    assert len(setup.mailer.sent) == 1
    assert setup.processor().run_once() == Tally(delivered=4)
    assert set(setup.sent_ids().values()) == {1}


def test_stop_and_a_mail_that_never_ends(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """After the grace it is left to itself, and the log says so."""
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    setup.mailer.before = before
    setup.put()
    with setup.running(grace=0.1):
        assert entered.wait(10)
        workers = processor_threads()
    assert levels(caplog, 'still sending') == ['WARNING', 'WARNING'] or levels(
        caplog, 'still sending'
    ) == ['WARNING']
    leave.set()
    for worker in workers:
        worker.join(10)


# Once


def test_once(setup: Setup) -> None:
    """All that is due, each mail once; deferred, refused and delivered ones are counted."""
    setup.mailer.script('bob@example.org', LATER)
    setup.mailer.script('eve@example.org', REFUSED)
    for recipient in ('ann@example.org', 'bob@example.org', 'eve@example.org'):
        setup.put(recipient)
    setup.put(due=time.time() + 3600)
    seen: list[tuple[int, int]] = []
    processor = setup.processor(policy=RetryPolicy(delays=(0.001,), jitter=0.0))
    tally = processor.run_once(lambda tally, left: seen.append((tally.total, left)))
    assert tally == Tally(delivered=1, deferred=1, failed=1)
    assert seen[-1] == (3, 0)
    assert len(setup.mailer.sent) == 3
    until(lambda: setup.queue.scan(time.time())[0])
    assert processor.run_once() == Tally(delivered=1), 'the deferred one'


def test_once_and_nothing_to_do(setup: Setup) -> None:
    """No connection is opened for nothing."""
    assert setup.processor().run_once() == Tally()
    assert setup.mailer.connections == 0


def test_once_takes_fresh_mail_that_arrives_meanwhile(setup: Setup) -> None:
    """But no mail twice, and no deferred mail again, however short its pause."""
    setup.mailer.always('later@example.org', LATER)
    arrived: list[Envelope] = []

    def before(envelope: Envelope) -> None:
        if len(arrived) < 5:
            arrived.append(setup.put(*(['later@example.org'] if len(arrived) % 2 else [])))

    setup.mailer.before = before
    setup.put()
    processor = setup.processor(workers=1, policy=RetryPolicy(delays=(0.001,), jitter=0.0))
    tally = processor.run_once()
    assert tally == Tally(delivered=4, deferred=2)
    assert set(setup.sent_ids().values()) == {1}


def test_once_tries_a_closed_road_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """One connect, no pause, an exception that says why; the mail is as it was."""
    setup.mailer.unavailable = 'Connection refused'
    setup.put_many(100)
    start = time.monotonic()
    processor = setup.processor(pause=60.0)
    for connections in (1, 2):
        with pytest.raises(MailerUnavailable, match='Connection refused'):
            processor.run_once()
        assert setup.mailer.connections == connections, 'each run tries for itself'
    assert time.monotonic() - start < 5
    setup.mailer.unavailable = None
    assert processor.run_once() == Tally(delivered=100)


def test_once_reports_done_first_and_last(setup: Setup) -> None:
    """Before the first mail is sent, and once more what the run has left there itself."""
    owed(setup)
    order: list[str] = []
    setup.mailer.before = lambda envelope: order.append('sending')
    taken = setup.dispatcher.dispatch
    refuse = [True]

    def dispatch(claim: Any, events: Any) -> None:
        order.append(events[0].recipients[0])
        if events[0].recipients[0] == 'ann@example.org' and refuse:
            refuse.pop()
            claim.release()
        else:
            taken(claim, events)

    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    setup.put('ann@example.org')
    setup.processor().run_once()
    assert order == ['eve@example.org', 'sending', 'ann@example.org', 'ann@example.org']


def test_once_reports_done_although_the_road_is_closed(setup: Setup) -> None:
    """Events need no relay."""
    owed(setup)
    setup.mailer.unavailable = 'Connection refused'
    setup.put()
    with pytest.raises(MailerUnavailable):
        setup.processor().run_once()
    assert setup.dispatcher.told() == [('sent', ('eve@example.org',))]


@pytest.mark.parametrize('call', ['check_writable', 'scan', 'claim'])
def test_once_and_a_queue_that_cannot_be_used(ailing: Setup, call: str) -> None:
    """It raises, and sends nothing."""
    ailing.put_many(3)
    ailing.queue.ails[call] = READ_ONLY
    with pytest.raises(QueueError):
        ailing.processor().run_once()
    assert ailing.mailer.sent == []
    ailing.queue.ails.clear()
    assert ailing.processor().run_once() == Tally(delivered=3)


def test_once_and_a_bug(ailing: Setup) -> None:
    """It ends, and does not pretend that everything has been sent."""
    ailing.put()
    ailing.queue.ails['check_writable'] = ZeroDivisionError('a bug')
    with pytest.raises(MailerUnavailable, match='ZeroDivisionError'):
        ailing.processor().run_once()


def test_once_stopped(setup: Setup) -> None:
    """A signal ends it after what is in flight, and its counts tell how far it came."""
    stop = threading.Event()
    entered, leave = threading.Event(), threading.Event()

    def before(envelope: Envelope) -> None:
        entered.set()
        assert leave.wait(10)

    def progress(tally: Tally, left: int) -> None:
        if entered.is_set():
            assert left == 5
            stop.set()
            leave.set()

    setup.mailer.before = before
    setup.put_many(5)
    tally = setup.processor(workers=1).run_once(progress_until(stop, progress), stop)
    assert tally.delivered == len(setup.mailer.sent) < 5


def progress_until(stop: threading.Event, progress: Callable[[Tally, int], None]) -> Any:
    def show(tally: Tally, left: int) -> None:
        if not stop.is_set():
            progress(tally, left)

    return show


def test_once_stopped_while_connecting(setup: Setup) -> None:
    """Ctrl-C does not wait for the greeting of a relay that hangs."""
    entered, leave = threading.Event(), threading.Event()
    stop = threading.Event()

    class Hanging(RecordingMailer):
        def connect(self) -> Any:
            entered.set()
            assert leave.wait(10)
            raise MailerUnavailable('the greeting: timed out')

    setup.mailer = Hanging()
    setup.put()
    start = time.monotonic()
    tally = setup.processor().run_once(lambda tally, left: entered.is_set() and stop.set(), stop)  # type: ignore[arg-type, return-value]
    assert tally == Tally()
    assert time.monotonic() - start < 5
    workers = processor_threads()
    leave.set()
    for worker in workers:
        worker.join(10)


# Several of them


def test_two_processors_share_a_queue(on_disk: Setup) -> None:
    """Each mail is sent once, whoever takes it."""
    second = maildir(Path(on_disk.queue.path))
    on_disk.put_many(200)
    with on_disk.running(), on_disk.running(queue=second):
        on_disk.put_many(100)
        on_disk.mailer.wait_for(300)
        until(lambda: empty(on_disk))
    assert set(on_disk.sent_ids().values()) == {1}
    assert len(on_disk.mailer.sent) == 300


def test_two_processors_share_one_object(setup: Setup) -> None:
    """Two threads over the same queue object, too; one of them may end before the other."""
    setup.put_many(50)
    with setup.running(poll=0.05):
        with setup.running(poll=0.05):
            setup.mailer.wait_for(50)
        setup.put_many(50)
        setup.mailer.wait_for(100)
        until(lambda: empty(setup))
    assert set(setup.sent_ids().values()) == {1}


# Clocks


YEAR = 365 * 86_400.0


@pytest.mark.parametrize('shift', [-10 * YEAR, -YEAR, YEAR, 10 * YEAR])
def test_a_clock_that_jumps(tmp_path: Path, shift: float) -> None:
    """Deferred before, due after: nothing is lost, nothing is sent twice, nothing expires en
    masse."""
    clock = Clock(float(int(time.time())))
    setup = Setup(maildir(tmp_path / 'mail', clock=clock), clock=clock)
    setup.dispatcher.kinds = ('error',)
    setup.mailer.script('bob@example.org', LATER)
    setup.put('bob@example.org')
    setup.put('eve@example.org')
    with setup.running():
        setup.mailer.wait_for(2)
        until(lambda: len(files(setup.queue)) == 1)
        clock.now += shift
        later = setup.put('ann@example.org')
        setup.mailer.wait_for(3)
    setup.processor().run_once()
    assert setup.mailer.accepted('bob@example.org') == 1
    assert setup.mailer.accepted('eve@example.org') == 1
    assert setup.sent_ids()[later.message_id] == 1
    assert setup.dispatcher.pending_events == []
    assert empty(setup)
    setup.queue.close()


def test_mail_given_back_while_fresh_mail_is_looked_for(on_disk: Setup) -> None:
    """A road that closes over a retry while new mail is being listed: once it is open again the
    retry does not wait for the next poll."""
    look = on_disk.queue.scan
    coming, looking, closed = threading.Event(), threading.Event(), threading.Event()

    def slow_look(now: float, *, fresh: bool = False, **options: Any) -> Any:
        found = look(now, fresh=fresh, **options)
        if fresh and coming.is_set() and not looking.is_set():
            looking.set()
            closed.wait(10)
            time.sleep(0.03)
        return found

    def close_once(envelope: Envelope) -> None:
        if not closed.is_set():
            looking.wait(10)
            closed.set()
            raise MailerUnavailable('closed for a moment')

    on_disk.queue.scan = slow_look
    on_disk.mailer.script('ann@example.org', LATER)
    with on_disk.running(policy=RetryPolicy(delays=(0.5,), jitter=0.0), pause=1.5):
        on_disk.put('ann@example.org')
        on_disk.mailer.wait_for(1)
        on_disk.mailer.before = close_once
        time.sleep(1)
        coming.set()
        on_disk.put('bob@example.org')
        on_disk.mailer.wait_for(3, 5)
    assert on_disk.mailer.accepted('ann@example.org') == 1


def test_once_sends_what_a_worker_had_to_give_back(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose connection is stale, and who gets no other, has pulled mail that this run
    looks for no second time: another worker takes it."""
    lock, both = threading.Lock(), threading.Barrier(2, timeout=10)
    seen: list[int] = []
    told = threading.Event()
    failed = CircuitBreaker.failed

    def tell(gate: CircuitBreaker, error: Exception) -> float:
        rest = failed(gate, error)
        told.set()
        return rest

    monkeypatch.setattr(CircuitBreaker, 'failed', tell)

    def before(envelope: Envelope) -> None:
        me = threading.get_ident()
        with lock:
            new = me not in seen
            if new:
                seen.append(me)
        if new:
            both.wait()
        elif me == seen[0] and setup.mailer.unavailable is None:
            setup.mailer.unavailable = 'too many connections'
            raise MailerUnavailable('a stale connection', stale=True)
        elif me != seen[0]:
            # Who is still sending when the other fails.
            told.wait(10)

    setup.mailer.before = before
    sent = setup.put_many(20)
    assert setup.processor(workers=2).run_once().delivered == 20
    assert setup.sent_ids() == Counter({each.message_id: 1 for each in sent})
    assert empty(setup)


def test_an_event_without_room_is_looked_for_soon(setup: Setup) -> None:
    """Where too many events wait already the claim is released; it does not wait for the poll."""
    released: list[Any] = []

    def dispatch(claim: Any, events: Any) -> None:
        if not released:
            released.append(events)
            claim.release()
        else:
            Reporter.dispatch(setup.dispatcher, claim, events)

    setup.dispatcher.kinds = ('sent',)
    setup.dispatcher.dispatch = dispatch  # type: ignore[method-assign]
    with setup.running():
        setup.put()
        until(lambda: empty(setup), 20.0)
    assert len(released) == 1
