"""A connected socket: bytes go out, bytes come in, and every wait has an end.

It knows sockets, TLS and time-outs, and nothing of what the bytes mean.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import time

from ...exceptions import SendmailError
from ..session import describe_error
from .tls import remedy as tls_remedy

__all__ = ['BLOCK_BYTES', 'ConnectionLost', 'SMTPConnection']

BLOCK_BYTES = 16_384
"""Bytes that are handed to TLS, or read, at a time: one record."""


class ConnectionLost(SendmailError, ConnectionError):
    """The connection cannot be used any more: closed, or timed out.

    ``unsent``: how many bytes of the last write have certainly not left. ``hung_up``: the relay
    closed the connection. ``remedy``: what to do about it, or ''.
    """

    def __init__(
        self, reason: str, *, unsent: int = 0, hung_up: bool = False, remedy: str = ''
    ) -> None:
        super().__init__(reason)
        self.unsent = unsent
        self.hung_up = hung_up
        self.remedy = remedy


class SMTPConnection:
    """A connected socket.

    ``block_timeout``: seconds for each block of a write. The socket never blocks: time-outs are
    those of ``poll``, and cost nothing when there is nothing to wait for.

    ``lost``: nothing more can be sent; set before ConnectionLost is raised. ``secure``: TLS is in
    use, of the ``version`` 'TLSv1.3' or another.
    """

    def __init__(self, connection: socket.socket, *, block_timeout: float) -> None:
        self.lost = False
        self.secure = False
        self.version = ''
        self._socket = connection
        self._block_timeout = block_timeout
        self._poll = select.poll()
        # What to poll for after each error; 0: what the caller was doing.
        self._awaited: dict[type, int] = {BlockingIOError: 0}
        connection.settimeout(0)

    def write(self, data: bytes) -> None:
        """Send all of ``data``; each part that the socket accepts has its own time-out.

        Raises ConnectionLost, from a frame that does not hold ``data``: it may be a password, and
        error trackers store the variables of frames.
        """
        failure = self._write(memoryview(data))
        del data
        if failure is not None:
            self.lost = True
            raise failure

    def _write(self, rest: memoryview) -> ConnectionLost | None:
        risked = 0
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
            return ConnectionLost(
                f'while sending: {describe_error(error, self._block_timeout)}',
                unsent=len(rest) - risked,
                remedy=tls_remedy(error, speaks_tls=True),
            )
        return None

    def receive(self, deadline: float, timeout: float) -> bytes:
        """Return bytes that the relay sent; b'' when it has closed the connection.

        ``deadline``: by the monotonic clock; ``timeout``: the seconds up to it, for the error.
        Raises ConnectionLost.
        """
        try:
            # poll does not report what TLS has decrypted already.
            if not (self.secure and self._decrypted_bytes()):
                self._await(select.POLLIN, deadline - time.monotonic())
            while True:
                try:
                    return self._socket.recv(BLOCK_BYTES)
                except OSError as error:
                    self._await_retry(error, select.POLLIN, deadline - time.monotonic())
        except OSError as error:
            self.lost = True
            raise ConnectionLost(
                f'while waiting for a reply: {describe_error(error, timeout)}',
                hung_up=isinstance(error, ConnectionError),
                remedy=tls_remedy(error, speaks_tls=True),
            ) from error

    def start_tls(self, context: ssl.SSLContext, host: str, timeout: float) -> None:
        """Encrypt from now on, and verify that the certificate is for ``host``.

        Raises ConnectionLost, or the OSError of a failed handshake.
        """
        self.lost = True
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

    def limit_writes(self, timeout: float) -> None:
        """Give each block of a write so many seconds at most."""
        self._block_timeout = min(self._block_timeout, timeout)

    def close(self) -> None:
        """Close at once: neither QUIT nor TLS's close_notify is sent."""
        self.lost = True
        self._socket.close()

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
        if not self._poll.poll(seconds * 1000):
            raise TimeoutError
