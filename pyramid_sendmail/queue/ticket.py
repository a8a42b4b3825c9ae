"""Tickets: what a scan returns, and what a claim is made with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Literal, NamedTuple

__all__ = ['State', 'Ticket', 'alternate']

State = Literal['new', 'deferred', 'done', 'failed']
"""Where a queued mail stands.

``new``: not tried yet. ``deferred``: tried, and waiting for a retry or for its events.
``done``: finished, but subscribers have not handled its events yet. ``failed``: a dead letter.
"""


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
