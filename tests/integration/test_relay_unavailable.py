"""A closed road: wherever it is closed, nobody's mail is to blame, the log has a line for each
change, the pauses grow, and all mail leaves once the road is open."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailer
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.sending.attempt import Tally
from tests.support.queues import Clock, files, until
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    Session,
    TLSAuthority,
    drop,
    hang,
    reply,
    reply_then_drop,
)
from tests.unit.processor.test_active_queue import REFUSED
from tests.unit.processor.test_processor import (
    CLOSED,
    OPEN,
    Setup,
    crew_of,
    empty,
    levels,
    maildir,
    processor_threads,
)
from tests.unit.scripts.test_qp import application, run
from tests.unit.sending.test_attempt import Reporter

Start = Callable[..., ScriptedSMTPServer]


class Watched(MaildirQueue):
    """A queue that counts who claims mail in order to send it, and that ``trouble`` keeps from
    recording anything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.claims = 0
        self.trouble: int | None = None

    def check_writable(self) -> None:
        if self.trouble is not None:
            raise QueueError(self.trouble, 'the queue cannot record what becomes of its mail')
        super().check_writable()

    def claim(self, ticket: Any, *, settled: bool = False) -> Any:
        self.claims += not settled
        return super().claim(ticket, settled=settled)


@implementer(IMailer)
class Counted:
    """Another mailer, of which it counts the connections, and those that have failed; ``crowded``
    when somebody else was connecting while one failed."""

    def __init__(self, mailer: Any) -> None:
        self.name = mailer.name
        self.connections = self.failures = 0
        self.crowded = False
        self._mailer = mailer
        self._connecting = 0
        self._lock = threading.Lock()

    def connect(self) -> Any:
        with self._lock:
            self.connections += 1
            self._connecting += 1
        try:
            return self._mailer.connect()
        except MailerUnavailable:
            with self._lock:
                self.crowded |= self._connecting > 1
                self.failures += 1
            raise
        finally:
            with self._lock:
                self._connecting -= 1


@dataclass
class RelayConnection:
    """A road that is closed until ``open`` is called; ``arrived``: the copies of each Message-ID
    that have come through."""

    mailer: Any
    open: Callable[[], object]
    arrived: Callable[[], Counter[str]]
    trouble: int | None = None


@dataclass
class Builder:
    """Makes roads, each closed in its own way."""

    path: Path
    start: Start
    authority: TLSAuthority
    servers: list[ScriptedSMTPServer] = field(default_factory=list)

    def server(self, **options: Any) -> ScriptedSMTPServer:
        server = self.start(**options)
        self.servers.append(server)
        return server

    def arrived(self) -> Counter[str]:
        copies: Counter[str] = Counter()
        for server in self.servers:
            for (message_id, _), count in server.pairs().items():
                copies[message_id] += count
        return copies

    def road(self, url: str, open_: Callable[[], object]) -> RelayConnection:
        return RelayConnection(
            mailer_from_url(url, hostname='web.example.org'), open_, self.arrived
        )


def refused(builder: Builder) -> RelayConnection:
    server = builder.server()
    server.stop()
    return builder.road(server.url, server.start)


def mute(builder: Builder) -> RelayConnection:
    server = builder.server()
    server.always('connect', hang())
    timeouts = Timeouts(greeting=0.3, quit=0.3)
    mailer = SMTPMailer(server.host, server.port, hostname='web.example.org', timeouts=timeouts)
    return RelayConnection(mailer, server.reset_script, builder.arrived)


def answered(verb: str, action: Action) -> Callable[[Builder], RelayConnection]:
    def build(builder: Builder) -> RelayConnection:
        server = builder.server(auth={'shop': 'secret'})
        server.always(verb, action)
        url = f'smtp+insecure://shop:secret@{server.host}:{server.port}'
        return builder.road(url, server.reset_script)

    return build


def without_tls(builder: Builder) -> RelayConnection:
    server = builder.server()

    def open_() -> None:
        server.tls, server.context = 'starttls', builder.authority.context()

    return builder.road(f'{server.url}?tls=required&ca_file={builder.authority.path}', open_)


def wrong_certificate(builder: Builder) -> RelayConnection:
    server = builder.server(tls='implicit', context=builder.authority.wrong_host())

    def open_() -> None:
        server.context = builder.authority.context()

    return builder.road(f'{server.url}?ca_file={builder.authority.path}', open_)


def unknown_name(builder: Builder) -> RelayConnection:
    server = builder.server()
    mailer = SMTPMailer('nowhere.invalid', server.port, hostname='web.example.org')

    def open_() -> None:
        mailer.host = server.host  # as if it had been entered into the DNS

    return RelayConnection(mailer, open_, builder.arrived)


def lmtp(builder: Builder) -> RelayConnection:
    server = builder.server(lmtp=True)
    server.stop()
    return builder.road(server.url, server.start)


def failover(builder: Builder) -> RelayConnection:
    first, second = builder.server(), builder.server()
    first.stop()
    second.always('connect', reply_then_drop(554, '5.7.1 your address is blocked'))
    return builder.road(f'{first.url} {second.url}', second.reset_script)


def missing_program(builder: Builder) -> RelayConnection:
    program, spool = builder.path / 'sendmail', builder.path / 'spool'
    spool.mkdir()

    def open_() -> None:
        whole = builder.path / 'whole'
        whole.write_text(f'#!/bin/sh\nexec cat > {spool}/$$\n')
        whole.chmod(0o755)
        whole.rename(program)

    def arrived() -> Counter[str]:
        texts = [path.read_text() for path in spool.iterdir()]
        return Counter(text.partition('\n')[0].partition(': ')[2] for text in texts)

    return RelayConnection(mailer_from_url(f'sendmail:{program}', hostname='x'), open_, arrived)


def unrecordable(number: int) -> Callable[[Builder], RelayConnection]:
    def build(builder: Builder) -> RelayConnection:
        server = builder.server()
        road = builder.road(server.url, lambda: None)
        road.trouble = number
        return road

    return build


ROADS: dict[str, Callable[[Builder], RelayConnection]] = {
    'connection refused': refused,
    'no greeting': mute,
    'closed without a greeting': answered('connect', drop()),
    '421 greeting': answered('connect', reply_then_drop(421, '4.3.2 closing')),
    '554 greeting': answered('connect', reply_then_drop(554, '5.7.1 you are blocked')),
    'EHLO refused': answered('EHLO', reply(550, '5.7.1 go away')),
    'no TLS where it is demanded': without_tls,
    'wrong certificate': wrong_certificate,
    '535 at AUTH': answered('AUTH', reply(535, '5.7.8 authentication failed')),
    '454 at AUTH': answered('AUTH', reply(454, '4.7.0 temporary failure')),
    'unknown name': unknown_name,
    'lmtp': lmtp,
    'failover of two': failover,
    'no such program': missing_program,
    'disk full': unrecordable(errno.ENOSPC),
    'read-only': unrecordable(errno.EROFS),
}


@dataclass
class World:
    """A queue of five mails at the end of a closed road."""

    setup: Setup
    queue: Watched
    road: RelayConnection
    mailer: Counted

    def octets(self) -> dict[str, bytes]:
        """What stands in each file, by folder and name."""
        return {name: Path(self.queue.path, name).read_bytes() for name in files(self.queue)}

    def open(self) -> None:
        self.queue.trouble = None
        self.road.open()


@pytest.fixture(params=ROADS)
def world(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
) -> Iterator[World]:
    builder = Builder(tmp_path, start_smtp_server, tls_authority)
    road = ROADS[request.param](builder)
    queue = maildir(tmp_path / 'mail', cls=Watched)
    setup = Setup(queue)
    setup.dispatcher = Reporter('sent', 'deferred', 'error')
    mailer: Any = Counted(road.mailer)
    setup.mailer = mailer
    queue.trouble = road.trouble
    setup.put_many(5)
    yield World(setup, queue, road, mailer)
    queue.close()
    assert [text for server in builder.servers for text in server.violations] == []


def test_double() -> None:
    """The mailer that counts keeps the contract."""
    assert verifyObject(IMailer, Counted(SMTPMailer('x', hostname='x')))


def test_nobodys_fault(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever closes it: no file is touched, nothing is claimed, nobody hears of it, one worker at
    a time tries, and the log has one line; then one line, and all leaves once, uncounted."""
    caplog.set_level(logging.DEBUG, 'pyramid_sendmail')
    setup = world.setup
    before = world.octets()
    with setup.running():
        until(lambda: len(levels(caplog, CLOSED)) >= 3)
        setup.put()
        meanwhile = world.octets()
        told = len(levels(caplog, CLOSED))
        until(lambda: len(levels(caplog, CLOSED)) >= told + 2)
        assert {name: data for name, data in meanwhile.items() if name in before} == before
        assert len(meanwhile) == len(before) + 1
        assert all(name.startswith('new/') and '-0000-' in name for name in meanwhile)
        assert world.octets() == meanwhile
        assert world.queue.claims == 0
        assert setup.dispatcher.pending_events == []
        assert levels(caplog, OPEN) == []
        if world.road.trouble is not None:
            assert world.mailer.connections == 0, 'what cannot be recorded is not sent'
        world.open()
        until(lambda: empty(setup), 30)
    closed = levels(caplog, CLOSED)
    assert closed == ['ERROR'] + ['DEBUG'] * (len(closed) - 1)
    assert levels(caplog, OPEN) == ['WARNING']
    assert not world.mailer.crowded
    assert len(world.road.arrived()) == 6
    assert set(world.road.arrived().values()) == {1}
    assert [(fate.kind, fate.attempt) for fate in setup.dispatcher.pending_events] == [
        ('sent', 1)
    ] * 6


def test_once_tries_it_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """--once: one try, no pause, a status and a line that say why, and the mail is as it was."""
    setup = world.setup
    unusable = world.road.trouble is not None
    before = world.octets()
    app = application(world.queue)
    for tries in (1, 2):
        status = run('x.ini', '--once', processor=setup.processor(pause=3600.0), app=app)
        assert status == (3 if unusable else 1)
        assert world.mailer.connections == world.mailer.failures == (0 if unusable else tries)
        lines = capsys.readouterr().err.splitlines()
        assert 'psendmail-qp: 0 delivered, 0 deferred, 0 failed' in lines[:-1]
        if unusable:
            assert lines[-1].startswith('psendmail-qp: ')
            assert 'the queue cannot record what becomes of its mail' in lines[-1]
        else:
            assert lines[-1].startswith('psendmail-qp: nothing can be sent now, all mail waits: ')
    assert world.octets() == before
    assert setup.dispatcher.pending_events == []
    world.open()
    assert setup.processor().run_once() == Tally(delivered=5)
    assert set(world.road.arrived().values()) == {1}
    assert len(world.road.arrived()) == 5


# What the log says


def numbered() -> Callable[[Session], Action]:
    """421 with the time and the number of the session in its text, as large relays have it."""

    def refuse(session: Session) -> Action:
        number = session.connection
        return reply_then_drop(
            421, f'4.7.0 try again later [X{number}.prod 2026-11-23T08:50:{number:02}Z q{number}]'
        )

    return refuse


def test_each_reason_has_one_line(
    tmp_path: Path, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Away, then blocked, then too busy in ever other words, then open: three lines that say why,
    and one that says that it is over; what merely goes on is for the debugger."""
    caplog.set_level(logging.DEBUG, 'pyramid_sendmail')
    setup = Setup(maildir(tmp_path / 'mail'))
    setup.mailer = Counted(mailer_from_url(smtp_server.url, hostname='x'))  # type: ignore[assignment]
    smtp_server.stop()
    setup.put_many(3)

    def errors() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.WARNING and record.name.startswith('pyramid_sendmail')
        ]

    def goes_on(lines: int) -> None:
        until(lambda: len(errors()) == lines)
        told = len(caplog.records)
        until(lambda: len(caplog.records) >= told + 2)
        assert len(errors()) == lines

    with setup.running(pause=0.001):
        goes_on(1)
        smtp_server.always('connect', reply_then_drop(554, '5.7.1 you are blocked'))
        smtp_server.start()
        goes_on(2)
        smtp_server.always('connect', numbered())
        goes_on(3)
        smtp_server.reset_script()
        until(lambda: empty(setup))
    refused, blocked, busy, over = errors()
    assert 'Connection refused' in refused
    assert '554 5.7.1 you are blocked' in blocked
    assert '421 4.7.0 try again later [X' in busy, 'the whole of it'
    assert over.startswith(OPEN)
    setup.queue.close()


# The pauses


class Closed:
    """A mailer that never gets through, and notes when it was tried."""

    name = 'closed:'

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[float] = []

    def connect(self) -> Any:
        self.times.append(self.clock())
        raise REFUSED


def test_two_processors_do_not_come_in_step(tmp_path: Path) -> None:
    """Both find the road closed at the same moment, and never again try it together, but at most
    a fifth away from 1, 2, 4 ... seconds, up to five minutes."""
    clock = Clock(0.0)
    setup = Setup(maildir(tmp_path / 'mail'))
    setup.put_many(3)
    mailers, crews = [], []
    processors = []
    for seed in (1, 2):
        mailers.append(Closed(clock))
        setup.mailer = mailers[-1]  # type: ignore[assignment]
        processors.append(
            setup.processor(
                queue=maildir(tmp_path / 'mail'),
                monotonic=clock,
                pause=1.0,
                chance=Random(seed).random,
            )
        )
    stop = threading.Event()
    threads = [
        threading.Thread(target=processor.run, args=(stop,), daemon=True)
        for processor in processors
    ]
    try:
        for count, (thread, mailer) in enumerate(zip(threads, mailers, strict=True), 1):
            thread.start()
            until(lambda mailer=mailer: mailer.times)  # type: ignore[misc]
            workers = [each for each in processor_threads() if each.name.endswith(' 1')]
            assert len(workers) == count
        crews = [crew_of([each]) for each in processor_threads() if each.name.endswith(' 1')]
        for _ in range(24):
            for crew in crews:
                until(crew.breaker.closed_for)
            tried = sum(len(mailer.times) for mailer in mailers)
            clock.now += min(crew.breaker.closed_for() for crew in crews)
            until(lambda tried=tried: nudged(crews, mailers) > tried)  # type: ignore[misc]
    finally:
        stop.set()
        for processor, thread in zip(processors, threads, strict=True):
            processor.wake()
            thread.join(20)
    for mailer in mailers:
        steps = zip(mailer.times, mailer.times[1:], strict=False)
        for step, (last, moment) in enumerate(steps):
            pause = min(2.0**step, 300.0)
            assert 0.8 * pause <= moment - last <= 1.2 * pause + 1e-6
        assert len(mailer.times) > 9, 'the longest pause was reached'
    first, second = (set(mailer.times) for mailer in mailers)
    assert first & second == {0.0}
    setup.queue.close()


def nudged(crews: list[Any], mailers: list[Closed]) -> int:
    """Let those who wait look at the clock again; how often the road has been tried by now."""
    for crew in crews:
        crew.pending.nudge()
    return sum(len(mailer.times) for mailer in mailers)


def test_one_probes_while_the_others_rest(tmp_path: Path) -> None:
    """As long as one worker finds out, however long that takes, nobody else connects, and more mail
    changes nothing about it; a session admits all."""
    setup = Setup(maildir(tmp_path / 'mail', cls=Watched))
    go_on = threading.Semaphore(0)
    mailer = setup.mailer
    connect = mailer.connect

    def wait() -> Any:
        session = None
        if mailer.unavailable is None:
            session = connect()
        else:
            mailer.connections += 1
        assert go_on.acquire(timeout=30)
        if session is None:
            raise REFUSED
        return session

    mailer.connect = wait  # type: ignore[method-assign]
    mailer.unavailable = 'Connection refused'
    setup.put_many(40)
    together = threading.Barrier(4)
    met: set[int] = set()

    def before(envelope: Any) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            together.wait(20)

    mailer.before = before
    with setup.running(workers=4, pause=0.001):
        until(processor_threads)
        pending = crew_of(processor_threads()).pending
        for probe in range(1, 4):
            until(lambda probe=probe: mailer.connections == probe)  # type: ignore[misc]
            setup.put()
            for _ in range(3):
                pending.nudge()
            until(lambda: pending.waiting == 3)
            assert mailer.connections == probe
            assert setup.queue.claims == 0
            if probe == 3:
                mailer.unavailable = None
            go_on.release()
        until(lambda: mailer.connections == 4)
        until(lambda: pending.waiting == 3)
        assert setup.queue.claims == 0
        for _ in range(4):
            go_on.release()
        until(lambda: empty(setup), 20)
    assert len(met) == 4, 'all four have sent'
    assert set(setup.sent_ids().values()) == {1}
    assert len(setup.mailer.sent) == 43
    setup.queue.close()
