"""The events: what subscribers get when the outcome of a mail is known.

.. code-block:: python

    @subscriber(IMailErrorEvent, mail_tag='welcome')
    def mark_address(event):
        event.request.dbsession.add(Refusal(event.recipients, event.reason))

Each event comes with a request and a transaction of its own, begun after the mail was settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zope.interface import implementer

from ..envelope import Envelope, PendingEvent, Reply
from ..interfaces import IMailDeferredEvent, IMailErrorEvent, IMailSentEvent

__all__ = [
    'KINDS',
    'MailDeferredEvent',
    'MailErrorEvent',
    'MailEvent',
    'MailSentEvent',
    'MailTagPredicate',
    'event_of',
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MailEvent:
    """The attributes of all events; see IMailEvent."""

    id: str
    message_id: str
    sender: str
    recipients: tuple[str, ...]
    subject: str
    tag: str | None
    metadata: Mapping[str, str]
    attempt: int
    queued_at: float
    mailer: str
    request: Any


@implementer(IMailSentEvent)
@dataclass(frozen=True, slots=True, kw_only=True)
class MailSentEvent(MailEvent):
    """The relay has accepted the mail for these recipients."""

    reply: Reply


@implementer(IMailDeferredEvent)
@dataclass(frozen=True, slots=True, kw_only=True)
class MailDeferredEvent(MailEvent):
    """The mail waits for another attempt, at ``retry_at`` in epoch seconds."""

    reason: str
    retry_at: float


@implementer(IMailErrorEvent)
@dataclass(frozen=True, slots=True, kw_only=True)
class MailErrorEvent(MailEvent):
    """These recipients will not get the mail; ``raw`` has its bytes."""

    reason: str
    permanent: bool
    reply: Reply | None
    raw: bytes


KINDS: Mapping[str, type[MailEvent]] = {
    'sent': MailSentEvent,
    'deferred': MailDeferredEvent,
    'error': MailErrorEvent,
}


def event_of(pending: PendingEvent, envelope: Envelope, request: Any) -> MailEvent:
    """Return the event that subscribers get for a pending event."""
    common: dict[str, Any] = {
        'id': pending.id,
        'message_id': envelope.message_id,
        'sender': envelope.sender,
        'recipients': pending.recipients,
        'subject': envelope.subject,
        'tag': envelope.tag,
        'metadata': envelope.metadata,
        'attempt': pending.attempt,
        'queued_at': envelope.queued_at,
        'mailer': pending.mailer,
        'request': request,
    }
    if pending.kind == 'sent':
        return MailSentEvent(**common, reply=pending.reply or Reply(250, ''))
    if pending.kind == 'deferred':
        return MailDeferredEvent(**common, reason=pending.reason, retry_at=pending.retry_at or 0.0)
    return MailErrorEvent(
        **common,
        reason=pending.reason,
        permanent=pending.permanent,
        reply=pending.reply,
        raw=envelope.raw,
    )


class MailTagPredicate:
    """``mail_tag='welcome'`` on a subscriber: only events of mail with that tag."""

    def __init__(self, value: str, config: object) -> None:
        self.value = value

    def text(self) -> str:
        return f'mail_tag = {self.value!r}'

    phash = text

    def __call__(self, event: MailEvent) -> bool:
        return event.tag == self.value
