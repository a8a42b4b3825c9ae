"""Bytes that are ready, into a file: write, fsync, rename, fsync of the directory.

``bare DIRECTORY KIND STEPS THREADS``
"""

from __future__ import annotations

import itertools
import os
import sys

from ..work import wire
from .stopwatch import Step, measure

_numbers = itertools.count()


def main(directory: str, kind: str, steps: str, threads: str) -> None:
    """Measure."""
    data = wire(kind)
    for folder in ('tmp', 'new'):
        os.makedirs(f'{directory}/{folder}')

    def make() -> Step:
        into = os.open(f'{directory}/new', os.O_RDONLY | os.O_DIRECTORY)

        def step() -> None:
            name = f'{next(_numbers):012d}'
            temporary = f'{directory}/tmp/{name}'
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
            os.close(file)
            os.rename(temporary, f'{directory}/new/{name}')
            os.fsync(into)

        return step

    measure(make, steps=int(steps), threads=int(threads))


if __name__ == '__main__':
    main(*sys.argv[1:])
