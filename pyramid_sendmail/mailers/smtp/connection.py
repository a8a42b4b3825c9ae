"""A line to a relay: commands go out, replies come in, and nobody waits for ever.

The line knows sockets, time-outs and what a reply looks like (RFC 5321, 4.2). It does not
know what is being said. Writing a command and reading its reply are two calls, so that
several commands may leave before the first reply is read (RFC 2920).
"""

from __future__ import annotations

import errno
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ...envelope import Reply
from ...exceptions import SendmailError
from ...threads import blocking

if TYPE_CHECKING:
    import ssl

__all__ = ['TIMEOUTS', 'ConnectionLost', 'SMTPConnection', 'Timeouts', 'dial', 'said']

BLOCK = 16_384
"""Octets handed to TLS at a time: what one record holds."""

LINE_LIMIT = 4_096
"""Octets in a line of a reply; RFC 5321, 4.5.3.1.5 allows 512."""

LINES_LIMIT = 256
"""Lines in a reply, so that a relay cannot fill the memory (or talk for ever)."""

_TOO_LONG = f"a line of the relay's reply has more than {LINE_LIMIT} octets"

_REPLY = re.compile(rb'([2-5][0-9]{2})(?:([ -])(.*))?', re.DOTALL)

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


class ConnectionLost(SendmailError, ConnectionError):
    """The conversation cannot go on: closed, timed out, or no SMTP any more.

    ``unsent``: how many octets of the last write have certainly not left. ``hung_up``: the relay
    has ended the connection.
    """

    def __init__(self, reason: str, *, unsent: int = 0, hung_up: bool = False) -> None:
        super().__init__(reason)
        self.unsent = unsent
        self.hung_up = hung_up


class SMTPConnection:
    """A connected socket, and the reader of replies on it.

    After ConnectionLost nothing more can be said on it: ``lost`` is true then. ``version``: that of TLS,
    as 'TLSv1.3'. ``secrets``: what is not shown of replies, should they repeat it. The socket never
    blocks: the time-outs are those of ``poll``, and cost nothing where nobody has to wait.
    """

    def __init__(self, connection: socket.socket, *, block: float) -> None:
        self.lost = False
        self.secure = False
        self.version = ''
        self.secrets: tuple[str, ...] = ()
        self._socket = connection
        self._block = block
        self._poll = select.poll()
        self._awaited: dict[type, int] = {BlockingIOError: 0}
        self._lines: deque[bytes] = deque()
        self._rest = b''  # the beginning of a line
        self._heard: dict[bytes, Reply] = {}
        connection.settimeout(0)

    @property
    def unread(self) -> bytes:
        """The first octets, three at most, of what has come and was not read."""
        return (self._lines[0] + b'\n')[:3] if self._lines else self._rest[:3]

    def write(self, data: bytes | memoryview) -> None:
        """Send it all; whatever the socket takes at once has its own time. Raises ConnectionLost."""
        rest = memoryview(data)
        try:
            while rest:
                # TLS may have sent part of what it reports as failed.
                risked = min(len(rest), BLOCK) if self.secure else 0
                if len(rest) > BLOCK:
                    # Not as much as there is room for: the system says that there is room again
                    # when a third of it is, and on a slow line that may take longer than a block.
                    self._await(select.POLLOUT, self._block)
                try:
                    sent = self._socket.send(rest[:BLOCK] if self.secure else rest)
                except OSError as error:
                    self._retry(error, select.POLLOUT, self._block)
                else:
                    rest = rest[sent:]
        except OSError as error:
            self.lost = True
            raise ConnectionLost(
                f'while sending: {describe(error, self._block)}', unsent=len(rest) - risked
            ) from error

    def reply(self, timeout: float) -> Reply:
        """Read one reply, within ``timeout`` seconds as a whole. Raises ConnectionLost."""
        deadline = 0.0
        if not self._lines:
            deadline = time.monotonic() + timeout
            self._receive(deadline, timeout)
        # Nearly all replies are one line, there already, and the same for each mail.
        first = self._lines[0]
        reply = self._heard.get(first)
        if reply is not None:
            self._lines.popleft()
            return reply
        code, texts = self._read(deadline or time.monotonic() + timeout, timeout)
        reply = Reply(code, said(texts))
        if len(texts) == 1 and len(self._heard) < HEARD:
            self._heard[first] = reply
        return reply

    def lines(self, timeout: float) -> tuple[int, list[str]]:
        """Read one reply, and return its code and the text of each of its lines."""
        return self._read(time.monotonic() + timeout, timeout)

    def _read(self, deadline: float, timeout: float) -> tuple[int, list[str]]:
        first = b''
        texts: list[str] = []
        try:
            while len(texts) < LINES_LIMIT:
                line = self._line(deadline, timeout)
                match = _REPLY.fullmatch(line)
                if match is None:
                    raise ConnectionLost(
                        f'what the relay said is no SMTP reply: it begins {line[:4]!r}'
                    )
                code, mark, text = match.groups()
                if code != (first := first or code):
                    raise ConnectionLost('the relay changed its mind within a reply')
                texts.append(self._shown(text))
                if mark != b'-':
                    return int(code), texts
            raise ConnectionLost(f"the relay's reply has more than {LINES_LIMIT} lines")
        except ConnectionLost:
            self.lost = True
            raise

    def upgrade(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        """Speak TLS from now on. Raises ConnectionLost, or the OSError of a failed handshake."""
        import ssl

        self.lost = True
        if self.unread:
            # Whoever sits on the line could have put replies there (CVE-2011-0411).
            raise ConnectionLost('the relay sent more than its reply before the TLS handshake')
        self._socket.settimeout(timeout)
        secured = context.wrap_socket(self._socket, server_hostname=host)
        self._socket = secured
        secured.settimeout(0)
        self._awaited = {
            ssl.SSLWantReadError: select.POLLIN,
            ssl.SSLWantWriteError: select.POLLOUT,
        }
        version = secured.version()
        if version is None:
            raise ConnectionLost('the relay closed the connection')
        self.lost, self.secure, self.version = False, True, version

    def farewell(self, timeout: float) -> None:
        """Say QUIT, if that makes sense, and close; what comes of it is of no interest."""
        if not self.lost:
            try:
                self._block = min(self._block, timeout)
                self.write(b'QUIT\r\n')
                self.reply(timeout)
            except ConnectionLost:
                pass
        self.close()

    def close(self) -> None:
        """Close without a word: neither QUIT nor TLS's close_notify."""
        self.lost = True
        self._lines.clear()
        self._rest = b''
        self._socket.close()

    def _shown(self, text: bytes | None) -> str:
        """A line's text, without what is not to be shown."""
        words = (text or b'').decode('utf-8', 'replace')
        for secret in self.secrets:
            words = words.replace(secret, '***')
        return (words if words.isprintable() else _harmless(words)).strip()

    def _line(self, deadline: float, timeout: float) -> bytes:
        if not self._lines:
            self._receive(deadline, timeout)
        line = self._lines.popleft()
        if len(line) >= LINE_LIMIT:
            raise ConnectionLost(_TOO_LONG)
        return line.removesuffix(b'\r')

    def _receive(self, deadline: float, timeout: float) -> None:
        """Wait for the end of a line."""
        while not self._lines:
            if len(self._rest) >= LINE_LIMIT:
                self.lost = True
                raise ConnectionLost(_TOO_LONG)
            try:
                data = self._take(deadline)
            except OSError as error:
                self.lost = True
                raise ConnectionLost(
                    f'while waiting for a reply: {describe(error, timeout)}',
                    hung_up=isinstance(error, ConnectionError),
                ) from error
            if not data:
                self.lost = True
                raise ConnectionLost('the relay closed the connection', hung_up=True)
            *lines, self._rest = (self._rest + data).split(b'\n')
            self._lines.extend(lines)

    def _take(self, deadline: float) -> bytes:
        """What has come."""
        # What TLS has decrypted already, nobody can wait for.
        if not (self.secure and self._pending()):
            self._await(select.POLLIN, deadline - time.monotonic())
        while True:
            try:
                return self._socket.recv(BLOCK)
            except OSError as error:
                self._retry(error, select.POLLIN, deadline - time.monotonic())

    def _pending(self) -> int:
        """How many octets TLS has decrypted that nobody has read."""
        pending: int = self._socket.pending()  # type: ignore[attr-defined]
        return pending

    def _retry(self, error: OSError, event: int, seconds: float) -> None:
        """Wait until what failed can be done, or raise the error again."""
        awaited = self._awaited.get(type(error))
        if awaited is None:
            raise error
        self._await(awaited or event, seconds)

    def _await(self, event: int, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        if self._socket.fileno() < 0:
            raise OSError(errno.EBADF, 'it was closed')
        self._poll.register(self._socket, event)
        with blocking():
            if not self._poll.poll(seconds * 1000):
                raise TimeoutError


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
