"""The workers of a queue processor, and what its claims tell it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from ..envelope import Envelope, PendingEvent
from ..exceptions import MailerUnavailable, QueueError
from ..sending.connection import RelayConnection
from ..sending.outcome import Tally
from ..threads import BackgroundThread
from .active_queue import ActiveQueue
from .circuit_breaker import CircuitBreaker, ConcurrencyController
from .rate_limiter import RateLimiter

__all__ = ['UNTOLD', 'DamagedClaim', 'TrackedClaim', 'WorkerPool']

log = logging.getLogger(__name__)

UNTOLD = 1.0
"""Seconds until an event is looked for that had no room among those that wait."""

_total: Callable[[Tally], int] = attrgetter('total')


class WorkerPool:
    """The workers of one run: ``drain(crew, road, tally)`` is what each does, over and over.

    ``stop``: set by whoever wants the run to end.
    """

    def __init__(
        self,
        connections: list[RelayConnection],
        drain: Callable[[WorkerPool, RelayConnection, Tally], float],
        breaker: CircuitBreaker,
        help: ConcurrencyController,
        rate_limiter: RateLimiter,
        wake: Callable[[], None],
        stop: threading.Event,
        *,
        once: bool,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.pending = ActiveQueue(rate_limiter)
        self.breaker = breaker
        self._help = help
        self.once = once
        self.error: MailerUnavailable | QueueError | None = None
        self.next_look = 0.0
        """When the whole queue is looked at again, by the monotonic clock."""
        self.rested = {True: float('-inf'), False: float('-inf')}
        """When fresh mail, and the whole queue, may be looked at again."""
        self._drain = drain
        self._clock = clock
        self._monotonic = monotonic
        self._wake = wake
        self.stop = stop
        self._deadline: float | None = None
        self._looking = threading.Lock()
        self._synced = 0
        self._complaints: set[Any] = set()
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
        """What all of them have come to so far."""
        total = Tally()
        for tally in self._tallies:
            total.add(tally)
        return total

    @property
    def unsynced(self) -> int:
        return sum(map(_total, self._tallies)) - self._synced

    @property
    def left(self) -> int:
        """How many mails are due or in flight, as far as anybody knows."""
        return len(self.pending) + sum(connection.mails_waiting for connection, _ in self._workers)

    @property
    def busy(self) -> bool:
        """Whether something has been done, or may be done any moment, that needs a sync."""
        return bool(
            self.unsynced
            or self.pending.working
            or (len(self.pending) and not self.breaker.closed_for())
        )

    def look_by(self, moment: float) -> bool:
        """Have the whole queue looked at no later than then; whether that changes anything."""
        with self._looking:
            sooner = moment < self.next_look
            if sooner:
                self.next_look = moment
            return sooner

    def due_again(self, due: float) -> None:
        """Something has to be looked for then, in epoch seconds, perhaps before the next look."""
        if self.look_by(self._monotonic() + max(due - self._clock(), 0.0)):
            self._wake()

    def untold(self) -> None:
        """An event had no room among those that wait."""
        self.due_again(self._clock() + UNTOLD)

    def sync(self, queue: Any) -> None:
        total = self.tally.total
        if total != self._synced:
            self._synced = total
            try:
                queue.sync()
            except OSError as error:
                log.error('the queue could not be synced: %s', error)

    def _work(self, connection: RelayConnection, tally: Tally) -> None:
        while self.pending.await_work(self._admit, idle=connection.close):
            try:
                rest = self._drain(self, connection, tally)
            except Exception as error:
                log.exception('a worker failed, and goes on')
                rest = self.breaker.failed(error)
                if self.once:
                    self.give_up(MailerUnavailable(f'a worker failed: {error!r}'))
            self.breaker.leave()
            self.pending.worked(again=bool(rest or self.breaker.closed_for()))
            if self.pending.tell():
                self._wake()
            if rest:
                self.pending.rest(rest)
        connection.close()

    def _admit(self) -> float:
        return self._help.wait(self.pending.working) or self.breaker.admit()

    def released(self, ticket: Any) -> None:
        """A claim of it was released as it was; ``run_once`` looks for no mail a second time, and
        has another worker take it."""
        self.pending.unsent(ticket, again=self.once)

    def unheard(self, ticket: Any) -> bool:
        """Whether nobody has complained about this one yet."""
        heard = ticket in self._complaints
        self._complaints.add(ticket)
        return not heard

    def give_up(self, error: MailerUnavailable | QueueError) -> None:
        """``run_once`` tries a closed road once."""
        self.error = self.error or error
        self.pending.close()

    def dismiss(self, grace: float) -> None:
        """Take nothing more, and wait for what is in flight, so many seconds at most from the first
        call on; who only tries to reach a relay holds no mail and is not waited for."""
        self.pending.close()
        again = self._deadline is not None
        self._deadline = self._deadline or time.monotonic() + grace
        for connection, thread in self._workers:
            while thread.is_alive() and not connection.connecting and self.grace_left:
                thread.join(0.05)
        late = [
            thread.name for connection, thread in self._workers if _holds_mail(connection, thread)
        ]
        if late and not again:
            log.warning('still sending, and left to itself: %s', ', '.join(late))

    @property
    def grace_left(self) -> float:
        """Seconds that what was dismissed still has; subscribers work beside the mail in flight,
        and have no more."""
        return max((self._deadline or 0.0) - time.monotonic(), 0.0)


class TrackedClaim:
    """A claim that tells the crew when its mail, or an event of it, is due again, that it was
    released as it was, or that an event of it was not told, since too many wait already."""

    __slots__ = (
        *('_claim', '_crew', '_ticket', '_settled', '_telling'),
        *('envelope', 'interrupted', 'mark_ambiguous', 'todo'),
    )

    def __init__(self, claim: Any, pool: WorkerPool, ticket: Any) -> None:
        self._claim = claim
        self._crew = pool
        self._ticket = ticket
        self._settled = False
        self._telling = bool(claim.pending_events)
        # What never changes and is asked for often.
        self.envelope: Envelope = claim.envelope
        self.todo: tuple[str, ...] = claim.todo
        self.interrupted: str = claim.interrupted
        self.mark_ambiguous: Callable[[Sequence[str]], None] = claim.mark_ambiguous

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    @property
    def attempt(self) -> int:
        return int(self._claim.attempt)

    @property
    def pending_events(self) -> Sequence[PendingEvent]:
        events: Sequence[PendingEvent] = self._claim.pending_events
        return events

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._settled = True
        self._claim.settle(events, retry_at=retry_at, report=report)
        self._telling = report
        if retry_at is not None:
            self._crew.due_again(retry_at)

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._claim.retry_events(events, due)
        self._crew.due_again(due)

    def release(self) -> None:
        self._claim.release()
        if self._telling:
            self._crew.untold()
        if self.todo and not self._settled:
            self._crew.released(self._ticket)


class DamagedClaim:
    """Stands for a file that has been put aside: there is no mail to settle."""

    pending_events = ()

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    def acknowledge(self, events: object) -> None:
        """Nothing to write down."""

    def retry_events(self, events: object, due: float) -> None:
        """It is in the log, and in ``failed/``."""

    def release(self) -> None:
        """Nothing is held."""


def _holds_mail(connection: RelayConnection, thread: threading.Thread) -> bool:
    return thread.is_alive() and not connection.connecting
