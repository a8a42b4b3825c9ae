"""What the workers of a queue processor share: the tickets that are due, and the gate."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from random import random
from typing import Any

__all__ = ['Gate', 'Pending']

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a closed road is tried again: at first, doubling, and at most."""


class Gate:
    """Whether the road is open: a line in the log for each change, and a pause that grows."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._trying = False

    def admit(self) -> float:
        """0 to go ahead, and to say how it went; else the seconds to wait before asking again.

        Of a closed road one asker at a time is admitted.
        """
        with self._lock:
            if not self._failures:
                return 0.0
            wait = self._until - self._monotonic()
            if wait > 0:
                return wait
            if self._trying:
                return FIRST_PAUSE
            self._trying = True
            return 0.0

    def closed_for(self) -> float:
        """Seconds until a closed road is tried; 0 while it is open."""
        with self._lock:
            return max(self._until - self._monotonic(), 0.0) if self._failures else 0.0

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._trying = False
            now = self._monotonic()
            if self._failures and self._until > now:
                return  # another worker was told the same a moment ago
            pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 20), LONGEST_PAUSE)
            self._until = now + pause * (0.8 + 0.4 * random())
            self._failures += 1
            first = self._failures == 1
        level = logging.ERROR if first else logging.DEBUG
        log.log(level, 'nothing can be sent now, and all mail waits: %s', error)

    def succeeded(self) -> None:
        with self._lock:
            failures, self._failures, self._trying = self._failures, 0, False
        if failures:
            log.warning('mail is sent again, after %d failures', failures)


class Pending:
    """The tickets that are due and not yet taken."""

    def __init__(self) -> None:
        self._tickets: deque[Any] = deque()
        self._names: set[Any] = set()
        self._changed = threading.Condition()
        self._working = 0
        self._coming: set[int] = set()
        self._closed = False
        self._more = False

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def busy(self) -> bool:
        return bool(self._tickets or self._working)

    @property
    def exhausted(self) -> bool:
        """Whether a full look found more than could be kept, and what was kept has gone."""
        return self._more and not self._tickets

    def fill(self, tickets: Iterable[Any], *, more: bool = False) -> None:
        with self._changed:
            for ticket in tickets:
                if ticket not in self._names:
                    self._names.add(ticket)
                    self._tickets.append(ticket)
            self._more = more
            self._changed.notify_all()

    def take(self) -> Any:
        """The next ticket, or None; never waits."""
        with self._changed:
            self._coming.discard(threading.get_ident())
            if self._closed or not self._tickets:
                return None
            ticket = self._tickets.popleft()
            self._names.discard(ticket)
            return ticket

    def all(self) -> list[Any]:
        """A copy of what is pending."""
        with self._changed:
            return list(self._tickets)

    def await_work(self, admit: Callable[[], float], *, idle: Callable[[], None]) -> bool:
        """Sleep until there is a ticket and ``admit`` lets us pass; False at the end.

        No more workers pass than there are tickets, so that one mail opens one connection.
        ``idle`` is called after a minute without work.
        """
        while True:
            with self._changed:
                if not self._changed.wait_for(self._wanted, 60.0):
                    wait = None
                elif self._closed:
                    return False
                else:
                    wait = admit()
                    if not wait:
                        self._working += 1
                        self._coming.add(threading.get_ident())
                        return True
                    self._changed.wait_for(lambda: self._closed, wait)
            if wait is None:
                idle()

    def _wanted(self) -> bool:
        return len(self._tickets) > len(self._coming) or self._closed

    def worked(self) -> None:
        with self._changed:
            self._working -= 1
            self._coming.discard(threading.get_ident())
            self._changed.notify_all()

    def await_rest(self, timeout: float) -> bool:
        """Sleep until no ticket is left and no worker works; False if it took too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._working and (not self._tickets or self._closed), timeout
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
