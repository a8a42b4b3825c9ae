"""Findings 17 to 106: copies of a queue, claims and triggers of other users, writers during a
scan, deaths in a commit, and the cost of a processor without descriptors."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from transaction import TransactionManager

from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.interfaces import IMailSentEvent
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.format import STATE_AT
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER, RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.crash.syscalls import Call, Watch
from tests.support.doubles import RecordingMailer
from tests.support.processes import in_child
from tests.support.processors import ProcessorSetup, RecordingDispatcher, make_maildir
from tests.support.queues import (
    NOW,
    Clock,
    child,
    claimed,
    deferred,
    failed,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    the_file,
    until,
)
from tests.support.smtp.server import reply
from tests.support.transactions import AFTER, BEFORE, OtherManager, message
from tests.support.world import MINUTE, World

MakeWorld = Callable[..., World]

OTHER_USER = 65534
HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE
WRITER_HOURS = 40
"""Hours for which a writer holds its record (finding 106)."""

LARGE = bool(os.environ.get('SOAK'))

as_root = pytest.mark.skipif(os.geteuid() != 0, reason='needs root, to be two users (a container)')


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, clock=Clock())
    queue.prepare()
    yield queue
    queue.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where many files are made fast."""
    with TemporaryDirectory(dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that all users may enter, unlike those of pytest."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


# 24. The holder of a mail


@pytest.mark.finding(24)
@as_root
def test_a_claim_of_another_user_is_kept(queue: MaildirQueue) -> None:
    """A claim is a lock, so a process of another user keeps its mail without being asked whether it
    is alive; once it is killed the mail is free at once."""
    queue.put([make_envelope()]).publish()
    ((ticket,), _) = queue.scan(NOW)
    held: list[Any] = []

    def hold() -> None:
        held.append(MaildirQueue(queue.path, clock=Clock()).claim(ticket))
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)

    with child(hold):
        assert queue.claim(ticket) is None
    claim = queue.claim(ticket)
    assert claim is not None
    claim.release()


HOLDER = """
import sys
from pyramid_sendmail.queue import MaildirQueue

queue = MaildirQueue(sys.argv[1])
(ticket,), _ = queue.scan(float(sys.argv[2]))
held = queue.claim(ticket)
print(held is not None, flush=True)
sys.stdin.read()
"""


@pytest.mark.finding(24)
def test_a_claim_in_another_container_is_kept(queue: MaildirQueue) -> None:
    """A process in another container, whose number may be another's here, keeps its mail."""
    queue.put([make_envelope()]).publish()
    ((ticket,), _) = queue.scan(NOW)
    program = shutil.which('unshare')
    if program is None:
        pytest.skip('needs unshare (Debian: apt-get install util-linux)')
    container = [program, '--pid', '--fork', '--kill-child']
    if subprocess.run([*container, 'true'], capture_output=True).returncode:
        pytest.skip('unshare is not allowed here: it needs root (a container, --privileged)')
    holder = subprocess.Popen(
        [*container, sys.executable, '-W', 'ignore', '-c', HOLDER, queue.path, str(NOW)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == 'True\n'
        assert queue.claim(ticket) is None
        holder.kill()
    claim = until(lambda: queue.claim(ticket))
    claim.release()


# 20 and 100. Many deferred mails


@pytest.mark.finding(20, 100)
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fresh_mail_beside_many_deferred_ones(memory: Path) -> None:
    """A processor that starts on 40,000 deferred mails (500,000 with SOAK=1) takes little memory
    for them, sends a new mail at once, and the first one as soon as it has read their names."""
    count = 500_000 if LARGE else 40_000
    queue = MaildirQueue(str(memory / 'mail'), sync=False, longest=DAY)
    queue.prepare()
    setup = ProcessorSetup(queue)
    later = int(time.time() + HOUR) * 1000
    for number in range(count):
        name = f'5-{later + number:015d}-0001-{number:032x}'
        os.close(os.open(memory / 'mail' / 'cur' / name, os.O_CREAT | os.O_WRONLY, 0o600))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    setup.put()
    start = time.monotonic()
    with setup.running():
        setup.mailer.wait_for(1)
        first = time.monotonic() - start
        taken = []
        for number in range(3):
            begun = time.monotonic()
            setup.put()
            setup.mailer.wait_for(2 + number)
            taken.append(time.monotonic() - begun)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert first < 1.0 + count / 20_000, 'the first delivery, on a machine that is busy'
    assert min(taken) < 2.0, 'a new mail'
    assert grown < 64_000, 'KB'
    setup.queue.close()


# 85. A subscriber that fails twice


@pytest.mark.finding(85)
def test_a_subscriber_that_fails_twice(make_world: MakeWorld) -> None:
    """Of one mail the same event is dispatched three times, and committed the third time; until
    then the mail is in done/, across processors."""
    world = make_world()
    handled: list[tuple[str, str]] = []

    def subscriber(event: Any) -> None:
        if len(handled) < 2:
            handled.append((event.id, 'aborted'))
            raise LookupError('not now')
        event.request.tm.get().addAfterCommitHook(
            lambda committed: handled.append((event.id, 'committed'))
        )

    world.config.add_subscriber(subscriber, IMailSentEvent)
    world.config.commit()
    world.send()
    # --once dispatches the events of done/ once more at its end.
    assert world.run() == Tally(delivered=1)
    assert world.dispatcher.flush(10)
    assert [ends for _, ends in handled] == ['aborted', 'aborted']
    assert world.folders() == ['done']
    assert world.run() == Tally()
    assert world.dispatcher.flush(10)
    assert [ends for _, ends in handled] == ['aborted', 'aborted', 'committed']
    assert len({id for id, _ in handled}) == 1
    assert world.server.accepted('ann@example.org') == 1
    assert world.files() == {}


# 82 to 84. Death in a commit


STEPS = [(BEFORE, 'finish'), (AFTER, 'vote'), (AFTER, 'finish'), ('', '')]


@pytest.mark.finding(82)
@pytest.mark.parametrize(('key', 'step'), STEPS)
def test_each_fault_beside_another_that_fails(memory: Path, key: str, step: str) -> None:
    """Each system call of vote and finish fails in one run, while another data manager fails, or
    none. Mail can be claimed if and only if the transaction committed, is kept if that is in doubt,
    and is removed if it did not; finish raises no error."""
    logger = logging.getLogger('pyramid_sendmail')
    logger.setLevel(logging.CRITICAL + 1)
    try:
        number = 1
        while _commit(memory / str(number), number, key, step):
            number += 1
    finally:
        logger.setLevel(logging.NOTSET)
    assert number > 40


def _commit(path: Path, number: int, key: str, step: str) -> bool:
    """Commit with a failing call; return whether there was a call of that number."""
    queue = MaildirQueue(str(path), clock=Clock())
    manager = TransactionManager(explicit=True)
    bound = QueuedMailDelivery(queue, RecordingMailer(), EnvelopeFactory()).bind(manager)
    other = OtherManager(key or AFTER, fails=step)
    current = manager.begin()
    current.join(other)
    for subject in ('one', 'two'):
        bound.send(message(subject))
    hit = False

    def policy(call: Call) -> Any:
        nonlocal hit
        if call.number == number:
            hit = True
            if call.name == 'close':
                call.perform()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call.perform()

    failure = None
    with Watch(queue.path, policy):
        try:
            manager.commit()
        except (OSError, RuntimeError) as error:
            failure = error
        current.abort()
    _check_commit(queue, key, step, failure)
    queue.close()
    return hit


def _check_commit(queue: MaildirQueue, key: str, step: str, failure: Exception | None) -> None:
    all_voted = step != 'vote' and not isinstance(failure, OSError)
    if not step:
        assert (failure is None) == all_voted, 'finish raises no error'
    MaildirQueue(queue.path, clock=Clock()).scan(NOW)
    folders = Counter(path.parent.name for path in Path(queue.path).glob('*/5-*'))
    if not all_voted:
        assert folders == {}, (failure, folders)
    elif (key, step) == (BEFORE, 'finish'):
        assert folders.keys() <= {'done'}, folders
        assert folders.total() == 2
    else:
        assert folders == {'new': 2}, (failure, folders)


DEATHS = {
    (BEFORE, 'vote'): 'nothing',
    (BEFORE, 'finish'): 'in doubt',
    (AFTER, 'vote'): 'in doubt',
    (AFTER, 'finish'): 'queued',
}


@pytest.mark.finding(83)
@pytest.mark.parametrize('mails', [1, 3])
@pytest.mark.parametrize(('key', 'step'), DEATHS)
def test_death_in_another_data_manager(
    queue: MaildirQueue, key: str, step: str, mails: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that dies in the vote or finish of another data manager, after our vote and before
    our finish, leaves mail in doubt: it has an error event and is kept, neither sent nor removed.
    After our finish it is mail like any other; before our vote there is none."""

    def die() -> None:
        os._exit(9)

    def run() -> None:
        manager = TransactionManager(explicit=True)
        bound = QueuedMailDelivery(
            MaildirQueue(queue.path), RecordingMailer(), EnvelopeFactory(clock=Clock())
        ).bind(manager)
        manager.begin().join(OtherManager(key, **{step: die}))
        for number in range(mails):
            bound.send(message(f'mail {number}'))
        manager.commit()

    assert reap(forked(run)) == 9
    queue.scan(NOW)
    critical = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    outcome = DEATHS[key, step]
    assert len(critical) == (mails if outcome == 'in doubt' else 0)
    assert all('in doubt' in each.getMessage() for each in critical)
    if outcome == 'nothing':
        assert files(queue) == []
        return
    setup = ProcessorSetup(queue, clock=Clock())
    setup.dispatcher = RecordingDispatcher('sent', 'error')
    setup.processor().run_once()
    kinds = [event.kind for event in setup.dispatcher.pending_events]
    assert kinds == (['error'] if outcome == 'in doubt' else ['sent']) * mails
    assert len(setup.mailer.sent) == (0 if outcome == 'in doubt' else mails)
    assert len(files(queue)) == (mails if outcome == 'in doubt' else 0)
    assert {name.partition('/')[0] for name in files(queue)} <= {'failed'}


@pytest.mark.finding(84)
@pytest.mark.parametrize('durable', [True, False], ids=['with a queue', 'without'])
def test_death_between_the_commit_and_the_relay(queue: MaildirQueue, durable: bool) -> None:
    """A process is killed after the commit and before it connects to the relay: with a queue the
    mail is in it, unchanged; without one it is lost, which the documentation says."""

    class Deadly(RecordingMailer):
        def connect(self) -> Any:
            os._exit(9)

    def run() -> None:
        manager = TransactionManager(explicit=True)
        dispatcher: Any = RecordingDispatcher()
        policy = RetryPolicy() if durable else AT_ONCE_OR_NEVER
        recorder = OutcomeRecorder(policy, dispatcher, durable=durable)
        delivery = DirectMailDelivery(
            MaildirQueue(queue.path) if durable else MemoryQueue(),
            Deadly(),
            EnvelopeFactory(),
            recorder,
        )
        with manager:
            delivery.bind(manager).send(message())

    assert reap(forked(run)) == 9
    setup = ProcessorSetup(queue)
    tally = setup.processor().run_once()
    assert tally == (Tally(delivered=1) if durable else Tally())
    readme = Path(__file__).parents[2] / 'README.rst'
    assert 'at most once' in ' '.join(readme.read_text().split())


# 91. Without descriptors


@pytest.mark.finding(91)
def test_without_descriptors_nothing_spins(tmp_path: Path) -> None:
    """A processor that can open no more files sends nothing, uses next to no CPU, and goes on as
    soon as it can open them again."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))

    def work() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with setup.running(poll=0.1, pause=0.02):
            setup.put()
            setup.mailer.wait_for(1)
            until(lambda: not files(setup.queue))
            reading, writing = os.pipe()
            used = max(int(name) for name in os.listdir('/proc/self/fd')) + 1
            free: list[int] = []
            pid = os.fork()
            if pid == 0:
                os.read(reading, 1)
                setup.put()
                os._exit(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
            # A scan that is under way closes what it has open: take that, too.
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                with suppress(OSError):
                    free.append(os.dup(0))
            os.write(writing, b'!')
            before = time.process_time()
            time.sleep(1.0)  # the time in which it could spin
            spent = time.process_time() - before
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(setup.mailer.sent) == 1
            assert reap(pid) == 0
            for descriptor in (reading, writing, *free):
                os.close(descriptor)
            setup.mailer.wait_for(2, 30)
        assert spent < 0.4, f'{spent} of a second'

    in_child(work)
    setup.queue.close()


# 93. Copies


HOWS: dict[str, Callable[[str, str], list[list[str]]]] = {
    'cp -a': lambda source, target: [['cp', '-a', source, target]],
    'cp -r, which forgets the times': lambda source, target: [['cp', '-r', source, target]],
    'tar, which forgets them, too': lambda source, target: [
        ['mkdir', target],
        ['tar', '-C', source, '-cf', f'{target}.tar', '.'],
        ['tar', '-C', target, '-xmf', f'{target}.tar'],
    ],
}


@pytest.mark.finding(93)
@pytest.mark.parametrize('how', HOWS)
def test_a_copy_keeps_its_schedule(tmp_path: Path, how: str) -> None:
    """In a backup that was restored the same mail is due at the same times: the times of files do
    not matter, no mail is forgotten, and not all is sent at once."""
    clock = Clock()
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, clock=clock, longest=2 * HOUR)
    later = make_envelope(due=NOW + DAY)
    put_off, dead, reported = (make_envelope() for _ in range(3))
    for envelope, settle in (
        (put_off, lambda claim: claim.settle([deferred(put_off)], retry_at=NOW + HOUR)),
        (dead, lambda claim: claim.settle([failed(dead)], report=False)),
        (reported, lambda claim: claim.settle([sent(reported)])),
    ):
        queue.put([envelope]).publish()
        claim = claimed(queue)
        settle(claim)
        claim.release()
    queue.put([later]).publish()
    os.mkfifo(f'{queue.path}/trigger.old')  # a copy may contain it or not
    os.unlink(f'{queue.path}/trigger.old')
    for command in HOWS[how](queue.path, str(tmp_path / 'copy')):
        subprocess.run(command, check=True)
    copy = MaildirQueue(str(tmp_path / 'copy'), sync=False, clock=clock, longest=2 * HOUR)
    copy.prepare()
    for moment in (NOW, NOW + HOUR - 1, NOW + HOUR, NOW + DAY - 1, NOW + DAY):
        assert copy.scan(moment) == queue.scan(moment)
    assert files(copy) == files(queue)
    setup = ProcessorSetup(copy, clock=clock)
    setup.dispatcher = RecordingDispatcher('sent')
    arrived = []
    for moment in (NOW, NOW + HOUR - 1, NOW + HOUR, NOW + DAY - 1, NOW + DAY):
        clock.now = moment
        setup.processor().run_once()
        arrived.append([envelope.id for envelope in setup.mailer.sent])
    one, both = [put_off.id], [put_off.id, later.id]
    assert arrived == [[], [], one, one, both]
    assert setup.dispatcher.pending_events[0] == sent(reported)
    assert [name.partition('/')[0] for name in files(copy)] == ['failed']
    copy.close()
    queue.close()


# 99. Writers during a scan


@pytest.mark.finding(99)
def test_mail_that_comes_during_scans(queue: MaildirQueue) -> None:
    """Two processes put mail as fast as they can while the queue is scanned and emptied. After
    their end one scan finds all that is left; no mail was missed or found twice."""
    rounds = 120
    reading, writing = os.pipe()

    def write() -> None:
        own = MaildirQueue(queue.path, sync=False, clock=Clock())
        for number in range(rounds):
            mails = [make_envelope() for _ in range(1 + number % 3)]
            own.put(mails).publish()
            os.write(writing, ''.join(f'{mail.id}\n' for mail in mails).encode())

    pids = [forked(write) for _ in range(2)]
    os.close(writing)
    published: list[bytes] = []
    listener = threading.Thread(target=lambda: published.append(_all_of(reading)))
    listener.start()
    taken: list[str] = []
    scans = 0
    while scans < 5 or not all(map(_has_ended, pids)):
        scans += 1
        taken += _take(queue)
    assert [reap(pid) for pid in pids] == [0, 0]
    taken += _take(queue)
    listener.join()
    os.close(reading)
    assert sorted(taken) == sorted(published[0].decode().split())
    assert len(taken) == len(set(taken)) == 2 * 2 * rounds
    assert files(queue) == []


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _all_of(descriptor: int) -> bytes:
    with open(descriptor, 'rb', closefd=False) as file:
        return file.read()


def _take(queue: MaildirQueue) -> list[str]:
    taken = []
    for ticket in queue.scan(NOW)[0]:
        claim = queue.claim(ticket)
        if claim is not None:  # else its writer still holds the lock
            taken.append(claim.envelope.id)
            claim.settle([sent(claim.envelope)], report=False)
    return taken


# 101. Triggers that cannot be used


def _full(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)


TRIGGERS: dict[str, Callable[[Path], object]] = {
    'a file': lambda path: path.write_bytes(b''),
    'a folder': lambda path: path.mkdir(),
    'a link to nowhere': lambda path: path.symlink_to('nowhere'),
    'a link to a device': lambda path: path.symlink_to('/dev/full'),
    'removed': lambda path: None,
    'full': lambda path: None,
}


@pytest.mark.finding(101)
@pytest.mark.parametrize('kind', TRIGGERS)
def test_a_trigger_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    """If the wake-up FIFO cannot be used, a commit works nevertheless, and the mail is sent with
    the processor's next scan."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    trigger = tmp_path / 'mail' / 'trigger'
    trigger.unlink()
    TRIGGERS[kind](trigger)
    setup.queue.close()
    with setup.running(poll=0.1):
        setup.put()
        setup.mailer.wait_for(1)
        until(lambda: not files(setup.queue))
        if kind == 'removed':
            trigger.unlink()
        elif kind == 'full':
            _full(trigger)
        setup.put()
        setup.mailer.wait_for(2)
    setup.queue.close()


@pytest.mark.finding(101)
@as_root
def test_a_trigger_of_another_user(public: Path) -> None:
    """The same with a wake-up FIFO of another user, which can be neither written nor read."""
    root = public / 'mail'

    def work() -> None:
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
        setup = ProcessorSetup(MaildirQueue(str(root), sync=False))
        with setup.running(poll=0.1):
            setup.put()
            setup.mailer.wait_for(1)
        setup.queue.close()

    make_maildir(root).close()
    for path in (root, *root.iterdir()):
        if path.is_dir():
            os.chown(path, OTHER_USER, OTHER_USER)
    assert (root / 'trigger').stat().st_uid == 0
    in_child(work)


# 106. Slow writers


@pytest.mark.finding(106)
@pytest.mark.parametrize('letter', ['W', 'V', 'C'])
def test_a_slow_writer_keeps_its_mail(tmp_path: Path, letter: str) -> None:
    """A writer that has held its record for forty hours, by the file's times and the clock, keeps
    its mail. Only an unlocked record is recovered, and mail that was voted is never removed,
    however old."""
    clock = Clock()
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, clock=clock)
    put = queue.put([make_envelope(), make_envelope()])
    record = tmp_path / 'mail' / 'tmp' / put.tickets[0].order
    with record.open('r+b') as file:
        file.seek(STATE_AT)
        file.write(letter.encode())
    before = files(queue)
    for path in record.parent.iterdir():
        os.utime(path, (NOW - WRITER_HOURS * HOUR, NOW - WRITER_HOURS * HOUR))
    clock.now += WRITER_HOURS * HOUR
    other = MaildirQueue(queue.path, sync=False, clock=clock)
    assert other.scan(clock.now) == ([], None)
    assert files(queue) == before
    queue._files.close_inherited()
    other.scan(clock.now)
    folders = [name.partition('/')[0] for name in files(queue)]
    assert folders == {'W': [], 'V': ['done'] * 2, 'C': ['new'] * 2}[letter]


@pytest.mark.finding(94)
def test_the_first_attempt_is_never_too_late(make_world: MakeWorld) -> None:
    """A mail that is older than mail.give_up_after at its first attempt is tried nevertheless."""
    world = make_world()
    world.send()
    world.clock.now += 30 * DAY
    assert world.run() == Tally(delivered=1)


# 12. A read-only queue


@pytest.mark.finding(12)
@as_root
def test_a_read_only_queue(public: Path) -> None:
    """A processor that may read the mail, and not write its outcome, does not connect."""
    root = public / 'mail'
    setup = ProcessorSetup(make_maildir(root))
    setup.put_many(2)
    setup.queue.close()
    before = files(setup.queue)
    for path in (root, *root.rglob('*')):
        os.chown(path, OTHER_USER, OTHER_USER)
        path.chmod(0o500 if path.is_dir() else 0o400)

    def work() -> None:
        os.setgid(OTHER_USER)
        os.setuid(OTHER_USER)
        own = ProcessorSetup(MaildirQueue(str(root), sync=False))
        with pytest.raises(OSError, match='give this user the right to write there'):
            own.processor().run_once()
        assert own.mailer.connections == 0

    in_child(work)
    assert files(setup.queue) == before


# 96. Locks


@pytest.mark.finding(96)
def test_the_lock_is_flock(queue: MaildirQueue) -> None:
    """Opening and closing the file of a claimed mail in the same process, as a backup may do, does
    not release its lock, as it would with locks of POSIX."""
    queue.put([make_envelope()]).publish()
    claim = claimed(queue)
    ((ticket,), _) = queue.scan(NOW)
    the_file(queue, 'new').read_bytes()

    def other() -> None:
        assert MaildirQueue(queue.path, clock=Clock()).claim(ticket) is None

    assert reap(forked(other)) == 0
    claim.release()
    assert fcntl.flock is not fcntl.lockf


@pytest.mark.finding(96)
def test_a_lock_of_a_removed_file_is_no_claim(queue: MaildirQueue) -> None:
    """A file that was removed can still be locked; it is not claimed."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    ((ticket,), _) = queue.scan(NOW)
    lock = fcntl.flock
    taken = []

    def late(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not taken:
            taken.append(os.unlink(the_file(queue, 'new')))
        lock(descriptor, operation)

    fcntl.flock = late
    try:
        assert queue.claim(ticket) is None
    finally:
        fcntl.flock = lock
    assert taken
    assert queue._files._open == {}


# 104. No mail about a failed mail


@pytest.mark.finding(104)
def test_a_failed_mail_with_the_null_sender_makes_no_mail(world: World) -> None:
    """Mail with the null sender that fails is a dead letter and an event; no mail is sent about
    it."""
    world.server.always('RCPT', reply(550, '5.1.1 no such user'))
    world.send(sender='')
    for _ in range(3):
        world.run()
        world.clock.now += DAY
    assert len(world.events_of('error')) == 1
    assert world.folders() == ['failed']
    (line,) = [line for _, verb, line in world.server.commands if verb == 'MAIL']
    assert line.startswith('MAIL FROM:<>')


@pytest.mark.finding(97)
def test_sigstop_is_no_death(queue: MaildirQueue) -> None:
    """A process that is stopped over a mail, as on a suspended machine, still holds it when it goes
    on, and records its outcome, whatever other processes have tried meanwhile."""
    envelope = make_envelope()
    queue.put([envelope]).publish()
    ((ticket,), _) = queue.scan(NOW)

    def work() -> None:
        claim = MaildirQueue(queue.path, sync=False, clock=Clock()).claim(ticket)
        assert claim is not None
        claim.mark_ambiguous(envelope.recipients)
        os.kill(os.getpid(), signal.SIGSTOP)
        claim.settle([sent(envelope)], report=False)

    pid = forked(work)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    for moment in (NOW, NOW + 365 * DAY):
        assert queue.claim(ticket) is None
        assert len(queue.scan(moment)[0]) == 1
    os.kill(pid, signal.SIGCONT)
    assert reap(pid) == 0
    assert files(queue) == []
