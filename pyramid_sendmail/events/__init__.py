"""What became of a mail, as subscribers see it."""

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
