"""What a run to the end takes: all that is due at its start, and fresh mail that comes then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .active_queue import ActiveQueue

__all__ = ['SinglePassScan']


class SinglePassScan:
    """Looks at the queue until nothing is found that was not found before.

    A mail that was tried is gone, or its next time is later than the start of the run. So only what
    was found and is still where it was has to be remembered, and that is what the last look found:
    the memory does not grow with the mails sent. A clock that jumps back brings the start along.
    """

    def __init__(self, queue: Any, pending: ActiveQueue, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._pending = pending
        self._clock = clock
        self._start = clock()
        self._seen: set[int] = set()
        self._begun: set[int] = set()
        self._stuck = 0
        self._looked = False
        self.fresh = False
        """Whether all that was due at the start has been found, and fresh mail is looked for."""
        self.more = True
        """Whether the last look may have found less than there is."""

    def tick(self) -> None:
        """Watch the clock; to be called now and then."""
        self._start = min(self._start, self._clock())

    def scan(self, limit: int) -> list[Any]:
        """Return about ``limit`` tickets, or less, none of which was returned before; of a look
        that takes long, the first are pending already. Raises QueueError."""
        self.tick()
        if self._looked and (further := self._queue.next_page(limit)):
            return self._unseen(further, [_id(ticket) for ticket in further])
        self._looked = True
        self.fresh = self.fresh or not self.more
        limit += self._stuck
        tickets, _ = self._queue.scan(
            self._clock() if self.fresh else self._start,
            limit=limit,
            fresh=self.fresh,
            all_events=not self.fresh,
            on_first_page=self._early,
        )
        self.more = len(tickets) >= limit
        ids = [_id(ticket) for ticket in tickets]
        # Found once more although nobody works on them.
        self._stuck = sum(
            id in self._seen and not self._pending.knows(ticket)
            for id, ticket in zip(ids, tickets, strict=True)
        )
        unseen = self._unseen(tickets, ids)
        self._seen = self._begun.union(ids)
        self._begun = set()
        return unseen

    def _early(self, tickets: list[Any]) -> None:
        ids = [_id(ticket) for ticket in tickets]
        unseen = [ticket for id, ticket in zip(ids, tickets, strict=True) if id not in self._seen]
        self._begun.update(id for id in ids if id not in self._seen)
        self._pending.fill(unseen, fresh=True)

    def _unseen(self, tickets: list[Any], ids: list[int]) -> list[Any]:
        known = self._seen | self._begun
        self._seen.update(ids)
        return [ticket for id, ticket in zip(ids, tickets, strict=True) if id not in known]


def _id(ticket: Any) -> int:
    """The same whatever the mail's schedule, and small."""
    return hash(ticket.key)
