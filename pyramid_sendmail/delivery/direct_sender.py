"""The sending thread of direct delivery: it claims at once what a commit has put into the queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from math import inf

from ..envelope import Tally, Verdict
from ..exceptions import DamagedMail, MailerUnavailable, QueueError
from ..interfaces import IMailClaim, IMailer, IScannableQueue
from ..queue.history import printable
from ..queue.ticket import Ticket
from ..sending.attempt import attempt
from ..sending.circuit_breaker import FIRST_PAUSE, CircuitBreaker
from ..sending.outcome import OutcomeRecorder, report_settled
from ..sending.refusals import NoMailTaken, Refusals
from ..sending.relay_connection import RelayConnection
from ..sending.throttling import Throttle
from ..threads import BackgroundThreads, in_background_thread
from .direct_claim import DirectClaim
from .handed_over import HandedOver

__all__ = ['DirectSender']

log = logging.getLogger(__name__)

QUEUE_RETRY_DELAY = 30.0
"""Seconds until a queue that could not be used is tried again."""

RECOVERY_INTERVAL = 300.0
"""Seconds between two scans for what stopped processes have left in a queue on disk."""

IDLE_TIME = 60.0
"""Seconds without mail after which the connection is closed, and the thread ends; the next mail
starts another one."""

MAX_WAITING_MAILS, MAX_WAITING_BYTES = 10_000, 64 * 1024 * 1024
"""Mails that may wait for the thread, and the bytes of those that have no other place, at most. A
first transaction may be larger."""

THREAD = 'pyramid_sendmail direct'


class DirectSender:
    """The sending thread of direct delivery, and the connection that it keeps.

    It runs no application code: events are dispatched by the event dispatcher's thread. It scans
    the queue for events to dispatch again, since no queue processor may run: when it starts, now
    and then, and before it ends.

    While the relay is unavailable the circuit breaker decides when it is tried again. Mail waits
    for that, and for the pauses of a relay that throttles. What has waited for a try that fails is
    lost, each mail with its error event, or stays in the queue where there is one. So is, or does,
    what does not fit into memory. Waits are measured by ``monotonic``: a clock may be set back.
    """

    def __init__(
        self,
        queue: IScannableQueue,
        mailer: IMailer,
        recorder: OutcomeRecorder,
        *,
        pause: float = FIRST_PAUSE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._monotonic = monotonic
        self._mailer = mailer
        self._recorder = recorder
        self._pause = pause
        self._threads = BackgroundThreads(self._forked, self.finish)
        self._connection = RelayConnection(mailer, idle=IDLE_TIME)
        self._reset()

    def _forked(self) -> None:
        # Outcomes that could not be written are the parent's.
        self._recorder.unrecorded = []
        self._reset()

    def _reset(self) -> None:
        self._mails: deque[HandedOver] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._scan_at = self._recover_at = inf
        """When to scan for events that are due, and for what stopped processes have left, by the
        monotonic clock."""
        self._latest_event = 0.0
        """When the last of the events is due that are to be dispatched again, in epoch seconds."""
        self._recovered = not self._recorder.durable
        """Whether no mail was handed over since the last scan."""
        self._busy = False
        self._used_at = 0.0
        """When mail was answered, or the thread began, by the monotonic clock."""
        self._throttled: deque[Ticket] = deque()
        """What is left of the mail that is being sent, to be sent after a pause."""
        self._unanswered = 0
        """Mails handed over for which there is no outcome yet."""
        self._unanswered_bytes = 0
        self._connected = False
        """Whether this process may have a connection of its own, not one inherited by a fork."""
        name, durable = self._mailer.name, self._recorder.durable
        self._breaker = CircuitBreaker(
            self._monotonic,
            relay=name,
            pause=self._pause,
            consequence='mail stays queued' if durable else 'mail is lost (no mail.queue_path)',
            backlog=self._backlog,
        )
        # Without a queue there is no mail to be saved from it.
        self._refusals = Refusals(name) if durable else None
        self._throttle = Throttle(name, pause=self._pause, monotonic=self._monotonic)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system cannot start another one."""
        self._threads.start(THREAD, self._run)

    def hand_over(self, tickets: tuple[Ticket, ...], size: int = 0) -> threading.Event:
        """Have the mail sent; the event is set when the relay has answered for all of it, or at
        once if the relay has been unavailable several times in a row. ``size``: see HandedOver.
        Raises RuntimeError as ``start`` does, and the mail waits for the next one."""
        answered = threading.Event()
        with self._changed:
            fits = self._fits(tickets, size)
            if fits:
                self._unanswered += len(tickets)
                self._unanswered_bytes += size
                self._mails.append(HandedOver(tickets, answered, size, self._monotonic()))
                self._recovered = not self._recorder.durable
                self._changed.notify_all()
        if fits:
            self.start()
        else:
            self._leave_out(tickets)
        if not fits or self._breaker.failures > 1:
            answered.set()
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
        self.start()

    def _fits(self, tickets: tuple[Ticket, ...], size: int) -> bool:
        return not self._unanswered or (
            self._unanswered + len(tickets) <= MAX_WAITING_MAILS
            and self._unanswered_bytes + size <= MAX_WAITING_BYTES
        )

    def _backlog(self) -> tuple[int, float]:
        """Return how many mails wait, and for how many seconds the first of them."""
        with self._changed:
            since = [mails.since for mails in self._mails]
            return self._unanswered, self._monotonic() - min(since) if since else 0.0

    def _leave_out(self, tickets: tuple[Ticket, ...]) -> None:
        """Settle mail that does not fit into memory. Runs in a thread that commits."""
        reason = f'too much mail waits for the relay already ({self._unanswered} mails)'
        if self._recorder.durable:
            log.warning(
                '%s: %s; %d mails stay queued for a queue processor',
                *(self._mailer.name, reason, len(tickets)),
            )
        else:
            self._not_sent(tickets, MailerUnavailable(f'{self._mailer.name}: {reason}'))

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
            self.start()
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
        return not self._jobs and not self._mails and not self._busy

    def _run(self) -> None:
        with self._changed:
            # What was left while no thread ran.
            self._recover_at = -inf if self._recorder.durable else inf
            self._used_at = self._monotonic()
        while (job := self._next_job()) is not None:
            try:
                job()
            except Exception:
                log.exception('direct delivery failed; the next mail is sent all the same')

    def _next_job(self) -> Callable[[], None] | None:
        """Wait for something to do; return None when the thread should end."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while True:
                job, wait = self._due_job()
                idle = self._monotonic() - self._used_at
                if job is None and not self._mails:
                    job = self._idle_job(idle)
                    if job is None and idle >= IDLE_TIME and self._scan_at == inf:
                        # Within the lock: the next mail must not count on this thread.
                        self._threads.forget(THREAD)
                        return None
                if job is not None:
                    self._busy = True
                    return job
                if idle < IDLE_TIME:
                    wait = min(wait, IDLE_TIME - idle)
                self._changed.wait(min(wait, self._connection.idle))

    def _due_job(self) -> tuple[Callable[[], None] | None, float]:
        """Return what is to be done now, or None, and the seconds until there may be something."""
        if self._jobs:
            return self._jobs.popleft(), 0.0
        wait = inf
        if self._mails:
            wait = max(self._throttle.retry_in(), self._breaker.retry_in())
            if wait <= 0:
                return partial(self._send, self._mails.popleft()), 0.0
        pause = min(self._scan_at, self._recover_at) - self._monotonic()
        if pause <= 0:
            self._scan_at = self._recover_at = inf
            return self._scan, 0.0
        return None, min(wait, pause)

    def _idle_job(self, idle: float) -> Callable[[], None] | None:
        """Return what is to be done after so many seconds without mail, or None."""
        if self._connected and idle >= self._connection.idle:
            return self._hang_up
        return self._scan if idle >= IDLE_TIME and not self._recovered else None

    def _send(self, mails: HandedOver) -> None:
        self._throttled = deque()
        try:
            self._queue.check_writable()
            self._recorder.write_unrecorded()
            self._attempt(mails.tickets)
        except MailerUnavailable as error:
            self._unavailable(mails, error)
        except QueueError as error:
            self._not_sent(mails.tickets, error)
        except Exception as error:
            log.exception('%s: sending failed', self._mailer.name)
            self._not_sent(mails.tickets, error)
        finally:
            self._answered(mails, self._throttled)

    def _answered(self, mails: HandedOver, left: Collection[Ticket] = ()) -> None:
        """Count mail that was answered; ``left``: what was throttled, and waits again."""
        with self._changed:
            self._used_at = self._monotonic()
            self._unanswered -= len(mails.tickets) - len(left)
            if left:
                # Behind the others: they need not be throttled, and hold up no mail then.
                self._mails.append(mails._replace(tickets=tuple(left)))
                return
            self._unanswered_bytes -= mails.size
        mails.answered.set()

    def _unavailable(self, mails: HandedOver, error: MailerUnavailable) -> None:
        """The relay could not be used. What has waited for it is not sent either."""
        self._breaker.record_failure(error, self)
        with self._changed:
            waiting = list(self._mails)
            self._mails.clear()
        try:
            self._not_sent(mails.tickets, error)
        finally:
            for each in waiting:
                try:
                    self._not_sent(each.tickets, error)
                except Exception:
                    log.exception('direct delivery failed; the next mail is sent all the same')
                self._answered(each)

    def _attempt(self, tickets: tuple[Ticket, ...]) -> None:
        # Mail for later too: the claim knows what the user asked for. Otherwise its time
        # is that of ``send``, by a clock that may have been set back since.
        left = deque(tickets)

        def claims() -> Iterator[IMailClaim]:
            while left and self._throttle.acquire():
                ticket = left.popleft()
                claim = self._claim(ticket, left)
                if claim is not None:
                    yield claim

        self._connected = True
        before: float = self._connection.mails_total
        try:
            while left and not self._throttle.retry_in():
                judges = self._refusals, self._throttle
                attempt(claims(), self._connection, self._recorder, Tally(), *judges)
        except NoMailTaken:
            before = inf
            raise
        finally:
            if self._connection.mails_total > before:
                self._breaker.session_opened(self)
                self._breaker.record_success(self)
        self._throttled = left

    def _claim(self, ticket: Ticket, left: deque[Ticket] | None = None) -> IMailClaim | None:
        """Return a claim, or None. ``left``: gets the ticket back if the mail is throttled."""
        try:
            claim = self._queue.claim(ticket)
        except DamagedMail as error:
            log.error('%s', printable(str(error)))
            return None
        if claim is None:
            return None
        wait = partial((deque() if left is None else left).append, ticket)
        return DirectClaim(claim, self.scan, wait, self._recorder.clock)

    def _not_sent(self, tickets: tuple[Ticket, ...], error: Exception) -> None:
        if self._recorder.durable:
            if isinstance(error, QueueError):
                log.warning('queue unavailable, mail stays queued: %s', error)
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
            self._recovered = True
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
                self._recover_at = self._monotonic() + RECOVERY_INTERVAL
        except QueueError as error:
            text = 'the queue could not be scanned for events, next try in %g s: %s'
            log.error(text, QUEUE_RETRY_DELAY, error)
            self._scan_in(QUEUE_RETRY_DELAY)
