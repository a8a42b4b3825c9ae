"""A worker of the loop: batches, connections that end, relays that fail, and what cannot be
recorded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, StoredEnvelope, TextTraits
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.queue import MemoryQueue
from tests.support.doubles import RecordingMailer
from tests.support.processors import (
    READ_ONLY,
    SENDING_RESUMED,
    SENDING_STOPPED,
    FailingQueue,
    ProcessorSetup,
    RecordingDispatcher,
    UnwritableClaim,
    is_empty,
    log_levels,
    make_maildir,
    worker_threads,
)
from tests.support.queues import make_envelope, until
from tests.support.sessions import make_mailer
from tests.support.smtp.server import (
    ScriptedSMTPServer,
    delay,
    drop,
    hold,
    reply,
    reply_then_drop,
    reset,
)


def as_usual(_session: object) -> None:
    """Reply by default."""


@pytest.fixture
def setup(smtp_server: ScriptedSMTPServer) -> ProcessorSetup:
    """Mail in memory, for the scripted server."""
    return for_server(ProcessorSetup(MemoryQueue()), smtp_server)


@pytest.fixture
def on_disk(smtp_server: ScriptedSMTPServer, tmp_path: Any) -> Iterator[ProcessorSetup]:
    """Mail on disk whose operations can be made to fail, for the scripted server."""
    UnwritableClaim.broken = False
    queue = make_maildir(tmp_path / 'mail', cls=FailingQueue)
    yield for_server(ProcessorSetup(queue), smtp_server)
    queue.close()


def for_server(setup: ProcessorSetup, server: ScriptedSMTPServer) -> ProcessorSetup:
    setup.mailer = make_mailer(server.host, server.port)  # type: ignore[assignment]
    setup.dispatcher = RecordingDispatcher('sent', 'deferred', 'error')
    return setup


def events(setup: ProcessorSetup) -> Counter[tuple[str, int]]:
    """Kind and attempt of each event so far."""
    return Counter((each.kind, each.attempt) for each in setup.dispatcher.pending_events)


# Connections


def test_a_batch(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """A connection says QUIT after so many mails, and another one follows."""
    setup.put_many(10)
    with setup.running(workers=1, batch=4):
        smtp_server.wait_for(10)
        smtp_server.wait_for(lambda server: server.open_connections == 1)
    each = [smtp_server.verbs(number) for number in (1, 2, 3)]
    assert [verbs.count('dot') for verbs in each] == [4, 4, 2]
    assert [verbs[-1] for verbs in each] == ['QUIT'] * 3
    assert not smtp_server.violations


def test_idle_connections_are_closed(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer
) -> None:
    """A connection without mail is left by QUIT, and mail that comes later opens another one."""
    with setup.running(workers=1, idle=0.3):
        for count in (1, 2):
            setup.put()
            smtp_server.wait_for(count)
            smtp_server.wait_for(lambda server: not server.open_connections)
            assert smtp_server.verbs(count)[-1] == 'QUIT'
    assert smtp_server.connections == 2


@pytest.mark.parametrize(
    'end', [drop(), reset(), reply_then_drop(421, '4.4.2 idle'), reply(421, '4.4.2 idle')]
)
def test_the_relay_closes_an_idle_connection(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, end: Any
) -> None:
    """An idle connection that the relay closes is replaced when mail comes, which is sent once."""
    closing = threading.Event()
    smtp_server.script('dot', reply(250, '2.0.0 ok', then=hold(closing, end)))
    with setup.running(workers=1):
        setup.put()
        smtp_server.wait_for(1)
        until(lambda: is_empty(setup))
        closing.set()
        smtp_server.wait_for(lambda server: not server.open_connections)
        setup.put()
        smtp_server.wait_for(2)
        until(lambda: is_empty(setup))
    assert events(setup) == {('sent', 1): 2}
    assert [each.connection for each in smtp_server.messages] == [1, 2]
    assert not smtp_server.violations


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA'])
@pytest.mark.parametrize('end', [drop(), reset(), reply_then_drop(421, '4.3.2 closing')])
def test_a_stale_connection(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, verb: str, end: Any
) -> None:
    """Mail that a connection of an earlier time did not take is sent over another one at once, and
    no attempt is counted."""
    smtp_server.script(verb, as_usual, end)
    with setup.running(workers=1):
        for count in (1, 2):
            setup.put()
            smtp_server.wait_for(count)
            until(lambda: is_empty(setup))
    assert events(setup) == {('sent', 1): 2}
    assert smtp_server.connections == 2


def test_421_to_the_final_dot(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """The mail is deferred; the others are sent over another connection, at once."""
    smtp_server.script('dot', as_usual, reply_then_drop(421, '4.3.2 closing'))
    setup.put_many(5)
    with setup.running(workers=1):
        smtp_server.wait_for(4)
        until(lambda: len(setup.dispatcher.pending_events) == 5)
    assert events(setup) == {('sent', 1): 4, ('deferred', 1): 1}
    assert smtp_server.connections == 2


@pytest.mark.parametrize('verb', ['connect', 'EHLO', 'MAIL', 'RCPT', 'DATA'])
def test_421_on_a_fresh_connection(
    setup: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    caplog: pytest.LogCaptureFixture,
    verb: str,
) -> None:
    """The relay is unavailable, the mail untouched; it is sent when the relay answers again."""
    smtp_server.script(verb, reply_then_drop(421, '4.3.2 later'))
    with setup.running(workers=1):
        setup.put_many(3)
        smtp_server.wait_for(3)
        until(lambda: is_empty(setup))
    assert events(setup) == {('sent', 1): 3}
    assert log_levels(caplog, SENDING_STOPPED) == ['ERROR']
    assert log_levels(caplog, SENDING_RESUMED) == ['WARNING']


# Several relays


def test_two_relays(
    start_smtp_server: Callable[..., ScriptedSMTPServer], caplog: pytest.LogCaptureFixture
) -> None:
    """The second relay takes the mail while the first is down, and the first when it is back."""
    setup = ProcessorSetup(MemoryQueue())
    first, second = start_smtp_server(), start_smtp_server()
    first.stop()
    setup.mailer = FailoverMailer(  # type: ignore[assignment]
        [make_mailer(each.host, each.port) for each in (first, second)], retry_interval=0.0
    )
    with setup.running(workers=3, batch=1):
        setup.put_many(12)
        second.wait_for(12)
        first.start()
        setup.put_many(12)
        # A worker may have found no mail for a connection to the second: it takes one more.
        first.wait_for(9)
        until(lambda: is_empty(setup))
    assert len(first.messages) + len(second.messages) == 24
    assert log_levels(caplog, 'switched') == ['WARNING']
    assert log_levels(caplog, SENDING_STOPPED) == []


def test_two_relays_that_are_down(
    start_smtp_server: Callable[..., ScriptedSMTPServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Mail waits while all relays are down, and is sent when one of them is back."""
    setup = ProcessorSetup(MemoryQueue())
    servers = [start_smtp_server() for _ in range(2)]
    for server in servers:
        server.stop()
    setup.mailer = FailoverMailer(  # type: ignore[assignment]
        [make_mailer(each.host, each.port) for each in servers], retry_interval=0.0
    )
    with setup.running(workers=3):
        setup.put_many(6)
        until(lambda: log_levels(caplog, SENDING_STOPPED))
        servers[1].start()
        servers[1].wait_for(6)
    assert Counter(servers[1].pairs().values()) == {1: 6}


def test_a_relay_and_a_mailer_that_blocks(smtp_server: ScriptedSMTPServer) -> None:
    """Workers of their own thread each send when one of the mailers cannot be driven."""
    setup = ProcessorSetup(MemoryQueue())
    blocking = RecordingMailer()
    smtp_server.stop()
    relay = make_mailer(smtp_server.host, smtp_server.port)
    setup.mailer = FailoverMailer([relay, blocking], retry_interval=0.0)  # type: ignore[assignment]
    with setup.running(workers=2, batch=1):
        setup.put_many(5)
        blocking.wait_for(5)
        assert len(worker_threads()) == 2
        smtp_server.start()
        setup.put()
        smtp_server.wait_for(1)
    assert len(blocking.sent) == 5


# What cannot be recorded


@pytest.mark.parametrize('workers', [1, 4])
def test_a_full_disk(
    on_disk: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    """No connection takes further mail while outcomes cannot be written; then all goes on, and no
    mail is sent twice."""
    with on_disk.running(workers=workers):
        on_disk.put_many(3)
        smtp_server.wait_for(3)
        until(lambda: is_empty(on_disk))
        UnwritableClaim.broken = True
        on_disk.put_many(40)
        until(lambda: 'queue unavailable, mail stays queued' in caplog.text)
        # Each connection may have had mail in flight, and the next one's commands behind it.
        until(lambda: not on_disk_busy(smtp_server))
        assert len(smtp_server.messages) <= 3 + 2 * workers
        UnwritableClaim.broken = False
        smtp_server.wait_for(43, 20)
        until(lambda: is_empty(on_disk))
    assert Counter(smtp_server.pairs().values()) == {1: 43}
    assert 'queue can be written again' in caplog.text


def on_disk_busy(server: ScriptedSMTPServer) -> bool:
    return server.open_connections > 0


def test_a_queue_that_cannot_be_written(
    on_disk: ProcessorSetup, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing connects while the queue cannot record what would become of its mail."""
    on_disk.queue.errors['check_writable'] = READ_ONLY
    with on_disk.running(workers=2):
        on_disk.put_many(3)
        until(lambda: on_disk.queue.calls['check_writable'] >= 3 or smtp_server.connections)
        assert smtp_server.connections == 0
        assert log_levels(caplog, SENDING_STOPPED) == ['ERROR']
        on_disk.queue.errors.clear()
        smtp_server.wait_for(3)
        until(lambda: is_empty(on_disk))
    assert events(on_disk) == {('sent', 1): 3}


def test_a_mail_that_cannot_be_marked(
    on_disk: ProcessorSetup, smtp_server: ScriptedSMTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that cannot be marked before its final dot does not leave; it is sent later."""
    failures = iter([QueueError(28, 'the queue cannot mark'), RuntimeError('a bug'), *[None] * 99])
    mark = UnwritableClaim.__getattr__

    def get(claim: UnwritableClaim, name: str) -> Any:
        value = mark(claim, name)
        if name != 'mark_ambiguous':
            return value

        def marking(recipients: Any) -> None:
            failure = next(failures)
            if failure is not None:
                raise failure
            value(recipients)

        return marking

    monkeypatch.setattr(UnwritableClaim, '__getattr__', get)
    with on_disk.running(workers=1):
        on_disk.put_many(4)
        smtp_server.wait_for(3)
        until(lambda: len(on_disk.dispatcher.pending_events) == 4)
    # The bug counts as an attempt of the mail that it met; the full disk does not.
    assert events(on_disk) == {('sent', 1): 3, ('deferred', 1): 1}
    assert Counter(smtp_server.pairs().values()) == {1: 3}


class UnreadableText:
    """A text that cannot be read to its end."""

    size, traits = 200_000, TextTraits(True, False, True, True)

    def blocks(self) -> Iterator[bytes]:
        yield b'Subject: hello\r\n\r\n'
        raise OSError(5, 'Input/output error')


def test_a_text_that_cannot_be_read(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The mail is deferred, the session ended without its final dot, and the others are sent."""
    usual = make_envelope(queued_at=setup.clock())
    values = {name: getattr(usual, name) for name in Envelope.__dataclass_fields__ if name != 'raw'}
    setup.queue.put([StoredEnvelope(**values, text=UnreadableText())]).publish()
    setup.put_many(5)
    with setup.running(workers=2):
        smtp_server.wait_for(5)
        until(lambda: len(setup.dispatcher.pending_events) == 6)
    assert events(setup) == {('sent', 1): 5, ('deferred', 1): 1}
    assert usual.message_id not in [message_id for message_id, _ in smtp_server.pairs()]
    assert log_levels(caplog, 'the session failed; its connection is closed') == ['ERROR']


class FaultyDispatcher(RecordingDispatcher):
    """Raises for its first event."""

    faults = 1

    def dispatch(self, claim: Any, events: Any) -> None:
        if self.faults:
            self.faults -= 1
            raise RuntimeError('a bug of a dispatcher')
        super().dispatch(claim, events)


def test_a_bug_of_a_dispatcher(on_disk: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """The claim is released and the event dispatched later; the loop goes on."""
    on_disk.dispatcher = FaultyDispatcher('sent')
    with on_disk.running(workers=2):
        on_disk.put_many(6)
        smtp_server.wait_for(6)
        until(lambda: len(on_disk.dispatcher.pending_events) == 6)
        until(lambda: is_empty(on_disk))
    assert Counter(smtp_server.pairs().values()) == {1: 6}
    assert events(on_disk) == {('sent', 1): 6}


# How many connections, and when


def test_one_connection_tries(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """Nothing is known of the relay: one connection tries, and the others follow it."""
    released = threading.Event()
    smtp_server.script('connect', hold(released))
    with setup.running(workers=5):
        setup.put_many(30)
        smtp_server.wait_for(lambda server: server.connections)
        setup.put_many(5)
        setup.queue.wake()
        until(lambda: len(setup.queue) == 35)
        assert smtp_server.connections == 1
        released.set()
        smtp_server.wait_for(35)


def test_a_crowded_relay(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay that takes one connection alone gets all mail over that one."""
    smtp_server.script('connect', as_usual)
    smtp_server.always('connect', reply_then_drop(421, '4.7.0 too many connections'))
    caplog.set_level('INFO')
    with setup.running(workers=4, batch=1000):
        setup.put()
        smtp_server.wait_for(1)
        for count in range(31, 301, 30):
            setup.put_many(30)
            smtp_server.wait_for(count)
        until(lambda: is_empty(setup))
    assert {each.connection for each in smtp_server.messages} == {1}
    assert smtp_server.connections <= 4
    assert log_levels(caplog, SENDING_STOPPED) == []


@pytest.mark.parametrize('ends', ['us', 'relay'])
def test_a_limit_of_connections(
    setup: ProcessorSetup,
    smtp_server: ScriptedSMTPServer,
    caplog: pytest.LogCaptureFixture,
    ends: str,
) -> None:
    """A relay that takes as many connections as there are workers never sees one more: the next
    one waits until QUIT has its reply, also if it is the relay that takes no further mail."""
    gone: list[object] = []
    carried: Counter[int] = Counter()

    def full(session: Any) -> Any:
        carried[session.connection] += 1
        return reply(452, '4.5.3 too many messages') if carried[session.connection] > 5 else None

    def says_bye(session: object) -> Any:
        gone.append(session)
        return None

    if ends == 'relay':
        smtp_server.extensions = ()  # each command waits: QUIT is said after the refusal
        smtp_server.always('MAIL', full)
    smtp_server.always('QUIT', delay(0.05, says_bye))
    smtp_server.always(
        'connect',
        lambda session: (
            reply_then_drop(421, '4.7.0 too many connections')
            if session.connection - len(gone) > 2
            else None
        ),
    )
    caplog.set_level('INFO')
    with setup.running(workers=2, batch=5 if ends == 'us' else 100):
        setup.put_many(60)
        smtp_server.wait_for(60)
        until(lambda: is_empty(setup))
    assert smtp_server.connections >= 12
    assert log_levels(caplog, 'no further connection') == []
    assert log_levels(caplog, SENDING_STOPPED) == []


def test_a_refusal_uses_no_permit(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """A mail that was not sent gives its permit back: the next attempt needs no other one."""
    smtp_server.script('MAIL', reply_then_drop(421, '4.3.2 later'))
    with setup.running(workers=3, rate=(1, 86400)):
        setup.put_many(3)
        smtp_server.wait_for(1)
        until(lambda: len(setup.queue) == 2)
    assert len(smtp_server.messages) == 1


def test_one_pass(setup: ProcessorSetup, smtp_server: ScriptedSMTPServer) -> None:
    """A single pass sends all over several connections, and leaves each by QUIT. One that is still
    being opened when nothing is left carries no mail, and is closed."""
    setup.put_many(25)
    tally = setup.processor(workers=3, batch=5).run_once()
    assert (tally.total, len(smtp_server.pairs())) == (25, 25)
    each = [smtp_server.verbs(number + 1) for number in range(smtp_server.connections)]
    used = [verbs for verbs in each if 'MAIL' in verbs]
    assert len(used) >= 5
    assert all(verbs[-1] == 'QUIT' for verbs in used)


def test_one_pass_that_loses_its_relay(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer
) -> None:
    """A single pass ends when the relay is lost, and loses no mail."""
    smtp_server.script('MAIL', *[as_usual] * 3)
    smtp_server.always('MAIL', reply_then_drop(421, '4.3.2 later'))
    setup.put_many(10)
    with pytest.raises(MailerUnavailable, match=r'4\.3\.2 later'):
        setup.processor(workers=1).run_once()
    assert (len(smtp_server.messages), len(setup.queue)) == (3, 7)
