"""What a queue processor's workers share: the tickets that are due, in the order to take them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf
from random import shuffle
from threading import get_ident
from typing import Any

from .rate_limiter import RateLimiter

__all__ = ['ActiveQueue']

IDLE = 60.0
"""Seconds without work after which a worker gives its session up."""

LOW = 8
"""The part of what was kept that is still there when more is looked for."""

BLOCK = 64
"""Mails that are taken in no order where another processor takes them, too."""


class _Lane:
    """Tickets of one kind, in the order of their names.

    Where another processor works on the same queue, both would try each mail at the same moment,
    one of them in vain. So once a ticket was ``missed``, the next BLOCK of the same priority have
    no order. What comes before all of a block is taken before what is left of it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[str, Any]] = []
        self._block: list[tuple[str, Any]] = []
        self._first: tuple[str, Any] = ('', None)
        self._contested = False

    def __len__(self) -> int:
        return len(self._heap) + len(self._block)

    def __iter__(self) -> Iterator[Any]:
        return (ticket for _, ticket in chain(self._block, self._heap))

    def add(self, ticket: Any) -> None:
        heappush(self._heap, (ticket.order, ticket))

    def missed(self) -> None:
        self._contested = True

    def take(self) -> Any:
        if self._contested and not self._block:
            self._contested = False
            self._first = self._heap[0]
            while self._heap and len(self._block) < BLOCK and self._is_of_block(self._heap[0][0]):
                self._block.append(heappop(self._heap))
            shuffle(self._block)
        if self._block and not (self._heap and self._heap[0] < self._first):
            return self._block.pop()[1]
        return heappop(self._heap)[1]

    def _is_of_block(self, name: str) -> bool:
        return name[:1] == self._first[0][:1]


class ActiveQueue:
    """The tickets that are due and not yet taken: fresh ones and others in turn, each kind in the
    order of their names, at this pace."""

    def __init__(self, rate_limiter: RateLimiter | None = None) -> None:
        self._rate_limiter = rate_limiter or RateLimiter()
        self._places: dict[Any, float] = {}
        self._lanes = {True: _Lane(), False: _Lane()}
        self._fresh_next = True
        self._known: set[Any] = set()
        self._examined: set[Any] = set()
        self._taken: dict[int, list[Any]] = {}
        self._coming: set[int] = set()
        self._waiting: list[int] = []
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._count = 0
        self._closed = False
        self._more = False
        self._low = 0
        self._again = False
        self._told = False

    def __len__(self) -> int:
        return self._count

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def working(self) -> int:
        """How many workers work."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """How many workers wait for work."""
        return len(self._waiting)

    @property
    def running_low(self) -> bool:
        """Whether a full look would find more than what was kept, of which most has gone: the
        next look is made while the rest is sent."""
        return self._more and self._count <= self._low

    @property
    def exhausted(self) -> bool:
        """Whether a full look would find something to do, and nothing, or little, is left here."""
        return self.running_low or (self._again and not self._count)

    def tell(self) -> bool:
        """Whether somebody has to be told that it is exhausted: once, until it is filled."""
        if self._told or not self.exhausted:
            return False
        with self._changed:
            told, self._told = self._told, True
            return not told

    def knows(self, ticket: Any) -> bool:
        """Whether it is here or being worked on."""
        return ticket in self._known

    def fill(self, tickets: Iterable[Any], *, more: bool = False, fresh: bool = False) -> None:
        """Add what is neither here nor being worked on. ``more``: the look found more than it
        could return; a ``fresh`` one, or one that goes on, does not tell that the others have
        gone."""
        with self._changed:
            for ticket in tickets:
                if ticket not in self._known:
                    self._known.add(ticket)
                    self._add(ticket)
            if more or not fresh:
                self._more, self._low = more, self._count // LOW
            if not fresh:
                self._again = False
            # What came beside it may hide for a while that it is exhausted.
            self._told = False
            self._changed.notify_all()

    def take(self) -> Any:
        """The next ticket, or None if there is none, or no place for it; never waits."""
        me = get_ident()
        with self._lock:
            self._coming.discard(me)
            if self._closed or not self._count or (place := self._rate_limiter.take()) is None:
                return None
            lane = self._lanes[self._fresh_next] or self._lanes[not self._fresh_next]
            self._fresh_next = not self._fresh_next
            ticket = lane.take()
            self._count -= 1
            self._taken.setdefault(me, []).append(ticket)
            self._places[ticket] = place
            return ticket

    def _add(self, ticket: Any) -> None:
        self._lanes[ticket.state == 'new'].add(ticket)
        self._count += 1

    def unsent(self, ticket: Any, *, again: bool = False) -> None:
        """Nothing leaves for a ticket that was taken: its place is for another. ``again``: it may
        be taken once more."""
        with self._changed:
            if again and not self._closed:
                self._add(ticket)
                self._changed.notify_all()
            place = self._places.pop(ticket, None)
            if place is not None and self._rate_limiter.give_back(place):
                self._changed.notify_all()

    def missed(self, ticket: Any) -> None:
        """It was not to be had: another processor may be at work."""
        with self._changed:
            self._lanes[ticket.state == 'new'].missed()

    def unexamined(self) -> list[Any]:
        """What is pending, and was not yet returned by this method."""
        with self._changed:
            present = {ticket for lane in self._lanes.values() for ticket in lane}
            found = present - self._examined
            self._examined = present
            return sorted(found, key=lambda ticket: str(ticket.order))

    def await_work(self, admit: Callable[[], float], *, idle: Callable[[], None]) -> bool:
        """Sleep until there are a ticket and a place, and ``admit`` lets us pass; False at the end.

        No more workers pass than there are tickets and places, so that one mail opens one
        connection; the one who worked last comes first, for it has a session. ``idle`` is called
        after a minute without work.
        """
        me = get_ident()
        while True:
            with self._changed:
                self._waiting.append(me)
                try:
                    wanted = self._await_want(me)
                    if self._closed:
                        return False
                    if wanted:
                        wait = admit()
                        if not wait:
                            self._taken[me] = []
                            self._coming.add(me)
                            return True
                        self._changed.wait(wait)
                finally:
                    self._waiting.remove(me)
            if not wanted:
                idle()

    def _await_want(self, me: int) -> bool:
        """Sleep until there is work for ``me``; False if there was none for a minute."""
        end = time.monotonic() + IDLE
        while not self._closed:
            before_me = len(self._coming) + len(self._waiting) - 1 - self._waiting.index(me)
            wait = self._rate_limiter.wait(before_me + 1) if self._count > before_me else inf
            if not wait:
                break
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._changed.wait(min(wait, left))
        return True

    def nudge(self) -> None:
        """Who waits to be admitted shall ask again."""
        with self._changed:
            self._changed.notify_all()

    def worked(self, *, again: bool = False) -> None:
        """A worker's work is done; ``again``: what it took may still be where it was."""
        with self._changed:
            for ticket in self._taken.pop(get_ident(), ()):
                self._known.discard(ticket)
                self._places.pop(ticket, None)
            self._coming.discard(get_ident())
            self._again = self._again or again
            self._changed.notify_all()

    def rest(self, seconds: float) -> None:
        """Sleep, or until the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def await_rest(self, timeout: float) -> bool:
        """Sleep until nobody works and nothing is left, or the end has come; False if it took
        too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or not (self._taken or self._count), timeout
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
