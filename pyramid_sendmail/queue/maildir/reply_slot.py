"""The slot of a queued file: replies, mailers and reasons whose events are still pending.

Lines of JSON of a fixed length, so that they are overwritten in place. Texts that do not fit are
cut. If the slot is damaged, events lose their texts, but no mail is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...envelope import Reply

__all__ = ['ReplyEntry', 'lost_reply', 'read_slot', 'slot_length', 'write_slot']

LINE_WIDTH = 976
"""Bytes of JSON in a line."""

RECIPIENTS_PER_LINE = 8
"""Recipients that share a line: that many replies always fit."""

_NAME = b'X-Envelope-Outcome: '
_END = b'\r\n'
_LINE = len(_NAME) + LINE_WIDTH + len(_END)
_ENCODE = json.JSONEncoder(separators=(',', ':')).encode


@dataclass(slots=True)
class ReplyEntry:
    """One reply; recipients point to it. ``reason`` is None if it is the text of the reply."""

    attempt: int
    group: int
    mailer: str
    reply: Reply | None
    reason: str | None
    permanent: bool
    tries: int = 0
    period: str = ''
    """What the id of the event has behind the attempt, if the attempts have begun anew."""


def lost_reply(group: int) -> ReplyEntry:
    """Return the entry that replaces a damaged one."""
    return ReplyEntry(0, group, '', None, 'the reply was lost', False)


def slot_length(recipients: int) -> int:
    """Return the bytes that a mail with so many recipients reserves."""
    return _lines(recipients) * _LINE


def write_slot(entries: Sequence[ReplyEntry], recipients: int) -> bytes:
    """Return the lines for at most as many entries as there are recipients."""
    if not entries:
        lines = _lines(recipients)
        # The lines of a mail to thousands are not kept in memory.
        return _empty(lines) if lines <= _CACHED_LINES else _empty.__wrapped__(lines)
    size = _lines(recipients) * LINE_WIDTH
    for width in (size, 512, 256, 128, 64, 32, 16, 8, 0):
        text = _json(entries, width)
        if len(text) <= size:
            return _written(text.ljust(size))
    raise AssertionError('there are more entries than recipients')


_CACHED_LINES = 16


@lru_cache(maxsize=8)
def _empty(lines: int) -> bytes:
    return _written(b'[[]]'.ljust(lines * LINE_WIDTH))


def _written(text: bytes) -> bytes:
    parts = (text[at : at + LINE_WIDTH] for at in range(0, len(text), LINE_WIDTH))
    return b''.join(_NAME + part + _END for part in parts)


def read_slot(data: bytes, at: int) -> tuple[list[ReplyEntry], int]:
    """Read the lines that begin at ``at``; return the entries, and where the lines end."""
    if data.startswith(_empty(1), at) and not data.startswith(_NAME, at + _LINE):
        return [], at + _LINE
    parts = []
    while data.startswith(_NAME, at):
        parts.append(data[at + len(_NAME) : at + len(_NAME) + LINE_WIDTH])
        at += _LINE
    try:
        mailers, *rows = json.loads(b''.join(parts))
        return [_entry(mailers, row) for row in rows], at
    except (ValueError, TypeError, IndexError, OverflowError):
        return [], at


def _lines(recipients: int) -> int:
    return -(-recipients // RECIPIENTS_PER_LINE)


def _json(entries: Sequence[ReplyEntry], width: int) -> bytes:
    """Encode the entries, with each text cut to ``width`` characters."""
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
            *([entry.period] if entry.period else []),
        ]
        for entry in entries
    ]
    return _ENCODE([mailers, *rows]).encode()


def _entry(mailers: list[str], row: Sequence[Any]) -> ReplyEntry:
    """Convert a row of the JSON; of a damaged file it may hold anything."""
    attempt, group, mailer, code, text, reason, permanent, tries, *period = row
    return ReplyEntry(
        int(attempt),
        int(group),
        str(mailers[mailer]),
        Reply(int(code), str(text)) if code else None,
        reason if reason is None else str(reason),
        bool(permanent),
        int(tries),
        *map(str, period),
    )
