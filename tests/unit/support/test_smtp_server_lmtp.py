"""The scripted server supports LMTP (RFC 2033), over TCP and through a Unix socket."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.smtp.client import MAIL, Client, connected
from tests.support.smtp.server import Reply, ScriptedSMTPServer, Session, drop, reply

Start = Callable[..., ScriptedSMTPServer]


@pytest.fixture
def server(start_smtp_server: Start) -> ScriptedSMTPServer:
    return start_smtp_server(lmtp=True)


@pytest.fixture
def client(server: ScriptedSMTPServer) -> Iterator[Client]:
    """Return a client that has sent LHLO."""
    with connected(server.port, greeted=False) as client:
        client.reply()
        assert client.ask(b'LHLO me').startswith(b'250-')
        yield client


def envelope(client: Client, *recipients: bytes) -> None:
    client.ask(b'MAIL FROM:<a@x>')
    for recipient in recipients:
        client.ask(b'RCPT TO:<' + recipient + b'>')
    assert client.ask(b'DATA').startswith(b'354')


def test_a_reply_for_each_recipient(server: ScriptedSMTPServer, client: Client) -> None:
    """There are as many replies as accepted recipients, in their order (RFC 2033, 4.2); each
    accepted copy is logged on its own."""
    server.script('RCPT', reply(250), reply(550, 'no'))
    server.script('dot', reply(250, 'first'), reply(452, 'second'))
    envelope(client, b'b@x', b'c@x', b'd@x', b'e@x')
    assert client.ask(MAIL + b'.') == b'250 first\r\n'
    assert client.reply() == b'452 second\r\n'
    assert client.reply() == b'250 2.0.0 OK\r\n'
    assert client.ask(b'QUIT').startswith(b'221')
    assert [message.recipients for message in server.messages] == [('b@x',), ('e@x',)]
    assert server.accepted('d@x') == 0
    assert server.verbs() == ['LHLO', 'MAIL', *['RCPT'] * 4, 'DATA', 'dot', 'QUIT']
    assert server.violations == []


def test_a_callable_sees_the_recipient(server: ScriptedSMTPServer, client: Client) -> None:
    """The script for 'dot' may depend on the recipient."""

    def full(session: Session) -> Reply | None:
        return reply(452, 'full') if session.recipient == 'c@x' else None

    server.always('dot', full)
    envelope(client, b'b@x', b'c@x')
    assert client.ask(MAIL + b'.').startswith(b'250')
    assert client.reply() == b'452 full\r\n'


def test_lost_after_the_first_reply(server: ScriptedSMTPServer, client: Client) -> None:
    """The first recipient has its copy, acknowledged, and the others have none."""
    server.script('dot', reply(250, 'first'), drop())
    envelope(client, b'b@x', b'c@x', b'd@x')
    assert client.ask(MAIL + b'.') == b'250 first\r\n'
    assert client.rest() == b''
    [message] = server.messages
    assert message.acknowledged
    assert message.recipients == ('b@x',)


@pytest.mark.parametrize('line', [b'EHLO me', b'HELO me'])
def test_the_greetings_of_smtp_are_a_mistake(start_smtp_server: Start, line: bytes) -> None:
    """EHLO and HELO are answered 500 and are a violation (RFC 2033, 4.1); so is LHLO to an SMTP
    server."""
    for lmtp, verb in ((True, line), (False, b'LHLO me')):
        server = start_smtp_server(lmtp=lmtp)
        with connected(server.port, greeted=False) as client:
            client.reply()
            assert client.ask(verb).startswith(b'500')
        assert 'unknown command' in server.violations[0]


def test_data_without_recipients(client: Client) -> None:
    """DATA without a recipient is answered 503, where SMTP has 554 (RFC 2033, 4.2)."""
    client.ask(b'MAIL FROM:<a@x>')
    assert client.ask(b'DATA').startswith(b'503')


def test_unix_socket(start_smtp_server: Start, tmp_path: Path) -> None:
    """A server at a path works with the standard library, and can be stopped and started again."""
    path = str(tmp_path / 'lmtp')
    server = start_smtp_server(lmtp=True, path=path)
    assert server.url == f'lmtp+unix:{path}'
    for _ in range(2):
        with smtplib.LMTP(path, local_hostname='me', timeout=5) as client:
            # Of several replies it would read one.
            assert client.sendmail('a@x', 'b@x', MAIL) == {}
        server.stop()
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(ConnectionRefusedError):
            refused.connect(path)
        server.start()
    assert server.accepted('b@x') == 2
    assert server.violations == []
    assert not [each for each in threading.enumerate() if each.name.startswith('connection-')]


def test_url(start_smtp_server: Start, server: ScriptedSMTPServer) -> None:
    """The URL is a value of mail.url."""
    assert server.url == f'lmtp://127.0.0.1:{server.port}'
    assert start_smtp_server().url.startswith('smtp://')
