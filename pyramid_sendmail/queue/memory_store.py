"""Mails in memory, under one lock."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

from ..envelope import Envelope, PendingEvent
from .history import HISTORY_SIZE
from .ticket import LATEST_EVENT, State, Ticket, ticket_for

__all__ = ['Mail', 'MemoryStore']


@dataclass(slots=True)
class Mail:
    """A mail and its state. ``letters``, by recipient: T to be tried, d delivered, f failed."""

    envelope: Envelope
    state: State
    due: float
    since: float
    attempt: int = 0
    retry_at: float = 0.0
    claimed: bool = False
    failed_at: float = 0.0
    held: bool = False
    """Its state is ``failed``, but only until a person releases it."""
    history: list[str] = field(default_factory=list)
    latest: dict[str, PendingEvent] = field(default_factory=dict)
    """The outcome of the last attempt for each recipient."""
    needs_decision: bool = False
    """Whether only a person can decide what to do with it."""
    letters: dict[str, str] = field(default_factory=dict)
    pending_events: list[PendingEvent] = field(default_factory=list)

    def due_at(self, now: float) -> float:
        """When the mail is due. New mail is due at once unless the user asked for a later time,
        and no person has made it due since; events are, if a wrong clock has written their
        time."""
        if self.state == 'new':
            return min(self.envelope.not_before, self.due)
        if self.state == 'done' and self.due > now + LATEST_EVENT:
            return now
        return self.due

    @property
    def ticket(self) -> Ticket:
        due = inf if self.held else self.due
        return ticket_for(self.state, self.envelope, due=due, attempt=self.attempt)

    def add_history(self, lines: Iterable[str]) -> None:
        """Add lines to the history, up to HISTORY_SIZE."""
        size = sum(len(line.encode()) + 1 for line in self.history)
        for line in lines:
            size += len(line.encode()) + 1
            if size > HISTORY_SIZE:
                break
            self.history.append(line)


class MemoryStore:
    """The mails of a queue in memory, by the id of their envelope."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.mails: dict[str, Mail] = {}
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._woken = threading.Event()

    @contextmanager
    def locked(self) -> Iterator[dict[str, Mail]]:
        """Lock the mails. A forked child starts with none: its parent sends them. It also gets a
        new lock, because a thread that does not exist in the child may hold the old one."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.mails, self._lock, self._woken = {}, threading.RLock(), threading.Event()
        with self._lock:
            yield self.mails

    def add(self, added: Iterable[Mail]) -> None:
        """Add mails and wake the processor."""
        with self.locked() as mails:
            mails.update({mail.envelope.id: mail for mail in added})
        self._woken.set()

    def remove(self, mail: Mail) -> None:
        """Remove a mail, if it is still there."""
        with self.locked() as mails:
            mails.pop(mail.envelope.id, None)

    def wait(self, timeout: float) -> bool:
        """See IScannableQueue."""
        woken = self._woken.wait(max(timeout, 0.0))
        if woken:
            self._woken.clear()
        return woken

    def wake(self) -> None:
        """See IScannableQueue."""
        self._woken.set()
