"""Attempts over both queues, or over the one on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyramid_sendmail.queue import MemoryQueue
from tests.support.attempts import (
    World,
    disk,
)
from tests.support.queues import Clock


@pytest.fixture(params=['maildir', 'memory'])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    clock = Clock()
    if request.param == 'memory':
        return World(MemoryQueue(clock=clock), clock)
    return disk(tmp_path, clock)


@pytest.fixture
def on_disk(tmp_path: Path) -> World:
    return disk(tmp_path, Clock())
