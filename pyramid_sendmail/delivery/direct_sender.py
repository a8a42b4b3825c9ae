"""The sending thread of direct delivery: it claims at once what a commit has put into the queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf

from zope.interface import implementer

from ..envelope import PendingEvent, Tally, Verdict
from ..exceptions import DamagedMail, MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailer, IScannableQueue
from ..queue.history import printable
from ..queue.ticket import Ticket
from ..sending.attempt import attempt
from ..sending.outcome import OutcomeRecorder, report_settled
from ..sending.relay_connection import RelayConnection
from ..threads import BackgroundThreads, in_background_thread

__all__ = ['DirectSender']

log = logging.getLogger(__name__)

QUEUE_RETRY_DELAY = 30.0
"""Seconds until a queue that could not be used is tried again."""

RECOVERY_INTERVAL = 300.0
"""Seconds between two scans for what stopped processes have left in a queue on disk."""

EVENT_RETRY_DELAY = 1.0
"""Seconds until an event that the dispatcher gave back is tried again."""

TICKET_RESOLUTION = 0.001
"""Seconds by which due events may look due later: a ticket's time has milliseconds."""


class DirectSender:
    """The sending thread of direct delivery, and the connection that it keeps.

    It runs no application code: events are dispatched by the event dispatcher's thread. It scans
    the queue for events to dispatch again, since no queue processor may run.

    Waits are measured by ``monotonic``: the clock of the queue may be set back meanwhile.
    """

    def __init__(
        self,
        queue: IScannableQueue,
        mailer: IMailer,
        recorder: OutcomeRecorder,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._monotonic = monotonic
        self._mailer = mailer
        self._recorder = recorder
        self._threads = BackgroundThreads(self._forked, self.finish)
        self._connection = RelayConnection(mailer)
        self._reset()

    def _forked(self) -> None:
        # Outcomes that could not be written are the parent's.
        self._recorder.unrecorded = []
        self._reset()

    def _reset(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._scan_at = -inf if self._recorder.durable else inf
        """When to scan the queue, by the monotonic clock."""
        self._latest_event = 0.0
        """When the last of the events is due that are to be dispatched again, in epoch seconds."""
        self._busy = False
        self._unanswered = 0
        """Mails handed over for which there is no outcome yet."""
        self._connected = False
        """Whether this process may have a connection of its own, not one inherited by a fork."""

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system cannot start another one."""
        self._threads.start('pyramid_sendmail direct', self._run)

    def hand_over(self, tickets: tuple[Ticket, ...]) -> threading.Event:
        """Have the mail sent; the event is set when the relay has answered for all of it."""
        answered = threading.Event()
        with self._changed:
            self._unanswered += len(tickets)
            self._jobs.append(partial(self._send, tickets, answered))
            self._changed.notify_all()
        return answered

    def scan(self, at: float = 0.0) -> None:
        """Have the queue scanned for events to dispatch, at a time in epoch seconds."""
        with self._changed:
            self._latest_event = max(self._latest_event, at)
        self._scan_in(at - self._recorder.clock())

    def _scan_in(self, seconds: float) -> None:
        with self._changed:
            self._scan_at = min(self._scan_at, self._monotonic() + seconds)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """See IDirectMailDelivery.flush."""
        return self._flush(time.monotonic() + (0.0 if in_background_thread() else timeout))

    def finish(self, timeout: float) -> None:
        """Send pending mail, dispatch its events, and close the connection, within ``timeout``
        seconds."""
        end = time.monotonic() + timeout
        while self._flush(end):
            with self._changed:
                if not self._connected:
                    return
                self._jobs.append(self._hang_up)
                self._changed.notify_all()
        if self._unanswered and not self._recorder.durable:
            log.error(
                'the process ends before %s has taken %d mails: not sent and lost: no queue is '
                'configured (mail.queue_path)',
                self._mailer.name,
                self._unanswered,
            )

    def _flush(self, end: float) -> bool:
        dispatcher = self._recorder.dispatcher
        while self._wait_until_idle(end) and dispatcher.flush(max(end - time.monotonic(), 0.0)):
            with self._changed:
                # Subscribers may have sent mail meanwhile.
                if self._is_idle():
                    return True
        return False

    def _wait_until_idle(self, end: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._is_idle, max(end - time.monotonic(), 0.0))

    def _is_idle(self) -> bool:
        return not self._jobs and not self._busy

    def _run(self) -> None:
        while True:
            job = self._next_job()
            try:
                job()
            except Exception:
                log.exception('direct delivery failed; the next mail is sent all the same')

    def _next_job(self) -> Callable[[], None]:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._jobs:
                pause = self._scan_at - self._monotonic()
                if pause <= 0:
                    self._scan_at = inf
                    self._jobs.append(self._scan)
                elif not self._changed.wait(min(pause, self._connection.idle)) and self._connected:
                    self._jobs.append(self._hang_up)
            self._busy = True
            return self._jobs.popleft()

    def _send(self, tickets: tuple[Ticket, ...], answered: threading.Event) -> None:
        try:
            self._queue.check_writable()
            self._recorder.write_unrecorded()
            self._attempt(tickets)
        except (MailerUnavailable, QueueError) as error:
            self._not_sent(tickets, error)
        except Exception as error:
            log.exception('%s: sending failed', self._mailer.name)
            self._not_sent(tickets, error)
        finally:
            with self._changed:
                self._unanswered -= len(tickets)
            answered.set()

    def _attempt(self, tickets: tuple[Ticket, ...]) -> None:
        # Mail for later too: the claim knows what the user asked for. Otherwise its time
        # is that of ``send``, by a clock that may have been set back since.
        left = deque(tickets)

        def claims() -> Iterator[IMailClaim]:
            while left:
                claim = self._claim(left.popleft())
                if claim is not None:
                    yield claim

        self._connected = True
        while left:
            attempt(claims(), self._connection, self._recorder, Tally())

    def _claim(self, ticket: Ticket) -> IMailClaim | None:
        try:
            claim = self._queue.claim(ticket)
        except DamagedMail as error:
            log.error('%s', printable(str(error)))
            return None
        return None if claim is None else DirectClaim(claim, self.scan, self._recorder.clock)

    def _not_sent(self, tickets: tuple[Ticket, ...], error: Exception) -> None:
        if self._recorder.durable:
            part = 'queue' if isinstance(error, QueueError) else 'relay'
            log.warning('%s unavailable, mail stays queued: %s', part, error)
            if self._recorder.unrecorded:
                self._scan_in(QUEUE_RETRY_DELAY)
            return
        # Without a queue mail cannot be tried again: what was not sent has failed.
        for ticket in tickets:
            claim = self._claim(ticket)
            if claim is not None:
                verdict = Verdict('deferred', None, str(error) or repr(error))
                outcome = dict.fromkeys(claim.todo, verdict)
                self._recorder.record_outcome(claim, outcome, self._mailer.name)

    def _hang_up(self) -> None:
        self._connected = False
        self._connection.close()

    def _scan(self) -> None:
        """Write outcomes that could not be written, dispatch events again, and recover what
        stopped processes have left in ``tmp/``."""
        with self._changed:
            latest, self._latest_event = self._latest_event, 0.0
        now = self._recorder.clock()
        if latest > now:
            # Another event, or the clock was set back while this one waited.
            self.scan(latest)
        try:
            self._recorder.write_unrecorded()
            tickets, _ = self._queue.scan(now)
            for ticket in tickets:
                if ticket.state == 'done' and (claim := self._claim(ticket)):
                    report_settled(claim, self._recorder.dispatcher)
            if self._recorder.durable:
                self._scan_in(RECOVERY_INTERVAL)
        except QueueError as error:
            log.error(
                'the queue could not be scanned for events, next try in %g s: %s',
                QUEUE_RETRY_DELAY,
                error,
            )
            self._scan_in(QUEUE_RETRY_DELAY)


@implementer(IMailClaim)
class DirectClaim:
    """A claim that has the queue scanned when one of its events is due again.

    ``scan(at)``: called with the time of the scan, in epoch seconds.
    """

    def __init__(
        self, claim: IMailClaim, scan: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._claim = claim
        self._scan = scan
        self._clock = clock
        self._reporting = False
        self.envelope = claim.envelope
        self.todo = claim.todo
        self.since = claim.since
        self.interrupted = claim.interrupted
        self.ambiguous = claim.ambiguous

    @property
    def attempt(self) -> int:
        return self._claim.attempt

    @property
    def pending_events(self) -> Sequence[PendingEvent]:
        return self._claim.pending_events

    def mark_ambiguous(self, recipients: Sequence[str]) -> None:
        self._claim.mark_ambiguous(recipients)

    def clear_ambiguous(self) -> None:
        self._claim.clear_ambiguous()

    def settle(
        self, events: Sequence[PendingEvent], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._claim.settle(events, retry_at=retry_at, report=report)
        self._reporting = report

    def acknowledge(self, events: Iterable[PendingEvent]) -> None:
        self._claim.acknowledge(events)

    def retry_events(self, events: Iterable[PendingEvent], due: float) -> None:
        self._claim.retry_events(events, due)
        self._scan(due + TICKET_RESOLUTION)

    def release(self) -> None:
        self._claim.release()
        if self._reporting:
            # The dispatcher's backlog was full, or an acknowledged event could not be written.
            self._scan(self._clock() + EVENT_RETRY_DELAY)
