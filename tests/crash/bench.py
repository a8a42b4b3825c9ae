"""An operation on the bench: laid anew for each case, and played under watch."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.operations import Operation
from tests.crash.place import Lines, Place, restore, snapshot
from tests.crash.syscalls import Call, Policy, Watch
from tests.support.queues import NOW, reap

__all__ = ['Bench', 'in_child', 'log', 'play']


@pytest.fixture
def log() -> Iterator[Lines]:
    """What the package logs, kept out of the reports of pytest: it is a lot."""
    logger, lines = logging.getLogger('pyramid_sendmail'), Lines()
    logger.addHandler(lines)
    logger.propagate, before = False, logger.propagate
    yield lines
    logger.propagate = before
    logger.removeHandler(lines)


def play(place: Place, operation: Operation, policy: Policy) -> None:
    """Do the operation, watched."""
    steps = operation.steps(place)
    phase: str | None = next(steps)
    with Watch(place.path, policy) as watch:
        place.ledger.step = watch.mark
        while phase is not None:
            watch.phase = phase
            phase = next(steps, None)


def in_child(place: Place, operation: Operation, policy: Policy) -> int:
    """Play it in a process of its own; return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            play(place, operation, policy)
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    return reap(pid)


class Bench:
    """A place for an operation, laid anew for each case."""

    def __init__(self, folder: Path, operation: Operation, variant: dict[str, Any]) -> None:
        folder.mkdir()
        self.operation = operation
        self.place = place = Place(folder, mails=operation.mails, **variant)
        restore(place.path, {})
        operation.lay(place)
        place.forget()
        self._files = snapshot(place.path)
        self._ledger = place.ledger.path.read_bytes()

    def lay(self) -> Place:
        place = self.place
        restore(place.path, {} if self.operation.bare else self._files)
        if self.operation.bare:
            for folder in place.path.iterdir():
                folder.rmdir()
            place.path.rmdir()
        place.ledger.path.write_bytes(self._ledger)
        place.clock.now = NOW
        place.dispatcher.refuse = False
        return place

    def trace(self) -> list[str]:
        """The names of the calls that the operation makes."""
        place = self.lay()
        trace = place.folder / 'trace'
        descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

        def policy(call: Call) -> Any:
            os.write(descriptor, f'{call.name}\n'.encode())
            return call.perform()

        assert in_child(place, self.operation, policy) == 0
        os.close(descriptor)
        return trace.read_text().split()
