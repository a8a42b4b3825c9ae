"""What the parts of one run of a queue processor share."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

from ..envelope import Tally
from ..events.dispatcher import EVENT_RETRY_DELAY
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IScannableQueue
from ..queue.ticket import Ticket
from ..sending.circuit_breaker import CircuitBreaker
from ..sending.refusals import Refusals
from ..sending.throttling import Throttle
from .active_queue import ActiveQueue

__all__ = ['DRAIN_PAUSE', 'Run', 'Senders']

log = logging.getLogger(__name__)

DRAIN_PAUSE = 0.02
"""Seconds that ``drain`` waits before it looks again."""

_total: Callable[[Tally], int] = attrgetter('total')


class Senders(Protocol):
    """What sends the mail of a run: the loop, or a pool of worker threads."""

    def start(self) -> None:
        """Begin to take mail from the active queue."""

    @property
    def in_flight(self) -> int:
        """How many mails wait for their answer, or to be sent once more."""

    def stop(self, seconds_left: Callable[[], float]) -> list[str]:
        """Finish the mail in flight, as long as there are seconds left; what is still connecting
        holds no mail and is not waited for. Return what was not finished, for the log."""


class Run:
    """One run of a queue processor: what is to be sent, what was, and when to scan again.

    ``stop``: set from outside when the run should end. ``once``: True for ``run_once``. ``clock``:
    epoch seconds.
    """

    def __init__(
        self,
        queue: IScannableQueue,
        active_queue: ActiveQueue,
        breaker: CircuitBreaker,
        refusals: Refusals,
        throttle: Throttle,
        *,
        stop: threading.Event,
        once: bool,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.active_queue = active_queue
        self.breaker = breaker
        self.refusals = refusals
        self.throttle = throttle
        self.stop = stop
        self.once = once
        self.error: MailerUnavailable | QueueError | None = None
        """Why ``run_once`` ended early."""
        self.next_scan_at = 0.0
        """When the next full scan is due, by the monotonic clock."""
        self.scan_allowed_at = {True: float('-inf'), False: float('-inf')}
        """Earliest start of the next scan: [True] of new mail, [False] full. By the monotonic
        clock."""
        self.scans_requested = self.scans_answered = 0
        """How many full scans were requested, and which of these requests a scan has served."""
        self._retry_requested = False
        self._queue = queue
        self._clock = clock
        self._monotonic = monotonic
        self._scheduling = threading.Lock()
        self._tallies: list[Tally] = []
        self._synced = 0
        self._syncing = threading.Lock()
        self._sync_wanted = threading.Event()
        self._seen_tickets: set[Ticket] = set()

    def new_tally(self) -> Tally:
        """Return a tally for one thread, which counts for the run."""
        tally = Tally()
        self._tallies.append(tally)
        return tally

    @property
    def tally(self) -> Tally:
        """The sum of all counts so far."""
        total = Tally()
        for tally in self._tallies:
            total.add(tally)
        return total

    @property
    def unsynced(self) -> int:
        """How many mails were settled since the last sync."""
        return sum(map(_total, self._tallies)) - self._synced

    @property
    def busy(self) -> bool:
        """Whether mail was settled, or may be settled any moment, that needs a sync."""
        return bool(
            self.unsynced
            or self.active_queue.working
            or (len(self.active_queue) and not self.breaker.retry_in())
        )

    def wake(self) -> None:
        """End the wait of the thread that scans."""
        self._queue.wake()

    def request_scan(self, at: float) -> bool:
        """Have a full scan run no later than ``at``, by the monotonic clock. Return whether that
        is sooner than planned."""
        with self._scheduling:
            sooner = at < self.next_scan_at
            if sooner:
                self.next_scan_at = at
            return sooner

    @property
    def full_scan_requested(self) -> bool:
        """Whether ``request_full_scan`` was called since the last full scan began."""
        return self.scans_requested != self.scans_answered

    def request_full_scan(self, *, retry: bool = False) -> None:
        """Have the whole queue scanned now; ``retry``: and the relay tried at once if it is
        unavailable. A signal handler may call it: it takes no lock."""
        self._retry_requested = self._retry_requested or retry
        self.scans_requested += 1
        self.wake()

    def take_scan_request(self) -> int:
        """A scan begins: return the number of the last request, and end the pause of the breaker if
        that was requested."""
        if self._retry_requested:
            self._retry_requested = False
            log.info('the queue is scanned now, as requested')
            self.breaker.retry_now()
            self.active_queue.notify_waiters()
        return self.scans_requested

    def drain(self, end: float, give_up: Callable[[], bool]) -> bool:
        """See QueueProcessor.drain. ``end``: by the monotonic clock."""
        self.request_full_scan()
        wanted = self.scans_requested
        while self._monotonic() < end and not give_up():
            idle = self.active_queue.join(DRAIN_PAUSE)
            if self.active_queue.closed or self.breaker.retry_in():
                return False
            if idle and self.scans_answered >= wanted:
                return True
            if idle:
                time.sleep(DRAIN_PAUSE)
        return False

    def due_again(self, due: float) -> None:
        """Have a full scan run no later than ``due``, in epoch seconds."""
        if self.request_scan(self._monotonic() + max(due - self._clock(), 0.0)):
            self.wake()

    def event_rejected(self) -> None:
        """Have an event found again that the full backlog rejected."""
        self.due_again(self._clock() + EVENT_RETRY_DELAY)

    def put_back(self, ticket: Ticket) -> None:
        """Record that a claim was released because the mail was throttled: it is among the first
        after the pause."""
        self.active_queue.put_back(ticket, throttled=True)

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

    def request_sync(self) -> None:
        """Have another thread sync the queue soon."""
        self._sync_wanted.set()

    def sync(self) -> None:
        """Sync the queue if mail was settled since the last sync."""
        with self._syncing:
            total = self.tally.total
            if total == self._synced:
                return
            self._synced = total
            try:
                self._queue.sync()
            except OSError as error:
                log.error(
                    'queue could not be synced; after a power cut some delivered mail may be '
                    'sent again: %s',
                    error,
                )

    def keep_synced(self) -> None:
        """Sync the queue whenever it is requested, until the active queue is closed: the work of a
        thread, so that no mail waits for the disk."""
        while not self.active_queue.closed:
            self._sync_wanted.wait()
            self._sync_wanted.clear()
            self.sync()

    def close(self) -> None:
        """Give out no more mail."""
        self.active_queue.close()
        self._sync_wanted.set()

    def fail(self, error: MailerUnavailable | QueueError) -> None:
        """End ``run_once`` with this error: it tries an unavailable relay once."""
        # The frames of a sending thread hold what the relay has said, which may echo a password.
        self.error = self.error or error.with_traceback(None)
        self.active_queue.close()
