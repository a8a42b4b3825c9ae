"""What became of a mail, as subscribers see it.

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
    """What every event tells; see IMailEvent."""

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
    """The next hop has taken responsibility for these recipients."""

    reply: Reply


@implementer(IMailDeferredEvent)
@dataclass(frozen=True, slots=True, kw_only=True)
class MailDeferredEvent(MailEvent):
    """The mail waits for another attempt, at ``retry_at`` (epoch seconds)."""

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


def event_of(fate: PendingEvent, envelope: Envelope, request: Any) -> MailEvent:
    """The event that tells a mail's fate."""
    common: dict[str, Any] = {
        'id': fate.id,
        'message_id': envelope.message_id,
        'sender': envelope.sender,
        'recipients': fate.recipients,
        'subject': envelope.subject,
        'tag': envelope.tag,
        'metadata': envelope.metadata,
        'attempt': fate.attempt,
        'queued_at': envelope.queued_at,
        'mailer': fate.mailer,
        'request': request,
    }
    if fate.kind == 'sent':
        return MailSentEvent(**common, reply=fate.reply or Reply(250, ''))
    if fate.kind == 'deferred':
        return MailDeferredEvent(**common, reason=fate.reason, retry_at=fate.retry_at or 0.0)
    return MailErrorEvent(
        **common,
        reason=fate.reason,
        permanent=fate.permanent,
        reply=fate.reply,
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
