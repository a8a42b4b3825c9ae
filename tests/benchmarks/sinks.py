"""Where mail goes: smtp-sink, a sink of our own that speaks CHUNKING, and a long way to either.

A sink counts, so that a contender's word is not taken for what it has delivered.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.processes import finish, free_port, postfix, start, until

__all__ = ['ONE_WAY', 'Sink', 'chunking_sink', 'far', 'sink']

ONE_WAY = 0.02
"""Seconds that whatever is sent is under way, in each direction, where a row is ``far``."""


@dataclass(frozen=True, slots=True)
class Sink:
    """A running sink: it takes mail, counts it, and forgets it. ``port`` is where to send to,
    which is a proxy's where the sink is far away."""

    port: int
    output: Path
    pid: int

    def taken(self) -> int:
        """How many mails it has taken."""
        return self._last(rb'mesg=(\d+)')

    def closed(self) -> int:
        """How many connections have come and gone."""
        return self._last(rb'sess=(\d+)')

    def descriptors(self) -> int:
        """How many files it has open: one more for each connection that it has now."""
        return len(os.listdir(f'/proc/{self.pid}/fd'))

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
def chunking_sink() -> Iterator[Sink]:
    """Run a sink that offers CHUNKING too: smtp-sink does not."""
    port = free_port()
    yield from _run(port, [sys.executable, '-m', 'tests.benchmarks.chunking', str(port)])


def _run(port: int, command: Sequence[str]) -> Iterator[Sink]:
    # Not on the disk that queues are on: there, an fsync would wait for the sink's words too.
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / 'counts'
        child = start(command, output=output)
        try:
            found = Sink(port, output, child.pid)
            until(lambda: _answers(port), seconds=20.0)
            until(found.closed, seconds=20.0)
            yield found
        finally:
            finish(child)


@contextmanager
def far(sink: Sink) -> Iterator[Sink]:
    """The same sink, ONE_WAY seconds away."""
    port = free_port()
    words = [sys.executable, '-m', 'tests.benchmarks.far', str(port), str(sink.port), str(ONE_WAY)]
    child = start(words)
    try:
        until(lambda: _listens(port), seconds=20.0)
        yield replace(sink, port=port)
    finally:
        finish(child)


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
