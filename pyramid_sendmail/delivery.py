"""The deliveries: what ``request.mailer`` is, and what becomes of a message at commit."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

import transaction
from zope.interface import implementer

from .envelope import Envelope, Fate, Outcome, Report, Verdict
from .exceptions import (
    DamagedMail,
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    MessageError,
    QueueError,
)
from .interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailer,
    IMailQueue,
    IQueuedMailDelivery,
)
from .message import Composer
from .reporting import trouble_depth
from .sending import Attempts, Road, Tally, attempt, report_settled
from .threads import OwnThreads, in_own_thread
from .transactions import active_transaction, join

__all__ = ['BoundMailDelivery', 'DirectMailDelivery', 'QueuedMailDelivery']

log = logging.getLogger(__name__)

AGAIN = 30.0
"""Seconds until a queue that could not be used is tried again."""

ROUNDED = 0.001
"""A ticket tells milliseconds, so that what is due now may look due a moment later."""

DEEPEST = 1
"""Mail about trouble is sent; mail about trouble with mail about trouble is only logged."""


@implementer(IQueuedMailDelivery)
class QueuedMailDelivery:
    """See IQueuedMailDelivery. ``sent`` is called whenever ``send`` has taken a message."""

    def __init__(
        self,
        queue: IMailQueue,
        mailer: IMailer,
        composer: Composer,
        *,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._mailer = mailer
        self._composer = composer
        self._sent = sent

    def send(self, message: Any, **options: Any) -> str:
        return self.bind(transaction.manager).send(message, **options)

    def send_now(self, message: Any, *, sender: Any = None, recipients: Any = None) -> Report:
        envelope = self._composer.envelope(message, sender=sender, recipients=recipients)
        return send_now(envelope, self._mailer)

    def bind(self, tm: Any, environ: Mapping[str, Any] | None = None) -> BoundMailDelivery:
        return BoundMailDelivery(self, tm, environ)

    def compose(self, message: Any, options: Mapping[str, Any]) -> Envelope:
        """The envelope of a message. Raises MessageError."""
        return self._composer.envelope(message, depth=trouble_depth(), **options)

    def join(self, transaction: Any, envelope: Envelope) -> None:
        """Have the envelope put into the queue when the transaction commits."""
        join(transaction, self, envelope)
        self._sent()

    @property
    def queue(self) -> IMailQueue:
        """See Committing."""
        return self._queue

    def voting(self) -> None:
        """See Committing."""

    def published(self, transaction: Any, put: Any) -> None:
        """See Committing: a queue processor does the rest."""

    def doubted(self) -> None:
        """See Committing: a queue processor finds it."""


@implementer(IDirectMailDelivery)
class DirectMailDelivery(QueuedMailDelivery):
    """See IDirectMailDelivery: what is put into the queue is claimed at once, by our own thread.

    ``durable``: the queue survives this process, and keeps what cannot be sent now. ``wait``:
    whether the commit waits for the relay's answer, at most ``timeout`` seconds.
    """

    def __init__(
        self,
        queue: IMailQueue,
        mailer: IMailer,
        composer: Composer,
        attempts: Attempts,
        *,
        durable: bool,
        wait: bool = True,
        timeout: float = 30.0,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(queue, mailer, composer, sent=sent)
        self._durable = durable
        self._wait = wait
        self._timeout = timeout
        self._sender = DirectSender(queue, mailer, attempts, durable=durable)

    def compose(self, message: Any, options: Mapping[str, Any]) -> Envelope:
        envelope = super().compose(message, options)
        if not self._durable and envelope.due > envelope.queued_at:
            raise MessageError(
                'due: without a queue a mail cannot wait for its time; set mail.queue_path'
            )
        return envelope

    def voting(self) -> None:
        self._sender.start()

    def published(self, transaction: Any, put: Any) -> None:
        answered = self._sender.hand_over(put.tickets)
        if self._wait and not in_own_thread():
            transaction.addAfterCommitHook(self._await, (answered,))

    def doubted(self) -> None:
        self._sender.look()

    def _await(self, committed: bool, answered: threading.Event) -> None:
        if not answered.wait(self._timeout):
            log.warning(
                'the relay has not answered within %g seconds (mail.direct_timeout); the mail is '
                'still being sent',
                self._timeout,
            )


@implementer(IMailDelivery)
class BoundMailDelivery:
    """A delivery joined to a transaction manager: ``request.mailer``."""

    def __init__(
        self, delivery: QueuedMailDelivery, tm: Any, environ: Mapping[str, Any] | None
    ) -> None:
        self._delivery = delivery
        self._tm = tm
        self._environ = environ

    def send(
        self,
        message: Any,
        *,
        sender: Any = None,
        recipients: Any = None,
        due: Any = None,
        expires: Any = None,
        priority: Any = None,
        metadata: Any = None,
    ) -> str:
        transaction = active_transaction(self._tm, self._environ)
        options = {
            'sender': sender,
            'recipients': recipients,
            'due': due,
            'expires': expires,
            'priority': priority,
            'metadata': metadata,
        }
        envelope = self._delivery.compose(message, options)
        if envelope.depth > DEEPEST:
            log.error(
                '%s: not sent, for it is mail about a failed mail about a failed mail; for %s, '
                'subject %r',
                envelope.message_id,
                ', '.join(envelope.recipients),
                envelope.subject,
            )
            return envelope.message_id
        self._delivery.join(transaction, envelope)
        return envelope.message_id

    def send_now(self, message: Any, *, sender: Any = None, recipients: Any = None) -> Report:
        return self._delivery.send_now(message, sender=sender, recipients=recipients)

    def bind(self, tm: Any, environ: Mapping[str, Any] | None = None) -> BoundMailDelivery:
        return self._delivery.bind(tm, environ)


class DirectSender:
    """The sending thread of a direct delivery, and the connection that it keeps.

    It runs no application code: events are the reporter's thread's. Those that have to be reported
    again it finds in the queue, for perhaps nobody else looks there.
    """

    def __init__(
        self, queue: IMailQueue, mailer: IMailer, attempts: Attempts, *, durable: bool
    ) -> None:
        self._queue: Any = queue
        self._mailer = mailer
        self._attempts = attempts
        self._durable = durable
        self._threads = OwnThreads(self._reset, self.finish)
        self._road = Road(mailer)
        self._reset()

    def _reset(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._look_at = inf
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

    def look(self, at: float = 0.0) -> None:
        """Have the queue looked through for events to report, at a time in epoch seconds."""
        with self._changed:
            self._look_at = min(self._look_at, at)
            self._changed.notify_all()

    def finish(self, timeout: float) -> None:
        """Send what is pending, and report it, within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        reporter: Any = self._attempts.reporter
        while self._rests(end) and reporter.join(max(end - time.monotonic(), 0.0)):
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
                rest = self._look_at - self._attempts.clock()
                if rest <= 0:
                    self._look_at = inf
                    self._jobs.append(self._look)
                elif not self._changed.wait(min(rest, self._road.idle)) and self._connected:
                    self._jobs.append(self._hang_up)
            self._busy = True
            return self._jobs.popleft()

    def _send(self, tickets: tuple[Any, ...], answered: threading.Event) -> None:
        try:
            self._queue.check()
            self._attempts.record()
            self._attempt(tickets)
        except (MailerUnavailable, QueueError) as error:
            self._unsent(tickets, error)
        except Exception as error:
            log.exception('%s: sending failed', self._mailer.name)
            self._unsent(tickets, error)
        finally:
            answered.set()

    def _attempt(self, tickets: tuple[Any, ...]) -> None:
        now = self._attempts.clock()
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
            attempt(claims(), self._road, self._attempts, Tally())

    def _claim(self, ticket: Any) -> Any:
        try:
            claim = self._queue.claim(ticket)
        except DamagedMail as error:
            log.error('%s', error)
            return None
        return claim and DirectClaim(claim, self.look, self._attempts.clock)

    def _unsent(self, tickets: tuple[Any, ...], error: Exception) -> None:
        if self._durable:
            log.warning('nothing can be sent now, the mail waits in the queue: %s', error)
            if self._attempts.unrecorded:
                self.look(self._attempts.clock() + AGAIN)
            return
        # Without a queue there is no later: what was not sent has failed.
        for ticket in tickets:
            claim = self._claim(ticket)
            if claim is not None:
                verdict = Verdict('deferred', None, str(error) or repr(error))
                outcome = dict.fromkeys(claim.todo, verdict)
                self._attempts.settle(claim, outcome, self._mailer.name)

    def _hang_up(self) -> None:
        self._connected = False
        self._road.close()

    def _look(self) -> None:
        """Record what could not be recorded, report what subscribers have not taken."""
        try:
            self._attempts.record()
            tickets, _ = self._queue.look(self._attempts.clock())
            for ticket in tickets:
                if ticket.folder == 'done' and (claim := self._claim(ticket)):
                    report_settled(claim, self._attempts.reporter)
        except QueueError as error:
            log.error('events could not be looked for: %s', error)
            self.look(self._attempts.clock() + AGAIN)


class DirectClaim:
    """A claim that says when an event of it has to be looked for: ``look(at)``, epoch seconds."""

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
        self, fates: Sequence[Fate], *, retry_at: float | None = None, report: bool = True
    ) -> None:
        self._claim.settle(fates, retry_at=retry_at, report=report)
        self._telling = report

    def postpone(self, fates: Iterable[Fate], due: float) -> None:
        self._claim.postpone(fates, due)
        self._look(due + ROUNDED)

    def release(self) -> None:
        self._claim.release()
        if self._telling:
            # The reporter had no room for it, or could not write down that it has told it.
            self._look(self._clock() + 1.0)


def send_now(envelope: Envelope, mailer: Any) -> Report:
    """Send over a connection of its own; see IMailDelivery.send_now."""
    session = mailer.connect()
    try:
        outcome: Outcome = next(iter(session.send([envelope])))
    finally:
        session.close()
    accepted = tuple(to for to, verdict in outcome.items() if verdict.status == 'delivered')
    refused = {to: verdict for to, verdict in outcome.items() if verdict.status != 'delivered'}
    replies = [outcome[to].reply for to in (accepted[:1] or tuple(refused)[-1:])]
    report = Report(
        envelope.message_id,
        accepted,
        {to: verdict.reply for to, verdict in refused.items()},
        replies[0] if replies else None,
    )
    log.info(
        '%s: send_now: accepted for %s; refused for %s',
        envelope.message_id,
        ', '.join(accepted) or 'nobody',
        ', '.join(refused) or 'nobody',
    )
    if accepted:
        return report
    ambiguous = any(verdict.status == 'ambiguous' for verdict in refused.values())
    error = MailAmbiguous if ambiguous else MailRefused
    words = '; '.join(f'{to}: {verdict}' for to, verdict in refused.items())
    raise error(f'{envelope.message_id}: no recipient was accepted: {words}', report)
