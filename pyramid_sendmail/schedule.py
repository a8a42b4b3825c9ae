"""What the workers of a queue processor share: the tickets that are due, and the gate."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf
from random import random, shuffle
from threading import get_ident
from typing import Any

from .exceptions import QueueError
from .pace import Pace
from .threads import Turn

__all__ = ['Gate', 'Help', 'Pending']

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds before a closed road is tried again: at first, doubling, and at most."""

CROWDED_PAUSE = 30.0
"""Seconds that a worker rests who found no way in while others went on sending."""

IDLE = 60.0
"""Seconds without work after which a worker gives its session up."""

HELP = 0.02
"""Seconds over which it is seen how much of the time somebody works."""

ENOUGH = 0.6
"""The part of it beyond which nobody else would be of help."""

LOW = 8
"""The part of what was kept that is still there when more is looked for."""

BLOCK = 64
"""Mails that are taken in no order where another processor takes them, too."""

_PASSING = re.compile(
    r"""(?<!\S)
    (?! (\d{3} | \d\.\d{1,3}\.\d{1,3}) [,:;]? (?!\S) )  # a reply's code, and an enhanced one
    \S*\d\S*""",
    re.VERBOSE,
)
"""Words of a reason that may be others the next time although it is the same reason: relays write
the time and the number of a session into what they refuse it with."""


class Gate:
    """Whether the road is open, as far as the workers know.

    ============ ====================================================================
    nobody is in one worker is admitted at a time, and the others wait for what it finds
    somebody is  everybody is admitted: there is a session, so the road is open
    closed       nobody is, for a pause that grows; who is in passes nothing more
    ============ ====================================================================

    ``pause``: see FIRST_PAUSE; a fifth more or less by ``chance``, between 0 and 1, so that
    processors that found the road closed together do not come back together. The log has a line
    for each change, and for each new reason.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        pause: float = FIRST_PAUSE,
        chance: Callable[[], float] = random,
    ) -> None:
        self._monotonic = monotonic
        self._pause = pause
        self._chance = chance
        self._lock = threading.Lock()
        self._trying: int | None = None
        self._inside: dict[int, int] = {}
        self._closures = 0
        self._failures = 0
        self._until = 0.0
        self._reason = ''

    def admit(self) -> float:
        """0 to go ahead; else the seconds to wait before asking again."""
        with self._lock:
            if self._closures in self._inside.values():
                return 0.0
            wait = self._until - self._monotonic()
            if wait > 0:
                return wait
            if self._trying is not None:
                return self._pause
            self._trying = get_ident()
            return 0.0

    def enter(self) -> None:
        """The asker has a session."""
        with self._lock:
            self._inside[get_ident()] = self._closures
            self._stop_trying()

    @property
    def passable(self) -> bool:
        """Whether nothing has been found closed since the asker entered."""
        with self._lock:
            return self._inside.get(get_ident()) == self._closures

    def answered(self) -> None:
        """Mail of the asker was answered: the road is open indeed."""
        with self._lock:
            if self._inside.get(get_ident()) != self._closures:
                return  # it has been closed since
            failures, self._failures = self._failures, 0
            self._reason = ''
        if failures:
            log.warning('mail is sent again, after %d failures', failures)

    def leave(self) -> None:
        """The asker has come to an end, whatever it was."""
        with self._lock:
            self._inside.pop(get_ident(), None)
            self._stop_trying()

    def failed(self, error: Exception) -> float:
        """The asker could not go on. Return the seconds that he alone should rest: where others
        have sessions, the relay takes no more of them, and nothing is closed."""
        reason = _PASSING.sub('', str(error))
        with self._lock:
            self._inside.pop(get_ident(), None)
            self._stop_trying()
            crowd = not isinstance(error, QueueError) and self._closures in self._inside.values()
            now = self._monotonic()
            # Another worker was told a moment ago, and has told it.
            known = bool(self._failures and self._until > now)
            if not (crowd or known):
                pause = min(self._pause * 2.0 ** min(self._failures, 20), LONGEST_PAUSE)
                self._until = now + pause * (0.8 + 0.4 * self._chance())
                self._failures += 1
                self._closures += 1
                known = self._reason == reason
                self._reason = reason
        if crowd:
            log.info('no further connection, others go on: %s', error)
            return CROWDED_PAUSE
        level = logging.DEBUG if known else logging.ERROR
        log.log(level, 'nothing can be sent now, and all mail waits: %s', error)
        return 0.0

    def closed_for(self) -> float:
        """Seconds until a closed road is tried; 0 while it is open."""
        with self._lock:
            return max(self._until - self._monotonic(), 0.0) if self._failures else 0.0

    def _stop_trying(self) -> None:
        if self._trying == get_ident():
            self._trying = None


class Help:
    """Whether one more worker would be of any help to those who work already.

    They take turns, so that it is none where somebody always works: a relay on the same machine is
    served by one worker, and sooner than by four. Where they mostly wait for a relay far away, as
    many more join at each look. Of sessions that take no turns nothing is known: all join.
    """

    def __init__(self, turn: Turn, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._turn = turn
        self._monotonic = monotonic
        self._looked = 0.0
        self._worked = 0.0
        self._welcome = 0

    def wait(self, working: int) -> float:
        """Seconds until it can be told, beside so many who work; 0 to join them."""
        worked, now = self._turn.worked, self._monotonic()
        if not working:
            self._looked, self._worked, self._welcome = now, worked, 0
            return 0.0
        if not worked:
            return 0.0
        if self._welcome:
            self._welcome -= 1
            return 0.0
        elapsed = now - self._looked
        if elapsed < HELP:
            return HELP - elapsed
        share = (worked - self._worked) / elapsed
        self._looked, self._worked = now, worked
        if share >= ENOUGH:
            return HELP
        self._welcome = working - 1
        return 0.0


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
        heappush(self._heap, (ticket.name, ticket))

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


class Pending:
    """The tickets that are due and not yet taken: fresh ones and others in turn, each kind in the
    order of their names, at this pace."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._places: dict[Any, float] = {}
        self._lanes = {True: _Lane(), False: _Lane()}
        self._fresh_next = True
        self._known: set[Any] = set()
        self._examined: set[Any] = set()
        self._taken: dict[int, list[Any]] = {}
        self._coming: set[int] = set()
        self._waiting: list[int] = []
        self._changed = threading.Condition()
        self._closed = False
        self._more = False
        self._low = 0
        self._again = False
        self._told = False

    def __len__(self) -> int:
        return len(self._lanes[True]) + len(self._lanes[False])

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
        return self._more and len(self) <= self._low

    @property
    def exhausted(self) -> bool:
        """Whether a full look would find something to do, and nothing, or little, is left here."""
        return self.running_low or (self._again and not len(self))

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
                    self._lanes[ticket.folder == 'new'].add(ticket)
            if more or not fresh:
                self._more, self._low = more, len(self) // LOW
            if not fresh:
                self._again = False
            # What came beside it may hide for a while that it is exhausted.
            self._told = False
            self._changed.notify_all()

    def take(self) -> Any:
        """The next ticket, or None if there is none, or no place for it; never waits."""
        with self._changed:
            self._coming.discard(get_ident())
            if self._closed or not len(self) or (place := self._pace.take()) is None:
                return None
            lane = self._lanes[self._fresh_next] or self._lanes[not self._fresh_next]
            self._fresh_next = not self._fresh_next
            ticket = lane.take()
            self._taken.setdefault(get_ident(), []).append(ticket)
            self._places[ticket] = place
            return ticket

    def unsent(self, ticket: Any, *, again: bool = False) -> None:
        """Nothing leaves for a ticket that was taken: its place is for another. ``again``: it may
        be taken once more."""
        with self._changed:
            if again and not self._closed:
                self._lanes[ticket.folder == 'new'].add(ticket)
                self._changed.notify_all()
            place = self._places.pop(ticket, None)
            if place is not None and self._pace.give_back(place):
                self._changed.notify_all()

    def missed(self, ticket: Any) -> None:
        """It was not to be had: another processor may be at work."""
        with self._changed:
            self._lanes[ticket.folder == 'new'].missed()

    def unexamined(self) -> list[Any]:
        """What is pending, and was not yet returned by this method."""
        with self._changed:
            present = {ticket for lane in self._lanes.values() for ticket in lane}
            found = present - self._examined
            self._examined = present
            return sorted(found, key=lambda ticket: str(ticket.name))

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
            wait = self._pace.wait(before_me + 1) if len(self) > before_me else inf
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
                lambda: self._closed or not (self._taken or len(self)), timeout
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
