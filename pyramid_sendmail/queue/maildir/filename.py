"""What a file in the queue is called: its name is its schedule.

The name is the ``order`` of its ticket, ``<priority>-<due>-<attempt>-<id>``, so that sorting the
names gives the order of delivery without opening a file. In ``tmp/`` the first file of a
transaction, its record, has such a name; the other files append a dot and the name of the record.
Mail programs append the flags of a Maildir (``:2,S``).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ...envelope import Envelope, Priority
from ..ticket import PRIORITY_DIGITS, State, Ticket, order_text

__all__ = [
    'FOLDER_OF',
    'NAME_LENGTH',
    'NEVER',
    'PRIORITY_OF',
    'STATE_OF',
    'FileName',
    'file_name',
    'match_name',
    'name_of_new',
    'parse',
    'record_of',
    'ticket_of',
]

PRIORITY_OF: dict[str, Priority] = {digit: name for name, digit in PRIORITY_DIGITS.items()}

NEVER = (10**15 - 1) / 1000
"""The latest time that a name can hold, in epoch seconds: in ``failed/``, that of a held mail."""

_NAME = re.compile(r'([159])-([0-9]{15})-([0-9]{4})-([0-9a-f]{32})(?::2,[A-Za-z]*)?')

NAME_LENGTH = 55
"""Characters of a name of ours without flags."""

STATE_OF: dict[str, State] = {'new': 'new', 'cur': 'deferred', 'done': 'done', 'failed': 'failed'}
FOLDER_OF: dict[str, str] = {state: folder for folder, state in STATE_OF.items()}

match_name = _NAME.fullmatch
"""Return a match for a name that ``parse`` can read, else None. Called once for each file of a
scan, so it is the pattern's own method."""


class FileName(NamedTuple):
    """The parts of a name. ``due``: epoch seconds. ``attempt``: the attempts counted so far."""

    priority: str
    due: float
    attempt: int
    id: str

    @property
    def text(self) -> str:
        return order_text(self.priority, self.due, self.attempt, self.id)


def file_name(envelope: Envelope, *, due: float, attempt: int) -> FileName:
    """Return the name for a mail that is due at a time, after so many attempts."""
    return FileName(PRIORITY_DIGITS[envelope.priority], due, attempt, envelope.id)


def name_of_new(envelope: Envelope) -> str:
    """Return the name of a new mail."""
    return file_name(envelope, due=envelope.due, attempt=0).text


def parse(name: str) -> FileName | None:
    """Read a name of ours, with or without a mail program's flags; None if it is foreign."""
    match = match_name(name)
    if match is None:
        return None
    priority, due, attempt, id = match.groups()
    return FileName(priority, int(due) / 1000, int(attempt), id)


def ticket_of(folder: str, name: str) -> Ticket:
    """Return the ticket for a file: the folder is its state, the name its order.

    A foreign name is its own key, and is due at once.
    """
    match = match_name(name)
    if match is None:
        return Ticket(STATE_OF[folder], name, name)
    return Ticket(STATE_OF[folder], name, match[4], int(match[2]) / 1000)


def record_of(name: str) -> str | None:
    """Return the record that a name in ``tmp/`` belongs to, which may be the name itself; None if
    the name is foreign."""
    own, _, record = name.partition('.')
    if parse(own) is None or (record and parse(record) is None):
        return None
    return record or own
