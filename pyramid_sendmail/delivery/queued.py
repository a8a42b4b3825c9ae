"""The deliveries: what ``request.mailer`` is, and what becomes of a message at commit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import transaction
from zope.interface import implementer

from ..interfaces import IDirectMailDelivery, IMailer, IMailQueue, IQueuedMailDelivery
from ..standin import real, stand_in

if TYPE_CHECKING:
    from ..bound import BoundMailDelivery
    from ..envelope import Envelope, Report
    from ..message import EnvelopeFactory
    from ..sending.attempt import OutcomeRecorder

__all__ = ['DirectMailDelivery', 'QueuedMailDelivery']

log = logging.getLogger(__name__)


@implementer(IQueuedMailDelivery)
class QueuedMailDelivery:
    """See IQueuedMailDelivery. ``sent`` is called whenever ``send`` has taken a message."""

    def __init__(
        self,
        queue: IMailQueue,
        mailer: IMailer,
        envelope_factory: EnvelopeFactory,
        *,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._mailer = mailer
        self._envelope_factory = envelope_factory
        self._sent = sent

    def send(self, message: Any, **options: Any) -> str:
        return self.bind(transaction.manager).send(message, **options)

    def send_now(self, message: Any, *, sender: Any = None, recipients: Any = None) -> Report:
        from ..bound import send_now

        envelope = self._envelope_factory.envelope(message, sender=sender, recipients=recipients)
        return send_now(envelope, self._mailer)

    def bind(self, tm: Any, environ: Mapping[str, Any] | None = None) -> BoundMailDelivery:
        return _bound()(self, tm, environ)

    def freeze(self, message: Any, options: Mapping[str, Any]) -> Envelope:
        """The envelope of a message. Raises MessageError."""
        return self._envelope_factory.envelope(message, **options)

    def prepare(self) -> None:
        """Have all there that a commit needs: what goes wrong over that, goes wrong before it."""
        self._queue, self._envelope_factory = real(self._queue), real(self._envelope_factory)

    def joined(self) -> None:
        """A transaction has taken an envelope."""
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
        envelope_factory: EnvelopeFactory,
        recorder: OutcomeRecorder,
        *,
        durable: bool,
        wait: bool = True,
        timeout: float = 30.0,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(queue, mailer, envelope_factory, sent=sent)
        self._durable = durable
        self._wait = wait
        self._timeout = timeout
        self._recorder = recorder
        self._sender: Any = stand_in(self._new_sender)

    def _new_sender(self) -> Any:
        from .direct_sender import DirectSender

        parts: Any = (real(self._queue), real(self._mailer), real(self._recorder))
        return DirectSender(*parts, durable=self._durable)

    def prepare(self) -> None:
        super().prepare()
        self._sender = real(self._sender)

    def freeze(self, message: Any, options: Mapping[str, Any]) -> Envelope:
        envelope = super().freeze(message, options)
        if not self._durable and envelope.due > envelope.queued_at:
            from ..exceptions import MessageError

            raise MessageError(
                'due: without a queue a mail cannot wait for its time; set mail.queue_path'
            )
        return envelope

    def voting(self) -> None:
        self._sender.start()

    def published(self, transaction: Any, put: Any) -> None:
        from ..threads import in_background_thread

        answered = self._sender.hand_over(put.tickets)
        if self._wait and not in_background_thread():
            transaction.addAfterCommitHook(self._await, (answered,))

    def doubted(self) -> None:
        self._sender.scan()

    def _await(self, committed: bool, answered: threading.Event) -> None:
        if not answered.wait(self._timeout):
            log.warning(
                'the relay has not answered within %g seconds (mail.direct_timeout); the mail is '
                'still being sent',
                self._timeout,
            )


@cache
def _bound() -> type[BoundMailDelivery]:
    """Its module has all that a send needs; an import statement would take longer each time."""
    from ..bound import BoundMailDelivery

    return BoundMailDelivery
