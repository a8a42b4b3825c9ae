"""Connect to the first of several addresses that answers: Happy Eyeballs (RFC 8305).

A race opens sockets, but it has no clock and never waits: its caller waits, in a thread of its own
or in a loop that serves many connections. Each attempt, to one address, goes this way:

==============  ====================================  ==========================================
attempt         what happens                          then
==============  ====================================  ==========================================
not begun       the one before is ATTEMPT_DELAY old,  connecting
                or any other has failed
connecting      the socket is writable, no error      won: the other attempts are closed
connecting      the socket is writable, an error      failed: the next attempt begins at once
connecting      the time-out is over                  failed: the next attempt begins at once
backlog full    BACKLOG_RETRY_DELAY is over           connect again (Unix sockets alone)
backlog full    the time-out is over                  failed
==============  ====================================  ==========================================

The race has ended when one attempt has won or all have failed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import Any

from ..session import describe_error

__all__ = [
    'ATTEMPT_DELAY',
    'BACKLOG_RETRY_DELAY',
    'AddressInfo',
    'AddressMemory',
    'ConnectRace',
    'interleaved',
]

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried beside one that has not answered (RFC 8305, 8:
Connection Attempt Delay)."""

BACKLOG_RETRY_DELAY = 0.02
"""Seconds until a Unix socket whose backlog is full is tried again: no event reports room."""

AddressInfo = tuple[int, int, int, str, Any]
"""Family, kind, protocol, canonical name and socket address, as ``socket.getaddrinfo`` has them."""

_CONNECTING = frozenset({errno.EINPROGRESS, errno.EINTR})


class AddressMemory:
    """The address of one host that worked when the first of its list did not, so that the next
    connection tries it first. Where the first works the list decides: it may be in another order
    each time, to spread the load.

    ``address``: the socket address, or None. Threads may share a memory: it is one attribute, and
    the last that assigns it is right.
    """

    __slots__ = ('address',)

    def __init__(self) -> None:
        self.address: Any = None


@dataclass(slots=True, eq=False)
class _Attempt:
    """An attempt to connect to one address. ``retry_at``: when to call connect again."""

    info: AddressInfo
    deadline: float
    retry_at: float = inf
    connection: socket.socket | None = None
    watched: bool = False
    failure: str = ''


class ConnectRace:
    """Connect to the addresses of one host, beginning one attempt after the other.

    ``timeout``: seconds for each address. ``delay``: seconds from one attempt to the next.
    ``watch(connection)``: called when the caller shall wait until a socket is writable.
    ``unwatch(connection)``: called when it shall not any more, while the socket is still open.
    ``memory``: its address is tried first; the address that connects is remembered unless it is the
    first of the list, one that fails is forgotten. ``make_socket``: in place of ``socket.socket``.
    Times are those of any clock that never goes back, in seconds.

    ``wake_at``: call ``advance`` then, at the latest. ``ended``: call ``take``. As a context
    manager it closes every socket that was not taken.
    """

    def __init__(
        self,
        addresses: Iterable[AddressInfo],
        *,
        timeout: float,
        watch: Callable[[socket.socket], object],
        unwatch: Callable[[socket.socket], object],
        memory: AddressMemory | None = None,
        delay: float = ATTEMPT_DELAY,
        make_socket: Callable[..., socket.socket] | None = None,
    ) -> None:
        self.ended = False
        self.wake_at = -inf
        self._memory = memory or AddressMemory()
        addresses = list(addresses)
        self._preferred = addresses[0][4] if addresses else None
        self._untried = deque(interleaved(addresses, first=self._memory.address))
        self._tried: list[_Attempt] = []
        self._next_at = -inf
        self._winner: socket.socket | None = None
        self._timeout = timeout
        self._delay = delay
        self._watch = watch
        self._unwatch = unwatch
        self._make_socket = make_socket or socket.socket

    def advance(self, now: float, writable: Collection[object] = ()) -> None:
        """Do what is due: check writable sockets, give up and begin attempts.

        ``writable``: the sockets that are writable or have an error; unknown ones are ignored. If
        several have connected, the address that was tried first wins. Raises what a socket raises
        that is no OSError, OverflowError for a port; then all sockets are closed.
        """
        try:
            for attempt in self._connecting():
                self._advance(attempt, now, writable)
                if self.ended:
                    return
            while self._untried and self._next_at <= now:
                attempt = _Attempt(self._untried.popleft(), now + self._timeout)
                self._tried.append(attempt)
                self._next_at = now + self._delay
                self._begin(attempt, now)
            self._set_wake_at()
        except BaseException:
            self.close()
            raise

    def take(self) -> socket.socket:
        """Return the connected socket, which is non-blocking, and the caller's to close.

        Call it once, when the race has ended. Raises OSError with the failure of each address if
        none has connected.
        """
        winner, self._winner = self._winner, None
        if winner is None:
            failures = [attempt.failure for attempt in self._tried if attempt.failure]
            raise OSError('; '.join(failures) or 'the host has no address')
        return winner

    def close(self) -> None:
        """End the race, and close every socket that was not taken."""
        winner, self._winner = self._winner, None
        if winner is not None:
            winner.close()
        self._end()

    def __enter__(self) -> ConnectRace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _connecting(self) -> list[_Attempt]:
        return [attempt for attempt in self._tried if attempt.connection is not None]

    def _begin(self, attempt: _Attempt, now: float) -> None:
        try:
            attempt.connection = self._make_socket(*attempt.info[:3])
            attempt.connection.setblocking(False)
            self._connect(attempt, attempt.connection, now)
        except OSError as error:
            self._fail(attempt, error, now)

    def _advance(self, attempt: _Attempt, now: float, writable: Collection[object]) -> None:
        connection = attempt.connection
        assert connection is not None
        try:
            # A socket that is writable has connected in time, whenever the caller notices.
            if connection in writable:
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._connected(attempt, connection, code)
            elif attempt.deadline <= now:
                raise TimeoutError
            elif attempt.retry_at <= now:
                self._connect(attempt, connection, now)
        except OSError as error:
            self._fail(attempt, error, now)

    def _connect(self, attempt: _Attempt, connection: socket.socket, now: float) -> None:
        code = connection.connect_ex(attempt.info[4])
        if code == errno.EAGAIN and attempt.info[0] == socket.AF_UNIX:
            attempt.retry_at = now + BACKLOG_RETRY_DELAY
        elif code in _CONNECTING:
            self._watch(connection)
            attempt.watched = True
        else:
            self._connected(attempt, connection, code)

    def _connected(self, attempt: _Attempt, connection: socket.socket, code: int) -> None:
        """Have the attempt win, and close the others. Raises OSError if ``code`` is an error."""
        if code:
            raise OSError(code, os.strerror(code))
        if attempt.info[0] != socket.AF_UNIX:
            # A command must not wait for the acknowledgement of the one before.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._forget(attempt, connection)
        attempt.connection, self._winner = None, connection
        address = attempt.info[4]
        self._memory.address = None if address == self._preferred else address
        self._end()

    def _fail(self, attempt: _Attempt, error: OSError, now: float) -> None:
        self._close(attempt)
        address = attempt.info[4]
        words = describe_error(error, self._timeout)
        # A Unix socket has one address, which the caller knows.
        attempt.failure = words if isinstance(address, str) else f'{address[0]}: {words}'
        if self._memory.address == address:
            self._memory.address = None
        self._next_at = now

    def _forget(self, attempt: _Attempt, connection: socket.socket) -> None:
        if attempt.watched:
            attempt.watched = False
            self._unwatch(connection)

    def _close(self, attempt: _Attempt) -> None:
        connection, attempt.connection = attempt.connection, None
        if connection is not None:
            try:
                # Before it is closed: epoll goes on reporting a socket that a forked child shares.
                self._forget(attempt, connection)
            finally:
                connection.close()

    def _end(self) -> None:
        self.ended = True
        self.wake_at = inf
        self._untried.clear()
        for attempt in self._connecting():
            self._close(attempt)

    def _set_wake_at(self) -> None:
        times = [min(attempt.deadline, attempt.retry_at) for attempt in self._connecting()]
        if self._untried:
            times.append(self._next_at)
        if times:
            self.wake_at = min(times)
        else:
            self._end()


def interleaved(addresses: Iterable[AddressInfo], *, first: Any = None) -> list[AddressInfo]:
    """Return the addresses with their families in turn (RFC 8305, 4), else in their order.

    ``first``: a socket address that comes first if it is one of them, and so does its family.
    """
    families: dict[int, list[AddressInfo]] = {}
    for info in sorted(addresses, key=lambda info: info[4] != first):
        families.setdefault(info[0], []).append(info)
    return [info for turn in zip_longest(*families.values()) for info in turn if info is not None]
