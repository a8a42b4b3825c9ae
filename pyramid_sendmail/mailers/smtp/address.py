"""Where a relay listens, and how to open a socket to it."""

from __future__ import annotations

import ipaddress
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ...domains import ascii_domain
from .connect_race import AddressInfo, AddressMemory, ConnectRace

__all__ = ['Address', 'TCPAddress', 'UnixAddress', 'open_socket']


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A host name or IP address, and a port. Raises ValueError for a name without an ASCII form.

    ``memory``: which of the host's addresses worked last. It is no part of the value: equal
    addresses have memories of their own.
    """

    host: str
    port: int
    memory: AddressMemory = field(
        default_factory=AddressMemory, init=False, repr=False, compare=False
    )

    remedy: ClassVar[str] = 'see the host and port in mail.url'
    """What to do if nothing listens there."""

    def __post_init__(self) -> None:
        # The socket and ssl modules would convert by IDNA 2003, and reach the host of another
        # owner, whose certificate is then the right one.
        try:
            object.__setattr__(self, 'host', ascii_domain(self.host))
        except UnicodeError as error:
            raise ValueError(
                f'host: {self.host!r} has no certain ASCII form (IDNA 2008): write it as xn--...'
            ) from error

    @property
    def is_loopback(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        address = self._ip_address()
        if address is None:
            return self.host.rstrip('.').lower() == 'localhost'
        return address.is_loopback

    @property
    def resolves_at_once(self) -> bool:
        """Whether ``resolve`` never waits: the host is an IP address."""
        return self._ip_address() is not None

    def url(self, scheme: str) -> str:
        """Return the URL of this address, for people."""
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{scheme}://{host}:{self.port}'

    def open(self, timeout: float) -> socket.socket:
        """Connect within ``timeout`` seconds for each address of the host. Raises OSError.

        The address that worked last is tried first. See ``open_socket``.
        """
        return open_socket(self.host, self.port, timeout, memory=self.memory)

    def resolve(self) -> Sequence[AddressInfo]:
        """Return the addresses of the host, for a ConnectRace. May wait for name servers.

        Raises OSError, or UnicodeError for what cannot be a host name.
        """
        return _resolve(self.host, self.port)

    def _ip_address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket. Raises ValueError for another path."""

    path: str

    host: ClassVar[str] = 'localhost'
    port: ClassVar[int] = 0
    is_loopback: ClassVar[bool] = True
    resolves_at_once: ClassVar[bool] = True
    memory: ClassVar[None] = None
    remedy: ClassVar[str] = (
        'mail.url must name the socket of a running service, which this process may write to'
    )
    """What to do if nothing listens there."""

    def __post_init__(self) -> None:
        if not os.path.isabs(self.path):
            raise ValueError(f'lmtp+unix:{self.path} is not absolute')

    def url(self, scheme: str) -> str:
        """Return the URL of this address, for people."""
        return f'{scheme}+unix:{self.path}'

    def open(self, timeout: float) -> socket.socket:
        """Connect within ``timeout`` seconds. Raises OSError."""
        return _connect(self.resolve(), timeout)

    def resolve(self) -> Sequence[AddressInfo]:
        """Return the one address, for a ConnectRace."""
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, '', self.path)]


Address = TCPAddress | UnixAddress

Resolve = Callable[..., Sequence[AddressInfo]]


def open_socket(
    host: str,
    port: int,
    timeout: float,
    *,
    resolve: Resolve | None = None,
    memory: AddressMemory | None = None,
) -> socket.socket:
    """Connect to the first address of the host that answers (RFC 8305).

    ``timeout``: seconds for each address, and what the socket has as its own afterwards; the time
    that a name takes to resolve is set by the system (resolv.conf). ``resolve``: in place of
    ``socket.getaddrinfo``, which is looked up at each call, so that an application may replace it.
    ``memory``: which address to try first. Raises OSError with the failure of each address.
    """
    return _connect(_resolve(host, port, resolve), timeout, memory)


def _resolve(host: str, port: int, resolve: Resolve | None = None) -> Sequence[AddressInfo]:
    return (resolve or socket.getaddrinfo)(host, port, type=socket.SOCK_STREAM)


def _connect(
    addresses: Iterable[AddressInfo], timeout: float, memory: AddressMemory | None = None
) -> socket.socket:
    """Wait for the first address to connect. Raises OSError."""
    with (
        selectors.PollSelector() as selector,
        ConnectRace(
            addresses,
            timeout=timeout,
            memory=memory,
            watch=partial(selector.register, events=selectors.EVENT_WRITE),
            unwatch=selector.unregister,
        ) as race,
    ):
        race.advance(time.monotonic())
        while not race.ended:
            ready = selector.select(race.wake_at - time.monotonic())
            race.advance(time.monotonic(), [key.fileobj for key, _ in ready])
        connection = race.take()
    connection.settimeout(timeout)
    return connection
