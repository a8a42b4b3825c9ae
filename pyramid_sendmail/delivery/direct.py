"""Direct delivery: the relay gets the mail at commit, from a thread of this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Unpack

from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import MessageError
from ..interfaces import IDirectMailDelivery, IMailer, IScannableQueue, IStagedMail
from ..message import EnvelopeFactory
from ..sending.circuit_breaker import FIRST_PAUSE
from ..sending.outcome import OutcomeRecorder
from ..threads import in_background_thread
from .data_manager import Transaction
from .direct_sender import DirectSender
from .queued import EnvelopeOptions, QueuedMailDelivery

__all__ = ['DirectMailDelivery']

log = logging.getLogger(__name__)


@implementer(IDirectMailDelivery)
class DirectMailDelivery(QueuedMailDelivery):
    """See IDirectMailDelivery: the sending thread claims at once what the commit has queued.

    ``recorder``: its ``durable`` says whether the queue keeps mail that cannot be sent now.
    ``wait``: whether the commit waits for the relay's answer, for at most ``timeout`` seconds.
    ``pause``: see CircuitBreaker.
    """

    def __init__(
        self,
        queue: IScannableQueue,
        mailer: IMailer,
        envelope_factory: EnvelopeFactory,
        recorder: OutcomeRecorder,
        *,
        wait: bool = True,
        timeout: float = 30.0,
        pause: float = FIRST_PAUSE,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(queue, mailer, envelope_factory, sent=sent)
        self._recorder = recorder
        self._wait = wait
        self._timeout = timeout
        self._sender = DirectSender(queue, mailer, recorder, pause=pause)

    def flush(self, timeout: float) -> bool:
        return self._sender.flush(timeout)

    def freeze(
        self, message: object, *, depth: int = 0, **options: Unpack[EnvelopeOptions]
    ) -> Envelope:
        envelope = super().freeze(message, depth=depth, **options)
        if not self._recorder.durable and envelope.due > envelope.queued_at:
            raise MessageError(
                'due: without a queue a mail cannot wait for its time; set mail.queue_path'
            )
        return envelope

    def on_vote(self) -> None:
        """See TransactionalDelivery: start the sending thread, which may fail."""
        self._sender.start()

    def on_published(self, transaction: Transaction, staged: IStagedMail) -> None:
        """See TransactionalDelivery: hand the mail to the sending thread."""
        size = 0 if self._recorder.durable else getattr(staged, 'size', 0)
        answered = self._sender.hand_over(staged.tickets, size)
        if self._wait and not in_background_thread():
            transaction.addAfterCommitHook(self._await_answer, (answered,))

    def on_in_doubt(self) -> None:
        """See TransactionalDelivery: have the sending thread find the mail's error event."""
        self._sender.scan()

    def _await_answer(self, committed: bool, answered: threading.Event) -> None:
        if not answered.wait(self._timeout):
            log.warning(
                'the relay has not answered within %g seconds (mail.direct_timeout); the commit '
                'returns, and the mail is still being sent',
                self._timeout,
            )
