"""Mail about which only a person can decide.

Mail is in doubt if nothing recorded whether its transaction committed (two-phase commit's own
term), and ambiguous if the relay may have accepted it without an answer.
"""

from __future__ import annotations

from ..envelope import Envelope, PendingEvent, Reply

__all__ = ['AMBIGUOUS_REASONS', 'in_doubt_event', 'needs_decision']

AMBIGUOUS_REASONS = ('ambiguous', 'given up: ambiguous')
"""What the reason of an ambiguous recipient begins with."""


def in_doubt_event(envelope: Envelope, cause: str) -> PendingEvent:
    """Return the error event for all recipients of a mail that is in doubt."""
    return PendingEvent(
        id=f'{envelope.id}-0-error-0',
        kind='error',
        recipients=envelope.recipients,
        attempt=0,
        mailer='',
        reason=f'in doubt: {cause}; it is unknown whether its transaction committed',
        permanent=False,
    )


def needs_decision(*, attempt: int, reply: Reply | None, reason: str | None) -> bool:
    """Whether only a person can decide what to do for a recipient that failed.

    True for mail that is in doubt (no attempt was made) or ambiguous, and if the reason was lost or
    cut short. ``reason`` is None if it is the text of the reply.
    """
    if not attempt:
        return True
    if reason is None:
        return reply is None
    return any(reason.startswith(word) or word.startswith(reason) for word in AMBIGUOUS_REASONS)
