"""What the tests of several deliveries share: queues and a mailer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.doubles import RecordingMailer


@pytest.fixture
def mailer() -> RecordingMailer:
    return RecordingMailer()


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'queue'))
    yield queue
    queue.close()


@pytest.fixture(params=['maildir', 'memory'])
def queue(request: pytest.FixtureRequest) -> Any:
    """Either queue."""
    if request.param == 'memory':
        return MemoryQueue()
    return request.getfixturevalue('maildir')
