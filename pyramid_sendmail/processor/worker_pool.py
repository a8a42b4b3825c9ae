"""The worker pool of a queue processor: one thread for each connection."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from ..envelope import Tally
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IScannableQueue
from ..queue.ticket import Ticket
from ..sending.relay_connection import RelayConnection
from ..threads import BackgroundThread
from .active_queue import ActiveQueue
from .circuit_breaker import CircuitBreaker
from .concurrency import ConcurrencyController

__all__ = ['EVENT_RETRY_DELAY', 'RunContext', 'WorkerPool']

log = logging.getLogger(__name__)

EVENT_RETRY_DELAY = 1.0
"""Seconds until an event that the full backlog rejected is tried again."""

_total: Callable[[Tally], int] = attrgetter('total')


class RunContext(NamedTuple):
    """What the workers of one run share.

    ``stop``: set from outside when the run should end. ``wake()`` ends the queue's ``wait``.
    ``once``: True for ``run_once``. ``clock``: epoch seconds.
    """

    active_queue: ActiveQueue
    breaker: CircuitBreaker
    concurrency: ConcurrencyController
    stop: threading.Event
    wake: Callable[[], None]
    once: bool
    clock: Callable[[], float]
    monotonic: Callable[[], float]


class WorkerPool:
    """The workers of one run. They start at once, and call ``drain(pool, connection, tally)`` over
    and over, which returns the seconds that the worker should pause."""

    def __init__(
        self,
        connections: Sequence[RelayConnection],
        drain: Callable[[WorkerPool, RelayConnection, Tally], float],
        context: RunContext,
    ) -> None:
        self.active_queue = context.active_queue
        self.breaker = context.breaker
        self.stop = context.stop
        self.once = context.once
        self.error: MailerUnavailable | QueueError | None = None
        """Why ``run_once`` ended early."""
        self.next_scan_at = 0.0
        """When the next full scan is due, by the monotonic clock."""
        self.scan_allowed_at = {True: float('-inf'), False: float('-inf')}
        """Earliest start of the next scan: [True] of new mail, [False] full. By the monotonic
        clock."""
        self._context = context
        self._drain = drain
        self._shutdown_at: float | None = None
        self._scheduling = threading.Lock()
        self._synced = 0
        self._seen_tickets: set[Ticket] = set()
        self._tallies = [Tally() for _ in connections]
        self._workers = [
            (
                connection,
                BackgroundThread(
                    target=self._work,
                    args=(connection, tally),
                    name=f'pyramid_sendmail worker {number}',
                    daemon=True,
                ),
            )
            for number, (connection, tally) in enumerate(
                zip(connections, self._tallies, strict=True), 1
            )
        ]
        for _, thread in self._workers:
            thread.start()

    @property
    def tally(self) -> Tally:
        """The sum of all workers' counts so far."""
        total = Tally()
        for tally in self._tallies:
            total.add(tally)
        return total

    @property
    def unsynced(self) -> int:
        """How many mails were settled since the last sync."""
        return sum(map(_total, self._tallies)) - self._synced

    @property
    def mails_left(self) -> int:
        """How many mails are known to be due or in flight."""
        in_flight = sum(connection.mails_waiting for connection, _ in self._workers)
        return len(self.active_queue) + in_flight

    @property
    def busy(self) -> bool:
        """Whether mail was settled, or may be settled any moment, that needs a sync."""
        return bool(
            self.unsynced
            or self.active_queue.working
            or (len(self.active_queue) and not self.breaker.retry_in())
        )

    def request_scan(self, at: float) -> bool:
        """Have a full scan run no later than ``at``, by the monotonic clock. Return whether that
        is sooner than planned."""
        with self._scheduling:
            sooner = at < self.next_scan_at
            if sooner:
                self.next_scan_at = at
            return sooner

    def due_again(self, due: float) -> None:
        """Have a full scan run no later than ``due``, in epoch seconds."""
        context = self._context
        if self.request_scan(context.monotonic() + max(due - context.clock(), 0.0)):
            context.wake()

    def event_rejected(self) -> None:
        """Have an event found again that the full backlog rejected."""
        self.due_again(self._context.clock() + EVENT_RETRY_DELAY)

    def claim_released(self, ticket: Ticket) -> None:
        """Record that a claim was released without an attempt.

        ``run_once`` returns a ticket once, so put it back for another worker. Otherwise the next
        scan finds the mail again.
        """
        if self.once:
            self.active_queue.put_back(ticket)
        else:
            self.active_queue.refund(ticket)

    def first_time(self, ticket: Ticket) -> bool:
        """Return True on the first call for a ticket, so that each problem is logged once."""
        seen = ticket in self._seen_tickets
        self._seen_tickets.add(ticket)
        return not seen

    def sync(self, queue: IScannableQueue) -> None:
        """Sync the queue if mail was settled since the last sync."""
        total = self.tally.total
        if total != self._synced:
            self._synced = total
            try:
                queue.sync()
            except OSError as error:
                log.error(
                    'queue could not be synced; after a power cut some delivered mail may be '
                    'sent again: %s',
                    error,
                )

    def fail(self, error: MailerUnavailable | QueueError) -> None:
        """End ``run_once`` with this error: it tries an unavailable relay once."""
        self.error = self.error or error
        self.active_queue.close()

    def shutdown(self, grace: float) -> None:
        """Stop taking mail, and wait up to ``grace`` seconds for mail in flight.

        The time counts from the first call. Workers that are still connecting hold no mail and
        are not waited for.
        """
        self.active_queue.close()
        called_before = self._shutdown_at is not None
        self._shutdown_at = self._shutdown_at or time.monotonic() + grace
        for connection, thread in self._workers:
            while thread.is_alive() and not connection.connecting and self.grace_left:
                thread.join(0.05)
        late = [
            thread.name for connection, thread in self._workers if _holds_mail(connection, thread)
        ]
        if late and not called_before:
            log.warning(
                'still sending at the end of the shutdown time: %s; '
                'unfinished mail is retried by the next processor',
                ', '.join(late),
            )

    @property
    def grace_left(self) -> float:
        """Seconds until the shutdown time ends. Subscribers share it with the mail in flight."""
        return max((self._shutdown_at or 0.0) - time.monotonic(), 0.0)

    def _work(self, connection: RelayConnection, tally: Tally) -> None:
        while self.active_queue.wait_for_work(self._acquire, on_idle=connection.close):
            try:
                pause = self._drain(self, connection, tally)
            except Exception as error:
                log.exception('a worker failed and continues')
                pause = self.breaker.record_failure(error)
                if self.once:
                    self.fail(MailerUnavailable(f'a worker failed: {error!r}'))
            self.breaker.release()
            self.active_queue.task_done(retry=bool(pause or self.breaker.retry_in()))
            if self.active_queue.should_request_refill():
                self._context.wake()
            if pause:
                self.active_queue.sleep(pause)
        connection.close()

    def _acquire(self) -> float:
        working = self.active_queue.working
        return self._context.concurrency.acquire(working) or self.breaker.acquire()


def _holds_mail(connection: RelayConnection, thread: threading.Thread) -> bool:
    return thread.is_alive() and not connection.connecting
