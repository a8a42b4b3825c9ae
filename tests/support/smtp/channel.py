"""Sockets for servers of tests: a listener that can be stopped, a channel with TLS and faults."""

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

__all__ = ['Channel', 'Gone', 'Listener', 'reset_socket']

BLOCK = 65_536

_LEFT = getattr(select, 'POLLRDHUP', 0) | select.POLLHUP | select.POLLERR

_SIOCOUTQNSD = 0x894B  # octets of a socket that have not left; Linux's sockios.h

_STOPPING_SECONDS = 10

_LAST_READS = 100


class Gone(Exception):
    """The connection has ended, by whomever."""


class Listener:
    """Gives each connection to a thread of its own, and can be stopped and started again.

    ``handle`` gets the number of the connection, from 1, and its socket, which is closed
    afterwards. ``stopping`` is set while the listener stops, for those who wait.
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
        """Listen, on the former port where there was one."""
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
        deadline = time.monotonic() + _STOPPING_SECONDS
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
    """One connection as seen by a server: buffered reads and writes, TLS, and ways to end it.

    ``received`` and ``sent`` log every octet, decrypted. ``buffer`` holds what was received and
    not consumed yet. Whatever finds the connection ended raises Gone.
    """

    def __init__(self, connected: socket.socket, *, read_size: int = BLOCK) -> None:
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
        self._poll.register(connected, _LEFT)

    def fill(self) -> None:
        """Send what is unsent, and wait until something more is in the buffer."""
        self.flush()
        before = len(self.received)
        while len(self.received) == before:
            self._receive()

    def peek(self) -> bool:
        """Say whether the client has sent something that was not consumed, without waiting."""
        if not self.buffer:
            with suppress(Gone, BlockingIOError):
                self._receive(socket.MSG_DONTWAIT)
        return bool(self.buffer)

    def gone(self) -> bool:
        """Say whether the client has closed its side."""
        return bool(self._poll.poll(0))

    def wait_until_gone(self) -> None:
        """Wait until the client has closed its side, and read nothing."""
        self.flush()
        self._poll.poll()

    def write(self, data: bytes) -> None:
        """Have ``data`` sent with the next flush."""
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
                raise Gone from error
            self._send(self._outgoing.read())

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's side of a handshake. Raises ssl.SSLError.

        What the client sent in clear and was not consumed is forgotten (RFC 3207, 4.2).
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
                self._incoming.write(self._receive_octets())
            except ssl.SSLError:
                with suppress(Gone):
                    self._send(self._outgoing.read())
                raise
        self._tls = tls
        self._send(self._outgoing.read())
        self._decrypt()

    def close(self, *, notify: bool = False) -> None:
        """Send FIN, after TLS's close_notify where that is wanted, and close."""
        with suppress(Gone):
            self.flush()
            if notify and self._tls is not None:
                with suppress(ssl.SSLError):
                    self._tls.unwrap()
                self._send(self._outgoing.read())
        with suppress(Gone):
            self.half_close()
        # Unread octets would turn the FIN into a RST; and those that came before a RST count.
        with suppress(Gone, BlockingIOError):
            for _ in range(_LAST_READS):
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
        data = self._receive_octets(flags)
        if self._tls is None:
            self.received += data
            self.buffer += data
        else:
            self._incoming.write(data)
            self._decrypt()

    def _receive_octets(self, flags: int = 0) -> bytes:
        try:
            data = self._socket.recv(self._read_size, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        return data

    def _decrypt(self) -> None:
        assert self._tls is not None
        try:
            while data := self._tls.read(BLOCK):
                self.received += data
                self.buffer += data
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise Gone from error
        raise Gone

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Gone from error


def reset_socket(connected: socket.socket) -> None:
    """Close with RST, once what was sent before has left: within one machine its peer has it then.

    Whether it was acknowledged, which takes 40 ms where nobody answers, does not matter.
    """
    with suppress(OSError):
        deadline = time.monotonic() + 1
        while _unsent_octets(connected) and time.monotonic() < deadline:
            time.sleep(0.001)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    connected.close()


def _unsent_octets(connected: socket.socket) -> int:
    answer: bytes = fcntl.ioctl(connected, _SIOCOUTQNSD, b'\0' * 4)
    return int(struct.unpack('i', answer)[0])
