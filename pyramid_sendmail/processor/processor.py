"""The queue processor: the loop that drains a queue.

One thread looks at the queue, the workers claim what it found and send it, each over a session of
its own. While the road is closed nothing is claimed, and one worker at a time tries it.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import random
from typing import Any

from zope.interface import implementer

from ..envelope import Envelope, PendingEvent
from ..events.dispatcher import EventDispatcher
from ..exceptions import DamagedMail, MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailer, IMailQueueProcessor, IScannableQueue
from ..sending.attempt import attempt
from ..sending.connection import RelayConnection
from ..sending.outcome import OutcomeRecorder, Tally, report_settled
from .circuit_breaker import FIRST_PAUSE, CircuitBreaker, ConcurrencyController
from .rate_limiter import RateLimiter
from .single_pass import SinglePassScan
from .worker_pool import UNTOLD, DamagedClaim, TrackedClaim, WorkerPool

__all__ = ['QueueProcessor']

log = logging.getLogger(__name__)

POLL = 30.0
"""Seconds after which the queue is looked at although nothing woke the processor."""

SYNC, SYNC_MAILS = 1.0, 100
"""Seconds and mails, at most, from a delivery to the sync of the folder that it has left."""

GRACE = 60.0
"""Seconds that mail in flight has at the end."""

LIMIT = 20_000
"""Names kept in memory."""

LEISURE = 10.0
"""How many times as long as a look took another of its kind waits, where nobody waits for it."""

ITS_OWN = frozenset({errno.EACCES, errno.EPERM, errno.EIO})
"""Errors over one file that say nothing about the others."""

EXPIRE, EXPIRED = 3600.0, 1_000
"""Seconds between two looks for old dead letters, and how many of them go at one."""

REPORTS = 200
"""Mails in ``done/`` reported at one look, so that the next look is not kept waiting."""

Progress = Callable[[Tally, int], None]


@implementer(IMailQueueProcessor)
class QueueProcessor:
    """See IMailQueueProcessor. ``workers``: connections at once; ``batch``: mails on each;
    ``rate``: how many mails leave in how many seconds at most, over all connections, or None;
    ``keep_failed``: seconds after which a dead letter is removed, or None for never;
    ``poll``, ``limit``, ``grace``, ``pause``: see POLL, LIMIT, GRACE and FIRST_PAUSE; ``chance``:
    see Gate."""

    def __init__(
        self,
        queue: IScannableQueue,
        mailer: IMailer,
        dispatcher: EventDispatcher,
        recorder: OutcomeRecorder,
        *,
        workers: int = 4,
        batch: int = 100,
        rate: tuple[int, int] | None = None,
        keep_failed: float | None = None,
        poll: float = POLL,
        limit: int = LIMIT,
        grace: float = GRACE,
        pause: float = FIRST_PAUSE,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random,
    ) -> None:
        self._queue: Any = queue
        self._mailer = mailer
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._workers = workers
        self._batch = batch
        self._keep_failed = keep_failed
        self._poll = poll
        self._limit = limit
        self._grace = grace
        self._pause = pause
        self._monotonic = monotonic
        self._chance = chance
        self._rate_limiter = RateLimiter(rate, monotonic=monotonic)
        self._recording = threading.Lock()
        self._expire_at = float('-inf')

    def wake(self) -> None:
        self._queue.wake()

    def run(self, stop: threading.Event) -> None:
        self._queue.prepare()
        pool = self._crew(stop, once=False)
        starting = True
        try:
            while not pool.stop.is_set():
                try:
                    # What subscribers have not taken from the last process they get at once.
                    self._look(pool, all_events=starting)
                    starting = False
                    self._watch(pool)
                except Exception:
                    log.exception('the queue processor failed, and goes on')
                    pool.pending.rest(1.0)
        finally:
            self._end(pool)

    def run_once(
        self, progress: Progress | None = None, stop: threading.Event | None = None
    ) -> Tally:
        self._queue.prepare()
        pool = self._crew(stop or threading.Event(), once=True)
        try:
            self._drain_once(pool, progress or _no_progress)
            pool.dismiss(self._grace)
            self._await_subscribers(pool)
            now = self._recorder.clock()
            done, _ = self._queue.scan(now, limit=self._limit, all_events=True)
            self._report_all_done(pool, done)
            self._expire()
        finally:
            self._end(pool)
            if progress is not None:
                progress(pool.tally, pool.left)
        if pool.error is not None:
            raise pool.error
        return pool.tally

    def _crew(self, stop: threading.Event, *, once: bool) -> WorkerPool:
        connections = [
            RelayConnection(self._mailer, batch=self._batch, monotonic=self._monotonic)
            for _ in range(self._workers)
        ]
        breaker = CircuitBreaker(self._monotonic, pause=self._pause, chance=self._chance)
        help = ConcurrencyController(self._recorder.cooperative_lock)
        return WorkerPool(
            *(connections, self._drain, breaker, help, self._rate_limiter, self._queue.wake, stop),
            once=once,
            clock=self._recorder.clock,
            monotonic=self._monotonic,
        )

    def _watch(self, pool: WorkerPool) -> None:
        """Look where mail is published until the next full look is due."""
        woken = False
        while not pool.stop.is_set():
            here = self._monotonic()
            moments = [max(pool.next_look, pool.rested[False])]
            if moments[0] <= here:
                break
            if woken:
                moments.append(pool.rested[True])
            if pool.busy:
                moments.append(here + SYNC)
            woken = self._queue.wait(max(min(moments) - here, 0.0)) or woken
            pool.sync(self._queue)
            if pool.pending.exhausted:
                return
            if woken and self._monotonic() >= pool.rested[True]:
                woken = False
                # What nobody can send now need not be looked at each time that more comes.
                if not (pool.breaker.closed_for() and len(pool.pending)):
                    self._look(pool, fresh=True)

    def _look(self, pool: WorkerPool, *, fresh: bool = False, all_events: bool = False) -> None:
        now, here = self._recorder.clock(), self._monotonic()
        limit = self._limit_now(pool)
        if not fresh and here < pool.next_look and pool.pending.running_low:
            further = self._queue.next_page(limit)
            if further:
                pool.pending.fill(_unsettled(further), more=True)
                return
        if not fresh:
            # Before the look: what is deferred during it may not be seen by it.
            pool.next_look = here + self._poll
        try:
            tickets, next_due = self._queue.scan(
                now,
                limit=limit,
                fresh=fresh,
                all_events=all_events,
                on_first_page=lambda tickets: pool.pending.fill(tickets, fresh=True),
            )
        except QueueError as error:
            pool.breaker.failed(error)
            pool.next_look = here + max(pool.breaker.closed_for(), 1.0)
            return
        pool.pending.fill(_unsettled(tickets), more=len(tickets) >= limit, fresh=fresh)
        end = self._monotonic()
        pool.rested[fresh] = end + min(LEISURE * (end - here), self._poll)
        if next_due is not None:
            pool.look_by(here + next_due - now)
        try:
            self._report_done(pool, tickets[:REPORTS])
            if len(tickets) > REPORTS and tickets[REPORTS].state == 'done':
                pool.look_by(here + UNTOLD)
        except QueueError as error:
            log.error('what lies in done/ could not be reported: %s', error)
        if not fresh:
            self._expire()

    def _expire(self) -> None:
        """Remove what has lain in failed/ for too long, now and then; no mail waits for it."""
        here = self._monotonic()
        if self._keep_failed is None or here < self._expire_at:
            return
        self._expire_at = here + EXPIRE
        try:
            self._queue.purge_failed(self._recorder.clock() - self._keep_failed, limit=EXPIRED)
        except QueueError as error:
            log.error('old dead letters could not be removed: %s', error)

    def _drain_once(self, pool: WorkerPool, progress: Progress) -> None:
        harvest = SinglePassScan(self._queue, pool.pending, self._recorder.clock)
        while not pool.pending.closed:
            tickets = harvest.scan(self._limit_now(pool))
            if harvest.fresh and not (tickets or harvest.more):
                # What subscribers send meanwhile is fresh mail too.
                self._await_subscribers(pool)
                tickets = harvest.scan(self._limit_now(pool))
                if not tickets:
                    break
            self._report_all_done(pool, tickets)
            if pool.stop.is_set():
                break
            pool.pending.fill(_unsettled(tickets), more=harvest.more)
            while not (pool.pending.await_rest(0.1) or pool.pending.running_low):
                progress(pool.tally, pool.left)
                harvest.tick()
                if pool.stop.is_set():
                    pool.pending.close()

    def _limit_now(self, pool: WorkerPool) -> int:
        """How many tickets to ask for: those of the mails in work are found too."""
        return self._limit + pool.pending.working * self._batch

    def _report_all_done(self, pool: WorkerPool, tickets: list[Any]) -> None:
        """Report ``done/``, at the pace of the subscribers."""
        done = [ticket for ticket in tickets if ticket.state == 'done']
        for at in range(0, len(done), REPORTS):
            if pool.stop.is_set():
                break
            self._report_done(pool, done[at : at + REPORTS])
            self._await_subscribers(pool)

    def _await_subscribers(self, pool: WorkerPool) -> None:
        """Wait until they have heard all, or too long: they are told again what they have not."""
        end = time.monotonic() + self._grace
        while not (pool.stop.is_set() or self._dispatcher.flush(0.1)) and time.monotonic() < end:
            pass

    def _report_done(self, pool: WorkerPool, tickets: list[Any]) -> None:
        """Report what lies in ``done/``, which needs no relay."""
        for ticket in tickets:
            if ticket.state == 'done':
                claim = self._claim(pool, ticket)
                if claim is not None:
                    report_settled(claim, self._dispatcher)

    def _claim(self, pool: WorkerPool, ticket: Any, *, settled: bool = False) -> Any:
        """A claim, or None. What is damaged has been put aside, and is an error event; what cannot
        be read stays where it is, and stops nobody."""
        try:
            claim = self._queue.claim(ticket, settled=settled)
            return claim and TrackedClaim(claim, pool, ticket)
        except DamagedMail as error:
            envelope = Envelope(
                id=error.name,
                message_id=error.name,
                sender='',
                recipients=(),
                raw=error.raw,
                queued_at=self._recorder.clock(),
            )
            fate = PendingEvent(
                id=f'{error.name}-0-error-0',
                kind='error',
                recipients=(),
                attempt=0,
                mailer='',
                reason=f'damaged: {error.reason}',
            )
            aside: Any = DamagedClaim(envelope)
            self._dispatcher.dispatch(aside, [fate])
        except QueueError as error:
            if error.errno not in ITS_OWN:
                raise
            if pool.unheard(ticket):
                log.error('%s cannot be claimed: %s', ticket.order, error)
        except Exception:
            if pool.unheard(ticket):
                log.exception('%s cannot be claimed', ticket.order)
        return None

    def _drain(self, pool: WorkerPool, connection: RelayConnection, tally: Tally) -> float:
        """Send what is due over one session; return the seconds that this worker should rest."""
        before = connection.mails_total
        try:
            self._queue.check_writable()
            with self._recording:
                self._recorder.write_unrecorded()
            attempt(self._claims(pool, connection), connection, self._recorder, tally)
            if connection.mails_total > before:
                pool.breaker.answered()
        except (MailerUnavailable, QueueError) as error:
            return self._closed(pool, error)
        return 0.0

    def _claims(self, pool: WorkerPool, connection: RelayConnection) -> Iterator[IMailClaim]:
        """Claim what is due, one by one, until nothing is left, the gate has been closed, or the
        pace has no place: it never waits."""
        pool.breaker.enter()
        pool.pending.nudge()
        before = connection.mails_total
        while pool.breaker.passable and (ticket := pool.pending.take()) is not None:
            if pool.pending.tell():
                self._queue.wake()
            if pool.unsynced >= SYNC_MAILS:
                pool.sync(self._queue)
            claim = None
            try:
                claim = self._claim(pool, ticket)
            finally:
                if not _leaves(claim, self._recorder.clock()):
                    pool.pending.unsent(ticket)
            if claim is None:
                pool.pending.missed(ticket)
            else:
                yield claim
            if connection.mails_total > before:
                before = connection.mails_total
                pool.breaker.answered()

    def _closed(self, pool: WorkerPool, error: MailerUnavailable | QueueError) -> float:
        if pool.pending.closed:
            return 0.0
        rest = pool.breaker.failed(error)
        if pool.once and not rest:
            # Before what takes time: nobody else shall try the road meanwhile.
            pool.give_up(error)
        if isinstance(error, MailerUnavailable) and not rest:
            with suppress(QueueError):
                self._settle_without_road(pool)
        return rest

    def _settle_without_road(self, pool: WorkerPool) -> None:
        """What only waits for its event, or to be moved, needs no relay."""
        for ticket in pool.pending.unexamined():
            claim = self._claim(pool, ticket, settled=True)
            if claim is not None:
                report_settled(claim, self._dispatcher)

    def _end(self, pool: WorkerPool) -> None:
        pool.dismiss(self._grace)
        with suppress(QueueError), self._recording:
            self._recorder.write_unrecorded()
        self._dispatcher.flush(pool.grace_left)
        pool.sync(self._queue)
        self._queue.close()


def _unsettled(tickets: list[Any]) -> list[Any]:
    return [ticket for ticket in tickets if ticket.state != 'done']


def _leaves(claim: Any, now: float) -> bool:
    """Whether a claim is one, and of a mail that will be sent: not of one that is only settled."""
    if claim is None or not claim.todo or claim.interrupted:
        return False
    expires: float | None = claim.envelope.expires
    return expires is None or now < expires


def _no_progress(tally: Tally, left: int) -> None:
    """Nobody looks."""
