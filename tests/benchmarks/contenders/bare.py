"""Bytes that are ready, into a file: write, fsync, rename, fsync of the directory.

``bare DIRECTORY KIND STEPS THREADS [committed] [unsynced]``

``committed``: when a transaction commits, by the least of data managers. This is the limit for mail
that joins a transaction: there is no message to make, nothing to look up, and nobody else to wait
for. ``unsynced``: without fsync.
"""

from __future__ import annotations

import itertools
import os
import sys

import transaction

from ..work import wire
from .stopwatch import Step, measure

_numbers = itertools.count()


def main(directory: str, kind: str, steps: str, threads: str, *options: str) -> None:
    """Measure."""
    if 'unsynced' in options:
        os.fsync = lambda descriptor: None
    data = wire(kind)
    for folder in ('tmp', 'new'):
        os.makedirs(f'{directory}/{folder}')

    def make() -> Step:
        into = os.open(f'{directory}/new', os.O_RDONLY | os.O_DIRECTORY)
        manager = transaction.TransactionManager(explicit=True)

        def step() -> None:
            publish(write(directory, data), directory, into)

        def commit() -> None:
            with manager:
                manager.get().join(Committed(directory, data, into))

        return commit if 'committed' in options else step

    measure(make, steps=int(steps), threads=int(threads))


def write(directory: str, data: bytes) -> str:
    """Write a file, synced; return its name."""
    name = f'{next(_numbers):012d}'
    file = os.open(f'{directory}/tmp/{name}', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)
    os.close(file)
    return name


def publish(name: str, directory: str, into: int) -> None:
    """Move it to where it is found, for good."""
    os.rename(f'{directory}/tmp/{name}', f'{directory}/new/{name}')
    os.fsync(into)


class Committed:
    """The data manager."""

    transaction_manager = None

    def __init__(self, directory: str, data: bytes, into: int) -> None:
        self._directory = directory
        self._data = data
        self._into = into
        self._name = ''

    def sortKey(self) -> str:
        return '~bare'

    def abort(self, transaction: object) -> None:
        """Nothing was written."""

    def tpc_begin(self, transaction: object) -> None:
        """Nothing to prepare."""

    def commit(self, transaction: object) -> None:
        """All is done by the vote."""

    def tpc_vote(self, transaction: object) -> None:
        self._name = write(self._directory, self._data)

    def tpc_finish(self, transaction: object) -> None:
        publish(self._name, self._directory, self._into)

    def tpc_abort(self, transaction: object) -> None:
        raise RuntimeError('a transaction of the benchmark has failed')


if __name__ == '__main__':
    main(*sys.argv[1:])
