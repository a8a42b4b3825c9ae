"""The scripted server logs violations of the protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.smtp.client import MAIL, connected
from tests.support.smtp.server import ScriptedSMTPServer, delay, hold, reply

Start = Callable[..., ScriptedSMTPServer]


@pytest.mark.parametrize(
    ('sent', 'violation'),
    [
        (b'NOOP\nNOOP\r\n', 'bare LF'),
        (b'NOOP\rNOOP\r\n', 'bare CR'),
        (b'NOOP\n', 'bare LF'),
        (b'MAIL FROM:<a\0@x>\r\n', 'control character'),
        (b'MAIL FROM:<\xc3\xa9@x>\r\n', 'byte above 127 without SMTPUTF8'),
        (b'MAIL FROM:<\xe9@x> SMTPUTF8\r\n', 'no UTF-8'),
        (b'EHLO \xc3\xa9\r\n', 'byte above 127 without SMTPUTF8'),
        (b'MAIL FROM: <a@x>\r\n', 'syntax'),
        (b'MAIL FROM:a@x\r\n', 'syntax'),
        (b'NOOP ' + b'x' * 506 + b'\r\n', 'NOOP of 513 bytes'),
        (b'Subject: hello\r\n', 'unknown command'),
        (b'NOOP\r\nNOOP\r\n', 'before the reply to NOOP'),
        (b'EHLO me\r\nMAIL FROM:<a@x>\r\n', 'before the reply to EHLO'),
        (b'x' * 1_100_000, 'without an end'),
    ],
)
def test_violations_in_commands(
    smtp_server: ScriptedSMTPServer, sent: bytes, violation: str
) -> None:
    """Each violation in a command is logged."""
    with connected(smtp_server.port) as client:
        client.write(sent)
        smtp_server.wait_for(lambda server: server.violations)
        assert violation in smtp_server.violations[0]


def test_bare_line_ends_are_not_obeyed(smtp_server: ScriptedSMTPServer) -> None:
    """A command with a bare line end in it is refused as a whole."""
    with connected(smtp_server.port) as client:
        assert client.ask(b'MAIL FROM:<a@x>\nRCPT TO:<evil@x>').startswith(b'500')
        assert client.ask(b'RCPT TO:<b@x>').startswith(b'503')


@pytest.mark.parametrize(
    ('data', 'violation'),
    [
        (b'a\nb\r\n', 'bare LF in the data'),
        (b'a\rb\r\n', 'bare CR in the data'),
        (b'a\r\r\n', 'bare CR in the data'),
        (b'a\r\n.b\r\n', 'begins with one dot'),
        (b'.b\r\n', 'begins with one dot'),
        (b'a\0\r\n', 'NUL'),
        (b'\xc3\xa9\r\n', 'without BODY=8BITMIME'),
        (b'a\r\n' + b'x' * 999 + b'\r\n', 'line of 1001 bytes'),
    ],
)
def test_violations_in_data(smtp_server: ScriptedSMTPServer, data: bytes, violation: str) -> None:
    """Each violation in the data is logged."""
    with connected(smtp_server.port) as client:
        client.transaction(data=data)
    (text,) = smtp_server.violations
    assert violation in text


def test_long_stuffed_lines_and_declared_bytes_are_fine(start_smtp_server: Start) -> None:
    """1000 bytes beside the stuffed dot, bytes above 127 that were declared: no violation."""
    server = start_smtp_server(extensions=['8BITMIME', 'SMTPUTF8'])
    with connected(server.port) as client:
        client.transaction(data=b'..' + b'x' * 997 + b'\r\n')
        for arguments in (b'BODY=8BITMIME', b'SMTPUTF8'):
            client.ask(b'MAIL FROM:<a@x> ' + arguments)
            client.ask(b'RCPT TO:<%s@x>' % (b'\xc3\xa9' if arguments == b'SMTPUTF8' else b'e'))
            client.ask(b'DATA')
            assert client.ask(b'\xc3\xa9\r\n.').startswith(b'250')
    assert server.violations == []
    assert server.accepted('é@x') == 1


def test_early_talkers(smtp_server: ScriptedSMTPServer) -> None:
    """Bytes before the greeting are a violation."""
    event = threading.Event()
    smtp_server.script('connect', hold(event))
    with connected(smtp_server.port, greeted=False) as client:
        client.write(b'EHLO me\r\n')
        event.set()
        client.reply()
    assert "b'EHLO me\\r\\n' sent before the greeting" in smtp_server.violations[0]


@pytest.mark.parametrize('code', [354, 451])
def test_data_before_354(smtp_server: ScriptedSMTPServer, code: int) -> None:
    """Bytes of a message before the reply to DATA are a violation, whatever the reply."""
    smtp_server.script('DATA', delay(0.05, reply(code)))
    with connected(smtp_server.port) as client:
        client.ask(b'MAIL FROM:<a@x>')
        client.ask(b'RCPT TO:<b@x>')
        client.write(b'DATA\r\n')
        client.write(MAIL + b'.\r\n')
        client.reply()
        client.reply()
    assert 'sent before the reply to DATA' in smtp_server.violations[0]


def test_pipelining_that_was_not_offered(start_smtp_server: Start) -> None:
    """A group is a violation where PIPELINING is not offered."""
    server = start_smtp_server(extensions=[])
    with connected(server.port) as client:
        client.write(b'MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n')
        client.reply()
        client.reply()
    assert 'sent before the reply to MAIL' in server.violations[0]
