"""Tickets: what a scan returns, and what a claim is made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Literal, NamedTuple

from ..envelope import Envelope, Priority

__all__ = [
    'LATEST_EVENT',
    'PRIORITY_DIGITS',
    'State',
    'Ticket',
    'alternate',
    'at_once',
    'milliseconds',
    'order_text',
    'ticket_for',
    'time_text',
]

State = Literal['new', 'deferred', 'done', 'failed']
"""Where a queued mail stands.

``new``: not tried yet. ``deferred``: tried, and waiting for a retry or for its events.
``done``: finished, but subscribers have not handled its events yet. ``failed``: a dead letter.
"""

PRIORITY_DIGITS: dict[Priority, str] = {'high': '1', 'normal': '5', 'low': '9'}
"""What an ``order`` begins with."""


LATEST_EVENT = 601.0
"""Seconds from now after which no event of finished mail is due: a later time was written by a
wrong clock, and means now. More than the longest delay of an event that is dispatched again."""


class Ticket(NamedTuple):
    """A mail to claim, as a scan found it: a value that a set can hold.

    A ticket becomes stale when the mail changes its state or its schedule; ``claim`` then returns
    None. Any queue fills all four fields, so that a processor never parses one of them.
    """

    state: State
    order: str
    """Of two tickets with the same state, the one with the lesser ``order`` is taken first. The
    first character is the priority. Also the name of the mail in log lines."""
    key: str
    """Identifies the mail: the same in all its tickets, whatever its state and schedule."""
    due: float = 0.0
    """When the mail is due, in epoch seconds; 0 if the queue does not know."""


def alternate(first: Iterable[Ticket], second: Iterable[Ticket]) -> Iterator[Ticket]:
    """Take from both in turn, beginning with ``first``, until both are empty."""
    for pair in zip_longest(first, second):
        yield from filter(None, pair)


def ticket_for(state: State, envelope: Envelope, *, due: float, attempt: int) -> Ticket:
    """Return the ticket for a mail that is due at a time, after so many attempts."""
    order = order_text(PRIORITY_DIGITS[envelope.priority], due, attempt, envelope.id)
    return Ticket(state, order, envelope.id, milliseconds(due) / 1000)


def order_text(priority: str, due: float, attempt: int, id: str) -> str:
    """Return ``<priority>-<due>-<attempt>-<id>``, each of fixed width, so that sorting such texts
    gives the order of delivery. ``priority``: one of PRIORITY_DIGITS."""
    return f'{priority}-{time_text(due)}-{min(attempt, 9999):04d}-{id}'


def at_once(queued_at: float, now: float) -> float:
    """Return the time of an order for what is due now: that of ``send``, unless it is still to
    come, by a clock that was set back."""
    return queued_at if queued_at <= now else 0.0


def milliseconds(seconds: float) -> int:
    """Convert a time for an order or a file: at most fifteen digits, and rounded down.

    What is due now is therefore due for every scan from now on. A time read from a file is written
    back unchanged.
    """
    return int(min(max(seconds * 1000 + 0.0005, 0.0), 10.0**15 - 1))


def time_text(seconds: float) -> str:
    """Return a time as characters 2 to 16 of an order have it; such texts compare as the times
    do."""
    return f'{milliseconds(seconds):015d}'
