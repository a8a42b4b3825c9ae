"""The history of a mail's attempts, for people: ``reasons/<id>.txt`` beside the folders.

The queue decides nothing by it and waits for nothing in it. An error while writing it is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from ...envelope import Envelope, PendingEvent
from ..in_doubt import AMBIGUOUS_REASONS
from .files import QueueFiles

__all__ = ['append_history', 'history_lines', 'printable', 'read_history', 'remove_history']

LINE_SIZE = 1000
"""Bytes of a line at most, its end included."""

HISTORY_SIZE = 64 * 1024
"""Bytes of a mail's history at most."""

ADDRESSES_WIDTH = 300
"""Characters of the recipients in a line, so that the reason has room."""

_WORDS = {'sent': 'delivered', 'deferred': 'deferred', 'error': 'failed'}


def history_lines(events: Sequence[PendingEvent], *, at: float, interrupted: str = '') -> bytes:
    """Return the lines for an attempt, one for each event; none if all were delivered.

    ``at``: when the attempt began, in epoch seconds. ``interrupted``: see IMailClaim.
    """
    if all(event.kind == 'sent' for event in events):
        return b''
    try:
        time = datetime.fromtimestamp(at, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    except (ValueError, OverflowError, OSError):
        time = '(no time)'
    return b''.join(_line(time, event, interrupted) for event in events)


def append_history(files: QueueFiles, id: str, lines: bytes) -> None:
    """Add lines to the history of the mail with that id, up to HISTORY_SIZE. Never raises an
    OSError."""
    with suppress(OSError):
        descriptor = files.open_reason(f'{id}.txt', os.O_APPEND)
        try:
            room = HISTORY_SIZE - os.fstat(descriptor).st_size
            if room < len(lines):
                # Whole lines only.
                lines = lines[: lines.rfind(b'\n', 0, max(room, 0)) + 1]
            if lines:
                os.write(descriptor, lines)
        finally:
            os.close(descriptor)


def read_history(files: QueueFiles, id: str) -> tuple[str, ...]:
    """Return the lines of the history with that id; none if there is none, or it is unreadable."""
    with suppress(OSError), open(f'{files.root}/reasons/{id}.txt', 'rb') as file:
        return tuple(file.read(HISTORY_SIZE).decode('utf-8', 'replace').splitlines())
    return ()


def remove_history(files: QueueFiles, envelope: Envelope) -> None:
    """Remove the history of a mail that is gone, if there is one. Never raises an OSError."""
    with suppress(OSError):
        os.unlink(f'{files.root}/reasons/{envelope.id}.txt')


def printable(text: str) -> str:
    """Return the text without characters that move a terminal's cursor or end the line."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


def _line(time: str, event: PendingEvent, interrupted: str) -> bytes:
    word = _WORDS[event.kind]
    if event.reason and event.reason.startswith(AMBIGUOUS_REASONS):
        word = 'ambiguous'
    elif interrupted:
        word = 'interrupted'
    to = ', '.join(event.recipients)
    if len(to) > ADDRESSES_WIDTH:
        to = f'{to[:ADDRESSES_WIDTH]}... ({len(event.recipients)} recipients)'
    text = printable(
        f'{time} attempt {event.attempt}: {word} for {to} ({event.mailer or "not sent"}): '
        f'{event.reason or event.reply or ""}'
    )
    return text.encode()[: LINE_SIZE - 1].decode(errors='ignore').encode() + b'\n'
