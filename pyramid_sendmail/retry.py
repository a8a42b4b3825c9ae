"""Retry policies: when a deferred mail, or a failed event, is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from random import random

__all__ = ['AT_ONCE_OR_NEVER', 'EVENT_RETRY', 'RetryPolicy']

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The pauses between attempts, and the age at which to give up.

    ``delays``: seconds to wait after the first, second, ... attempt; the last one repeats.
    ``give_up_after``: seconds since the mail was queued after which a temporary failure is final
    (RFC 5321, 4.5.4.1 recommends days). ``jitter``: the part of a delay by which it may randomly
    be longer or shorter, so that mails deferred together are not retried together.
    """

    delays: tuple[float, ...] = (MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR)
    give_up_after: float = 3 * DAY
    jitter: float = 0.2

    @property
    def longest(self) -> float:
        """The longest delay that :meth:`delay` can return, in seconds."""
        return max(self.delays, default=0.0) * (1 + self.jitter)

    def delay(self, attempt: int, age: float, *, chance: float | None = None) -> float | None:
        """Return the seconds to wait after an attempt (1 is the first), or None to give up.

        ``age``: seconds since the mail was queued. ``chance``: a number between 0 and 1, instead of
        a random one.
        """
        if not self.delays or age >= self.give_up_after:
            return None
        base = self.delays[min(attempt, len(self.delays)) - 1]
        spread = 2 * (random() if chance is None else chance) - 1
        return base * (1 + self.jitter * spread)


AT_ONCE_OR_NEVER = RetryPolicy(delays=(), give_up_after=0.0)
"""For direct delivery without a queue: a temporary failure is final."""

EVENT_RETRY = RetryPolicy(delays=(1.0, 5.0, 30.0, 5 * MINUTE), give_up_after=DAY, jitter=0.0)
"""When an event is dispatched again after a subscriber raised."""
