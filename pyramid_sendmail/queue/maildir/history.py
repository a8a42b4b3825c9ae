"""The history of a mail's attempts, for people: ``reasons/<id>.txt`` beside the folders.

The queue decides nothing by it and waits for nothing in it. An error while writing it is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from ...envelope import Envelope
from ..history import HISTORY_SIZE
from .files import QueueFiles

__all__ = ['append_history', 'read_history', 'remove_history']


def append_history(files: QueueFiles, id: str, lines: Iterable[str]) -> None:
    """Add lines to the history of the mail with that id, up to HISTORY_SIZE. Never raises an
    OSError."""
    data = b''.join(line.encode() + b'\n' for line in lines)
    with suppress(OSError):
        descriptor = files.open_reason(f'{id}.txt', os.O_APPEND)
        try:
            room = HISTORY_SIZE - os.fstat(descriptor).st_size
            if room < len(data):
                # Whole lines only.
                data = data[: data.rfind(b'\n', 0, max(room, 0)) + 1]
            if data:
                os.write(descriptor, data)
        finally:
            os.close(descriptor)


def read_history(files: QueueFiles, id: str) -> tuple[str, ...]:
    """Return the lines of the history with that id; none if there is none, or it is unreadable."""
    with suppress(OSError, ValueError):
        data = files.read_unlocked('reasons', f'{id}.txt', HISTORY_SIZE)
        return tuple(data.decode('utf-8', 'replace').splitlines())
    return ()


def remove_history(files: QueueFiles, envelope: Envelope) -> None:
    """Remove the history of a mail that is gone, if there is one. Never raises an OSError."""
    with suppress(OSError):
        files.unlink('reasons', f'{envelope.id}.txt')
