"""The queue processor: the loop that drains a queue.

The calling thread scans the queue. The workers claim what a scan found and send it, each over a
session of its own. While the relay is unavailable nothing is claimed, and one worker at a time
tries to connect.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from zope.interface import implementer

from ..envelope import Tally
from ..exceptions import DamagedMail, MailerUnavailable, QueueError
from ..interfaces import (
    IMailClaim,
    IMailer,
    IMailEventDispatcher,
    IMailQueueProcessor,
    IScannableQueue,
)
from ..queue.ticket import Ticket
from ..sending.attempt import attempt
from ..sending.outcome import OutcomeRecorder, report_settled
from ..sending.relay_connection import RelayConnection
from .active_queue import ActiveQueue
from .circuit_breaker import CircuitBreaker
from .concurrency import ConcurrencyController
from .options import ProcessorOptions
from .rate_limiter import RateLimiter
from .single_pass import SinglePassScan
from .tracked_claim import TrackedClaim, dispatch_damaged
from .worker_pool import EVENT_RETRY_DELAY, RunContext, WorkerPool

__all__ = ['QueueProcessor']

log = logging.getLogger(__name__)

SYNC_INTERVAL, SYNC_MAILS = 1.0, 100
"""Seconds and mails from a delivery to the sync of the folder that it left, at most."""

SCAN_PAUSE_FACTOR = 10.0
"""After a scan of t seconds the next of the same kind starts no sooner than so many times t, unless
the active queue has run low."""

SINGLE_FILE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EIO})
"""Errors of one file that say nothing about the other files."""

ERROR_PAUSE = 1.0
"""Seconds until the loop continues after an unexpected error."""

PURGE_INTERVAL, PURGE_LIMIT = 3600.0, 1_000
"""Seconds between two searches for old dead letters, and how many each removes at most."""

Progress = Callable[[Tally, int], None]


@implementer(IMailQueueProcessor)
class QueueProcessor:
    """See IMailQueueProcessor. It needs a queue that it can scan."""

    def __init__(
        self,
        queue: IScannableQueue,
        mailer: IMailer,
        dispatcher: IMailEventDispatcher,
        recorder: OutcomeRecorder,
        options: ProcessorOptions | None = None,
    ) -> None:
        self.options = options or ProcessorOptions()
        self.pool: WorkerPool | None = None
        """The workers of the current or the last run."""
        self._queue = queue
        self._mailer = mailer
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._monotonic = self.options.monotonic
        # Kept over several runs: a restart must not exceed the rate.
        self._rate_limiter = RateLimiter(self.options.rate, monotonic=self._monotonic)
        self._recording = threading.Lock()
        self._purge_at = float('-inf')

    def wake(self) -> None:
        self._queue.wake()

    def run(self, stop: threading.Event) -> None:
        self._queue.prepare()
        pool = self._start_workers(stop, once=False)
        starting = True
        try:
            while not pool.stop.is_set():
                try:
                    # At the start, events that the last process left are due at once.
                    self._scan(pool, all_events=starting)
                    starting = False
                    self._wait_for_full_scan(pool)
                except Exception:
                    log.exception('the queue processor failed and continues')
                    pool.active_queue.sleep(ERROR_PAUSE)
        finally:
            self._shut_down(pool)

    def run_once(
        self, progress: Progress | None = None, stop: threading.Event | None = None
    ) -> Tally:
        self._queue.prepare()
        pool = self._start_workers(stop or threading.Event(), once=True)
        try:
            self._drain_once(pool, progress or _no_progress)
            pool.shutdown(self.options.grace)
            self._wait_for_subscribers(pool)
            finished, _ = self._queue.scan(
                self._recorder.clock(), limit=self.options.limit, all_events=True
            )
            self._dispatch_all_finished(pool, finished)
            self._purge_failed()
        finally:
            self._shut_down(pool)
            if progress is not None:
                progress(pool.tally, pool.mails_left)
        if pool.error is not None:
            raise pool.error
        return pool.tally

    def _start_workers(self, stop: threading.Event, *, once: bool) -> WorkerPool:
        options = self.options
        connections = [
            RelayConnection(self._mailer, batch=options.batch, monotonic=self._monotonic)
            for _ in range(options.workers)
        ]
        context = RunContext(
            active_queue=ActiveQueue(self._rate_limiter, idle_timeout=options.idle),
            breaker=CircuitBreaker(
                self._monotonic,
                relay=self._mailer.name,
                pause=options.pause,
                chance=options.chance,
            ),
            concurrency=ConcurrencyController(self._recorder.cooperative_lock),
            stop=stop,
            wake=self._queue.wake,
            once=once,
            clock=self._recorder.clock,
            monotonic=self._monotonic,
        )
        self.pool = pool = WorkerPool(connections, self._drain, context)
        return pool

    def _shut_down(self, pool: WorkerPool) -> None:
        pool.shutdown(self.options.grace)
        with suppress(QueueError), self._recording:
            self._recorder.write_unrecorded()
        self._dispatcher.flush(pool.grace_left)
        pool.sync(self._queue)
        self._queue.close()

    def _wait_for_full_scan(self, pool: WorkerPool) -> None:
        """Return when the next full scan is due; scan new mail until then, and sync."""
        woken = False
        while not pool.stop.is_set():
            now = self._monotonic()
            moments = [max(pool.next_scan_at, pool.scan_allowed_at[False])]
            if moments[0] <= now:
                break
            if woken:
                moments.append(pool.scan_allowed_at[True])
            if pool.busy:
                moments.append(now + SYNC_INTERVAL)
            woken = self._queue.wait(max(min(moments) - now, 0.0)) or woken
            pool.sync(self._queue)
            if pool.active_queue.exhausted:
                return
            if woken and self._monotonic() >= pool.scan_allowed_at[True]:
                woken = False
                # While mail waits for an unavailable relay, a scan for more of it is of no use.
                if not (pool.breaker.retry_in() and len(pool.active_queue)):
                    self._scan(pool, fresh=True)

    def _scan(self, pool: WorkerPool, *, fresh: bool = False, all_events: bool = False) -> None:
        """Fill the active queue, dispatch the events of finished mail, and plan the next scan."""
        now, start = self._recorder.clock(), self._monotonic()
        limit = self._scan_limit(pool)
        if not fresh and start < pool.next_scan_at and pool.active_queue.running_low:
            page = self._queue.next_page(limit)
            if page:
                pool.active_queue.add(_unfinished(page), more=True)
                return
        if not fresh:
            # Before the scan, which may not see what is deferred while it runs.
            pool.next_scan_at = start + self.options.poll
        try:
            tickets, next_due = self._queue.scan(
                now,
                limit=limit,
                fresh=fresh,
                all_events=all_events,
                on_first_page=lambda tickets: pool.active_queue.add(tickets, fresh=True),
            )
        except QueueError as error:
            pool.breaker.record_failure(error)
            pool.next_scan_at = start + max(pool.breaker.retry_in(), ERROR_PAUSE)
            return
        pool.active_queue.add(_unfinished(tickets), more=len(tickets) >= limit, fresh=fresh)
        end = self._monotonic()
        pool.scan_allowed_at[fresh] = end + min(
            SCAN_PAUSE_FACTOR * (end - start), self.options.poll
        )
        if next_due is not None:
            pool.request_scan(start + next_due - now)
        self._dispatch_first_finished(pool, tickets, start)
        if not fresh:
            self._purge_failed()

    def _scan_limit(self, pool: WorkerPool) -> int:
        """Return how many tickets to ask for: a scan finds those of mail in flight too."""
        return self.options.limit + pool.active_queue.working * self.options.batch

    def _drain_once(self, pool: WorkerPool, progress: Progress) -> None:
        single_pass = SinglePassScan(self._queue, pool.active_queue, self._recorder.clock)
        while not pool.active_queue.closed:
            tickets = single_pass.scan(self._scan_limit(pool))
            if single_pass.fresh and not (tickets or single_pass.more):
                # Mail that subscribers send meanwhile belongs to this run too.
                self._wait_for_subscribers(pool)
                tickets = single_pass.scan(self._scan_limit(pool))
                if not tickets:
                    break
            self._dispatch_all_finished(pool, tickets)
            if pool.stop.is_set():
                break
            pool.active_queue.add(_unfinished(tickets), more=single_pass.more)
            while not (pool.active_queue.join(0.1) or pool.active_queue.running_low):
                progress(pool.tally, pool.mails_left)
                single_pass.check_clock()
                if pool.stop.is_set():
                    pool.active_queue.close()

    def _purge_failed(self) -> None:
        """Remove old dead letters, now and then; no mail waits for it."""
        keep, now = self.options.keep_failed, self._monotonic()
        if keep is None or now < self._purge_at:
            return
        self._purge_at = now + PURGE_INTERVAL
        try:
            self._queue.purge_failed(self._recorder.clock() - keep, limit=PURGE_LIMIT)
        except QueueError as error:
            log.error(
                'old dead letters could not be removed; next try in %g s: %s',
                PURGE_INTERVAL,
                error,
            )

    def _dispatch_first_finished(
        self, pool: WorkerPool, tickets: Sequence[Ticket], start: float
    ) -> None:
        """Dispatch the events of one page of finished mail; request a scan for the rest."""
        page = self.options.event_page
        try:
            self._dispatch_finished(pool, tickets[:page])
            if len(tickets) > page and tickets[page].state == 'done':
                pool.request_scan(start + EVENT_RETRY_DELAY)
        except QueueError as error:
            log.error('events in done/ could not be dispatched, they stay there: %s', error)

    def _dispatch_all_finished(self, pool: WorkerPool, tickets: Sequence[Ticket]) -> None:
        """Dispatch the events of all finished mail, page by page, as fast as subscribers run."""
        page = self.options.event_page
        finished = [ticket for ticket in tickets if ticket.state == 'done']
        for at in range(0, len(finished), page):
            if pool.stop.is_set():
                break
            self._dispatch_finished(pool, finished[at : at + page])
            self._wait_for_subscribers(pool)

    def _dispatch_finished(self, pool: WorkerPool, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state == 'done':
                claim = self._claim(pool, ticket)
                if claim is not None:
                    report_settled(claim, self._dispatcher)

    def _settle_without_relay(self, pool: WorkerPool) -> None:
        """Dispatch or move the mails in the active queue that have nothing left to send."""
        for ticket in pool.active_queue.not_yet_examined():
            claim = self._claim(pool, ticket, settled=True)
            if claim is not None:
                report_settled(claim, self._dispatcher)

    def _wait_for_subscribers(self, pool: WorkerPool) -> None:
        """Wait until all events are dispatched, at most the grace; the rest is dispatched again
        later."""
        end = time.monotonic() + self.options.grace
        while not (pool.stop.is_set() or self._dispatcher.flush(0.1)) and time.monotonic() < end:
            pass

    def _drain(self, pool: WorkerPool, connection: RelayConnection, tally: Tally) -> float:
        """Send due mail over one session, in the thread of a worker; return the seconds that this
        worker should pause."""
        before = connection.mails_total
        try:
            self._queue.check_writable()
            with self._recording:
                self._recorder.write_unrecorded()
            attempt(self._claims(pool, connection), connection, self._recorder, tally)
            if connection.mails_total > before:
                pool.breaker.record_success()
        except (MailerUnavailable, QueueError) as error:
            return self._end_drain(pool, error)
        return 0.0

    def _claims(self, pool: WorkerPool, connection: RelayConnection) -> Iterator[IMailClaim]:
        """Claim due mail one by one, until none is left, the breaker opens, or there is no permit.
        Never wait."""
        pool.breaker.session_opened()
        pool.active_queue.notify_waiters()
        before = connection.mails_total
        while pool.breaker.allows and (ticket := pool.active_queue.pop()) is not None:
            if pool.active_queue.should_request_refill():
                self._queue.wake()
            if pool.unsynced >= SYNC_MAILS:
                pool.sync(self._queue)
            claim = None
            try:
                claim = self._claim(pool, ticket)
            finally:
                if not _will_be_sent(claim, self._recorder.clock()):
                    pool.active_queue.refund(ticket)
            if claim is None:
                pool.active_queue.note_contention(ticket)
            else:
                yield claim
            if connection.mails_total > before:
                before = connection.mails_total
                pool.breaker.record_success()

    def _end_drain(self, pool: WorkerPool, error: MailerUnavailable | QueueError) -> float:
        if pool.active_queue.closed:
            return 0.0
        pause = pool.breaker.record_failure(error)
        if pool.once and not pause:
            # Do this first, so that no other worker connects in the meantime.
            pool.fail(error)
        if isinstance(error, MailerUnavailable) and not pause:
            with suppress(QueueError):
                self._settle_without_relay(pool)
        return pause

    def _claim(
        self, pool: WorkerPool, ticket: Ticket, *, settled: bool = False
    ) -> IMailClaim | None:
        """Return a claim, or None. A damaged file becomes an error event; a file that cannot be
        read stays where it is, and the other mail is sent."""
        try:
            claim = self._queue.claim(ticket, settled=settled)
            return None if claim is None else TrackedClaim(claim, pool, ticket)
        except DamagedMail as error:
            dispatch_damaged(error, self._dispatcher, now=self._recorder.clock())
        except QueueError as error:
            if error.errno not in SINGLE_FILE_ERRNOS:
                raise
            if pool.first_time(ticket):
                log.error('%s cannot be claimed and stays in the queue: %s', ticket.order, error)
        except Exception:
            if pool.first_time(ticket):
                log.exception('%s cannot be claimed and stays in the queue', ticket.order)
        return None


def _unfinished(tickets: Sequence[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if ticket.state != 'done']


def _will_be_sent(claim: IMailClaim | None, now: float) -> bool:
    """Return whether the mail of this claim will be sent: not if it is only settled."""
    if claim is None or not claim.todo or claim.interrupted:
        return False
    expires: float | None = claim.envelope.expires
    return expires is None or now < expires


def _no_progress(tally: Tally, left: int) -> None:
    """Show nothing."""
