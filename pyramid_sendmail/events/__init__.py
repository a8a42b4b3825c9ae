"""The events that subscribers get: ``MailSentEvent``, ``MailDeferredEvent``, ``MailErrorEvent``."""

from .types import (
    KINDS,
    MailDeferredEvent,
    MailErrorEvent,
    MailEvent,
    MailSentEvent,
    MailTagPredicate,
    event_of,
)

__all__ = [
    'KINDS',
    'MailDeferredEvent',
    'MailErrorEvent',
    'MailEvent',
    'MailSentEvent',
    'MailTagPredicate',
    'event_of',
]
