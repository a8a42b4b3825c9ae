"""What a file in the queue is called: its name is its schedule.

``<priority>-<due>-<attempt>-<id>``, each of fixed width, so that sorting a listing gives the order
of delivery without looking at a single file. In ``tmp/`` the first file of a transaction, its
record, has that name; the others append a dot and the name of the record. Mail programs append the
flags of a Maildir (``:2,S``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ...envelope import Envelope, Priority
from ..ticket import State, Ticket

__all__ = [
    'FOLDER_OF',
    'LENGTH',
    'STATE_OF',
    'Schedule',
    'fresh_name',
    'is_ours',
    'milliseconds',
    'parse',
    'record_of',
    'schedule_of',
    'ticket_of',
    'time_text',
]

_PRIORITY: dict[Priority, str] = {'high': '1', 'normal': '5', 'low': '9'}
_NAME = re.compile(r'([159])-([0-9]{15})-([0-9]{4})-([0-9a-f]{32})(?::2,[A-Za-z]*)?')

LENGTH = 55
"""Characters of a name of ours that no mail program has changed."""

is_ours = _NAME.fullmatch
"""Tells, by something that is true, whether ``parse`` can read a name, and is called a million
times."""


STATE_OF: dict[str, State] = {'new': 'new', 'cur': 'deferred', 'done': 'done', 'failed': 'failed'}
FOLDER_OF: dict[str, str] = {state: folder for folder, state in STATE_OF.items()}


class Schedule(NamedTuple):
    """What a name says: ``due`` in epoch seconds, ``attempt`` the attempts counted so far."""

    priority: str
    due: float
    attempt: int
    id: str

    @property
    def name(self) -> str:
        return _name(self.priority, self.due, self.attempt, self.id)


def fresh_name(envelope: Envelope) -> str:
    """The name of a new mail: that of its schedule, which nobody needs."""
    return _name(_PRIORITY[envelope.priority], envelope.due, 0, envelope.id)


def _name(priority: str, due: float, attempt: int, id: str) -> str:
    return f'{priority}-{time_text(due)}-{min(attempt, 9999):04d}-{id}'


def schedule_of(envelope: Envelope, *, due: float, attempt: int) -> Schedule:
    """The schedule of an envelope at a given time and attempt."""
    return Schedule(_PRIORITY[envelope.priority], due, attempt, envelope.id)


def milliseconds(seconds: float) -> int:
    """A time as files tell it, in fifteen digits: never later than it is, so that what is due now
    is due for whoever looks now. What has been read back stays the same."""
    return int(min(max(seconds * 1000 + 0.0005, 0.0), 10.0**15 - 1))


def time_text(seconds: float) -> str:
    """A time as names have it in characters 2 to 16: it is later where the text is greater."""
    return f'{milliseconds(seconds):015d}'


def ticket_of(folder: str, name: str) -> Ticket:
    """Return the ticket for a file: the folder is its state, the name its order. A foreign name is
    its own key, and due at once."""
    match = is_ours(name)
    if match is None:
        return Ticket(STATE_OF[folder], name, name)
    return Ticket(STATE_OF[folder], name, match[4], int(match[2]) / 1000)


def parse(name: str) -> Schedule | None:
    """Read a name, as ours or as a mail program has changed it; None if it is foreign."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    priority, due, attempt, id = match.groups()
    return Schedule(priority, int(due) / 1000, int(attempt), id)


def record_of(name: str) -> str | None:
    """The record that a name in ``tmp/`` belongs to, itself perhaps; None if it is foreign."""
    own, _, record = name.partition('.')
    if parse(own) is None or (record and parse(record) is None):
        return None
    return record or own
