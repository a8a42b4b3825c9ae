"""Sockets of test servers: a listener that can be stopped, a connection with TLS and faults."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ['Channel', 'ConnectionEnded', 'Listener', 'reset_socket']

BLOCK_BYTES = 65_536

_LEFT_EVENTS = getattr(select, 'POLLRDHUP', 0) | select.POLLHUP | select.POLLERR

_SIOCOUTQNSD = 0x894B  # bytes of a socket that have not left (Linux, sockios.h)

_STOP_TIMEOUT = 10

_MAX_LAST_READS = 100


class ConnectionEnded(Exception):
    """The connection has ended, by either side."""


class Listener:
    """Serves each connection in a thread of its own; can be stopped and started again.

    ``handle(number, socket)``: called for each connection, numbered from 1; the socket is closed
    afterwards. ``stopping``: set while the listener stops, so that waiting threads end.
    """

    def __init__(
        self,
        host: str,
        handle: Callable[[int, socket.socket], None],
        *,
        buffer: int | None = None,
        path: str | None = None,
    ) -> None:
        self.host = host
        self.port = 0
        self.connections = 0
        self.stopping = threading.Event()
        self._handle = handle
        self._buffer = buffer
        self._path = path
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._accepting: threading.Thread | None = None

    def start(self) -> None:
        """Listen, on the same port as before if the listener was stopped."""
        if self._accepting is not None:
            raise RuntimeError('the server is running already')
        self.stopping.clear()
        if self._path is None:
            listening = socket.create_server((self.host, self.port), backlog=256)
            self.port = listening.getsockname()[1]
        else:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(self._path)
            listening.listen(256)
        if self._buffer is not None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                listening.setsockopt(socket.SOL_SOCKET, option, self._buffer)
        self._wake, waking = socket.socketpair()
        self._accepting = threading.Thread(
            target=self._accept, args=(listening, waking), name=f'listener-{self.port}', daemon=True
        )
        self._accepting.start()

    def stop(self) -> None:
        """Refuse new connections, end those that are open and wait for their threads."""
        if self._accepting is None:
            return
        self.stopping.set()
        self._wake.close()
        self._accepting.join()
        self._accepting = None
        with self._lock:
            threads = list(self._open.values())
            for connected in self._open:
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _STOP_TIMEOUT
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
            if thread.is_alive():
                raise RuntimeError(f'{thread.name} does not end: a scripted callable must not wait')

    def _accept(self, listening: socket.socket, waking: socket.socket) -> None:
        poll = select.poll()
        poll.register(listening, select.POLLIN)
        poll.register(waking, select.POLLIN)
        with waking, listening:
            while waking.fileno() not in dict(poll.poll()):
                self._begin(listening.accept()[0])
            # A child that was forked may still hold the socket.
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)

    def _begin(self, connected: socket.socket) -> None:
        if self._path is None:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self.connections += 1
            number = self.connections
            thread = threading.Thread(
                target=self._serve,
                args=(number, connected),
                name=f'connection-{number}-of-{self.port}',
                daemon=True,
            )
            self._open[connected] = thread
        thread.start()

    def _serve(self, number: int, connected: socket.socket) -> None:
        try:
            self._handle(number, connected)
        finally:
            with self._lock:
                del self._open[connected]
            connected.close()


class Channel:
    """The server's side of a connection: buffered reads and writes, TLS, and ways to end it.

    ``received`` and ``sent`` log every byte, decrypted. ``buffer`` holds the bytes that were
    received and not consumed. Every method raises ConnectionEnded if the connection has ended.
    """

    def __init__(self, connected: socket.socket, *, read_size: int = BLOCK_BYTES) -> None:
        self.buffer = bytearray()
        self.received = bytearray()
        self.sent = bytearray()
        self._socket = connected
        self._read_size = read_size
        self._unsent = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._poll = select.poll()
        self._poll.register(connected, _LEFT_EVENTS)

    def fill(self) -> None:
        """Flush, and wait until there is more in the buffer."""
        self.flush()
        before = len(self.received)
        while len(self.received) == before:
            self._receive()

    def peek(self) -> bool:
        """Return, without waiting, whether there are bytes that were not consumed."""
        if not self.buffer:
            with suppress(ConnectionEnded, BlockingIOError):
                self._receive(socket.MSG_DONTWAIT)
        return bool(self.buffer)

    def client_left(self) -> bool:
        """Return whether the client has closed its side."""
        return bool(self._poll.poll(0))

    def wait_until_client_left(self) -> None:
        """Wait until the client has closed its side, without reading."""
        self.flush()
        self._poll.poll()

    def write(self, data: bytes) -> None:
        """Send ``data`` with the next flush."""
        self._unsent += data

    def flush(self) -> None:
        """Send what is unsent."""
        if not self._unsent:
            return
        data = bytes(self._unsent)
        self._unsent.clear()
        # Logged before it is sent: the client may look as soon as it has read it.
        self.sent += data
        if self._tls is None:
            self._send(data)
        else:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise ConnectionEnded from error
            self._send(self._outgoing.read())

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's side of a handshake. Raises ssl.SSLError.

        Bytes that came in plain text and were not consumed are discarded (RFC 3207, 4.2).
        """
        self.flush()
        self.buffer.clear()
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                self._send(self._outgoing.read())
                self._incoming.write(self._receive_bytes())
            except ssl.SSLError:
                with suppress(ConnectionEnded):
                    self._send(self._outgoing.read())
                raise
        self._tls = tls
        self._send(self._outgoing.read())
        self._decrypt()

    def close(self, *, notify: bool = False) -> None:
        """Send FIN and close; with ``notify`` send TLS's close_notify before."""
        with suppress(ConnectionEnded):
            self.flush()
            if notify and self._tls is not None:
                with suppress(ssl.SSLError):
                    self._tls.unwrap()
                self._send(self._outgoing.read())
        with suppress(ConnectionEnded):
            self.half_close()
        # Unread bytes would turn the FIN into a RST; and bytes that came before a RST are logged.
        with suppress(ConnectionEnded, BlockingIOError):
            for _ in range(_MAX_LAST_READS):
                self._receive(socket.MSG_DONTWAIT)
        self._socket.close()

    def half_close(self) -> None:
        """Send FIN and leave the other direction open."""
        self.flush()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self.flush()
        reset_socket(self._socket)

    def _receive(self, flags: int = 0) -> None:
        data = self._receive_bytes(flags)
        if self._tls is None:
            self.received += data
            self.buffer += data
        else:
            self._incoming.write(data)
            self._decrypt()

    def _receive_bytes(self, flags: int = 0) -> bytes:
        try:
            data = self._socket.recv(self._read_size, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ConnectionEnded from error
        if not data:
            raise ConnectionEnded
        return data

    def _decrypt(self) -> None:
        assert self._tls is not None
        try:
            while data := self._tls.read(BLOCK_BYTES):
                self.received += data
                self.buffer += data
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise ConnectionEnded from error
        raise ConnectionEnded

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionEnded from error


def reset_socket(connected: socket.socket) -> None:
    """Close with RST after all data has left: on one machine the peer has received it then.

    An acknowledgement, which may take 40 ms, is not waited for.
    """
    with suppress(OSError):
        deadline = time.monotonic() + 1
        while _unsent_bytes(connected) and time.monotonic() < deadline:
            time.sleep(0.001)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    connected.close()


def _unsent_bytes(connected: socket.socket) -> int:
    answer: bytes = fcntl.ioctl(connected, _SIOCOUTQNSD, b'\0' * 4)
    return int(struct.unpack('i', answer)[0])
