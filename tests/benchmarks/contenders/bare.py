"""Bytes that are ready, into a file: write, fsync, rename, fsync of the directory.

``bare DIRECTORY KIND STEPS THREADS [committed] [unsynced]``

``committed``: when a transaction commits, by the least of data managers. This is the limit for mail
that joins a transaction: there is no message to make, nothing to look up, and nothing else to wait
for. ``unsynced``: without fsync.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable

import transaction

from tests.benchmarks.contenders.stopwatch import Step, measure
from tests.benchmarks.work import wire

_numbers = itertools.count()


def main(directory: str, kind: str, steps: str, threads: str, *options: str) -> None:
    """Measure."""
    data = wire(kind)
    sync = _unsynced if 'unsynced' in options else os.fsync
    for folder in ('tmp', 'new'):
        os.makedirs(f'{directory}/{folder}')

    def make() -> Step:
        folder = Folder(directory, sync)
        manager = transaction.TransactionManager(explicit=True)

        def step() -> None:
            folder.publish(folder.write(data))

        def commit() -> None:
            with manager:
                manager.get().join(Committed(folder, data))

        return commit if 'committed' in options else step

    measure(make, steps=int(steps), threads=int(threads))


class Folder:
    """Where the files go."""

    def __init__(self, directory: str, sync: Callable[[int], None]) -> None:
        self._directory = directory
        self._sync = sync
        self._new = os.open(f'{directory}/new', os.O_RDONLY | os.O_DIRECTORY)

    def write(self, data: bytes) -> str:
        """Write a file, for good; return its name."""
        name = f'{next(_numbers):012d}'
        path = f'{self._directory}/tmp/{name}'
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        self._sync(file)
        os.close(file)
        return name

    def publish(self, name: str) -> None:
        """Move it to where it is found, for good."""
        os.rename(f'{self._directory}/tmp/{name}', f'{self._directory}/new/{name}')
        self._sync(self._new)


class Committed:
    """The data manager."""

    transaction_manager = None

    def __init__(self, folder: Folder, data: bytes) -> None:
        self._folder = folder
        self._data = data
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
        self._name = self._folder.write(self._data)

    def tpc_finish(self, transaction: object) -> None:
        self._folder.publish(self._name)

    def tpc_abort(self, transaction: object) -> None:
        raise RuntimeError('a transaction of the benchmark has failed')


def _unsynced(descriptor: int) -> None:
    """No promise."""


if __name__ == '__main__':
    main(*sys.argv[1:])
