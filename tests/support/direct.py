"""Direct delivery in a test: a delivery with everything around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from transaction import TransactionManager
from zope.interface import implementer

from pyramid_sendmail import Message
from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.envelope import PendingEvent
from pyramid_sendmail.interfaces import IMailEventDispatcher
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER, RetryPolicy
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.support.transactions import message

__all__ = ['WAIT', 'Direct', 'Dispatcher']

WAIT = 10.0


@implementer(IMailEventDispatcher)
class Dispatcher:
    """Handles events in the sending thread; ``handle`` returns whether it has handled them."""

    def __init__(self) -> None:
        self.handled: list[tuple[str, PendingEvent]] = []
        self.handle: Callable[[Any, Sequence[PendingEvent]], bool] = lambda claim, events: True

    def wants(self, kind: str) -> bool:
        return True

    def dispatch(self, claim: Any, events: Sequence[PendingEvent]) -> None:
        if self.handle(claim, events):
            self.handled += [(claim.envelope.subject, event) for event in events]
            lasting = [event for event in events if event.kind != 'deferred']
            if lasting:
                claim.acknowledge(lasting)

    failures = 0

    def flush(self, timeout: float) -> bool:
        return True

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(subject, event.kind) for subject, event in self.handled]


class Direct:
    """A direct delivery and everything around it."""

    def __init__(
        self,
        queue: Any,
        mailer: Any,
        *,
        durable: bool,
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self.queue = queue
        self.mailer = mailer
        self.dispatcher = Dispatcher()
        policy = RetryPolicy() if durable else AT_ONCE_OR_NEVER
        self.recorder = OutcomeRecorder(policy, self.dispatcher, durable=durable, clock=clock)
        self.manager = TransactionManager(explicit=True)
        self.delivery = DirectMailDelivery(
            queue, mailer, EnvelopeFactory(clock=clock), self.recorder, **options
        )
        self.sender = self.delivery._sender
        self.bound = self.delivery.bind(self.manager)

    def commit(self, *messages: Message, **options: Any) -> list[str]:
        with self.manager:
            return [self.bound.send(each, **options) for each in messages or [message()]]

    def finish(self) -> None:
        self.sender.finish(WAIT)
