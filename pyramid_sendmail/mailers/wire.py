"""A line to a relay: commands go out, replies come in, and nobody waits for ever.

The line knows sockets, time-outs and what a reply looks like (RFC 5321, 4.2). It does not
know what is being said. Writing a command and reading its reply are two calls, so that
several commands may leave before the first reply is read (RFC 2920).
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..envelope import Reply
from ..exceptions import SendmailError
from ..patterns import pattern
from ..threads import waiting

if TYPE_CHECKING:
    import ssl

__all__ = ['TIMEOUTS', 'LineLost', 'Timeouts', 'Wire', 'dial', 'said']

BLOCK = 16_384
"""Octets handed to TLS at a time: what one record holds."""

LINE_LIMIT = 4_096
"""Octets in a line of a reply; RFC 5321, 4.5.3.1.5 allows 512."""

LINES_LIMIT = 256
"""Lines in a reply, so that a relay cannot fill the memory (or talk for ever)."""

_REPLY = pattern(rb'([2-5][0-9]{2})(?:([ -])(.*))?', re.DOTALL)

TEXT_LIMIT = 4_096
"""Characters that are kept of a reply: it goes into logs, events and the queue."""

HEARD = 64
"""Replies of one line that are remembered: the first ones of a connection, which come again."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait in each phase, in seconds (RFC 5321, 4.5.3.2).

    ``connect`` is for each address of the host; ``block`` for each block of a message to be
    taken, so that a slow line may take as long as it needs while it moves; ``data`` for the
    answer to DATA; ``final`` for the answer to the final dot, where giving up early makes
    duplicates (RFC 1047); ``command`` for everything else that is answered.
    """

    connect: float = 30.0
    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0
    block: float = 180.0
    final: float = 600.0
    quit: float = 5.0

    def capped(self, seconds: float) -> Timeouts:
        """Return these with no phase longer than ``seconds``."""
        return Timeouts(*(min(getattr(self, field.name), seconds) for field in fields(self)))


TIMEOUTS = Timeouts()


class LineLost(SendmailError, ConnectionError):
    """The conversation cannot go on: closed, timed out, or no SMTP any more.

    ``unsent``: how many octets of the last write have certainly not left. ``hung_up``: the relay
    has ended the connection.
    """

    def __init__(self, reason: str, *, unsent: int = 0, hung_up: bool = False) -> None:
        super().__init__(reason)
        self.unsent = unsent
        self.hung_up = hung_up


class Wire:
    """A connected socket, and the reader of replies on it.

    After LineLost nothing more can be said on it: ``lost`` is true then. ``version``: that of TLS,
    as 'TLSv1.3'. ``secrets``: what is not shown of replies, should they repeat it.
    """

    def __init__(self, connection: socket.socket, *, block: float) -> None:
        self.lost = False
        self.secure = False
        self.version = ''
        self.secrets: tuple[str, ...] = ()
        self._socket = connection
        self._block = block
        self._timeout: float | None = None
        self._buffer = bytearray()
        self._heard: dict[bytes, Reply] = {}

    @property
    def unread(self) -> bytes:
        """The first octets, three at most, of what has come and was not read."""
        return bytes(self._buffer[:3])

    def write(self, data: bytes | memoryview) -> None:
        """Send it all; whatever the socket takes at once has its own time. Raises LineLost."""
        rest = memoryview(data)
        self._within(self._block)
        try:
            while rest:
                # TLS may have sent part of what it reports as failed.
                risked = min(len(rest), BLOCK) if self.secure else 0
                with waiting():
                    sent = self._socket.send(rest[:BLOCK] if self.secure else rest)
                rest = rest[sent:]
        except OSError as error:
            self.lost = True
            raise LineLost(
                f'while sending: {describe(error, self._block)}', unsent=len(rest) - risked
            ) from error

    def reply(self, timeout: float) -> Reply:
        """Read one reply, within ``timeout`` seconds as a whole. Raises LineLost."""
        buffer = self._buffer
        deadline = 0.0
        if not buffer:
            deadline = time.monotonic() + timeout
            self._receive(deadline, timeout)
        # Nearly all replies are one line, there already, and the same for each mail.
        end = buffer.find(b'\n', 0, LINE_LIMIT) + 1
        if end:
            line = bytes(buffer[:end])
            reply = self._heard.get(line) or self._whole(line)
            if reply is not None:
                del buffer[:end]
                return reply
        code, lines = self._lines(deadline or time.monotonic() + timeout, timeout)
        return Reply(code, said(lines))

    def _whole(self, line: bytes) -> Reply | None:
        """A reply that is this one line, its end included; None if it is not that."""
        match = _REPLY.fullmatch(line.removesuffix(b'\n').removesuffix(b'\r'))
        if match is None or match[2] == b'-':
            return None
        reply = Reply(int(match[1]), said([self._shown(match[3])]))
        if len(self._heard) < HEARD:
            self._heard[line] = reply
        return reply

    def lines(self, timeout: float) -> tuple[int, list[str]]:
        """Read one reply, and return its code and the text of each of its lines."""
        return self._lines(time.monotonic() + timeout, timeout)

    def _lines(self, deadline: float, timeout: float) -> tuple[int, list[str]]:
        first = b''
        texts: list[str] = []
        try:
            while len(texts) < LINES_LIMIT:
                line = self._line(deadline, timeout)
                match = _REPLY.fullmatch(line)
                if match is None:
                    raise LineLost(f'what the relay said is no SMTP reply: it begins {line[:4]!r}')
                code, mark, text = match.groups()
                if code != (first := first or code):
                    raise LineLost('the relay changed its mind within a reply')
                texts.append(self._shown(text))
                if mark != b'-':
                    return int(code), texts
            raise LineLost(f"the relay's reply has more than {LINES_LIMIT} lines")
        except LineLost:
            self.lost = True
            raise

    def upgrade(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        """Speak TLS from now on. Raises LineLost, or the OSError of a failed handshake."""
        self.lost = True
        if self._buffer:
            # Whoever sits on the line could have put replies there (CVE-2011-0411).
            raise LineLost('the relay sent more than its reply before the TLS handshake')
        self._within(timeout)
        secured = context.wrap_socket(self._socket, server_hostname=host)
        self._socket = secured
        version = secured.version()
        if version is None:
            raise LineLost('the relay closed the connection')
        self.lost, self.secure, self.version = False, True, version

    def farewell(self, timeout: float) -> None:
        """Say QUIT, if that makes sense, and close; what comes of it is of no interest."""
        if not self.lost:
            try:
                self._block = min(self._block, timeout)
                self.write(b'QUIT\r\n')
                self.reply(timeout)
            except LineLost:
                pass
        self.close()

    def close(self) -> None:
        """Close without a word: neither QUIT nor TLS's close_notify."""
        self.lost = True
        self._buffer.clear()
        self._socket.close()

    def _shown(self, text: bytes | None) -> str:
        """A line's text, without what is not to be shown."""
        words = (text or b'').decode('utf-8', 'replace')
        for secret in self.secrets:
            words = words.replace(secret, '***')
        return (words if words.isprintable() else _harmless(words)).strip()

    def _line(self, deadline: float, timeout: float) -> bytes:
        scanned = 0
        while (end := self._buffer.find(b'\n', scanned, LINE_LIMIT)) < 0:
            scanned = len(self._buffer)
            if scanned >= LINE_LIMIT:
                raise LineLost(f"a line of the relay's reply has more than {LINE_LIMIT} octets")
            self._receive(deadline, timeout)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b'\r')

    def _receive(self, deadline: float, timeout: float) -> None:
        try:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            # A second more or less is nothing to a time-out of minutes, and each change is a call.
            self._within(remaining if timeout < 10 or remaining < timeout - 1 else timeout)
            with waiting():
                data = self._socket.recv(BLOCK)
        except OSError as error:
            self.lost = True
            raise LineLost(
                f'while waiting for a reply: {describe(error, timeout)}',
                hung_up=isinstance(error, ConnectionError),
            ) from error
        if not data:
            self.lost = True
            raise LineLost('the relay closed the connection', hung_up=True)
        self._buffer += data

    def _within(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds


Resolve = Callable[..., list[Any]]


def dial(
    host: str, port: int, timeout: float, *, resolve: Resolve = socket.getaddrinfo
) -> socket.socket:
    """Connect to the first address of the host that answers.

    ``timeout`` is for each address, in seconds; how long a name takes to resolve is the
    system's affair (resolv.conf). Raises OSError with what each address said.
    """
    troubles = []
    for family, kind, protocol, _, address in resolve(host, port, type=socket.SOCK_STREAM):
        connection = None
        try:
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(timeout)
            connection.connect(address)
            # A command must not wait for the acknowledgement of the one before.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, OSError):
                raise
            troubles.append(f'{address[0]}: {describe(error, timeout)}')
    raise OSError('; '.join(troubles) or 'the host has no address')


def said(lines: Iterable[str]) -> str:
    """What a reply of these lines says, in one, and no longer than anybody reads."""
    return ' '.join(filter(None, lines))[:TEXT_LIMIT]


def _harmless(text: str) -> str:
    """Blanks for blank space, line ends of Unicode included, and marks for what moves a cursor, or
    turns the direction of writing."""
    return ''.join(
        ' ' if letter.isspace() else letter if letter.isprintable() else '�' for letter in text
    )


def describe(error: BaseException, timeout: float) -> str:
    """Say what went wrong, for people."""
    if isinstance(error, TimeoutError):
        return f'timed out after {timeout:g} s'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
