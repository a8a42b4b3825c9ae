"""The active queue: the tickets of due mail, in memory, that the workers of a processor share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf
from random import shuffle

from ..queue.ticket import Ticket
from ..sending.rate_limiter import RateLimiter

__all__ = ['CONTENTION_BLOCK', 'IDLE_TIMEOUT', 'ActiveQueue']

IDLE_TIMEOUT = 60.0
"""Seconds without work after which a worker closes its session."""

REFILL_DIVISOR = 8
"""More is requested when an eighth of the tickets of the last scan is left."""

CONTENTION_BLOCK = 64
"""Mails that are taken in random order while another processor works on the same queue."""


class _Lane:
    """Tickets of one kind, in their order.

    Two processors that work on the same queue would try each mail at the same moment, one of them
    in vain. So after a contention the next CONTENTION_BLOCK tickets of the same priority are taken
    in random order. A new ticket that sorts before the whole block is taken first.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[str, Ticket]] = []
        self._block: list[Ticket] = []
        self._block_start: tuple[str, Ticket] | None = None
        self._contested = False
        self._added_last = 0

    def __len__(self) -> int:
        return len(self._heap) + len(self._block)

    def __iter__(self) -> Iterator[Ticket]:
        return chain(self._block, (ticket for _, ticket in self._heap))

    def add(self, ticket: Ticket) -> None:
        heappush(self._heap, (ticket.order, ticket))

    def note_contention(self) -> None:
        self._contested = True

    def add_last(self, ticket: Ticket) -> None:
        """Add a ticket behind those that were added so before. A lane has all or none so."""
        self._added_last += 1
        heappush(self._heap, (f'{self._added_last:012d}', ticket))

    def pop(self) -> Ticket:
        if self._contested and not self._block:
            self._contested = False
            self._start_block()
        start = self._block_start
        if self._block and start is not None and not (self._heap and self._heap[0] < start):
            return self._block.pop()
        return heappop(self._heap)[1]

    def _start_block(self) -> None:
        self._block_start = self._heap[0]
        priority = self._heap[0][0][:1]
        while (
            self._heap and len(self._block) < CONTENTION_BLOCK and self._heap[0][0][:1] == priority
        ):
            self._block.append(heappop(self._heap)[1])
        shuffle(self._block)


class ActiveQueue:
    """The tickets that are due and not yet taken. Thread-safe.

    New mail, deferred mail and mail that was throttled is taken in turn, and no faster than the
    rate limiter permits: new and deferred mail in the order of its tickets, throttled mail in the
    order in which it was put back. So a mail that alone is throttled, again and again, holds up no
    other mail. ``idle_timeout``: see IDLE_TIMEOUT, in seconds. A worker is one
    connection: ``worker`` identifies it. ``monotonic``: the clock of that time-out.

    ``on_change``: called when there is more to take, or nothing more ever, without a lock.
    """

    def __init__(
        self,
        rate_limiter: RateLimiter | None = None,
        *,
        idle_timeout: float = IDLE_TIMEOUT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_change: Callable[[], None] = _nothing
        self._rate_limiter = rate_limiter or RateLimiter()
        self._idle_timeout = idle_timeout
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._new, self._deferred, self._throttled = _Lane(), _Lane(), _Lane()
        self._lanes = [self._new, self._deferred, self._throttled]
        """Those that come first when the next ticket is taken first."""
        self._count = 0
        self._known: set[Ticket] = set()
        """Tickets that are here or being worked on."""
        self._examined: set[Ticket] = set()
        self._permits: dict[Ticket, float] = {}
        self._taken: dict[Hashable, list[Ticket]] = {}
        """The tickets that each worker has taken."""
        self._starting: set[Hashable] = set()
        """Workers that have not taken a ticket yet."""
        self._waiting: list[Hashable] = []
        self._closed = False
        self._scan_was_cut = False
        self._low_mark = 0
        self._retry_wanted = False
        self._refill_requested = False

    def __len__(self) -> int:
        return self._count

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def working(self) -> int:
        """How many workers are working."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """How many workers wait for work."""
        return len(self._waiting)

    @property
    def running_low(self) -> bool:
        """Whether the last full scan found more than it could return, and little of that is left:
        the next scan runs while the rest is sent."""
        return self._scan_was_cut and self._count <= self._low_mark

    @property
    def exhausted(self) -> bool:
        """Whether a full scan would find more work, and little or nothing is left here."""
        return self.running_low or (self._retry_wanted and not self._count)

    def should_request_refill(self) -> bool:
        """Return True once for each refill, when a new scan should be requested."""
        if self._refill_requested or not self.exhausted:
            return False
        with self._changed:
            requested, self._refill_requested = self._refill_requested, True
            return not requested

    def knows(self, ticket: Ticket) -> bool:
        """Return whether a ticket is here or being worked on."""
        return ticket in self._known

    def add(self, tickets: Iterable[Ticket], *, more: bool = False, fresh: bool = False) -> None:
        """Add the tickets that are neither here nor being worked on.

        ``more``: the scan found more than it could return. ``fresh``: the tickets say
        nothing about how much deferred mail is due, because only new mail was scanned, or the
        scan has not ended.
        """
        with self._changed:
            for ticket in tickets:
                if ticket not in self._known:
                    self._known.add(ticket)
                    self._add(ticket)
            if more or not fresh:
                self._scan_was_cut, self._low_mark = more, self._count // REFILL_DIVISOR
            if not fresh:
                self._retry_wanted = False
            # There are tickets again: when they run out, another scan may be requested.
            self._refill_requested = False
            self._changed.notify_all()
        self.on_change()

    def pop(self, worker: Hashable) -> Ticket | None:
        """Return the next ticket, or None if there is no ticket or no permit. Never wait."""
        with self._lock:
            self._starting.discard(worker)
            if self._closed or not self._count:
                return None
            permit = self._rate_limiter.acquire()
            if permit is None:
                return None
            lane = next(filter(len, self._lanes))
            self._lanes.remove(lane)
            self._lanes.append(lane)
            ticket = lane.pop()
            self._count -= 1
            self._taken.setdefault(worker, []).append(ticket)
            self._permits[ticket] = permit
            return ticket

    def refund(self, ticket: Ticket) -> None:
        """Free the permit of a ticket that was taken and for which no mail is sent."""
        with self._changed:
            permit = self._permits.pop(ticket, None)
            if permit is not None and self._rate_limiter.refund(permit):
                self._changed.notify_all()

    def put_back(self, ticket: Ticket, *, throttled: bool = False) -> None:
        """Let another worker take a ticket that was taken and for which no mail was sent."""
        with self._changed:
            for taken in self._taken.values():
                if ticket in taken:
                    taken.remove(ticket)
            if not self._closed:
                if throttled:
                    self._throttled.add_last(ticket)
                    self._count += 1
                else:
                    self._add(ticket)
                self._changed.notify_all()
            self.refund(ticket)
        self.on_change()

    @property
    def has_unthrottled(self) -> bool:
        """Whether there is a ticket that was not put back as throttled."""
        return bool(len(self._new) or len(self._deferred))

    def note_contention(self, ticket: Ticket) -> None:
        """Record that a claim failed; another processor probably holds the mail."""
        with self._changed:
            self._lane(ticket).note_contention()

    def backlog(self, now: float) -> tuple[int, float]:
        """Return how many tickets are here, and for how many seconds the oldest has been due.
        ``now``: in epoch seconds."""
        with self._lock:
            dues = [ticket.due for lane in self._lanes for ticket in lane]
        return len(dues), max(now - min(dues), 0.0) if dues else 0.0

    def not_yet_examined(self) -> list[Ticket]:
        """Return the tickets that are here and that no earlier call returned, in order."""
        with self._changed:
            present = {ticket for lane in self._lanes for ticket in lane}
            found = present - self._examined
            self._examined = present
            return sorted(found, key=lambda ticket: ticket.order)

    def wait_for_work(
        self, worker: Hashable, acquire: Callable[[], float], *, on_idle: Callable[[], None]
    ) -> bool:
        """Sleep until there is a ticket with a permit and ``acquire()`` returns 0. Return False
        when the queue is closed.

        ``acquire``: returns the seconds to wait before it is called again. ``on_idle``: called
        after ``idle_timeout`` seconds without work, without a lock. No more workers start than
        there are tickets and permits, so that one mail opens one connection. The worker that
        worked last starts first, because it still has a session.
        """
        while True:
            with self._changed:
                self._waiting.append(worker)
                try:
                    wanted = self._wait_until_wanted(worker)
                    if self._closed:
                        return False
                    if wanted:
                        wait = acquire()
                        if not wait:
                            self._taken[worker] = []
                            self._starting.add(worker)
                            return True
                        self._changed.wait(wait)
                finally:
                    self._waiting.remove(worker)
            if not wanted:
                on_idle()

    def _wait_until_wanted(self, worker: Hashable) -> bool:
        """Sleep until there is work for this worker; return False after ``idle_timeout``."""
        end = self._monotonic() + self._idle_timeout
        while not self._closed:
            before_me = len(self._starting) + len(self._waiting) - 1 - self._waiting.index(worker)
            wait = self._wait_behind(before_me)
            if not wait:
                break
            left = end - self._monotonic()
            if left <= 0:
                return False
            self._changed.wait(min(wait, left))
        return True

    def notify_waiters(self) -> None:
        """Wake the workers that wait for work, so that each calls ``acquire`` again."""
        with self._changed:
            self._changed.notify_all()
        self.on_change()

    def start(self, worker: Hashable, *, connected: bool = False) -> bool:
        """Record that a worker of the loop begins to work, if there is a ticket and a permit beside
        those for the workers that have begun and not taken one yet. ``connected``: it takes its
        ticket now, before those that still connect."""
        with self._changed:
            if self._closed or self.wait_for_start(connected=connected):
                return False
            self._taken[worker] = []
            self._starting.add(worker)
            return True

    def overdue(self, worker: Hashable) -> None:
        """Keep no ticket any more for a worker that has begun and still connects."""
        with self._lock:
            self._starting.discard(worker)

    def wait_for_start(self, *, connected: bool = False) -> float:
        """Return the seconds until another worker may start: 0 for now, infinity without mail.
        ``connected``: see ``start``."""
        with self._lock:
            return self._wait_behind(0 if connected else len(self._starting))

    def _wait_behind(self, workers: int) -> float:
        """Return the seconds until there is a ticket with a permit for one more worker than these;
        infinity without a ticket."""
        return self._rate_limiter.retry_in(workers + 1) if self._count > workers else inf

    def task_done(self, worker: Hashable, *, retry: bool = False) -> None:
        """Record that this worker has finished what it took. ``retry``: some of it may still be
        in the queue."""
        with self._changed:
            for ticket in self._taken.pop(worker, ()):
                self._known.discard(ticket)
                self._permits.pop(ticket, None)
            self._starting.discard(worker)
            self._retry_wanted = self._retry_wanted or retry
            self._changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, or until the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def join(self, timeout: float) -> bool:
        """Sleep until every ticket is taken and done, or the queue is closed. Return False after
        ``timeout`` seconds.

        A worker that still connects has taken none, and is not waited for.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or not (self._count or any(self._taken.values())), timeout
            )

    def close(self) -> None:
        """Give out no more tickets, and end every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.on_change()

    def _add(self, ticket: Ticket) -> None:
        self._lane(ticket).add(ticket)
        self._count += 1

    def _lane(self, ticket: Ticket) -> _Lane:
        return self._new if ticket.state == 'new' else self._deferred


def _nothing() -> None:
    """No loop waits for a change."""
