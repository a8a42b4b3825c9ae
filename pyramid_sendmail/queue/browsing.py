"""What people see of a queue: the values that ``IBrowsableQueue`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from ..envelope import Envelope, Reply
from .ticket import State

__all__ = [
    'STATES',
    'MailDetails',
    'MailInfo',
    'MailState',
    'QueueStats',
    'RecipientInfo',
    'listed_states',
]

MailState = State | Literal['held']
"""A ticket's state, or ``held``: a person has stopped the mail from being sent."""

STATES: tuple[MailState, ...] = (*get_args(State), 'held')
"""In the order in which a listing has them."""


class MailInfo(NamedTuple):
    """A mail in a listing: what is known without reading the mail itself."""

    id: str
    """The id of the envelope; the file's name where a file is not a mail of this queue."""
    state: MailState
    priority: str = ''
    """'high', 'normal' or 'low'; empty for a file that is not a mail of this queue."""
    due: float = 0.0
    """When the mail is due, in epoch seconds; 0 if it is held, finished or failed."""
    attempt: int = 0
    """How many attempts have been counted."""
    key: str = ''
    """Where the queue finds the mail again; of no use to anything else."""


class RecipientInfo(NamedTuple):
    """What has become of one recipient."""

    status: Literal['waiting', 'delivered', 'failed', 'ambiguous']
    reply: Reply | None = None
    """The reply of the relay, if the queue still has it."""
    reason: str = ''
    """Why the recipient is not delivered yet, or never will be; empty if the queue has no reason
    or no longer has it."""


class MailDetails(NamedTuple):
    """One mail as a whole: its listing, its envelope, and what has happened to it."""

    info: MailInfo
    envelope: Envelope | None
    """None if the file cannot be read as a mail of this queue: ``damaged`` says why."""
    recipients: Mapping[str, RecipientInfo]
    pending_events: int
    """How many events subscribers have not handled yet."""
    history: tuple[str, ...]
    """One line for each attempt that did not deliver the mail to all, the oldest first, and one
    for each time a person held it."""
    damaged: str = ''

    @property
    def reason(self) -> str:
        """The first reason why a recipient has not got the mail."""
        reasons = (each.reason for each in self.recipients.values() if each.reason)
        return self.damaged or next(reasons, '')


class QueueStats(NamedTuple):
    """How full a queue is, and how late."""

    counts: Mapping[MailState, int]
    """Mails in each state; every state is there."""
    oldest_due: float | None
    """When the most overdue new or deferred mail was due, in epoch seconds; None if none is
    overdue. The queue is stuck if this lies far in the past."""


def listed_states(state: MailState | None) -> tuple[MailState, ...]:
    """Return the states that a listing has: one, or all for None. Raises ValueError."""
    if state is None:
        return STATES
    if state not in STATES:
        raise ValueError(f'state: {state!r} is unknown; use one of {", ".join(STATES)}, or None')
    return (state,)
