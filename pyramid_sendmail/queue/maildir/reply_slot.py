"""The slot of a queued file: replies, mailers and reasons that subscribers have not taken yet.

Lines of JSON of a fixed length, so that they are overwritten in place. What does not fit is cut;
what is damaged costs the words of an event, not the mail.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...envelope import Reply

__all__ = ['Entry', 'lost', 'read_slot', 'slot_length', 'write_slot']

WIDTH = 976
SHARE = 8
"""Recipients that have a line between them: so many replies always fit."""

_NAME = b'X-Envelope-Outcome: '
_END = b'\r\n'
_LINE = len(_NAME) + WIDTH + len(_END)
_NOTHING = _NAME + b'[[]]'
_ENCODE = json.JSONEncoder(separators=(',', ':')).encode


@dataclass(slots=True)
class Entry:
    """One reply; recipients point to it. ``reason`` is None where it is the reply."""

    attempt: int
    group: int
    mailer: str
    reply: Reply | None
    reason: str | None
    permanent: bool
    tries: int = 0


def lost(group: int) -> Entry:
    """Stands for a reply that was damaged."""
    return Entry(0, group, '', None, 'the reply was lost', False)


def slot_length(recipients: int) -> int:
    """The octets that a mail with so many recipients sets aside."""
    return _lines(recipients) * _LINE


def write_slot(entries: Sequence[Entry], recipients: int) -> bytes:
    """The lines, for at most as many entries as recipients."""
    if not entries:
        return _empty(_lines(recipients))
    size = _lines(recipients) * WIDTH
    for width in (size, 512, 256, 128, 64, 32, 16, 8, 0):
        text = _json(entries, width)
        if len(text) <= size:
            return _written(text.ljust(size))
    raise AssertionError('there are no more entries than recipients')


@lru_cache(maxsize=8)
def _empty(lines: int) -> bytes:
    return _written(b'[[]]'.ljust(lines * WIDTH))


def _written(text: bytes) -> bytes:
    parts = (text[at : at + WIDTH] for at in range(0, len(text), WIDTH))
    return b''.join(_NAME + part + _END for part in parts)


def read_slot(data: bytes, at: int) -> tuple[list[Entry], int]:
    """Return the entries, and where the lines that begin at ``at`` end."""
    if data.startswith(_NOTHING, at):
        end = at + _LINE
        if not data.startswith(_NAME, end) and not data[at + len(_NOTHING) : end - 2].strip(b' '):
            return [], end
    parts = []
    while data.startswith(_NAME, at):
        parts.append(data[at + len(_NAME) : at + len(_NAME) + WIDTH])
        at += _LINE
    try:
        mailers, *rows = json.loads(b''.join(parts))
        return [_entry(mailers, *row) for row in rows], at
    except (ValueError, TypeError, IndexError, OverflowError):
        return [], at


def _lines(recipients: int) -> int:
    return -(-recipients // SHARE)


def _json(entries: Sequence[Entry], width: int) -> bytes:
    """The entries, no text longer than ``width``."""
    mailers = list(dict.fromkeys(entry.mailer[:width] for entry in entries))
    rows = [
        [
            entry.attempt,
            entry.group,
            mailers.index(entry.mailer[:width]),
            entry.reply.code if entry.reply else 0,
            entry.reply.text[:width] if entry.reply else '',
            entry.reason if entry.reason is None else entry.reason[:width],
            int(entry.permanent),
            entry.tries,
        ]
        for entry in entries
    ]
    return _ENCODE([mailers, *rows]).encode()


def _entry(
    mailers: list[str],
    attempt: int,
    group: int,
    mailer: int,
    code: int,
    text: str,
    reason: str | None,
    permanent: int,
    tries: int,
) -> Entry:
    return Entry(
        int(attempt),
        int(group),
        str(mailers[mailer]),
        Reply(int(code), str(text)) if code else None,
        reason if reason is None else str(reason),
        bool(permanent),
        int(tries),
    )
