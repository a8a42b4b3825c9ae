"""The guard against mail loops: how many failure notices led to the code that is running.

A subscriber that mails about a failed mail would mail again when that notice fails, and so on (a
double bounce: RFC 5321, 6.3). ``send`` refuses mail beyond MAX_NOTIFICATION_DEPTH.
"""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ['MAX_NOTIFICATION_DEPTH', 'depth', 'notification_depth']

MAX_NOTIFICATION_DEPTH = 1
"""A notice of a failed mail is sent; a notice of a failed notice is only logged."""

depth: ContextVar[int | None] = ContextVar('pyramid_sendmail_depth', default=None)
"""Set while subscribers run."""


def notification_depth() -> int:
    """Return how many failure notices led to the running code: the depth of the mail it sends."""
    return depth.get() or 0
