"""The queue processor: the loop that drains a queue.

The calling thread scans the queue. The workers claim what a scan found and send it, each over a
session of its own. While the relay is unavailable nothing is claimed, and one worker at a time
tries to connect.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from zope.interface import implementer

from ..envelope import Tally
from ..events.dispatcher import EVENT_RETRY_DELAY
from ..exceptions import QueueError
from ..interfaces import (
    IMailer,
    IMailEventDispatcher,
    IMailQueueProcessor,
    INamingQueue,
    IScannableQueue,
)
from ..mailers.attempts import can_be_driven
from ..queue.ticket import Ticket
from ..sending.circuit_breaker import CircuitBreaker
from ..sending.outcome import OutcomeRecorder, report_settled
from ..sending.rate_limiter import RateLimiter
from ..sending.refusals import Refusals
from ..sending.relay_connection import RelayConnection
from ..sending.throttling import Throttle
from ..threads import BackgroundThread
from .active_queue import ActiveQueue
from .claims import Claimer
from .heartbeat import Heartbeat
from .loop import DeliveryLoop
from .options import ProcessorOptions
from .run import DRAIN_PAUSE, Run, Senders
from .single_pass import SinglePassScan
from .worker_pool import WorkerPool

__all__ = ['QueueProcessor']

log = logging.getLogger(__name__)

SYNC_INTERVAL = 1.0
"""Seconds from a delivery to the sync of the folder that it left, at most."""

SCAN_PAUSE_FACTOR = 10.0
"""After a scan of t seconds the next of the same kind starts no sooner than so many times t, unless
the active queue has run low."""

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
        self.current: Run | None = None
        """The current or the last run."""
        self._queue = queue
        self._mailer = mailer
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._monotonic = self.options.monotonic
        # Both are kept over several runs: a restart must not exceed the rate.
        self._throttle = Throttle(mailer.name, pause=self.options.pause, monotonic=self._monotonic)
        self._rate_limiter = RateLimiter(
            self.options.rate, throttle=self._throttle, monotonic=self._monotonic
        )
        self._purge_at = float('-inf')

    @property
    def tally(self) -> Tally:
        """The counts of the current or the last run so far."""
        return self.current.tally if self.current is not None else Tally()

    def wake(self) -> None:
        self._queue.wake()

    def scan_now(self) -> None:
        """Have ``run`` scan the whole queue now, and try an unavailable relay without the rest of
        its pause. Deferred mail keeps its time. Any thread or signal handler may call it."""
        if self.current is not None:
            self.current.request_full_scan(retry=True)

    def drain(self, timeout: float, *, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until ``run``, in another thread, has sent what is due; return whether it has.

        False after ``timeout`` seconds, while the relay is unavailable, or if ``give_up()``.
        """
        end = self._monotonic() + timeout
        while self.current is None and self._monotonic() < end and not give_up():
            time.sleep(DRAIN_PAUSE)  # it starts
        run = self.current
        return run is not None and run.drain(end, give_up)

    def run(self, stop: threading.Event) -> None:
        self._queue.prepare()
        run = self._begin(stop, once=False)
        starting = True
        try:
            while not run.stop.is_set():
                try:
                    self._heartbeat.beat()
                    # At the start, events that the last process left are due at once.
                    self._scan(run, all_events=starting)
                    starting = False
                    self._wait_for_full_scan(run)
                except Exception:
                    log.exception('the queue processor failed and continues')
                    run.active_queue.sleep(ERROR_PAUSE)
        finally:
            self._shut_down(run)

    def run_once(
        self, progress: Progress | None = None, stop: threading.Event | None = None
    ) -> Tally:
        self._queue.prepare()
        run = self._begin(stop or threading.Event(), once=True)
        try:
            self._drain_once(run, progress or _no_progress)
            self.shut_down(self.options.grace)
            self._wait_for_subscribers(run)
            finished, _ = self._queue.scan(
                self._recorder.clock(), limit=self.options.limit, all_events=True
            )
            self._dispatch_all_finished(run, finished)
            self._purge_failed()
        finally:
            self._shut_down(run)
            self._heartbeat.beat(last=True)
            if progress is not None:
                progress(run.tally, self.mails_left)
        if run.error is not None:
            raise run.error
        return run.tally

    def _begin(self, stop: threading.Event, *, once: bool) -> Run:
        """Start what sends."""
        options, mailer = self.options, self._mailer
        clock, monotonic = self._recorder.clock, self._monotonic
        active_queue = ActiveQueue(
            self._rate_limiter, idle_timeout=options.idle, monotonic=monotonic
        )
        breaker = CircuitBreaker(
            monotonic,
            relay=mailer.name,
            pause=options.pause,
            chance=options.chance,
            backlog=lambda: active_queue.backlog(clock()),
        )
        run = Run(
            self._queue,
            active_queue,
            breaker,
            Refusals(mailer.name),
            self._throttle,
            stop=stop,
            once=once,
            clock=clock,
            monotonic=monotonic,
        )
        self.current = run
        self._heartbeat = Heartbeat(self._queue, clock=clock, monotonic=monotonic)
        self._heartbeat.beat()
        self._claimer = Claimer(run, self._queue, self._dispatcher, self._recorder.clock)
        parts = (self._claimer, self._queue, self._recorder)
        self._senders: Senders
        if can_be_driven(mailer):
            self._senders = DeliveryLoop(mailer, *parts, options)
        else:
            self._senders = WorkerPool(
                [
                    RelayConnection(mailer, batch=options.batch, monotonic=self._monotonic)
                    for _ in range(options.workers)
                ],
                *parts,
            )
        self._shutdown_at: float | None = None
        BackgroundThread(target=run.keep_synced, name='pyramid_sendmail sync', daemon=True).start()
        self._senders.start()
        return run

    def shut_down(self, grace: float) -> None:
        """Stop taking mail, and wait up to ``grace`` seconds for mail in flight.

        The time counts from the first call.
        """
        run = self.current
        assert run is not None
        run.close()
        called_before = self._shutdown_at is not None
        self._shutdown_at = self._shutdown_at or self._monotonic() + grace
        late = self._senders.stop(self._grace_left)
        if late and not called_before:
            log.warning(
                'still sending at the end of the shutdown time: %s; '
                'unfinished mail is retried by the next processor',
                ', '.join(late),
            )

    def _grace_left(self) -> float:
        """Return the seconds until the shutdown time ends. Subscribers share it with the mail in
        flight."""
        return max((self._shutdown_at or 0.0) - self._monotonic(), 0.0)

    @property
    def mails_left(self) -> int:
        """How many mails are known to be due or in flight."""
        run = self.current
        return len(run.active_queue) + self._senders.in_flight if run is not None else 0

    def _shut_down(self, run: Run) -> None:
        self.shut_down(self.options.grace)
        with suppress(QueueError):
            self._recorder.write_unrecorded()
        self._dispatcher.flush(self._grace_left())
        run.sync()
        self._queue.close()

    def _wait_for_full_scan(self, run: Run) -> None:
        """Return when the next full scan is due; scan new mail until then, and sync."""
        woken = False
        while not run.stop.is_set():
            now = self._monotonic()
            self._heartbeat.beat()
            if run.full_scan_requested:
                run.request_scan(now)
                return
            moments = [max(run.next_scan_at, run.scan_allowed_at[False])]
            if moments[0] <= now:
                break
            if woken:
                moments.append(run.scan_allowed_at[True])
            if run.busy:
                moments.append(now + SYNC_INTERVAL)
            moments.append(self._heartbeat.due_at)
            if self._queue.wait(max(min(moments) - now, 0.0)):
                woken = not self._take_new(run) or woken
            run.sync()
            if run.active_queue.exhausted:
                return
            if woken and self._monotonic() >= run.scan_allowed_at[True]:
                woken = False
                # While mail waits for an unavailable relay, a scan for more of it is of no use.
                if not (run.breaker.retry_in() and len(run.active_queue)):
                    self._scan(run, fresh=True)

    def _take_new(self, run: Run) -> bool:
        """Add the mail that has ended a wait, without a scan: a third of a millisecond less for
        each mail. Return False if a scan has to look for it."""
        queue = self._queue
        tickets = queue.take_new() if INamingQueue.providedBy(queue) else None
        if tickets is None or len(run.active_queue) + len(tickets) > self.options.limit:
            return False
        run.active_queue.add(tickets, fresh=True)
        return True

    def _scan(self, run: Run, *, fresh: bool = False, all_events: bool = False) -> None:
        """Fill the active queue, dispatch the events of finished mail, and plan the next scan."""
        now, start = self._recorder.clock(), self._monotonic()
        limit, requested = self._scan_limit(run), run.take_scan_request()
        if not fresh and start < run.next_scan_at and run.active_queue.running_low:
            page = self._queue.next_page(limit)
            if page:
                run.active_queue.add(_unfinished(page), more=True)
                return
        if not fresh:
            # Before the scan, which may not see what is deferred while it runs.
            run.next_scan_at = start + self.options.poll
        try:
            tickets, next_due = self._queue.scan(
                now,
                limit=limit,
                fresh=fresh,
                all_events=all_events,
                on_first_page=lambda tickets: run.active_queue.add(tickets, fresh=True),
            )
        except QueueError as error:
            run.scans_answered = requested
            run.breaker.record_failure(error, None)
            run.next_scan_at = start + max(run.breaker.retry_in(), ERROR_PAUSE)
            return
        run.active_queue.add(_unfinished(tickets), more=len(tickets) >= limit, fresh=fresh)
        if not fresh:
            run.scans_answered = requested
        end = self._monotonic()
        run.scan_allowed_at[fresh] = end + min(SCAN_PAUSE_FACTOR * (end - start), self.options.poll)
        if next_due is not None:
            run.request_scan(start + next_due - now)
        self._dispatch_first_finished(run, tickets, start)
        if not fresh:
            self._purge_failed()

    def _scan_limit(self, run: Run) -> int:
        """Return how many tickets to ask for: a scan finds those of mail in flight too."""
        return self.options.limit + run.active_queue.working * self.options.batch

    def _drain_once(self, run: Run, progress: Progress) -> None:
        single_pass = SinglePassScan(self._queue, run.active_queue, self._recorder.clock)
        while not run.active_queue.closed:
            tickets = single_pass.scan(self._scan_limit(run))
            if single_pass.fresh and not (tickets or single_pass.more):
                # Mail that subscribers send meanwhile belongs to this run too.
                self._wait_for_subscribers(run)
                tickets = single_pass.scan(self._scan_limit(run))
                if not tickets:
                    break
            self._dispatch_all_finished(run, tickets)
            if run.stop.is_set():
                break
            run.active_queue.add(_unfinished(tickets), more=single_pass.more)
            while not (run.active_queue.join(0.1) or run.active_queue.running_low):
                progress(run.tally, self.mails_left)
                self._heartbeat.beat()
                single_pass.check_clock()
                if run.stop.is_set():
                    run.active_queue.close()

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

    def _dispatch_first_finished(self, run: Run, tickets: Sequence[Ticket], start: float) -> None:
        """Dispatch the events of one page of finished mail; request a scan for the rest."""
        page = self.options.event_page
        try:
            self._dispatch_finished(run, tickets[:page])
            if len(tickets) > page and tickets[page].state == 'done':
                run.request_scan(start + EVENT_RETRY_DELAY)
        except QueueError as error:
            log.error('events in done/ could not be dispatched, they stay there: %s', error)

    def _dispatch_all_finished(self, run: Run, tickets: Sequence[Ticket]) -> None:
        """Dispatch the events of all finished mail, page by page, as fast as subscribers run."""
        page = self.options.event_page
        finished = [ticket for ticket in tickets if ticket.state == 'done']
        for at in range(0, len(finished), page):
            if run.stop.is_set():
                break
            self._dispatch_finished(run, finished[at : at + page])
            self._wait_for_subscribers(run)

    def _dispatch_finished(self, run: Run, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.state == 'done':
                claim = self._claimer.claim(ticket)
                if claim is not None:
                    report_settled(claim, self._dispatcher)

    def _wait_for_subscribers(self, run: Run) -> None:
        """Wait until all events are dispatched, at most the grace; the rest is dispatched again
        later."""
        end = self._monotonic() + self.options.grace
        while not (run.stop.is_set() or self._dispatcher.flush(0.1)) and self._monotonic() < end:
            pass


def _unfinished(tickets: Sequence[Ticket]) -> list[Ticket]:
    return [ticket for ticket in tickets if ticket.state != 'done']


def _no_progress(tally: Tally, left: int) -> None:
    """Show nothing."""
