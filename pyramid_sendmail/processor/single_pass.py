"""The scan of ``--once``: everything due at the start, plus mail that arrives during the run."""

from __future__ import annotations

from collections.abc import Callable

from ..interfaces import IScannableQueue
from ..queue.ticket import Ticket
from .active_queue import ActiveQueue

__all__ = ['SinglePassScan']


class SinglePassScan:
    """Scans the queue until a scan finds nothing new.

    A mail that was tried is gone, or due after the start, so it is enough to remember the ids of
    the last scan: the memory does not grow with the mails sent. If the clock jumps back, the
    start moves back with it.
    """

    def __init__(
        self, queue: IScannableQueue, active_queue: ActiveQueue, clock: Callable[[], float]
    ) -> None:
        self._queue = queue
        self._active_queue = active_queue
        self._clock = clock
        self._start = clock()
        self._found: set[int] = set()
        """Ids of the last scan."""
        self._first_page: set[int] = set()
        """Ids that the scan in progress has handed out already."""
        self._stuck = 0
        self._scanned = False
        self.fresh = False
        """Whether all that was due at the start was found, and only new mail is scanned."""
        self.more = True
        """Whether more may be due than the last scan returned."""

    def check_clock(self) -> None:
        """Notice when the clock jumps back; call it now and then."""
        self._start = min(self._start, self._clock())

    def scan(self, limit: int) -> list[Ticket]:
        """Return about ``limit`` tickets, or fewer, none of which was returned before.

        The first tickets of a long scan are added to the active queue meanwhile. Raises
        QueueError.
        """
        self.check_clock()
        if self._scanned and (page := self._queue.next_page(limit)):
            return self._not_found_before(page, [_id(ticket) for ticket in page])
        self._scanned = True
        self.fresh = self.fresh or not self.more
        limit += self._stuck
        tickets, _ = self._queue.scan(
            self._clock() if self.fresh else self._start,
            limit=limit,
            fresh=self.fresh,
            all_events=not self.fresh,
            on_first_page=self._add_first_page,
        )
        self.more = len(tickets) >= limit
        ids = [_id(ticket) for ticket in tickets]
        # These were found again and no worker has them: ask for more tickets, to reach those
        # behind.
        self._stuck = sum(
            id in self._found and not self._active_queue.knows(ticket)
            for id, ticket in zip(ids, tickets, strict=True)
        )
        new = self._not_found_before(tickets, ids)
        self._found = self._first_page.union(ids)
        self._first_page = set()
        return new

    def _add_first_page(self, tickets: list[Ticket]) -> None:
        ids = [_id(ticket) for ticket in tickets]
        new = [ticket for id, ticket in zip(ids, tickets, strict=True) if id not in self._found]
        self._first_page.update(id for id in ids if id not in self._found)
        self._active_queue.add(new, fresh=True)

    def _not_found_before(self, tickets: list[Ticket], ids: list[int]) -> list[Ticket]:
        known = self._found | self._first_page
        self._found.update(ids)
        return [ticket for id, ticket in zip(ids, tickets, strict=True) if id not in known]


def _id(ticket: Ticket) -> int:
    """Return a small id that stays the same when the mail's schedule changes."""
    return hash(ticket.key)
