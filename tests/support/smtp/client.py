"""A client that writes any bytes, valid or not, for tests of the scripted server."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .server import ScriptedSMTPServer

MAIL = b'Message-ID: <1@x>\r\nSubject: hello\r\n\r\nGood day.\r\n'


class Client:
    """A connection on which a test writes and reads itself."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(('127.0.0.1', port), timeout=5)
        self._file = self.socket.makefile('rb')

    def reply(self) -> bytes:
        """Read a reply, or b'' at the end of the stream."""
        lines = [self._file.readline()]
        while lines[-1][3:4] == b'-':
            lines.append(self._file.readline())
        return b''.join(lines)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def ask(self, line: bytes) -> bytes:
        """Send a command and read its reply."""
        self.write(line + b'\r\n')
        return self.reply()

    def rest(self) -> bytes:
        """Read to the end of the stream."""
        return self._file.read()

    def transaction(self, *recipients: bytes, data: bytes = MAIL) -> bytes:
        """Send a message after EHLO and return the last reply."""
        self.ask(b'MAIL FROM:<a@x>')
        for recipient in recipients or (b'b@x',):
            self.ask(b'RCPT TO:<' + recipient + b'>')
        assert self.ask(b'DATA').startswith(b'354')
        return self.ask(data + b'.')

    def close(self) -> None:
        """Close without QUIT."""
        self._file.close()
        self.socket.close()


@contextmanager
def connected(port: int, *, greeted: bool = True) -> Iterator[Client]:
    """Connect, and send EHLO if ``greeted``."""
    client = Client(port)
    try:
        if greeted:
            assert client.reply().startswith(b'220')
            assert client.ask(b'EHLO me.example.org').startswith(b'250')
        yield client
    finally:
        client.close()


def send(server: ScriptedSMTPServer, *recipients: str, data: bytes = MAIL) -> dict[str, Any]:
    """Send a message by smtplib and return the refused recipients."""
    with smtplib.SMTP(server.host, server.port, local_hostname='me', timeout=5) as client:
        return client.sendmail('a@x', recipients or ('b@x',), data)


def handshake(
    client: Client, context: ssl.SSLContext, *, before: Callable[[], None] | None = None
) -> Client:
    """Return the same client inside TLS; ``before`` is called just before the handshake."""
    secure = object.__new__(Client)
    # Not at once: wrap_socket() leaks its socket where the peer has reset the connection already.
    secure.socket = context.wrap_socket(
        client.socket, server_hostname='127.0.0.1', do_handshake_on_connect=False
    )
    if before is not None:
        before()
    try:
        secure.socket.do_handshake()
    except OSError:
        secure.socket.close()
        raise
    secure._file = secure.socket.makefile('rb')
    return secure
