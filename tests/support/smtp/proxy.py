"""A TCP proxy that cuts connections after an exact number of bytes."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import Literal, Self

from .channel import BLOCK_BYTES, Listener, reset_socket

__all__ = ['CuttingProxy']


class CuttingProxy:
    """Forwards to a server on 127.0.0.1, and cuts connections after ``after`` bytes.

    ``after``: how many bytes of the ``side``, 'client' or 'server', are forwarded; None cuts
    nothing. ``how``: both sides get a 'rst' or a 'fin'. ``times``: how many connections are cut;
    None cuts all.

    ``connections`` and ``cuts`` count. ``forwarded`` holds, for each connection that has ended,
    how many bytes came from the client and from the server.
    """

    def __init__(
        self,
        port: int,
        *,
        after: int | None,
        side: Literal['client', 'server'] = 'client',
        how: Literal['rst', 'fin'] = 'rst',
        times: int | None = None,
    ) -> None:
        self.after = after
        self.side = side
        self.how = how
        self.times = times
        self.cuts = 0
        self.forwarded: list[tuple[int, int]] = []
        self._target = ('127.0.0.1', port)
        self._lock = threading.Lock()
        self._listener = Listener('127.0.0.1', self._connect)

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.stop()

    @property
    def host(self) -> str:
        """Where the proxy listens."""
        return self._listener.host

    @property
    def port(self) -> int:
        """Where the proxy listens."""
        return self._listener.port

    @property
    def url(self) -> str:
        """``smtp://127.0.0.1:PORT``."""
        return f'smtp://{self.host}:{self.port}'

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._listener.connections

    def _connect(self, _number: int, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            reset_socket(client)
            return
        with server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            limit = self._take_limit()
            upward = _Direction(client, server, limit if self.side == 'client' else None)
            downward = _Direction(server, client, limit if self.side == 'server' else None)
            try:
                ending = self._forward(upward, downward)
            except OSError:
                # One side was reset: so is the other.
                ending = 'rst'
            with self._lock:
                self.forwarded.append((upward.forwarded, downward.forwarded))
            if ending == 'rst':
                reset_socket(client)
                reset_socket(server)
            elif ending == 'fin':
                _finish(client, server, self._listener.stopping)

    def _take_limit(self) -> int | None:
        with self._lock:
            if self.after is None or self.times == 0:
                return None
            if self.times is not None:
                self.times -= 1
            return self.after

    def _forward(self, upward: _Direction, downward: _Direction) -> Literal['rst', 'fin', 'none']:
        """Forward until both sides have ended or the connection is cut; return how to end it."""
        both = (upward, downward)
        while not all(direction.ended for direction in both):
            if any(direction.limit == direction.forwarded for direction in both):
                with self._lock:
                    self.cuts += 1
                return self.how
            wanted: dict[socket.socket, int] = {}
            for direction in both:
                side, events = direction.wanted()
                wanted[side] = wanted.get(side, 0) | events
            poll = select.poll()
            for side, events in wanted.items():
                if events:
                    poll.register(side, events)
            ready = dict(poll.poll(100))
            if self._listener.stopping.is_set():
                return 'none'
            for direction in both:
                direction.move(ready)
        return 'none'


class _Direction:
    """Forwards from one socket to the other without waiting."""

    def __init__(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        self.source = source
        self.target = target
        self.limit = limit
        self.forwarded = 0
        self.pending = b''
        self.ended = False

    def wanted(self) -> tuple[socket.socket, int]:
        """Return the socket to poll, and the event."""
        if self.pending:
            return self.target, select.POLLOUT
        return self.source, 0 if self.ended else select.POLLIN

    def move(self, ready: dict[int, int]) -> None:
        """Do what can be done without waiting. Raises OSError."""
        if self.pending:
            if ready.get(self.target.fileno(), 0) & ~select.POLLIN:
                self._write()
        elif not self.ended and ready.get(self.source.fileno(), 0) & ~select.POLLOUT:
            wanted = (
                BLOCK_BYTES if self.limit is None else min(BLOCK_BYTES, self.limit - self.forwarded)
            )
            self.pending = self.source.recv(wanted, socket.MSG_DONTWAIT)
            if self.pending:
                self._write()
            else:
                self.ended = True
                self.target.shutdown(socket.SHUT_WR)

    def _write(self) -> None:
        with suppress(BlockingIOError):
            count = self.target.send(self.pending, socket.MSG_DONTWAIT)
            self.forwarded += count
            self.pending = self.pending[count:]


def _finish(client: socket.socket, server: socket.socket, stopping: threading.Event) -> None:
    """Send FIN both ways and read on: unread bytes would turn the FIN into a RST."""
    poll = select.poll()
    for side in (client, server):
        with suppress(OSError):
            side.shutdown(socket.SHUT_WR)
        poll.register(side, select.POLLIN)
    sides = {side.fileno(): side for side in (client, server)}
    while sides and not stopping.is_set():
        for number, _ in poll.poll(100):
            with suppress(OSError):
                if sides[number].recv(BLOCK_BYTES):
                    continue
            poll.unregister(number)
            del sides[number]
