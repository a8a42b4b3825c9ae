"""The deliveries: what ``request.mailer`` is, and what becomes of a message at commit."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import transaction
from zope.interface import implementer

from .envelope import Envelope, Outcome, Report, Verdict
from .exceptions import (
    DamagedMail,
    MailAmbiguous,
    MailerUnavailable,
    MailRefused,
    MessageError,
    QueueError,
    SendmailError,
)
from .interfaces import (
    IDirectMailDelivery,
    IMailDelivery,
    IMailer,
    IMailQueue,
    IQueuedMailDelivery,
)
from .message import Composer
from .reporting import MailReporter, trouble_depth
from .sending import Attempts, Road, Tally, attempt
from .threads import OwnThreads, in_own_thread
from .transactions import active_transaction, join

__all__ = ['BoundMailDelivery', 'DirectMailDelivery', 'QueuedMailDelivery']

log = logging.getLogger(__name__)

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
        join(
            transaction,
            self._queue,
            envelope,
            voting=self._voting,
            published=self._published,
        )
        self._sent()

    def _voting(self) -> None:
        """Nothing that could fail is left for the commit."""

    def _published(self, transaction: Any, put: Any) -> None:
        """A queue processor does the rest."""


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

    def _voting(self) -> None:
        self._sender.start()

    def _published(self, transaction: Any, put: Any) -> None:
        answered = self._sender.hand_over(put.tickets)
        if self._wait and not in_own_thread():
            transaction.addAfterCommitHook(self._await, (answered,))

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

    It runs no application code: events are the reporter's thread's.
    """

    def __init__(
        self, queue: IMailQueue, mailer: IMailer, attempts: Attempts, *, durable: bool
    ) -> None:
        self._queue: Any = queue
        self._mailer: Any = mailer
        self._attempts = attempts
        self._durable = durable
        self._threads = OwnThreads()
        self._road = Road(mailer)
        self._reset()

    def _reset(self) -> None:
        self._jobs: deque[tuple[tuple[Any, ...], threading.Event]] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def start(self) -> None:
        """Start the threads. Raises RuntimeError where the system has none to give."""
        if self._threads.forked():
            self._reset()
        self._threads.start('pyramid_sendmail direct', self._run, self.finish)

    def hand_over(self, tickets: tuple[Any, ...]) -> threading.Event:
        """Have the mail sent; the event is set when the relay has answered for all of it."""
        answered = threading.Event()
        with self._changed:
            self._jobs.append((tickets, answered))
            self._changed.notify_all()
        return answered

    def finish(self, timeout: float) -> None:
        """Send what is pending, and report it, within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy, timeout)
        reporter: Any = self._attempts.reporter
        reporter.join(max(end - time.monotonic(), 0.0))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: bool(self._jobs), self._road.idle):
                    self._road.close()
                    continue
                tickets, answered = self._jobs.popleft()
                self._busy = True
            try:
                self._send(tickets)
            except Exception:
                log.exception('direct delivery failed')
            finally:
                answered.set()

    def _send(self, tickets: tuple[Any, ...]) -> None:
        tally = Tally()
        now = self._attempts.clock()
        left = deque(ticket for ticket in tickets if ticket.due <= now)

        def claims() -> Iterator[Any]:
            while left:
                ticket = left.popleft()
                try:
                    claim = self._queue.claim(ticket)
                except DamagedMail as error:
                    log.error('%s', error)
                    continue
                if claim is not None:
                    yield claim

        try:
            self._queue.check()
            self._attempts.record()
            while left:
                attempt(claims(), self._road, self._attempts, tally)
        except MailerUnavailable as error:
            if self._durable:
                log.warning('nothing can be sent now, the mail waits in the queue: %s', error)
            else:
                self._fail(tickets, error)
        except QueueError as error:
            log.error('nothing can be sent now: %s', error)

    def _fail(self, tickets: tuple[Any, ...], error: SendmailError) -> None:
        """Without a queue there is no later: what was not sent has failed."""
        for ticket in tickets:
            claim = self._queue.claim(ticket)
            if claim is not None:
                outcome = dict.fromkeys(claim.todo, Verdict('deferred', None, str(error)))
                self._attempts.settle(claim, outcome, self._mailer.name)


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
