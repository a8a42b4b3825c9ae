"""The queue processor: the loop that drains a queue.

One thread looks at the queue, the workers claim what it found and send it, each over a session of
its own. While the road is closed nothing is claimed, and one worker at a time tries it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from zope.interface import implementer

from .envelope import Envelope, Fate
from .exceptions import DamagedMail, MailerUnavailable, QueueError
from .interfaces import IMailClaim, IMailer, IMailQueue, IMailQueueProcessor
from .reporting import MailReporter
from .schedule import Gate, Pending
from .sending import Attempts, Road, Tally, attempt
from .threads import OwnThread

__all__ = ['QueueProcessor']

log = logging.getLogger(__name__)

POLL = 30.0
"""Seconds after which the queue is looked at although nothing woke the processor."""

SYNC = 1.0
"""Seconds, at most, between a delivery and the sync of the folder that it has left."""

GRACE = 60.0
"""Seconds that mail in flight has at the end."""

LIMIT = 20_000
"""Names kept in memory."""


@implementer(IMailQueueProcessor)
class QueueProcessor:
    """See IMailQueueProcessor. ``workers``: connections at once; ``batch``: mails on each."""

    def __init__(
        self,
        queue: IMailQueue,
        mailer: IMailer,
        reporter: MailReporter,
        attempts: Attempts,
        *,
        workers: int = 4,
        batch: int = 100,
        poll: float = POLL,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue: Any = queue
        self._mailer = mailer
        self._reporter = reporter
        self._attempts = attempts
        self._workers = workers
        self._batch = batch
        self._poll = poll
        self._monotonic = monotonic
        self._gate = Gate(monotonic)
        self._recording = threading.Lock()
        self._synced = 0

    def wake(self) -> None:
        self._queue.wake()

    def run(self, stop: threading.Event) -> None:
        self._queue.prepare()
        crew = Crew(self, once=False)
        try:
            while not stop.is_set():
                next_look = self._look(crew)
                while not stop.is_set() and self._monotonic() < next_look:
                    pause = next_look - self._monotonic()
                    if crew.pending.busy or self._synced != crew.tally.total:
                        pause = min(pause, SYNC)
                    if self._queue.wait(pause):
                        if crew.pending.exhausted:
                            break
                        next_look = min(next_look, self._look(crew, fresh=True))
                    self._sync(crew)
        finally:
            self._end(crew)

    def run_once(
        self,
        progress: Callable[[Tally, int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Tally:
        self._queue.prepare()
        start = self._attempts.clock()
        seen: set[str] = set()
        crew = Crew(self, once=True)
        try:
            fresh = False
            while True:
                now = self._attempts.clock() if fresh else start
                tickets, _ = self._queue.look(now, limit=LIMIT + len(seen), fresh=fresh)
                tickets = [ticket for ticket in tickets if _id(ticket.name) not in seen]
                if fresh and not tickets:
                    break
                fresh = len(tickets) < LIMIT
                seen.update(_id(ticket.name) for ticket in tickets)
                crew.pending.fill(self._report_done(tickets))
                while not crew.pending.await_rest(0.1):
                    if progress is not None:
                        progress(crew.tally, len(crew.pending))
                    if stop is not None and stop.is_set():
                        crew.pending.close()
                if crew.pending.closed:
                    break
            self._reporter.join(GRACE)
            done, _ = self._queue.look(self._attempts.clock(), limit=LIMIT)
            self._report_done(done)
            if progress is not None:
                progress(crew.tally, 0)
        finally:
            self._end(crew)
        if crew.error is not None:
            raise crew.error
        return crew.tally

    def _look(self, crew: Crew, *, fresh: bool = False) -> float:
        """Look at the queue; return when to look again, by the monotonic clock."""
        now, here = self._attempts.clock(), self._monotonic()
        try:
            tickets, next_due = self._queue.look(now, limit=LIMIT, fresh=fresh)
        except QueueError as error:
            self._gate.failed(error)
            return here + max(self._gate.closed_for(), 1.0)
        crew.pending.fill(self._report_done(tickets), more=len(tickets) >= LIMIT)
        return here + min(self._poll, max(next_due - now, 0.0) if next_due else self._poll)

    def _report_done(self, tickets: list[Any]) -> list[Any]:
        """Report what lies in ``done/``, which needs no relay; return the other tickets."""
        for ticket in tickets:
            if ticket.folder != 'done':
                continue
            try:
                claim = self._claim(ticket)
            except QueueError:
                log.exception('%s in done/ could not be reported', ticket.name)
                break
            if claim is not None:
                self._report(claim)
        return [ticket for ticket in tickets if ticket.folder != 'done']

    def _report(self, claim: Any) -> None:
        fates = claim.fates
        if fates:
            self._reporter.submit(claim, fates)
        else:
            claim.reported(())

    def _claim(self, ticket: Any, *, settled: bool = False) -> Any:
        """A claim, or None. What is damaged has been put aside, and is an error event."""
        try:
            return self._queue.claim(ticket, settled=settled)
        except DamagedMail as error:
            envelope = Envelope(
                id=error.name,
                message_id=error.name,
                sender='',
                recipients=(),
                raw=error.raw,
                queued_at=self._attempts.clock(),
            )
            fate = Fate(
                id=f'{error.name}-0-error-0',
                kind='error',
                recipients=(),
                attempt=0,
                mailer='',
                reason=f'damaged: {error.reason}',
            )
            self._reporter.submit(_Aside(envelope), [fate])
            return None

    def claims(self, pending: Pending, *, settled: bool = False) -> Iterator[IMailClaim]:
        """Claim what is due, one by one, until nothing is left."""
        while (ticket := pending.take()) is not None:
            claim = self._claim(ticket, settled=settled)
            if claim is not None:
                yield claim

    def drain(self, crew: Crew, road: Road) -> None:
        """Send what is due over one session. Called by the workers."""
        before = crew.tally.total
        try:
            self._queue.check()
            with self._recording:
                self._attempts.record()
            attempt(self.claims(crew.pending), road, self._attempts, crew.tally)
        except (MailerUnavailable, QueueError) as error:
            if crew.tally.total > before:
                self._gate.succeeded()
            self._gate.failed(error)
            if crew.once:
                crew.give_up(error)
            if isinstance(error, MailerUnavailable):
                self._settle_without_road(crew)
        else:
            self._gate.succeeded()

    def _settle_without_road(self, crew: Crew) -> None:
        """What only waits for its event, or to be moved, needs no relay."""
        tickets = crew.pending.all()
        try:
            for ticket in tickets:
                claim = self._claim(ticket, settled=True)
                if claim is not None:
                    self._report(claim)
        except QueueError as error:
            self._gate.failed(error)

    def _sync(self, crew: Crew) -> None:
        if self._synced != crew.tally.total:
            self._synced = crew.tally.total
            try:
                self._queue.sync()
            except OSError as error:
                log.error('the queue could not be synced: %s', error)

    def _end(self, crew: Crew) -> None:
        crew.dismiss()
        self._reporter.join(GRACE)
        self._sync(crew)
        self._queue.close()


class Crew:
    """The workers of one run."""

    def __init__(self, processor: QueueProcessor, *, once: bool) -> None:
        self.pending = Pending()
        self.tally = Tally()
        self.once = once
        self.error: MailerUnavailable | QueueError | None = None
        self._processor = processor
        self._roads: list[Road] = []
        self._threads = []
        for number in range(processor._workers):
            road = Road(processor._mailer, batch=processor._batch)
            thread = OwnThread(
                target=self._work,
                args=(road,),
                name=f'pyramid_sendmail worker {number + 1}',
                daemon=True,
            )
            self._roads.append(road)
            self._threads.append(thread)
            thread.start()

    def _work(self, road: Road) -> None:
        gate = self._processor._gate
        while self.pending.await_work(gate.admit, idle=road.close):
            try:
                self._processor.drain(self, road)
            except Exception as error:
                log.exception('a worker failed, and goes on')
                gate.failed(error)
                if self.once:
                    self.give_up(MailerUnavailable(f'a worker failed: {error!r}'))
            finally:
                self.pending.worked()
        road.close()

    def give_up(self, error: MailerUnavailable | QueueError) -> None:
        """``run_once`` tries a closed road once."""
        self.error = self.error or error
        self.pending.close()

    def dismiss(self) -> None:
        """Take nothing more, and wait for what is in flight; who only tries to reach a relay
        holds no mail and is not waited for."""
        self.pending.close()
        end = time.monotonic() + GRACE
        for road, thread in zip(self._roads, self._threads, strict=True):
            while thread.is_alive() and not road.connecting:
                thread.join(0.05)
                if time.monotonic() > end:
                    log.warning('%s is still sending: its mail is left as it is', thread.name)
                    return


class _Aside:
    """Stands for a file that has been put aside: there is no mail to settle."""

    fates = ()

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    def reported(self, fates: object) -> None:
        """Nothing to write down."""

    def postpone(self, fates: object, due: float) -> None:
        """It is in the log, and in ``failed/``."""

    def release(self) -> None:
        """Nothing is held."""


def _id(name: str) -> str:
    return name.rpartition('-')[2]
