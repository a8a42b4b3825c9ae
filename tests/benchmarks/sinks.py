"""Where mail goes: smtp-sink, a relay of our own that is slow or refuses, and a real Postfix.

Each counts, so that a contender's word is not taken for what it has delivered.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.benchmarks.processes import Absent, finish, postfix, start, until
from tests.support.ports import free_port

if TYPE_CHECKING:
    from tests.peers.postfix import Postfix

__all__ = ['ONE_WAY', 'Login', 'Sink', 'far', 'postfix_relay', 'relay', 'sink']

ONE_WAY = 0.02
"""Seconds that whatever is sent is under way, in each direction, where a row is ``far``."""


@dataclass(frozen=True, slots=True)
class Login:
    """What STARTTLS and AUTH take."""

    user: str
    password: str
    ca_file: str


@dataclass(frozen=True, slots=True)
class Sink(ABC):
    """A running server that takes mail and counts it. ``port`` is where to send to, which is a
    proxy's where the server is far away."""

    port: int

    @property
    def login(self) -> Login | None:
        """What to log in with; None where mail goes in plain text."""
        return None

    @property
    def url(self) -> str:
        """The ``mail.url`` of the server."""
        if self.login is None:
            return f'smtp://127.0.0.1:{self.port}'
        password, ca_file = quote(self.login.password, safe=''), quote(self.login.ca_file)
        where = f'{self.login.user}:{password}@127.0.0.1:{self.port}'
        return f'smtp://{where}?ca_file={ca_file}'.replace('%', '%%')

    @abstractmethod
    def taken(self) -> int:
        """Return how many mails it has taken."""

    def answered(self) -> int:
        """Return how many mails it has taken or deferred."""
        return self.taken()

    @abstractmethod
    def activity(self) -> object:
        """Return a value that changes when a connection comes."""


@dataclass(frozen=True, slots=True)
class _Counting(Sink):
    """A program that prints its counts."""

    output: Path
    pid: int

    def taken(self) -> int:
        return self._last(rb'mesg=(\d+)')

    def answered(self) -> int:
        return self.taken() + self._last(rb'refu=(\d+)')

    def activity(self) -> object:
        # One more open file for each connection that it has now.
        return len(os.listdir(f'/proc/{self.pid}/fd')), self.closed(), self.taken()

    def closed(self) -> int:
        """Return how many connections have come and gone."""
        return self._last(rb'sess=(\d+)')

    def _last(self, pattern: bytes) -> int:
        with self.output.open('rb') as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 200, 0))
            found = re.findall(pattern, file.read())
        return int(found[-1]) if found else 0


@contextmanager
def sink(*options: str) -> Iterator[Sink]:
    """Run an smtp-sink on loopback."""
    port = free_port()
    user = ['-u', 'nobody'] if os.geteuid() == 0 else []
    yield from _run(port, postfix('smtp-sink', '-c', *user, *options, f'127.0.0.1:{port}', 1024))


@contextmanager
def relay(**options: float) -> Iterator[Sink]:
    """Run tests.benchmarks.relay with these options: it offers CHUNKING, which smtp-sink does not,
    and can be slow."""
    port = free_port()
    pairs = [f'{name}={value}' for name, value in options.items()]
    yield from _run(port, [sys.executable, '-m', 'tests.benchmarks.relay', str(port), *pairs])


def _run(port: int, command: Sequence[str]) -> Iterator[Sink]:
    # Not on the disk that queues are on: there, an fsync would wait for the sink's words too.
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / 'counts'
        child = start(command, output=output)
        try:
            found = _Counting(port, output, child.pid)
            until(lambda: _answers(port), seconds=20.0)
            until(found.closed, seconds=20.0)
            yield found
        finally:
            finish(child)


@contextmanager
def far(sink: Sink) -> Iterator[Sink]:
    """Put the same sink ONE_WAY seconds away."""
    port = free_port()
    words = [sys.executable, '-m', 'tests.benchmarks.far', str(port), str(sink.port), str(ONE_WAY)]
    child = start(words)
    try:
        until(lambda: _listens(port), seconds=20.0)
        yield replace(sink, port=port)
    finally:
        finish(child)


@dataclass(frozen=True, slots=True)
class _Postfix(Sink):
    """A whole Postfix; what it has taken is in its hold queue."""

    server: Postfix
    credentials: Login | None

    @property
    def login(self) -> Login | None:
        return self.credentials

    def taken(self) -> int:
        return len(os.listdir(self.server.root.path / 'var/spool/postfix/hold'))

    def activity(self) -> object:
        # It logs each connection.
        return (self.server.root.path / 'var/log/postfix.log').stat().st_size


@contextmanager
def postfix_relay(folder: Path, *, tls: bool) -> Iterator[Sink]:
    """Run a Postfix of its own, with its queue on the disk of ``folder``: it syncs each mail before
    it answers, and logs it. ``tls``: mail is sent by STARTTLS and AUTH."""
    # Only here: they need what the tests need.
    import trustme

    from tests.peers.postfix import Postfix
    from tests.peers.relay import ANN, PASSWORD, Certificate
    from tests.peers.roots import HOST, missing

    if reason := missing('postfix'):
        raise Absent(reason)
    authority = trustme.CA()
    ca_file = folder / 'ca.pem'
    authority.cert_pem.write_to_path(str(ca_file))
    certificate = Certificate(authority.issue_cert(HOST, 'localhost'))
    server = Postfix(certificate, directory=folder)
    try:
        server.start()
        login = Login(ANN, PASSWORD, str(ca_file)) if tls else None
        found = _Postfix(server.ports.plain, server, login)
        until(lambda: 'disconnect from' in server.log, seconds=20.0)
        yield found
    finally:
        server.remove()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(('127.0.0.1', port), timeout=1.0) as connection:
            return bool(connection.recv(4))
    except OSError:
        return False


def _listens(port: int) -> bool:
    # Asked of the kernel: a connection would go on to the sink, and be counted there.
    listening = f'0100007F:{port:04X} 00000000:0000 0A'
    return listening in Path('/proc/self/net/tcp').read_text()
