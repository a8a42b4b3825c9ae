"""Queued delivery, and ``request.mailer``: a delivery bound to a transaction manager."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from email.headerregistry import Address
from typing import TypedDict, Unpack, cast

import transaction
from zope.interface import implementer

from ..envelope import Envelope, Priority, Report
from ..events.loop_guard import ENVIRON_KEY, current_depth, depth_by_cause, why_too_deep
from ..interfaces import (
    IMailDelivery,
    IMailer,
    IMailEvent,
    IMailQueue,
    IQueuedMailDelivery,
    IStagedMail,
)
from ..message import EnvelopeFactory
from ..message.address import Addresses
from .data_manager import Transaction, TransactionManager, active_transaction, join
from .send_now import send_now

__all__ = [
    'BoundMailDelivery',
    'EnvelopeOptions',
    'QueuedMailDelivery',
    'SendOptions',
    'no_notice',
]

log = logging.getLogger(__name__)


class EnvelopeOptions(TypedDict, total=False):
    """The options of IMailDelivery.send that the envelope has."""

    sender: str | Address | None
    recipients: Addresses | None
    due: datetime | timedelta | None
    expires: datetime | timedelta | None
    priority: Priority | None
    metadata: Mapping[str, str] | None


class SendOptions(EnvelopeOptions, total=False):
    """The options of IMailDelivery.send."""

    cause: IMailEvent | str | None


def no_notice() -> None:
    """Do nothing: there is no processor thread to start."""


@implementer(IQueuedMailDelivery)
class QueuedMailDelivery:
    """See IQueuedMailDelivery. ``sent`` is called each time ``send`` has taken a message."""

    def __init__(
        self,
        queue: IMailQueue,
        mailer: IMailer,
        envelope_factory: EnvelopeFactory,
        *,
        sent: Callable[[], None] = no_notice,
    ) -> None:
        self._queue = queue
        self._mailer = mailer
        self._envelope_factory = envelope_factory
        self._sent = sent

    def send(self, message: object, **options: Unpack[SendOptions]) -> str:
        return self.bind(transaction.manager).send(message, **options)

    def send_now(
        self,
        message: object,
        *,
        sender: str | Address | None = None,
        recipients: Addresses | None = None,
    ) -> Report:
        envelope = self._envelope_factory.envelope(message, sender=sender, recipients=recipients)
        return send_now(envelope, self._mailer)

    def bind(
        self, tm: TransactionManager, environ: Mapping[str, object] | None = None
    ) -> BoundMailDelivery:
        return BoundMailDelivery(self, tm, environ)

    def freeze(
        self, message: object, *, depth: int = 0, **options: Unpack[EnvelopeOptions]
    ) -> Envelope:
        """Return the envelope of a message. Raises MessageError."""
        return self._envelope_factory.envelope(message, depth=depth, **options)

    @property
    def queue(self) -> IMailQueue:
        """See TransactionalDelivery."""
        return self._queue

    def on_joined(self, envelope: Envelope) -> None:
        """See TransactionalDelivery: start the processor's thread, if it is in this process."""
        self._sent()

    def on_vote(self) -> None:
        """See TransactionalDelivery: there is nothing to prepare."""

    def on_published(self, transaction: Transaction, staged: IStagedMail) -> None:
        """See TransactionalDelivery: a queue processor does the rest."""

    def on_in_doubt(self) -> None:
        """See TransactionalDelivery: a queue processor finds the mail."""


@implementer(IMailDelivery)
class BoundMailDelivery:
    """``request.mailer``: a delivery bound to a transaction manager.

    ``origin``: the environment of an event's request, if this is its mailer bound to another
    manager.
    """

    def __init__(
        self,
        delivery: QueuedMailDelivery,
        tm: TransactionManager,
        environ: Mapping[str, object] | None,
        origin: Mapping[str, object] | None = None,
    ) -> None:
        self._delivery = delivery
        self._tm = tm
        self._environ = environ
        self._origin = origin or environ

    def send(
        self,
        message: object,
        *,
        sender: str | Address | None = None,
        recipients: Addresses | None = None,
        due: datetime | timedelta | None = None,
        expires: datetime | timedelta | None = None,
        priority: Priority | None = None,
        metadata: Mapping[str, str] | None = None,
        cause: IMailEvent | str | None = None,
    ) -> str:
        transaction = active_transaction(self._tm, self._environ)
        envelope = self._delivery.freeze(
            message,
            sender=sender,
            recipients=recipients,
            due=due,
            expires=expires,
            priority=priority,
            metadata=metadata,
            depth=self._depth() if cause is None else depth_by_cause(cause),
        )
        reason = why_too_deep(envelope.depth)
        if reason:
            log.error(
                '%s: not sent: %s; for %s, subject %r',
                envelope.message_id,
                reason,
                ', '.join(envelope.recipients),
                envelope.subject,
            )
        else:
            join(transaction, self._delivery, envelope)
            if log.isEnabledFor(logging.DEBUG):
                log.debug(
                    '%s: leaves when the transaction commits; for %s, subject %r',
                    envelope.message_id,
                    ', '.join(envelope.recipients),
                    envelope.subject,
                )
        return envelope.message_id

    def _depth(self) -> int:
        """Return the depth of what is sent here: see loop_guard."""
        depth = current_depth.get()
        if depth is None and self._origin is not None:
            # Another thread than the subscriber's, with the mailer of the event's request.
            depth = cast('int | None', self._origin.get(ENVIRON_KEY))
        return depth or 0

    def send_now(
        self,
        message: object,
        *,
        sender: str | Address | None = None,
        recipients: Addresses | None = None,
    ) -> Report:
        return self._delivery.send_now(message, sender=sender, recipients=recipients)

    def bind(
        self, tm: TransactionManager, environ: Mapping[str, object] | None = None
    ) -> BoundMailDelivery:
        return BoundMailDelivery(self._delivery, tm, environ, self._origin)
