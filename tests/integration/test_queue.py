"""Findings 10 to 26: claims, locks, scans and what a process leaves behind when it is killed,
seen from the relay: what arrives, and how often."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.queue import MaildirQueue
from tests.support.children import Place
from tests.support.folders import folder as tmp_path
from tests.support.queues import (
    CALLS,
    NOW,
    Clock,
    child,
    files,
    forked,
    make_envelope,
    reap,
    sent,
    until,
)
from tests.support.smtp.server import ScriptedSMTPServer, accept_then, hold, reply
from tests.support.world import MINUTE, World

__all__ = ['tmp_path']

MakeWorld = Callable[..., World]

ANN = 'ann@example.org'

CAME_AWAY_EMPTY = 3

LOCKS = [errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOLCK]


# 10. Two at a time


@contextmanager
def paused(step: int, work: Callable[[], bool]) -> Iterator[tuple[bool, Callable[[], bool]]]:
    """Run ``work`` in a child that pauses before its ``step``-th system call on the queue.

    Gives whether there was such a step, and what lets the child go on and returns its result.
    """
    here, there = os.pipe(), os.pipe()

    def run() -> None:
        left = step

        def counting(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.write(here[1], b'.')
                    os.read(there[0], 1)
                return call(*args, **options)

            return wrapper

        for name in (*CALLS, 'pread', 'fstat'):
            setattr(os, name, counting(getattr(os, name)))
        fcntl.flock = counting(fcntl.flock)
        result = work()
        os.write(here[1], b'!')
        os._exit(0 if result else CAME_AWAY_EMPTY)

    pid = forked(run)
    reached = os.read(here[0], 1) == b'.'

    def go_on() -> bool:
        os.write(there[1], b'.')
        status = reap(pid)
        assert status in (0, CAME_AWAY_EMPTY)
        return status == 0

    try:
        yield reached, go_on
    finally:
        for end in (*here, *there):
            os.close(end)


def at_each_step(check: Callable[[int], bool]) -> int:
    """Call ``check`` with 1, 2, ... until there is no such step; how many there were."""
    for step in range(1, 200):
        if not check(step):
            return step - 1
    raise AssertionError('it never ends')


@pytest.mark.finding(10)
@pytest.mark.parametrize('settled', [False, True])
def test_a_claim_at_each_step_of_another(tmp_path: Path, settled: bool) -> None:
    """Wherever one process stands in a claim when another makes its own, and also when that one has
    delivered the mail and removed it meanwhile: exactly one of them has it."""

    def check(step: int) -> bool:
        queue = MaildirQueue(str(tmp_path / str(step)), sync=False, clock=Clock())
        queue.prepare()
        envelope = make_envelope()
        queue.put([envelope]).publish()
        (ticket,), _ = queue.scan(NOW)

        def work() -> bool:
            return queue.claim(ticket) is not None

        with paused(step, work) as (reached, go_on):
            ours = queue.claim(ticket) if reached else None
            if ours is not None and settled:
                ours.settle([sent(envelope)], report=False)
            theirs = go_on()
        assert theirs + (ours is not None) == 1
        return reached

    assert at_each_step(check) > 3


@pytest.mark.finding(10)
def test_a_recovery_at_each_step_of_another(tmp_path: Path) -> None:
    """A commit that a dead process has begun is completed once: wherever one processor stands in
    that when another does the same and delivers the mail."""

    def check(step: int) -> bool:
        queue = MaildirQueue(str(tmp_path / str(step)), sync=False, clock=Clock())
        queue.prepare()
        envelopes = [make_envelope() for _ in range(2)]
        assert reap(forked(lambda: dies_while_publishing(queue, envelopes))) == 1
        assert len(files(queue)) == 2
        delivered: list[str] = []

        def deliver_all() -> bool:
            for ticket in queue.scan(NOW)[0]:
                claim = queue.claim(ticket)
                if claim is not None:
                    delivered.append(claim.envelope.id)
                    claim.settle([sent(claim.envelope)], report=False)
            return True

        with paused(step, lambda: bool(queue.scan(NOW))) as (reached, go_on):
            if reached:
                deliver_all()
            go_on()
        deliver_all()
        assert sorted(delivered) == sorted(envelope.id for envelope in envelopes)
        assert files(queue) == []
        return reached

    assert at_each_step(check) > 5


def dies_while_publishing(queue: MaildirQueue, envelopes: list[Any]) -> None:
    put = queue.put(envelopes)

    def die(*_args: object, **_options: object) -> None:
        os._exit(1)

    os.rename = die  # type: ignore[assignment]
    put.publish()


# 11. Locks that fail


@pytest.mark.finding(11)
@pytest.mark.parametrize('number', LOCKS, ids=errno.errorcode.get)
def test_no_locks_from_the_start(
    world: World, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be locked, no connection is opened."""
    world.send()
    before = world.files()
    processor = world.processor()
    monkeypatch.setattr(fcntl, 'flock', failing(number))

    with pytest.raises(QueueError, match='lock'):
        processor.run_once()

    monkeypatch.undo()
    assert world.server.connections == 0
    assert world.files() == before
    assert world.run() == Tally(delivered=1)


@pytest.mark.finding(11)
@pytest.mark.parametrize('number', LOCKS, ids=errno.errorcode.get)
def test_locks_that_fail_later(
    world: World,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where a claim fails nothing is sent, the log says why, and once locks work again the mail
    leaves once."""
    world.send()
    before = world.files()
    processor = world.processor()
    lock = fcntl.flock

    def some(descriptor: int, operation: int) -> None:
        if operation != fcntl.LOCK_UN and '/new/' in os.readlink(f'/proc/self/fd/{descriptor}'):
            raise OSError(number, os.strerror(number))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, 'flock', some)
    with suppress(QueueError):
        processor.run_once()
    monkeypatch.undo()

    assert 'MAIL' not in world.server.verbs()
    assert world.files() == before
    read_only = number == errno.EROFS
    assert ('file system is read-only' if read_only else os.strerror(number)) in caplog.text
    assert world.run() == Tally(delivered=1)
    assert world.server.accepted(ANN) == 1


def failing(number: int) -> Callable[..., None]:
    def fail(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# 13 and 14. What stops no other mail


POISON: dict[str, dict[str, Any]] = {
    'a recipient that is not ASCII': {'to': 'jörg@example.org'},
    'a recipient with a line break': {'to': 'a@example.org>\r\nRCPT TO:<x@example.org'},
    'a recipient with a NUL': {'to': 'a\0b@example.org'},
    'no address': {'to': 'no one at all'},
    'a sender with a line break': {'sender': 'a@example.org>\r\nRSET'},
    'bare line feeds': {'raw': b'Subject: x\n\n.\nMAIL FROM:<x@example.org>\n'},
    'bare carriage returns': {'raw': b'Subject: x\r\n\r\n\r.\r\r\n'},
    'bytes above 127': {'raw': 'Subject: x\r\n\r\nüber\r\n'.encode()},
    'nothing at all': {'raw': b''},
    'a line of a million bytes': {'raw': b'Subject: x\r\n\r\n' + b'x' * 10**6 + b'\r\n'},
}


@pytest.mark.finding(14)
@pytest.mark.parametrize('poison', POISON)
def test_a_poison_mail_stops_no_other_mail(make_world: MakeWorld, poison: str) -> None:
    """A mail that cannot be spoken of is never said, or is what the relay makes of it; all others
    are delivered, by the same run, and nothing is deleted unsent."""
    world = make_world()
    world.server.extensions = ('PIPELINING', 'SIZE 10240000')
    options = dict(POISON[poison])
    before = [world.send(), world.send()]
    world.put(*([options.pop('to')] if 'to' in options else []), **options, priority='high')
    after = world.send()

    tally = world.run()

    arrived = {message_id for message_id, _ in world.server.pairs()}
    assert arrived >= {*before, after}
    assert tally.delivered + len(world.events_of('error')) == 4
    assert tally.deferred == 0
    assert world.folders() == ['failed'] * len(world.events_of('error'))
    world.server.violations[:] = [
        each for each in world.server.violations if 'line of 1000002 bytes' not in each
    ]


@pytest.mark.finding(13)
def test_files_that_move_during_a_run(world: World) -> None:
    """Files that are removed, renamed or damaged between the scan and the claim affect no other
    mail: the run goes on, over the same connection."""
    victims = [world.send() for _ in range(3)]
    names = sorted((world.path / 'new').iterdir())
    others = [world.send(priority='low') for _ in range(5)]
    gone, moved, broken = names

    def meddle(session: Any) -> None:
        gone.unlink()
        moved.rename(moved.with_name(f'{moved.name}:2,S'))
        broken.write_bytes(b'X-Envelope: nonsense\r\n\r\n')

    first = world.send(priority='high')
    world.server.script('dot', meddle)
    world.server.extensions = ()

    def arrived() -> set[str]:
        return {message_id for message_id, _ in world.server.pairs()}

    with world.running():
        until(lambda: arrived() >= {first, *others})
        until(lambda: len(world.events_of('error')) == 1)

    assert world.server.connections == 1
    world.run()
    assert len(arrived() & set(victims)) == 1, 'the renamed one is still ours'
    assert world.folders() == ['failed']


# 19. A relay that refuses


@pytest.mark.finding(19)
def test_a_thousand_mails_and_a_closed_relay(
    make_world: MakeWorld, start_smtp_server: Callable[..., ScriptedSMTPServer]
) -> None:
    """With an unavailable relay a run opens one connection, however much waits and however many
    workers there are; no attempt is counted, and each mail leaves once later."""
    server = start_smtp_server()
    world = make_world(server)
    at_once: list[int] = []

    def refuse(session: Any) -> Any:
        at_once.append(server.open_connections)
        return reply(554, '5.7.1 blocked')

    server.always('connect', refuse)
    envelopes = [make_envelope(queued_at=world.clock()) for _ in range(1000)]
    world.queue.put(envelopes).publish()
    before = world.files()

    world.closed(workers=4)
    assert server.connections == 1
    with world.running(workers=4):
        server.wait_for(lambda server: server.connections >= 5)
        assert world.files() == before
        server.reset_script()
        server.wait_for(1000, 60)
        until(lambda: not world.files(), 30)

    assert set(at_once) == {1}, 'one worker tries, and the others wait for what it finds'
    assert set(server.pairs().values()) == {1}
    assert {event.attempt for event in world.events_of('sent')} == {1}
    assert world.events_of('deferred') == world.events_of('error') == []


# 20. Many files


@pytest.mark.finding(20)
def test_a_scan_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 deferred mails a scan reads the names alone: it opens, locks and stats none of
    them, keeps no more than the limit, and finds the one mail that is due."""
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False, clock=Clock(), longest=3600)
    queue.prepare()
    for number in range(20_000):
        (tmp_path / 'mail' / 'cur' / f'5-{int(NOW + 60) * 1000:015d}-0001-{number:032x}').touch()
    envelope = make_envelope()
    queue.put([envelope]).publish()
    calls: list[str] = []
    for module, name in ((os, 'open'), (os, 'stat'), (os, 'lstat'), (fcntl, 'flock')):
        monkeypatch.setattr(module, name, noting(calls, name, getattr(module, name)))

    tickets, next_due = queue.scan(NOW)

    monkeypatch.undo()
    assert [ticket.order.endswith(envelope.id) for ticket in tickets] == [True]
    assert next_due == NOW + 60
    assert len(calls) < 50
    assert len(queue.scan(NOW + 61, limit=100)[0]) == 100
    queue.close()


def noting(calls: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return call(*args, **options)

    return wrapper


# 22. Names that collide


@pytest.mark.finding(22)
@pytest.mark.parametrize('letter', ['published', 'being written'])
def test_names_that_collide(world: World, letter: str) -> None:
    """Where the generator of names gives one twice, the first mail is not replaced by the second:
    both survive, or the second is refused while its transaction can still abort."""
    first = make_envelope(id='1' * 32, body='The first.', queued_at=world.clock())
    second = make_envelope(id='1' * 32, body='The second.', queued_at=world.clock())
    put = world.queue.put([first])
    if letter == 'published':
        put.publish()
    kept = 1
    try:
        world.queue.put([second]).publish()
    except QueueError:
        pass
    else:
        kept = 2
    put.publish()

    world.run()

    bodies = [message.data.rpartition(b'\r\n\r\n')[2] for message in world.server.messages]
    assert b'The first.\r\n' in bodies
    assert len(bodies) == kept


# 23. A queue that is half made


@pytest.mark.finding(23)
def test_every_partial_tree_becomes_a_queue(make_world: MakeWorld) -> None:
    """Whichever of the folders are there, and whichever are not: mail is taken and delivered."""
    world = make_world()
    folders = ['tmp', 'new', 'cur', 'done', 'failed']
    for number in range(2 ** len(folders)):
        root = world.path.with_name(f'partial-{number}')
        root.mkdir(mode=0o700)
        for place, folder in enumerate(folders):
            if number & 1 << place:
                (root / folder).mkdir(mode=0o700)
        queue = MaildirQueue(str(root), sync=False, clock=world.clock)
        queue.put([make_envelope(queued_at=world.clock())]).publish()
        ((ticket,), _) = queue.scan(world.clock())
        assert queue.claim(ticket) is not None
        queue.close()
        assert {path.name for path in root.iterdir()} >= set(folders)


# 24 to 26. Processes that are killed


@pytest.mark.finding(17, 24)
def test_a_holder_that_sleeps_is_not_robbed(world: World) -> None:
    """A process that holds a mail and is stopped keeps it, whatever the clock says; killed, it
    frees it at once, and the mail is tried again by the retry policy."""
    world.send()
    ((ticket,), _) = world.queue.scan(world.clock())
    held: list[Any] = []
    with child(lambda: held.append(world.new_queue().claim(ticket))) as pid:
        os.kill(pid, signal.SIGSTOP)
        for moment in (0, 10 * 365 * 24 * 60 * MINUTE, -20 * 365 * 24 * 60 * MINUTE):
            world.clock.now += moment
            assert world.run() == Tally()
        assert world.server.connections == 0 or world.server.verbs().count('MAIL') == 0
        world.clock.now = NOW
    assert world.run() == Tally(deferred=1)
    world.clock.now += MINUTE
    assert world.run() == Tally(delivered=1)
    assert world.server.accepted(ANN) == 1


@pytest.mark.finding(25, 26)
@pytest.mark.parametrize('accepted', [0, 2, 4])
def test_kill_9_after_so_many_mails(
    make_place: Callable[[ScriptedSMTPServer], Place],
    smtp_server: ScriptedSMTPServer,
    accepted: int,
) -> None:
    """Killed while the relay thinks about a mail: those before it are not sent again, those behind
    it are sent once, and the one in flight is said to be ambiguous."""
    place = make_place(smtp_server)
    messages = [make_envelope(queued_at=time.time()) for _ in range(5)]
    place.queue.put(messages).publish()
    go_on = Event()
    smtp_server.script('dot', *[reply(250, '2.0.0 queued')] * accepted, accept_then(hold(go_on)))
    victim = place.start(place.ini(), '--once', '--workers', 1)
    smtp_server.wait_for(lambda server: server.verbs().count('dot') == accepted + 1, 30)
    smtp_server.wait_for(accepted + 1)
    victim.process.kill()
    victim.wait()
    go_on.set()
    survivor = place.start(place.ini())
    place.drained()
    assert survivor.stop() == 0

    in_flight = smtp_server.messages[accepted].message_id
    assert smtp_server.pairs() == {
        (mail.message_id, ANN): 2 if mail.message_id == in_flight else 1 for mail in messages
    }
    ambiguous = re.findall(r'(<\S+>): ambiguous for', survivor.text)
    assert ambiguous == [in_flight]
