"""Queues for the tests of the processor, each with a processor setup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyramid_sendmail.queue import MemoryQueue
from tests.support.processors import (
    FailingQueue,
    ProcessorSetup,
    UnwritableClaim,
    WorkerThread,
    make_maildir,
)


@pytest.fixture(params=['maildir', 'memory'])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProcessorSetup]:
    """With each kind of queue."""
    if request.param == 'memory':
        yield ProcessorSetup(MemoryQueue())
    else:
        queue = make_maildir(tmp_path / 'mail')
        yield ProcessorSetup(queue)
        queue.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[ProcessorSetup]:
    """With a queue on disk."""
    queue = make_maildir(tmp_path / 'mail')
    yield ProcessorSetup(queue)
    queue.close()


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[ProcessorSetup]:
    """With a queue on disk whose operations can be made to fail."""
    UnwritableClaim.broken = False
    queue = make_maildir(tmp_path / 'mail', cls=FailingQueue)
    yield ProcessorSetup(queue)
    queue.close()


@pytest.fixture
def workers() -> Iterator[list[WorkerThread]]:
    """Three threads that play workers."""
    workers = [WorkerThread() for _ in range(3)]
    yield workers
    for worker in workers:
        worker.begin(worker.end)
        worker.join(10)
