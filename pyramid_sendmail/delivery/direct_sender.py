"""The sending thread of a direct delivery: what was put into the queue is claimed at once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf
from typing import Any

from ..envelope import PendingEvent, Verdict
from ..exceptions import DamagedMail, MailerUnavailable, QueueError
from ..interfaces import IMailer, IScannableQueue
from ..sending.attempt import OutcomeRecorder, Tally, attempt, report_settled
from ..sending.connection import RelayConnection
from ..threads import BackgroundThreads

__all__ = ['DirectSender']

log = logging.getLogger(__name__)

AGAIN = 30.0
"""Seconds until a queue that could not be used is tried again."""

EVERY = 300.0
"""Seconds between two looks at what processes that stopped have left in a queue on disk."""

ROUNDED = 0.001
"""A ticket tells milliseconds, so that what is due now may look due a moment later."""


class DirectSender:
    """The sending thread of a direct delivery, and the connection that it keeps.

    It runs no application code: events are the reporter's thread's. Those that have to be reported
    again it finds in the queue, for perhaps nobody else looks there.
    """

    def __init__(
        self, queue: IScannableQueue, mailer: IMailer, recorder: OutcomeRecorder, *, durable: bool
    ) -> None:
        self._queue: Any = queue
        self._mailer = mailer
        self._recorder = recorder
        self._durable = durable
        self._threads = BackgroundThreads(self._forked, self.finish)
        self._road = RelayConnection(mailer)
        self._reset()

    def _forked(self) -> None:
        # What could not be recorded is the parent's.
        self._recorder.unrecorded = []
        self._reset()

    def _reset(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._look_at = 0.0 if self._durable else inf
        self._busy = False
        self._connected = False
        """Whether there may be a connection of this process's own: not one inherited by a fork."""

    def start(self) -> None:
        """Start the thread. Raises RuntimeError where the system has none to give."""
        self._threads.start('pyramid_sendmail direct', self._run)

    def hand_over(self, tickets: tuple[Any, ...]) -> threading.Event:
        """Have the mail sent; the event is set when the relay has answered for all of it."""
        answered = threading.Event()
        with self._changed:
            self._jobs.append(partial(self._send, tickets, answered))
            self._changed.notify_all()
        return answered

    def scan(self, at: float = 0.0) -> None:
        """Have the queue looked through for events to report, at a time in epoch seconds."""
        with self._changed:
            self._look_at = min(self._look_at, at)
            self._changed.notify_all()

    def finish(self, timeout: float) -> None:
        """Send what is pending, and report it, within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        dispatcher: Any = self._recorder.dispatcher
        while self._rests(end) and dispatcher.join(max(end - time.monotonic(), 0.0)):
            with self._changed:
                # What subscribers have sent is pending again.
                if self._resting():
                    if not self._connected:
                        return
                    self._jobs.append(self._hang_up)
                    self._changed.notify_all()

    def _rests(self, end: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._resting, max(end - time.monotonic(), 0.0))

    def _resting(self) -> bool:
        return not self._jobs and not self._busy

    def _run(self) -> None:
        while True:
            job = self._next()
            try:
                job()
            except Exception:
                log.exception('direct delivery failed')

    def _next(self) -> Callable[[], None]:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._jobs:
                rest = self._look_at - self._recorder.clock()
                if rest <= 0:
                    self._look_at = inf
                    self._jobs.append(self._look)
                elif not self._changed.wait(min(rest, self._road.idle)) and self._connected:
                    self._jobs.append(self._hang_up)
            self._busy = True
            return self._jobs.popleft()

    def _send(self, tickets: tuple[Any, ...], answered: threading.Event) -> None:
        try:
            self._queue.check_writable()
            self._recorder.record()
            self._attempt(tickets)
        except (MailerUnavailable, QueueError) as error:
            self._unsent(tickets, error)
        except Exception as error:
            log.exception('%s: sending failed', self._mailer.name)
            self._unsent(tickets, error)
        finally:
            answered.set()

    def _attempt(self, tickets: tuple[Any, ...]) -> None:
        now = self._recorder.clock()
        left = deque(ticket for ticket in tickets if ticket.due < now + ROUNDED)
        if left:
            time.sleep(max(0.0, *(ticket.due - now for ticket in left)))

        def claims() -> Iterator[Any]:
            while left:
                claim = self._claim(left.popleft())
                if claim is not None:
                    yield claim

        self._connected = True
        while left:
            attempt(claims(), self._road, self._recorder, Tally())

    def _claim(self, ticket: Any) -> Any:
        try:
            claim = self._queue.claim(ticket)
        except DamagedMail as error:
            log.error('%s', error)
            return None
        return claim and DirectClaim(claim, self.scan, self._recorder.clock)

    def _unsent(self, tickets: tuple[Any, ...], error: Exception) -> None:
        if self._durable:
            log.warning('nothing can be sent now, the mail waits in the queue: %s', error)
            if self._recorder.unrecorded:
                self.scan(self._recorder.clock() + AGAIN)
            return
        # Without a queue there is no later: what was not sent has failed.
        for ticket in tickets:
            claim = self._claim(ticket)
            if claim is not None:
                verdict = Verdict('deferred', None, str(error) or repr(error))
                outcome = dict.fromkeys(claim.todo, verdict)
                self._recorder.settle(claim, outcome, self._mailer.name)

    def _hang_up(self) -> None:
        self._connected = False
        self._road.close()

    def _look(self) -> None:
        """Record what could not be recorded, report what subscribers have not taken, and bring to
        its end what stopped processes have left in ``tmp/``."""
        try:
            self._recorder.record()
            tickets, _ = self._queue.scan(self._recorder.clock())
            for ticket in tickets:
                if ticket.state == 'done' and (claim := self._claim(ticket)):
                    report_settled(claim, self._recorder.dispatcher)
            if self._durable:
                self.scan(self._recorder.clock() + EVERY)
        except QueueError as error:
            log.error('events could not be looked for: %s', error)
            self.scan(self._recorder.clock() + AGAIN)


class DirectClaim:
    """A claim that says when an event of it has to be looked for: ``scan(at)``, epoch seconds."""

    def __init__(
        self, claim: Any, look: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._claim = claim
        self._look = look
        self._clock = clock
        self._telling = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claim, name)

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._claim.settle(events, retry_at=retry_at, report=report)
        self._telling = report

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._claim.retry_events(events, due)
        self._look(due + ROUNDED)

    def release(self) -> None:
        self._claim.release()
        if self._telling:
            # The reporter had no room for it, or could not write down that it has told it.
            self._look(self._clock() + 1.0)
