"""An unavailable relay: for whatever reason, no attempt is counted, the log has a line for each
change, the pauses grow, and all mail leaves once the relay is available."""

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

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.interfaces import IMailer
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.queue import MaildirQueue
from tests.support.processors import (
    RELAY_REFUSED,
    SENDING_RESUMED,
    SENDING_STOPPED,
    ProcessorSetup,
    RecordingDispatcher,
    is_empty,
    log_levels,
    make_maildir,
    worker_threads,
)
from tests.support.queues import Clock, files, until
from tests.support.scripts import application, run, without_time
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

Start = Callable[..., ScriptedSMTPServer]


class Watched(MaildirQueue):
    """A queue that counts the claims for sending. ``trouble``: the errno with which outcomes cannot
    be recorded, or None."""

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
    """Counts the connections of another mailer, and the failed ones. ``crowded``: whether two
    workers were connecting when one failed."""

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
class UnavailableRelay:
    """A relay that is unavailable until ``open`` is called. ``arrived`` returns how many copies of
    each Message-ID it accepted."""

    mailer: Any
    open: Callable[[], object]
    arrived: Callable[[], Counter[str]]
    trouble: int | None = None


@dataclass
class Builder:
    """Makes relays, each unavailable for another reason."""

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

    def relay(self, url: str, open_: Callable[[], object]) -> UnavailableRelay:
        return UnavailableRelay(
            mailer_from_url(url, hostname='web.example.org'), open_, self.arrived
        )


def refused(builder: Builder) -> UnavailableRelay:
    server = builder.server()
    server.stop()
    return builder.relay(server.url, server.start)


def mute(builder: Builder) -> UnavailableRelay:
    server = builder.server()
    server.always('connect', hang())
    timeouts = Timeouts(greeting=0.3, quit=0.3)
    mailer = SMTPMailer(server.host, server.port, hostname='web.example.org', timeouts=timeouts)
    return UnavailableRelay(mailer, server.reset_script, builder.arrived)


def answered(verb: str, action: Action) -> Callable[[Builder], UnavailableRelay]:
    def build(builder: Builder) -> UnavailableRelay:
        server = builder.server(auth={'shop': 'secret'})
        server.always(verb, action)
        url = f'smtp+insecure://shop:secret@{server.host}:{server.port}'
        return builder.relay(url, server.reset_script)

    return build


def without_tls(builder: Builder) -> UnavailableRelay:
    server = builder.server()

    def open_() -> None:
        server.tls, server.context = 'starttls', builder.authority.context()

    return builder.relay(f'{server.url}?tls=required&ca_file={builder.authority.path}', open_)


def wrong_certificate(builder: Builder) -> UnavailableRelay:
    server = builder.server(tls='implicit', context=builder.authority.wrong_host())

    def open_() -> None:
        server.context = builder.authority.context()

    return builder.relay(f'{server.url}?ca_file={builder.authority.path}', open_)


def unknown_name(builder: Builder) -> UnavailableRelay:
    server = builder.server()
    mailer = SMTPMailer('nowhere.invalid', server.port, hostname='web.example.org')

    def open_() -> None:
        # As if the name had been entered into the DNS.
        known = SMTPMailer(server.host, server.port, hostname='web.example.org')
        mailer.connect = known.connect  # type: ignore[method-assign]

    return UnavailableRelay(mailer, open_, builder.arrived)


def lmtp(builder: Builder) -> UnavailableRelay:
    server = builder.server(lmtp=True)
    server.stop()
    return builder.relay(server.url, server.start)


def failover(builder: Builder) -> UnavailableRelay:
    first, second = builder.server(), builder.server()
    first.stop()
    second.always('connect', reply_then_drop(554, '5.7.1 your address is blocked'))
    return builder.relay(f'{first.url} {second.url}', second.reset_script)


def missing_program(builder: Builder) -> UnavailableRelay:
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

    return UnavailableRelay(mailer_from_url(f'sendmail:{program}', hostname='x'), open_, arrived)


def unrecordable(number: int) -> Callable[[Builder], UnavailableRelay]:
    def build(builder: Builder) -> UnavailableRelay:
        server = builder.server()
        relay = builder.relay(server.url, lambda: None)
        relay.trouble = number
        return relay

    return build


RELAYS: dict[str, Callable[[Builder], UnavailableRelay]] = {
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
    """A queue of five mails, and a relay that is unavailable."""

    setup: ProcessorSetup
    queue: Watched
    relay: UnavailableRelay
    mailer: Counted

    def file_contents(self) -> dict[str, bytes]:
        """Return the content of each file, by folder and name."""
        return {name: Path(self.queue.path, name).read_bytes() for name in files(self.queue)}

    def open(self) -> None:
        self.queue.trouble = None
        self.relay.open()


@pytest.fixture(params=RELAYS)
def world(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
) -> Iterator[World]:
    builder = Builder(tmp_path, start_smtp_server, tls_authority)
    relay = RELAYS[request.param](builder)
    queue = make_maildir(tmp_path / 'mail', cls=Watched)
    setup = ProcessorSetup(queue)
    setup.dispatcher = RecordingDispatcher('sent', 'deferred', 'error')
    mailer: Any = Counted(relay.mailer)
    setup.mailer = mailer
    queue.trouble = relay.trouble
    setup.put_many(5)
    yield World(setup, queue, relay, mailer)
    queue.close()
    assert [text for server in builder.servers for text in server.violations] == []


def test_double() -> None:
    """The mailer that counts implements the interface."""
    assert verifyObject(IMailer, Counted(SMTPMailer('x', hostname='x')))


def test_no_attempt_is_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """While it is unavailable no file changes, nothing is claimed, no event is dispatched, one
    worker at a time tries, and the log has one line. Then the log has one line, and each mail is
    sent once, as a first attempt."""
    caplog.set_level(logging.DEBUG, 'pyramid_sendmail')
    setup = world.setup
    before = world.file_contents()
    with setup.running(pause=0.004):
        until(lambda: len(log_levels(caplog, SENDING_STOPPED)) >= 3)
        setup.put()
        meanwhile = world.file_contents()
        lines = len(log_levels(caplog, SENDING_STOPPED))
        until(lambda: len(log_levels(caplog, SENDING_STOPPED)) >= lines + 2)
        assert {name: data for name, data in meanwhile.items() if name in before} == before
        assert len(meanwhile) == len(before) + 1
        assert all(name.startswith('new/') and '-0000-' in name for name in meanwhile)
        assert world.file_contents() == meanwhile
        assert world.queue.claims == 0
        assert setup.dispatcher.pending_events == []
        assert log_levels(caplog, SENDING_RESUMED) == []
        if world.relay.trouble is not None:
            assert world.mailer.connections == 0, 'what cannot be recorded is not sent'
        world.open()
        until(lambda: is_empty(setup), 30)
    closed = log_levels(caplog, SENDING_STOPPED)
    assert closed == ['ERROR'] + ['DEBUG'] * (len(closed) - 1)
    assert log_levels(caplog, SENDING_RESUMED) == ['WARNING']
    assert not world.mailer.crowded
    assert len(world.relay.arrived()) == 6
    assert set(world.relay.arrived().values()) == {1}
    assert [(event.kind, event.attempt) for event in setup.dispatcher.pending_events] == [
        ('sent', 1)
    ] * 6


def test_run_once_tries_it_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """--once: one try, no pause, a status and a line with the reason; the mail is unchanged."""
    setup = world.setup
    unusable = world.relay.trouble is not None
    before = world.file_contents()
    app = application(world.queue)
    for tries in (1, 2):
        status = run('x.ini', '--once', processor=setup.processor(pause=3600.0), app=app)
        assert status == (3 if unusable else 1)
        assert world.mailer.connections == world.mailer.failures == (0 if unusable else tries)
        lines = without_time(capsys.readouterr().err).splitlines()
        assert 'psendmail-qp: 0 delivered, 0 deferred, 0 failed' in lines[:-1]
        if unusable:
            assert lines[-1].startswith('psendmail-qp: ')
            assert 'the queue cannot record what becomes of its mail' in lines[-1]
        else:
            assert lines[-1].startswith('psendmail-qp: relay unavailable, mail stays queued: ')
    assert world.file_contents() == before
    assert setup.dispatcher.pending_events == []
    world.open()
    assert setup.processor().run_once() == Tally(delivered=5)
    assert set(world.relay.arrived().values()) == {1}
    assert len(world.relay.arrived()) == 5


# What the log says


def numbered() -> Callable[[Session], Action]:
    """Refuse with 421, the time and the number of the session, as large relays do."""

    def refuse(session: Session) -> Action:
        number = session.connection
        return reply_then_drop(
            421, f'4.7.0 try again later [X{number}.prod 2026-11-23T08:50:{number:02}Z q{number}]'
        )

    return refuse


def test_each_reason_has_one_line(
    tmp_path: Path, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Unreachable, then blocked, then too busy in changing words, then available: three lines with
    the reason, and one for the end; repetitions are debug lines."""
    caplog.set_level(logging.DEBUG, 'pyramid_sendmail')
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    setup.mailer = Counted(mailer_from_url(smtp_server.url, hostname='x'))  # type: ignore[assignment]
    smtp_server.stop()
    setup.put_many(3)

    def errors() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.WARNING and record.name.startswith('pyramid_sendmail')
        ]

    def repeats(lines: int) -> None:
        until(lambda: len(errors()) == lines)
        before = len(caplog.records)
        until(lambda: len(caplog.records) >= before + 2)
        assert len(errors()) == lines

    with setup.running(pause=0.001):
        repeats(1)
        smtp_server.always('connect', reply_then_drop(554, '5.7.1 you are blocked'))
        smtp_server.start()
        repeats(2)
        smtp_server.always('connect', numbered())
        repeats(3)
        smtp_server.reset_script()
        until(lambda: is_empty(setup))
    refused, blocked, busy, over = errors()
    assert 'Connection refused' in refused
    assert '554 5.7.1 you are blocked' in blocked
    assert '421 4.7.0 try again later [X' in busy, 'the whole text'
    assert SENDING_RESUMED in over
    assert smtp_server.url in over
    setup.queue.close()


# The pauses


class Closed:
    """A mailer that never connects, and records the time of each try."""

    name = 'closed:'

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[float] = []

    def connect(self) -> Any:
        self.times.append(self.clock())
        raise RELAY_REFUSED


def test_two_processors_do_not_come_in_step(tmp_path: Path) -> None:
    """Two processors that fail at the same moment never again try together: each pause is up to a
    fifth off 1, 2, 4 ... seconds, up to a minute."""
    clock = Clock(0.0)
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    setup.put_many(3)
    mailers, processors = [], []
    for seed in (1, 2):
        mailers.append(Closed(clock))
        setup.mailer = mailers[-1]  # type: ignore[assignment]
        processors.append(
            setup.processor(
                queue=make_maildir(tmp_path / 'mail'),
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
            first_workers = [each for each in worker_threads() if each.name.endswith(' 1')]
            assert len(first_workers) == count, 'each processor has workers of its own'
        pools = [processor.current for processor in processors]
        for _ in range(24):
            for pool in pools:
                until(pool.breaker.retry_in)
            tried = sum(len(mailer.times) for mailer in mailers)
            clock.now += min(pool.breaker.retry_in() for pool in pools)
            until(lambda tried=tried: tries(pools, mailers) > tried)  # type: ignore[misc]
    finally:
        stop.set()
        for processor, thread in zip(processors, threads, strict=True):
            processor.wake()
            thread.join(20)
    for mailer in mailers:
        steps = zip(mailer.times, mailer.times[1:], strict=False)
        for step, (last, moment) in enumerate(steps):
            pause = min(2.0**step, 60.0)
            assert 0.8 * pause <= moment - last <= 1.2 * pause + 1e-6
        assert len(mailer.times) > 9, 'the longest pause was reached'
    first, second = (set(mailer.times) for mailer in mailers)
    assert first & second == {0.0}
    setup.queue.close()


def tries(pools: list[Any], mailers: list[Closed]) -> int:
    """Let the workers read the clock again; return how often the relay has been tried by now."""
    for pool in pools:
        pool.active_queue.notify_waiters()
    return sum(len(mailer.times) for mailer in mailers)


def test_one_worker_tries_while_the_others_wait(tmp_path: Path) -> None:
    """While one worker tries to connect, however long that takes, no other worker connects, however
    much mail there is; after it has a session, all connect."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail', cls=Watched))
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
            raise RELAY_REFUSED
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
    with setup.running(workers=4, pause=0.001) as processor:
        pool: Any = until(lambda: processor.current)
        active_queue = pool.active_queue
        for probe in range(1, 4):
            until(lambda probe=probe: mailer.connections == probe)  # type: ignore[misc]
            setup.put()
            for _ in range(3):
                active_queue.notify_waiters()
            until(lambda: active_queue.waiting == 3)
            assert mailer.connections == probe
            assert setup.queue.claims == 0
            if probe == 3:
                mailer.unavailable = None
            go_on.release()
        until(lambda: mailer.connections == 4)
        until(lambda: active_queue.waiting == 3)
        assert setup.queue.claims == 0
        for _ in range(4):
            go_on.release()
        until(lambda: is_empty(setup), 20)
    assert len(met) == 4, 'all four have sent'
    assert set(setup.sent_ids().values()) == {1}
    assert len(setup.mailer.sent) == 43
    setup.queue.close()
