"""A connected socket that never blocks, with TLS or without it.

Each call says what it waits for, as events of ``selectors``: 0 is nothing.
"""

from __future__ import annotations

import ssl
from selectors import EVENT_READ, EVENT_WRITE
from socket import socket

from .connection import BLOCK_BYTES
from .tls import HandshakeSettings

__all__ = ['NonBlockingSocket']


class NonBlockingSocket:
    """``socket``: the present one; a handshake replaces it. ``version``: of TLS, '' without it."""

    def __init__(self, connection: socket) -> None:
        connection.settimeout(0)
        self.socket = connection
        self.version = ''
        self._rest = memoryview(b'')
        self._wrote_block = False
        """Whether a block has left since the last reply: the next one waits for room."""

    @property
    def unsent(self) -> int:
        """How many bytes of the last ``send`` the socket did not take yet."""
        return len(self._rest)

    @property
    def certainly_unsent(self) -> int:
        """How many of them have not left: TLS may have sent part of what it reports as failed."""
        risked = min(len(self._rest), BLOCK_BYTES) if self.version else 0
        return len(self._rest) - risked

    def send(self, data: bytes = b'') -> int:
        """Send ``data``, or go on with the rest of it; return what to wait for. Raises OSError."""
        if data:
            self._rest = memoryview(data)
            if len(data) > BLOCK_BYTES and self._wrote_block:
                # Wait, and do not fill the buffer first: the system reports room only when a third
                # of it is free, which on a slow connection may outlast the time-out. Besides, the
                # other connections have their turn.
                return EVENT_WRITE
        self._wrote_block = self._wrote_block or self.unsent > BLOCK_BYTES
        try:
            while self._rest:
                rest = self._rest
                sent = self.socket.send(rest[:BLOCK_BYTES] if self.version else rest)
                self._rest = rest[sent:]
                if self.unsent > BLOCK_BYTES:
                    return EVENT_WRITE
        except (BlockingIOError, ssl.SSLWantWriteError):
            return EVENT_WRITE
        except ssl.SSLWantReadError:
            return EVENT_READ
        return 0

    def send_no_more(self) -> None:
        """Forget what was not sent."""
        self._rest = memoryview(b'')

    def receive(self) -> tuple[bytes, int]:
        """Return bytes that have come, b'' at the end of the connection, and what to wait for if
        there are none yet. Raises OSError."""
        connection = self.socket
        self._wrote_block = False
        try:
            data = connection.recv(BLOCK_BYTES)
            if isinstance(connection, ssl.SSLSocket):
                # A selector does not report what TLS has decrypted already.
                while connection.pending():
                    data += connection.recv(BLOCK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return b'', EVENT_READ
        except ssl.SSLWantWriteError:
            return b'', EVENT_READ | EVENT_WRITE
        return data, 0

    def wrap(self, settings: HandshakeSettings) -> None:
        """Prepare a TLS handshake; nothing may watch the socket meanwhile. Raises OSError."""
        self.socket = settings.context().wrap_socket(
            self.socket, server_hostname=settings.host, do_handshake_on_connect=False
        )

    def shake_hands(self) -> int:
        """Do the handshake, or go on with it; return what to wait for. Raises OSError."""
        connection = self.socket
        assert isinstance(connection, ssl.SSLSocket)
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            return EVENT_READ
        except ssl.SSLWantWriteError:
            return EVENT_WRITE
        version = connection.version()
        if version is None:
            raise ConnectionResetError('the relay closed the connection')
        self.version = version
        return 0

    def close(self) -> None:
        self.socket.close()
