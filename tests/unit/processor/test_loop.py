"""The loop at work: many connections, of which some stall, in one thread that ends."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import SessionOptions, Timeouts
from pyramid_sendmail.processor import loop as loop_module
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.sending import circuit_breaker
from tests.support.loops import LoopSession, Names, cpu_seconds, full_listener, loop_thread
from tests.support.pipelining import ANSWERS, Fault, mails, outcomes_of, script_actions
from tests.support.processors import ProcessorSetup, is_empty, make_maildir
from tests.support.queues import Clock, forked, reap, until
from tests.support.sessions import PATIENT, idle, make_mailer
from tests.support.smtp.server import (
    EXTENSIONS,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hang,
    hold,
    raw,
)


def as_usual(_session: object) -> None:
    """Reply by default."""


@pytest.fixture
def setup() -> ProcessorSetup:
    return ProcessorSetup(MemoryQueue())


@pytest.fixture
def selects(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that grows by one with each wait of the loop."""
    waits: list[float] = []

    class Counting(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
        def select(self, timeout: float | None = None) -> Any:
            waits.append(-1.0 if timeout is None else timeout)
            return super().select(timeout)

    monkeypatch.setattr(loop_module, 'DefaultSelector', Counting)
    return waits


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """What relay.test resolves to."""
    names = Names(())
    monkeypatch.setattr(socket, 'getaddrinfo', names)
    return names


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What stalled connections wait for."""
    event = threading.Event()
    yield event
    event.set()


def rests(selects: list[float]) -> None:
    """The loop waits, without CPU, for nearly a second."""
    thread = loop_thread()
    waits, cpu = len(selects), cpu_seconds(thread)
    time.sleep(0.7)
    # A wait or two may have been on its way.
    assert len(selects) - waits <= 4
    assert cpu_seconds(thread) - cpu < 0.05


STALLS = ['greeting', 'MAIL', 'text', 'handshake', 'TCP']


@pytest.mark.parametrize('workers', [4, 10])
@pytest.mark.parametrize('stall', STALLS)
def test_a_stalled_connection(
    setup: ProcessorSetup,
    start_smtp_server: Callable[..., ScriptedSMTPServer],
    tls_authority: TLSAuthority,
    selects: list[float],
    names: Names,
    released: threading.Event,
    stall: str,
    workers: int,
) -> None:
    """A connection that stalls holds up no other mail, neither now nor later, and costs nothing."""
    options: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    if stall == 'handshake':
        options = {'tls': 'implicit', 'context': tls_authority.context('relay.test')}
        tls = {'tls': 'implicit', 'ca_file': str(tls_authority.path)}
    server = start_smtp_server(**options)
    release = hold(released, drop())
    with full_listener() as full:
        names.ports.extendleft([[server.port]])
        names.ports.pop()
        if stall == 'TCP':
            names.ports.extend([[full], [server.port]])
        elif stall == 'greeting':
            server.script('connect', as_usual, release)
        elif stall == 'handshake':
            server.script('TLS', as_usual, release)
        elif stall == 'MAIL':
            server.always('MAIL', release, match='stalled@')
        else:
            text = raw(b'354 go\r\n', then=release)
            server.always('DATA', lambda each: text if each.sender.startswith('stalled@') else None)
        setup.mailer = make_mailer('relay.test', server.port, **tls)  # type: ignore[assignment]
        with setup.running(workers=workers):
            setup.put()
            server.wait_for(1)
            held = stall in ('MAIL', 'text')
            if held:
                lines = 2_000_000 if stall == 'text' else 1
                setup.put(sender='stalled@example.org', body='x\r\n' * lines)
                verb = 'MAIL' if stall == 'MAIL' else 'DATA'
                server.wait_for(lambda server: server.verbs().count(verb) == 2)
            setup.put_many(30)
            server.wait_for(31)
            setup.put()
            server.wait_for(32)
            until(lambda: len(setup.queue) == held)
            if workers == 4:
                rests(selects)
            setup.put()
            server.wait_for(33)
            released.set()
    assert max(server.pairs().values()) == 1


@pytest.mark.parametrize('once', [True, False])
@pytest.mark.parametrize('first', [True, False])
def test_connections_that_get_no_greeting(
    setup: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    released: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    first: bool,
    once: bool,
) -> None:
    """All mail leaves over the one that gets it, be it the second, and nothing waits for the
    others: not the next mail, not the end of a run, not the run with ``--once``."""
    monkeypatch.setattr(circuit_breaker, 'PROBE_PATIENCE', 0.3)
    greetings = [hold(released, drop())] * 9
    greetings.insert(1 if first else 0, as_usual)
    smtp_server.script('connect', *greetings)
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    setup.put_many(40)
    start = time.monotonic()
    if once:
        assert setup.processor(workers=10).run_once().total == 40
    else:
        with setup.running(workers=10):
            smtp_server.wait_for(40)
            setup.put()
            smtp_server.wait_for(41)
    assert time.monotonic() - start < 10, 'no greeting was waited for until its time-out'
    released.set()
    assert len(setup.queue) == 0


@pytest.mark.parametrize('first', [True, False])
def test_sessions_that_do_not_open(
    setup: ProcessorSetup,
    released: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    first: bool,
) -> None:
    """The same of the worker threads, whose mailer blocks."""
    monkeypatch.setattr(circuit_breaker, 'PROBE_PATIENCE', 0.3)
    connect = setup.mailer.connect

    def connect_once() -> Any:
        session = connect()
        if setup.mailer.connections != 1 + first:
            released.wait()
        return session

    monkeypatch.setattr(setup.mailer, 'connect', connect_once)
    setup.put_many(40)
    assert setup.processor(workers=4).run_once().total == 40
    released.set()
    assert len(setup.mailer.sent) == 40


@pytest.mark.parametrize('stall', ['greeting', 'MAIL', 'dot'])
def test_a_stalled_connection_times_out(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, stall: str
) -> None:
    """By the time-out of its phase; what it held is sent by another connection, or in doubt."""
    timeouts = {'connect': 9, 'greeting': 9, 'command': 9, 'data': 9, 'block': 9, 'final': 9}
    name = {'greeting': 'greeting', 'MAIL': 'command', 'dot': 'final'}[stall]
    setup.mailer = make_mailer(  # type: ignore[assignment]
        smtp_server.host, smtp_server.port, timeouts=Timeouts(**timeouts | {name: 0.5}, quit=1)
    )
    setup.dispatcher = type(setup.dispatcher)('sent', 'deferred')
    smtp_server.script('connect' if stall == 'greeting' else stall, hang())
    with setup.running(workers=4):
        setup.put()
        if stall == 'dot':
            until(lambda: setup.dispatcher.pending_events)
        else:
            smtp_server.wait_for(1)
    [event] = setup.dispatcher.pending_events
    assert (event.kind, event.attempt) == ('deferred' if stall == 'dot' else 'sent', 1)
    assert ('ambiguous: ' in event.reason) == (stall == 'dot')


def test_one_clock(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """All waits of the loop go by the clock of the processor: the time-out of a reply, and the end
    of the time to finish what is in flight."""
    clock = Clock(0.0)
    setup.mailer = make_mailer(  # type: ignore[assignment]
        smtp_server.host, smtp_server.port, timeouts=Timeouts()
    )
    smtp_server.script('MAIL', hang())

    def later(seconds: float, condition: Callable[[], object]) -> None:
        """Wait for a condition while time passes in steps, as the processor sees it."""

        def step() -> object:
            clock.now += seconds
            processor._senders.wake()
            return condition()

        until(step)

    with setup.running(workers=2, monotonic=clock, grace=60) as processor:
        setup.put()
        smtp_server.wait_for(lambda server: 'MAIL' in server.verbs())
        assert processor.mails_left == 1
        later(Timeouts().command, lambda: smtp_server.messages)
        until(lambda: is_empty(setup))
        # On a busy machine more than one attempt has timed out by then.
        before = smtp_server.verbs().count('MAIL')
        smtp_server.always('MAIL', hang())
        setup.put()
        smtp_server.wait_for(lambda server: server.verbs().count('MAIL') > before)
        stopping = threading.Thread(target=processor.shut_down, args=(60,))
        stopping.start()
        until(lambda: processor.current.active_queue.closed)  # type: ignore[union-attr]
        assert stopping.is_alive()
        begun = clock.now
        later(2, lambda: not stopping.is_alive())
        assert clock.now - begun < Timeouts().command
        later(Timeouts().command, lambda: not processor.mails_left)


def test_an_idle_loop(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, selects: list[float]
) -> None:
    """A loop without mail, with connections or without, does not wake up."""
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    with setup.running(workers=4):
        until(lambda: any('loop' in each.name and each.ident for each in threading.enumerate()))
        rests(selects)
        setup.put_many(40)
        smtp_server.wait_for(40)
        until(lambda: is_empty(setup))
        rests(selects)


def test_no_wake_up_is_lost(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """Mail that arrives while the loop handles a wake-up is sent, however often that happens."""
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    with setup.running(workers=2):
        threads = [
            threading.Thread(target=lambda: [setup.put() for _ in range(100)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        smtp_server.wait_for(400, 20)
    assert len(smtp_server.pairs()) == 400


def test_a_wake_up_while_the_pipe_is_read(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake-up at the moment when the loop reads the last one does not end all later ones."""
    reading, woken = threading.Event(), threading.Event()
    read = os.read

    def slow_read(number: int, count: int) -> bytes:
        if 'loop' in threading.current_thread().name and not reading.is_set():
            reading.set()
            assert woken.wait(10)
        return read(number, count)

    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    monkeypatch.setattr(os, 'read', slow_read)
    with setup.running(workers=1) as processor:
        assert reading.wait(10)
        processor._senders.wake()
        woken.set()
        for count in (1, 2, 3):
            setup.put()
            smtp_server.wait_for(count)


# Names


def test_a_slow_resolver(
    setup: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    names: Names,
    selects: list[float],
    released: threading.Event,
) -> None:
    """A name that takes long to resolve holds up no mail of other connections."""
    names.ports[0] = [smtp_server.port]
    names.hold, names.held_from = released, 1
    setup.mailer = make_mailer('relay.test', smtp_server.port)  # type: ignore[assignment]
    with setup.running(workers=4):
        setup.put()
        smtp_server.wait_for(1)
        setup.put_many(30)
        smtp_server.wait_for(31)
        setup.put()
        smtp_server.wait_for(32)
        rests(selects)
        released.set()
    assert max(smtp_server.pairs().values()) == 1


def test_a_name_that_is_not_found(
    setup: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    names: Names,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A relay whose name is not found is unavailable, until it is found."""
    setup.mailer = make_mailer('relay.test', smtp_server.port)  # type: ignore[assignment]
    with setup.running(workers=4):
        setup.put_many(5)
        until(lambda: 'relay unavailable, mail stays queued' in caplog.text)
        names.ports[0] = [smtp_server.port]
        smtp_server.wait_for(5)
    assert 'Name or service not known' in caplog.text
    assert 'the loop failed' not in caplog.text


def test_one_pass_without_a_relay(setup: ProcessorSetup, names: Names) -> None:
    """A single pass tries an unavailable relay once."""
    setup.mailer = make_mailer('relay.test', 25)  # type: ignore[assignment]
    setup.put_many(5)
    with pytest.raises(MailerUnavailable, match='Name or service not known'):
        setup.processor().run_once()
    assert names.calls == 1


def test_the_first_address_does_not_answer(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, names: Names
) -> None:
    """The next address is tried beside it, and the one that worked is tried first then."""
    with full_listener() as full:
        names.ports[0] = [full, smtp_server.port]
        setup.mailer = make_mailer('relay.test', 25)  # type: ignore[assignment]
        with setup.running(workers=1, batch=1):
            for count in (1, 2, 3):
                setup.put()
                smtp_server.wait_for(count)
    assert not smtp_server.violations


# The end


def stall_at(server: ScriptedSMTPServer, phase: str, names: Names, full: int) -> None:
    names.ports[0] = [full] if phase == 'connect' else [server.port]
    if phase == 'resolve':
        names.hold = threading.Event()
    elif phase in ('greeting', 'handshake'):
        server.always('connect' if phase == 'greeting' else 'TLS', hang())
    elif phase == 'QUIT':
        server.always('QUIT', hang())


@pytest.mark.parametrize('once', [False, True])
@pytest.mark.parametrize('phase', ['resolve', 'connect', 'greeting', 'handshake', 'idle', 'QUIT'])
def test_stop(
    setup: ProcessorSetup,
    start_smtp_server: Callable[..., ScriptedSMTPServer],
    tls_authority: TLSAuthority,
    names: Names,
    phase: str,
    once: bool,
) -> None:
    """What connects is dropped, QUIT has its own time, and nothing is left: not a wake-up
    either, which would be written into another file."""
    server = start_smtp_server(tls='implicit', context=tls_authority.context('relay.test'))
    setup.mailer = make_mailer(  # type: ignore[assignment]
        'relay.test',
        server.port,
        tls='implicit',
        ca_file=str(tls_authority.path),
        timeouts=PATIENT._replace(quit=0.5),
    )
    threads = set(threading.enumerate())
    with full_listener() as full:
        stall_at(server, phase, names, full)
        processor = setup.processor(workers=3, grace=60)
        stop = threading.Event()
        call = (lambda: processor.run_once(stop=stop)) if once else (lambda: processor.run(stop))
        setup.put_many(3)
        thread = threading.Thread(target=call)
        thread.start()
        if phase == 'resolve':
            assert names.waiting.wait(10)
        elif phase == 'connect':
            until(lambda: names.calls)
        elif phase in ('greeting', 'handshake'):
            server.wait_for(lambda server: server.open_connections)
        else:
            server.wait_for(3)
        begun = time.monotonic()
        stop.set()
        processor.wake()
        thread.join(20)
        assert not thread.is_alive()
        assert time.monotonic() - begun < 8
        pipes = [os.pipe() for _ in range(20)]
        if names.hold is not None:
            names.hold.set()
        processor.current.active_queue.on_change()  # type: ignore[union-attr]
        until(
            lambda: (
                not {
                    each
                    for each in set(threading.enumerate()) - threads
                    if each.name.startswith('pyramid_sendmail')
                }
            )
        )
        for reading, writing in pipes:
            os.set_blocking(reading, False)
            with pytest.raises(BlockingIOError):
                os.read(reading, 1)
            os.close(reading)
            os.close(writing)
    if phase in ('idle', 'QUIT'):
        assert len(server.pairs()) == len(server.messages) == 3
    else:
        assert len(setup.queue) == 3


def test_mail_in_flight_is_finished(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, released: threading.Event
) -> None:
    """Mail in flight has the grace to finish; no other one is begun."""
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    smtp_server.always('dot', hold(released))
    processor = setup.processor(workers=2, grace=30)
    stop = threading.Event()
    thread = threading.Thread(target=processor.run, args=(stop,))
    setup.put_many(20)
    thread.start()
    smtp_server.wait_for(lambda server: 'dot' in server.verbs())
    stop.set()
    processor.wake()
    until(lambda: processor.current.active_queue.closed)  # type: ignore[union-attr]
    assert thread.is_alive()
    released.set()
    thread.join(20)
    assert not thread.is_alive()
    sent = len(smtp_server.messages)
    assert 1 <= sent <= 4
    assert len(setup.queue) == 20 - sent
    assert max(smtp_server.pairs().values()) == 1


def test_nothing_is_left_of_many_runs(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, names: Names
) -> None:
    """Twenty runs leave no descriptor and no thread."""
    names.ports[0] = [smtp_server.port]
    setup.mailer = make_mailer('relay.test', smtp_server.port)  # type: ignore[assignment]

    def run() -> None:
        setup.put_many(3)
        setup.processor(workers=3).run_once()
        idle(smtp_server)

    others = set(threading.enumerate())

    def left() -> tuple[int, int]:
        own = [
            each
            for each in set(threading.enumerate()) - others
            if each.name.startswith('pyramid_sendmail')
        ]
        return len(os.listdir('/proc/self/fd')), len(own)

    run()
    before = until(lambda: left() if not left()[1] else None)
    for _ in range(20):
        run()
    until(lambda: left()[0] <= before[0] and left()[1] == 0)
    assert len(smtp_server.messages) == 63


def test_a_child_has_a_loop_of_its_own(tmp_path: Any, smtp_server: ScriptedSMTPServer) -> None:
    """A process that forks while the loop works shares neither its selector nor its sockets."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    with setup.running(workers=2):
        setup.put()
        smtp_server.wait_for(1)

        def work() -> None:
            other = ProcessorSetup(make_maildir(tmp_path / 'other'))
            other.mailer = setup.mailer
            other.put_many(20)
            other.processor(workers=2).run_once()

        children = [forked(work) for _ in range(2)]
        setup.put_many(40)
        smtp_server.wait_for(81)
        assert [reap(each) for each in children] == [0, 0]
        setup.put()
        smtp_server.wait_for(82)
        until(lambda: is_empty(setup))
    assert Counter(smtp_server.pairs().values()) == {1: 82}
    assert not smtp_server.violations
    setup.queue.close()


# The same as the session that blocks

PLACES = ('MAIL', *(f'RCPT {number}' for number in (1, 2, 3)), 'DATA', 'dot')

faults: st.SearchStrategy[list[Fault]] = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(PLACES), st.sampled_from(sorted(ANSWERS))),
    min_size=1,
    max_size=3,
    unique_by=lambda fault: fault[:2],
)

DRIVERS = {
    'lock-step': (('8BITMIME',), {}),
    'pipelining': (EXTENSIONS, {}),
    'chunking': ((*EXTENSIONS, 'CHUNKING'), {'window': 4}),
}


@pytest.mark.parametrize('manner', DRIVERS)
@settings(max_examples=25)
@given(faults=faults)
def test_as_the_session_that_blocks(manner: str, faults: list[Fault]) -> None:
    """Whatever the relay replies, the outcomes and what arrives are those of a session that
    blocks."""
    extensions, options = DRIVERS[manner]
    blocking = outcomes_of(extensions, faults, **options)
    with ScriptedSMTPServer(extensions=extensions) as server:
        script_actions(server, faults)
        session = LoopSession(
            lambda: make_mailer(server.host, server.port, options=SessionOptions(**options)),
            mails(),
        )
        results = [_without_port(each, server.port) for each in session.run()]
        idle(server)
        assert not server.violations, server.dump()
        assert results == blocking[:-2]
        if 'ambiguous' not in str(results):
            # What is in doubt may have arrived or not.
            assert [sorted(server.pairs().items()), len(server.messages)] == blocking[-2:]


def _without_port(result: Any, port: int) -> Any:
    if isinstance(result, tuple):
        return (result[0].replace(str(port), 'PORT'), *result[1:])
    return result.replace(str(port), 'PORT')
