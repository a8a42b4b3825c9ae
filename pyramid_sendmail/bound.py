"""``request.mailer``: a delivery joined to a transaction; and sending without one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from .delivery.data_manager import active_transaction, join
from .envelope import Envelope, Outcome, Report
from .events.loop_guard import notification_depth
from .exceptions import MailAmbiguous, MailRefused
from .interfaces import IMailDelivery

if TYPE_CHECKING:
    from .delivery.queued import QueuedMailDelivery

__all__ = ['BoundMailDelivery', 'send_now']

log = logging.getLogger(__name__)

MAX_NOTIFICATION_DEPTH = 1
"""Mail about trouble is sent; mail about trouble with mail about trouble is only logged."""


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
            'depth': notification_depth(),
        }
        envelope = self._delivery.freeze(message, options)
        if envelope.depth > MAX_NOTIFICATION_DEPTH:
            log.error(
                '%s: not sent, for it is mail about a failed mail about a failed mail; for %s, '
                'subject %r',
                envelope.message_id,
                ', '.join(envelope.recipients),
                envelope.subject,
            )
            return envelope.message_id
        self._delivery.prepare()
        join(transaction, self._delivery, envelope)
        self._delivery.joined()
        return envelope.message_id

    def send_now(self, message: Any, *, sender: Any = None, recipients: Any = None) -> Report:
        return self._delivery.send_now(message, sender=sender, recipients=recipients)

    def bind(self, tm: Any, environ: Mapping[str, Any] | None = None) -> BoundMailDelivery:
        return self._delivery.bind(tm, environ)


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
