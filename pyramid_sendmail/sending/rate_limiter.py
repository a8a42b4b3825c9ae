"""The rate limiter: ``mail.rate``, and the pace of a relay that throttles."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from math import inf

from .throttling import Throttle

__all__ = ['RateLimiter']


class RateLimiter:
    """Gives out permits, one for each mail: at most ``rate``, ``(mails, seconds)``, in any period
    of so many seconds; None is no limit. Not thread-safe.

    The period is a sliding window, not a minute or an hour of the clock. Relays count by the
    second too, so at most one second's share leaves at once: of ``(600, 60)`` ten mails, of
    ``(90, 3600)`` one.

    ``throttle``: slows the mailer further while its relay throttles it.
    """

    def __init__(
        self,
        rate: tuple[int, int] | None = None,
        *,
        throttle: Throttle | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate is None:
            self._share, self._span = sys.maxsize, 0.0
        else:
            mails, seconds = rate
            self._share = max(mails // seconds, 1)
            # Whole shares only: with a part of one, some minutes would have a mail too many.
            self._span = seconds / (mails // self._share)
        self._throttle = throttle or Throttle(monotonic=monotonic)
        self._monotonic = monotonic
        self._permits: deque[float] = deque()

    def acquire(self) -> float | None:
        """Return a permit, or None if there is none now."""
        if not self._span:
            return 0.0 if self._throttle.acquire() else None
        now = self._forget_old_permits()
        if len(self._permits) >= self._share or not self._throttle.acquire():
            return None
        self._permits.append(now)
        return now

    def refund(self, permit: float) -> bool:
        """Take back an unused permit. Return True if that frees capacity now: False if the permit
        has expired, or if there is no rate, unless the relay throttles the mailer."""
        freed = self._throttle.refund()
        if permit not in self._permits:
            return freed
        self._permits.remove(permit)
        return True

    def retry_in(self, permits: int = 1) -> float:
        """Return the seconds until so many permits can be acquired at once: 0 if they can be now,
        infinity if that many are never free at once."""
        wait = self._throttle.retry_in(permits)
        now = self._forget_old_permits()
        missing = permits - (self._share - len(self._permits))
        if permits > self._share:
            return inf
        return max(wait, self._permits[missing - 1] + self._span - now) if missing > 0 else wait

    def _forget_old_permits(self) -> float:
        """Forget the permits that no longer count; return the time."""
        now = self._monotonic()
        while self._permits and self._permits[0] + self._span <= now:
            self._permits.popleft()
        return now
