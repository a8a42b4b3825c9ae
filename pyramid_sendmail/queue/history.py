"""What people read about a mail: the lines of its history, and the words of a log line.

A line has a time, is printable, and has at most LINE_SIZE bytes with its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from ..envelope import PendingEvent
from .in_doubt import AMBIGUOUS_REASONS

__all__ = [
    'HISTORY_SIZE',
    'LINE_SIZE',
    'attempt_lines',
    'dropped_text',
    'held_line',
    'held_text',
    'printable',
]

LINE_SIZE = 1000
"""Bytes of a line at most, its end included."""

HISTORY_SIZE = 64 * 1024
"""Bytes of a mail's history at most."""

ADDRESSES_WIDTH = 300
"""Characters of the recipients in a line, so that the reason has room."""

_WORDS = {'sent': 'delivered', 'deferred': 'deferred', 'error': 'failed'}


def attempt_lines(events: Sequence[PendingEvent], *, at: float, interrupted: str = '') -> list[str]:
    """Return the lines for an attempt, one for each event; none if all were delivered.

    ``at``: when the attempt began, in epoch seconds. ``interrupted``: see IMailClaim.
    """
    if all(event.kind == 'sent' for event in events):
        return []
    return [_line(at, _attempt_text(event, interrupted)) for event in events]


def held_line(reason: str, *, at: float) -> str:
    """Return the line for a hold; ``at``: its time, in epoch seconds."""
    return _line(at, held_text(reason))


def held_text(reason: str) -> str:
    """Return what a hold is called, with the reason if there is one, on one line."""
    words = printable(' '.join(reason.split()))
    return f'held: {words}' if words else 'held'


def dropped_text(unsent: Iterable[str]) -> str:
    """Return what a drop is called. ``unsent``: the recipients that never get the mail."""
    to = ', '.join(unsent)
    return f'dropped by request, {f"not sent to {to}" if to else "sent to all recipients before"}'


def printable(text: str) -> str:
    """Return the text without characters that move a terminal's cursor or end the line."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)


def _attempt_text(event: PendingEvent, interrupted: str) -> str:
    word = _WORDS[event.kind]
    if event.reason and event.reason.startswith(AMBIGUOUS_REASONS):
        word = 'ambiguous'
    elif interrupted:
        word = 'interrupted'
    to = ', '.join(event.recipients)
    if len(to) > ADDRESSES_WIDTH:
        to = f'{to[:ADDRESSES_WIDTH]}... ({len(event.recipients)} recipients)'
    return (
        f'attempt {event.attempt}: {word} for {to} ({event.mailer or "not sent"}): '
        f'{event.reason or event.reply or ""}'
    )


def _line(at: float, text: str) -> str:
    try:
        time = datetime.fromtimestamp(at, UTC).strftime('%Y-%m-%dT%H:%M:%SZ')
    except (ValueError, OverflowError, OSError):
        time = '(no time)'
    line = printable(f'{time} {text}').encode()
    return line[: LINE_SIZE - 1].decode(errors='ignore')
