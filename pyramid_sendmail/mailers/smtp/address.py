"""Where a relay listens, and how to open a socket to it."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..session import describe_error

__all__ = ['Address', 'TCPAddress', 'UnixAddress', 'open_socket']


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A host name or IP address, and a port."""

    host: str
    port: int

    remedy: ClassVar[str] = 'see the host and port in mail.url'
    """What to do if nothing listens there."""

    @property
    def is_loopback(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.rstrip('.').lower() == 'localhost'

    def url(self, scheme: str) -> str:
        """Return the URL of this address, for people."""
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{scheme}://{host}:{self.port}'

    def open(self, timeout: float) -> socket.socket:
        """Connect within ``timeout`` seconds for each address of the host. Raises OSError."""
        return open_socket(self.host, self.port, timeout)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket. Raises ValueError for another path."""

    path: str

    host: ClassVar[str] = 'localhost'
    port: ClassVar[int] = 0
    is_loopback: ClassVar[bool] = True
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
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection


Address = TCPAddress | UnixAddress

Resolve = Callable[..., list[Any]]


def open_socket(
    host: str, port: int, timeout: float, *, resolve: Resolve | None = None
) -> socket.socket:
    """Connect to the first address of the host that answers.

    ``timeout``: seconds for each address; the time that a name takes to resolve is set by the
    system (resolv.conf). ``resolve``: in place of ``socket.getaddrinfo``, which is looked up at
    each call, so that an application may replace it. Raises OSError with the failure of each
    address.
    """
    failures = []
    addresses = (resolve or socket.getaddrinfo)(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in addresses:
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
            failures.append(f'{address[0]}: {describe_error(error, timeout)}')
    raise OSError('; '.join(failures) or 'the host has no address')
