"""What the demo does with the outcome of a mail: ordinary Pyramid subscribers.

They run in the queue processor, each event in a request and a transaction of its own.
"""

from __future__ import annotations

import time
from typing import Any

from pyramid.config import Configurator
from sqlalchemy import delete

from pyramid_sendmail.interfaces import (
    IMailDeferredEvent,
    IMailErrorEvent,
    IMailEvent,
    IMailSentEvent,
)

from .models import LogEntry

__all__ = ['on_deferred', 'on_error', 'on_sent', 'write']


def on_sent(event: Any) -> None:
    """Write that the relay has accepted it."""
    write(event, 'sent', reply=str(event.reply))


def on_deferred(event: Any) -> None:
    """Write that the queue processor will try again."""
    write(event, 'deferred', reason=event.reason, retry_at=event.retry_at)


def on_error(event: Any) -> None:
    """Write that it will never arrive; an application would mark the address as bad."""
    write(event, 'error', reply=str(event.reply or ''), reason=event.reason)


def write(
    event: IMailEvent, kind: str, reply: str = '', reason: str = '', retry_at: float | None = None
) -> None:
    """Write a row in the event's own transaction.

    An event may be dispatched again, after a crash for example: the row replaces the first one.
    """
    session = event.request.dbsession
    session.execute(delete(LogEntry).where(LogEntry.event_id == event.id))
    session.add(
        LogEntry(
            at=time.time(),
            kind=kind,
            event_id=event.id,
            message_id=event.message_id,
            queued_at=event.queued_at,
            recipients=', '.join(event.recipients),
            subject=event.subject,
            tag=event.tag,
            attempt=event.attempt,
            reply=reply,
            reason=reason,
            retry_at=retry_at,
        )
    )


def includeme(config: Configurator) -> None:
    """Add the subscribers, as for any other event."""
    config.add_subscriber(on_sent, IMailSentEvent)
    config.add_subscriber(on_deferred, IMailDeferredEvent)
    config.add_subscriber(on_error, IMailErrorEvent)
