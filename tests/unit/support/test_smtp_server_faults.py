"""The scripted server really loses connections, and is silent, slow or endless."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.support.smtp.client import MAIL, Client, connected
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    accept_then,
    delay,
    drop,
    half_close,
    hang,
    hold,
    raw,
    reply,
    reply_then_drop,
    reset,
    stream_forever,
)

Start = Callable[..., ScriptedSMTPServer]


@pytest.mark.parametrize('verb', ['connect', 'EHLO', 'MAIL', 'DATA', 'dot'])
@pytest.mark.parametrize(('action', 'rude'), [(drop(), False), (reset(), True)])
def test_lost_connections(
    smtp_server: ScriptedSMTPServer, verb: str, action: Action, rude: bool
) -> None:
    """drop() is seen as the end of the stream, reset() as ECONNRESET; no message is accepted."""
    smtp_server.script(verb, action)

    def talk() -> None:
        with connected(smtp_server.port) as client:
            assert client.transaction() != b''

    # A FIN is the end of the stream, or a broken pipe to those who write on.
    with pytest.raises(ConnectionResetError if rude else (AssertionError, BrokenPipeError)):
        talk()
    assert smtp_server.messages == []
    smtp_server.wait_for(lambda server: server.open_connections == 0)


def test_reset_after_a_reply(smtp_server: ScriptedSMTPServer) -> None:
    """The reply arrives before the RST does."""
    smtp_server.script('dot', reply(250, 'queued', then=reset()))
    with connected(smtp_server.port) as client:
        assert client.transaction() == b'250 queued\r\n'
        with pytest.raises(ConnectionResetError):
            client.rest()
    assert smtp_server.messages[0].acknowledged


def test_drop_after_acceptance(smtp_server: ScriptedSMTPServer) -> None:
    """A server that closes right after its 250 has accepted and acknowledged one copy."""
    smtp_server.script('dot', reply_then_drop(250, 'queued'))
    with connected(smtp_server.port) as client:
        assert client.transaction() == b'250 queued\r\n'
        assert client.rest() == b''
    assert [message.acknowledged for message in smtp_server.messages] == [True]


@pytest.mark.parametrize('action', [drop(), reset(), hang(), raw(b'250 o', then=drop())])
def test_acceptance_without_acknowledgement(
    smtp_server: ScriptedSMTPServer, action: Action
) -> None:
    """A message that was accepted and not acknowledged is logged so."""
    smtp_server.script('dot', accept_then(action))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.ask(b'DATA')
        client.write(MAIL + b'.\r\n')
        smtp_server.wait_for(1)
    (message,) = smtp_server.messages
    assert (message.acknowledged, message.reply_code) == (False, None)
    assert smtp_server.accepted('b@x') == 1


def test_half_close(smtp_server: ScriptedSMTPServer) -> None:
    """The client reads the end of the stream, and may still write."""
    smtp_server.script('NOOP', half_close())
    with connected(smtp_server.port) as client:
        assert client.ask(b'NOOP') == b''
        for _ in range(3):
            client.write(b'QUIT\r\n')
        smtp_server.wait_for(lambda server: server.open_connections == 1)
        assert smtp_server.raw(1).endswith(b'NOOP\r\n') or b'QUIT' in smtp_server.raw(1)
    smtp_server.wait_for(lambda server: server.open_connections == 0)
    assert smtp_server.raw(1).endswith(b'QUIT\r\n' * 3)


@pytest.mark.parametrize('verb', ['connect', 'MAIL', 'dot'])
def test_hang(smtp_server: ScriptedSMTPServer, verb: str) -> None:
    """A client that waits for a reply runs into its own time-out."""
    smtp_server.script(verb, hang())

    def talk() -> None:
        client = Client(smtp_server.port)
        client.socket.settimeout(0.05)
        try:
            client.reply()
            client.ask(b'EHLO me')
            client.transaction()
        finally:
            client.close()

    with pytest.raises(TimeoutError):
        talk()
    assert smtp_server.messages == []
    smtp_server.wait_for(lambda server: server.open_connections == 0)


def test_hang_without_reading(start_smtp_server: Start) -> None:
    """A server that does not read makes the client's writes block."""
    server = start_smtp_server(socket_buffer=4096)
    server.script('DATA', raw(b'354 go on\r\n', then=hang(reading=False)))
    with connected(server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.ask(b'DATA')
        client.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.write(b'x' * 20_000_000)
    server.stop()
    assert len(server.raw(1)) < 100_000


def test_slow_reading(start_smtp_server: Start) -> None:
    """A slow but steady reader takes its time, and the whole message."""
    server = start_smtp_server(read_pause=0.01, read_size=10_000, socket_buffer=10_000)
    started = time.perf_counter()
    with connected(server.port) as client:
        data = MAIL + b'x\r\n' * 100_000
        assert client.transaction(data=data).startswith(b'250')
    assert time.perf_counter() - started > 0.25
    assert server.messages[0].data == data


@pytest.mark.parametrize('verb', ['connect', 'RCPT', 'dot'])
def test_delay(smtp_server: ScriptedSMTPServer, verb: str) -> None:
    """A delayed reply comes, only later; the message counts once and as acknowledged."""
    smtp_server.script(verb, delay(0.1))
    started = time.perf_counter()
    with connected(smtp_server.port) as client:
        assert client.transaction().startswith(b'250')
    assert 0.1 <= time.perf_counter() - started < 1
    assert [message.acknowledged for message in smtp_server.messages] == [True]
    assert smtp_server.violations == []


def test_hold(smtp_server: ScriptedSMTPServer) -> None:
    """A held reply waits for the test; the message is logged before it is acknowledged."""
    event = threading.Event()
    smtp_server.script('dot', hold(event, reply(250, 'at last')))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.ask(b'DATA')
        client.write(MAIL + b'.\r\n')
        smtp_server.wait_for(1)
        assert not smtp_server.messages[0].acknowledged
        event.set()
        assert client.reply() == b'250 at last\r\n'
    assert [message.reply_code for message in smtp_server.messages] == [250]
    assert smtp_server.accepted('b@x') == 1


def test_client_that_gave_up_is_not_acknowledged(smtp_server: ScriptedSMTPServer) -> None:
    """A reply to a client that has left does not count as acknowledged."""
    event = threading.Event()
    smtp_server.script('dot', hold(event))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.ask(b'DATA')
        client.write(MAIL + b'.\r\n')
        smtp_server.wait_for(1)
    event.set()
    smtp_server.wait_for(lambda server: server.open_connections == 0)
    assert [message.acknowledged for message in smtp_server.messages] == [False]


def test_held_refusal_is_no_acceptance(smtp_server: ScriptedSMTPServer) -> None:
    """A refusal that is delayed does not count as accepted meanwhile."""
    smtp_server.script('dot', delay(0.01, delay(0.01, reply(451))))
    with connected(smtp_server.port) as client:
        assert client.transaction().startswith(b'451')
    assert smtp_server.messages == []


def test_endless_replies(smtp_server: ScriptedSMTPServer) -> None:
    """The stream goes on until the client leaves."""
    smtp_server.script('EHLO', stream_forever())
    client = Client(smtp_server.port)
    client.reply()
    client.write(b'EHLO me\r\n')
    received = 0
    while received < 1_000_000:
        received += len(client.socket.recv(65536))
    client.close()
    smtp_server.wait_for(lambda server: server.open_connections == 0)
