"""The guard against mail loops: which events led to a mail.

A subscriber that mails about a failed mail would mail again when that notice fails, and so on (a
double bounce: RFC 5321, 6.3). One that mails about each mail that was sent would mail about its own
mail. Each mail has a *depth*, which counts the events that led to it, and ``send`` refuses mail
that is too deep. The units of a depth are the failures, the tens the mails that were sent:

====== =========================================================================
depth  a mail that
====== =========================================================================
``0``  no event has caused
``1``  reports a failure
``10`` follows a mail that was sent
``21`` reports the failure of a follow-up to a follow-up
====== =========================================================================

The depth of what a subscriber sends is known in its own thread, and by ``event.request.mailer`` in
every thread. Code elsewhere names the event: ``send(message, cause=event)``, or its id, which has
the depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar

from ..exceptions import MessageError
from ..interfaces import IMailEvent

__all__ = [
    'ENVIRON_KEY',
    'MAX_FOLLOW_UPS',
    'MAX_NOTIFICATION_DEPTH',
    'current_depth',
    'deepest',
    'depth_after',
    'depth_by_cause',
    'event_id',
    'why_too_deep',
]

MAX_NOTIFICATION_DEPTH = 1
"""A notice of a failed mail is sent; a notice of a failed notice is only logged."""

MAX_FOLLOW_UPS = 5
"""A mail, its follow-up, and so on: a chain of sent events ends after so many follow-ups."""

ENVIRON_KEY = 'pyramid_sendmail.depth'
"""In the environment of an event's request: the depth of mail that its mailer sends."""

_FOLLOW_UP = 10

_EVENT_ID = re.compile(r'.+-[0-9]+-(sent|deferred|error)-[0-9]+(?:-([0-9]{1,4}))?', re.DOTALL)

current_depth: ContextVar[int | None] = ContextVar('pyramid_sendmail_depth', default=None)
"""The depth of mail that subscribers send, set while they run."""


def depth_after(kind: str, depth: int) -> int:
    """Return the depth of mail that an event causes. ``depth``: that of the mail it is about."""
    return depth + (_FOLLOW_UP if kind == 'sent' else 1)


def deepest(depths: Iterable[int]) -> int:
    """Return the depth of mail that may be caused by each of several events."""
    follow_ups = failures = 0
    for each in depths:
        follow_ups = max(follow_ups, each // _FOLLOW_UP)
        failures = max(failures, each % _FOLLOW_UP)
    return follow_ups * _FOLLOW_UP + failures


def event_id(pending_id: str, depth: int) -> str:
    """Return the id that subscribers get for an event. ``depth``: that of the mail it is about."""
    return f'{pending_id}-{depth}' if depth else pending_id


def depth_by_cause(cause: object) -> int:
    """Return the depth of mail that an event has caused. ``cause``: the event or its id. Raises
    MessageError."""
    id = cause.id if IMailEvent.providedBy(cause) else cause
    match = _EVENT_ID.fullmatch(id) if isinstance(id, str) else None
    if match is None:
        raise MessageError(
            'cause: it is no event and no id of an event; give the event that the mail answers, or '
            'event.id'
        )
    return depth_after(match[1], int(match[2] or 0))


def why_too_deep(depth: int) -> str:
    """Return why mail of this depth is not sent, and the remedy; '' if it is sent."""
    follow_ups, failures = divmod(depth, _FOLLOW_UP)
    if failures > MAX_NOTIFICATION_DEPTH:
        return (
            'your error handler keeps mailing about its own failed mail; stopped here (double '
            'bounce)'
        )
    if follow_ups > MAX_FOLLOW_UPS:
        return (
            f'your handler of sent events keeps mailing about its own mail; stopped after '
            f'{MAX_FOLLOW_UPS} mails in a row: subscribe it with mail_tag, so that it gets no '
            f'events of the mail that it sends'
        )
    return ''
