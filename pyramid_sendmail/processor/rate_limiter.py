"""The pace of a queue processor: ``mail.rate``."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from math import inf

__all__ = ['RateLimiter']


class RateLimiter:
    """Hands out places, one a mail: at most ``rate``, ``(mails, seconds)``, in any so many seconds;
    None is no limit. Keeps no lock: one thread at a time.

    What lies behind us counts, not a clock's minutes, so that no minute ever sees more, whenever it
    begins. At most a second's share of a longer time leaves at once, for relays count in seconds
    too: of ``(600, 60)`` ten, of ``(90, 3600)`` one.
    """

    def __init__(
        self,
        rate: tuple[int, int] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate is None:
            self._share, self._span = sys.maxsize, 0.0
        else:
            mails, seconds = rate
            self._share = max(mails // seconds, 1)
            # Whole shares only: with a part of one, some minutes would see a mail too many.
            self._span = seconds / (mails // self._share)
        self._monotonic = monotonic
        self._taken: deque[float] = deque()

    def take(self) -> float | None:
        """A place, or None while there is none."""
        if not self._span:
            return 0.0
        now = self._forget()
        if len(self._taken) >= self._share:
            return None
        self._taken.append(now)
        return now

    def give_back(self, place: float) -> bool:
        """No mail has left for it; whether there is one place more now. Without a rate, nothing is
        kept of any; and it may be long past."""
        if place not in self._taken:
            return False
        self._taken.remove(place)
        return True

    def wait(self, places: int = 1) -> float:
        """Seconds until there are so many places at once: 0 if there are, infinity if there never
        will be."""
        now = self._forget()
        missing = places - (self._share - len(self._taken))
        if places > self._share:
            return inf
        return self._taken[missing - 1] + self._span - now if missing > 0 else 0.0

    def _forget(self) -> float:
        """Forget what counts no more; return the time."""
        now = self._monotonic()
        while self._taken and self._taken[0] + self._span <= now:
            self._taken.popleft()
        return now
