"""A connection to a relay: commands go out, replies come in, and every wait has an end.

It knows sockets, time-outs and the form of a reply (RFC 5321, 4.2), not what the commands mean.
Writing a command and reading its reply are two calls, so that several commands may leave before
the first reply is read (RFC 2920).
"""

from __future__ import annotations

import errno
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable

from ...envelope import Reply
from ...exceptions import SendmailError
from ...threads import blocking
from ..session import describe_error

__all__ = ['ConnectionLost', 'SMTPConnection', 'reply_text']

BLOCK_BYTES = 16_384
"""Bytes that are handed to TLS, or read, at a time: one record."""

MAX_LINE_BYTES = 4_096
"""Bytes in one line of a reply; RFC 5321, 4.5.3.1.5 allows 512."""

MAX_REPLY_LINES = 256
"""Lines in one reply, so that a relay can neither fill the memory nor go on for ever."""

MAX_REPLY_CHARACTERS = 4_096
"""Characters that are kept of a reply, which goes into logs, events and the queue."""

MAX_CACHED_REPLIES = 64
"""Replies of one line that are cached: the first of a connection, which are the common ones."""

_LINE_TOO_LONG = f"a line of the relay's reply has more than {MAX_LINE_BYTES} bytes"

_REPLY_LINE = re.compile(rb'([2-5][0-9]{2})(?:([ -])(.*))?', re.DOTALL)


class ConnectionLost(SendmailError, ConnectionError):
    """The connection cannot be used any more: closed, timed out, or the relay broke the protocol.

    ``unsent``: how many bytes of the last write have certainly not left. ``hung_up``: the relay
    closed the connection.
    """

    def __init__(self, reason: str, *, unsent: int = 0, hung_up: bool = False) -> None:
        super().__init__(reason)
        self.unsent = unsent
        self.hung_up = hung_up


class SMTPConnection:
    """A connected socket that writes commands and reads replies.

    ``block_timeout``: seconds for each block of a write. The socket never blocks: time-outs are
    those of ``poll``, and cost nothing when there is nothing to wait for.

    ``lost``: nothing more can be sent; set before ConnectionLost is raised. ``secure``: TLS is in
    use, of the ``version`` 'TLSv1.3' or another. ``secrets``: strings that are masked in replies.
    """

    def __init__(self, connection: socket.socket, *, block_timeout: float) -> None:
        self.lost = False
        self.secure = False
        self.version = ''
        self.secrets: tuple[str, ...] = ()
        self._socket = connection
        self._block_timeout = block_timeout
        self._poll = select.poll()
        # What to poll for after each error; 0: what the caller was doing.
        self._awaited: dict[type, int] = {BlockingIOError: 0}
        self._lines: deque[bytes] = deque()
        self._partial_line = b''
        self._cached_replies: dict[bytes, Reply] = {}
        connection.settimeout(0)

    @property
    def unread(self) -> bytes:
        """The first three bytes, at most, of what was received and not read yet."""
        return (self._lines[0] + b'\n')[:3] if self._lines else self._partial_line[:3]

    def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``; each part that the socket accepts has its own time-out.

        Raises ConnectionLost.
        """
        rest = memoryview(data)
        try:
            while rest:
                # TLS may have sent part of what it reports as failed.
                risked = min(len(rest), BLOCK_BYTES) if self.secure else 0
                if len(rest) > BLOCK_BYTES:
                    # Wait, and do not fill the buffer first: the system reports room only when a
                    # third of it is free, which on a slow connection may outlast the time-out.
                    self._await(select.POLLOUT, self._block_timeout)
                try:
                    sent = self._socket.send(rest[:BLOCK_BYTES] if self.secure else rest)
                except OSError as error:
                    self._await_retry(error, select.POLLOUT, self._block_timeout)
                else:
                    rest = rest[sent:]
        except OSError as error:
            self.lost = True
            raise ConnectionLost(
                f'while sending: {describe_error(error, self._block_timeout)}',
                unsent=len(rest) - risked,
            ) from error

    def reply(self, timeout: float) -> Reply:
        """Read one reply, all of it within ``timeout`` seconds. Raises ConnectionLost."""
        deadline = 0.0
        if not self._lines:
            deadline = time.monotonic() + timeout
            self._receive(deadline, timeout)
        # Nearly every reply is one line, already received, and the same for each mail.
        first = self._lines[0]
        reply = self._cached_replies.get(first)
        if reply is not None:
            self._lines.popleft()
            return reply
        code, texts = self._read(deadline or time.monotonic() + timeout, timeout)
        reply = Reply(code, reply_text(texts))
        if len(texts) == 1 and len(self._cached_replies) < MAX_CACHED_REPLIES:
            self._cached_replies[first] = reply
        return reply

    def lines(self, timeout: float) -> tuple[int, list[str]]:
        """Read one reply and return its code and the text of each line. Raises ConnectionLost."""
        return self._read(time.monotonic() + timeout, timeout)

    def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        """Encrypt from now on, and verify that the certificate is for ``host``.

        Raises ConnectionLost, or the OSError of a failed handshake.
        """
        self.lost = True
        if self.unread:
            # An attacker could have put replies in front of the handshake (CVE-2011-0411).
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

    def quit(self, timeout: float) -> None:
        """Send QUIT unless the connection is lost, wait for the reply, and close. Never raises."""
        if not self.lost:
            try:
                self._block_timeout = min(self._block_timeout, timeout)
                self.write(b'QUIT\r\n')
                self.reply(timeout)
            except ConnectionLost:
                pass
        self.close()

    def close(self) -> None:
        """Close at once: neither QUIT nor TLS's close_notify is sent."""
        self.lost = True
        self._lines.clear()
        self._partial_line = b''
        self._socket.close()

    def _read(self, deadline: float, timeout: float) -> tuple[int, list[str]]:
        first = b''
        texts: list[str] = []
        try:
            while len(texts) < MAX_REPLY_LINES:
                line = self._read_line(deadline, timeout)
                match = _REPLY_LINE.fullmatch(line)
                if match is None:
                    raise ConnectionLost(f'not an SMTP reply: it begins {line[:4]!r}')
                code, mark, text = match.groups()
                if code != (first := first or code):
                    raise ConnectionLost('the lines of one reply have different codes')
                texts.append(self._printable(text))
                if mark != b'-':
                    return int(code), texts
            raise ConnectionLost(f"the relay's reply has more than {MAX_REPLY_LINES} lines")
        except ConnectionLost:
            self.lost = True
            raise

    def _printable(self, text: bytes | None) -> str:
        """Return a line's text with secrets masked and control characters replaced."""
        words = (text or b'').decode('utf-8', 'replace')
        for secret in self.secrets:
            words = words.replace(secret, '***')
        return (words if words.isprintable() else _without_controls(words)).strip()

    def _read_line(self, deadline: float, timeout: float) -> bytes:
        if not self._lines:
            self._receive(deadline, timeout)
        line = self._lines.popleft()
        if len(line) >= MAX_LINE_BYTES:
            raise ConnectionLost(_LINE_TOO_LONG)
        return line.removesuffix(b'\r')

    def _receive(self, deadline: float, timeout: float) -> None:
        """Receive until there is a whole line."""
        while not self._lines:
            if len(self._partial_line) >= MAX_LINE_BYTES:
                self.lost = True
                raise ConnectionLost(_LINE_TOO_LONG)
            try:
                data = self._receive_some(deadline)
            except OSError as error:
                self.lost = True
                raise ConnectionLost(
                    f'while waiting for a reply: {describe_error(error, timeout)}',
                    hung_up=isinstance(error, ConnectionError),
                ) from error
            if not data:
                self.lost = True
                raise ConnectionLost('the relay closed the connection', hung_up=True)
            *lines, self._partial_line = (self._partial_line + data).split(b'\n')
            self._lines.extend(lines)

    def _receive_some(self, deadline: float) -> bytes:
        # poll does not report what TLS has decrypted already.
        if not (self.secure and self._decrypted_bytes()):
            self._await(select.POLLIN, deadline - time.monotonic())
        while True:
            try:
                return self._socket.recv(BLOCK_BYTES)
            except OSError as error:
                self._await_retry(error, select.POLLIN, deadline - time.monotonic())

    def _decrypted_bytes(self) -> int:
        """Return how many bytes TLS has decrypted that were not received yet."""
        pending: int = self._socket.pending()  # type: ignore[attr-defined]
        return pending

    def _await_retry(self, error: OSError, event: int, seconds: float) -> None:
        """Wait until the failed call may succeed, or raise its error again."""
        awaited = self._awaited.get(type(error))
        if awaited is None:
            raise error
        self._await(awaited or event, seconds)

    def _await(self, event: int, seconds: float) -> None:
        if seconds <= 0:
            raise TimeoutError
        if self._socket.fileno() < 0:
            raise OSError(errno.EBADF, 'the connection was closed on our side')
        self._poll.register(self._socket, event)
        with blocking():
            if not self._poll.poll(seconds * 1000):
                raise TimeoutError


def reply_text(lines: Iterable[str]) -> str:
    """Return the lines of a reply as one text, of MAX_REPLY_CHARACTERS at most."""
    return ' '.join(filter(None, lines))[:MAX_REPLY_CHARACTERS]


def _without_controls(text: str) -> str:
    """Replace white space, Unicode line ends included, by blanks, and other characters that are
    not printable (cursor movements, changes of the writing direction) by a mark."""
    return ''.join(
        ' ' if letter.isspace() else letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}'
        for letter in text
    )
