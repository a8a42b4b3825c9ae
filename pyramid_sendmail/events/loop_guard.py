"""How much trouble has led to the code that is running now."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ['depth', 'notification_depth']

depth: ContextVar[int | None] = ContextVar('pyramid_sendmail_depth', default=None)
"""Set while subscribers are told of a mail."""


def notification_depth() -> int:
    """How many reports of trouble led to the code that is running now: the depth of its mail."""
    return depth.get() or 0
