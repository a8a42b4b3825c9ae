"""How many workers send at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..threads import CooperativeLock

__all__ = ['MEASURING_TIME', 'ConcurrencyController']

MEASURING_TIME = 0.02
"""Seconds over which the share of computing time is measured."""

BUSY_SHARE = 0.6
"""The share of computing time from which on another worker is of no use."""


class ConcurrencyController:
    """Whether one more worker should join those that are sending. Not thread-safe: call it with
    the lock of the active queue held.

    If the workers compute all the time, as with a relay on the same machine, another one would
    only compete for the interpreter. If they mostly wait for a distant relay, the number of
    workers doubles at each measurement. Sessions without the cooperative lock cannot be measured:
    then every worker joins.
    """

    def __init__(
        self, cooperative_lock: CooperativeLock, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._cooperative_lock = cooperative_lock
        self._monotonic = monotonic
        self._measured_at = 0.0
        self._worked_until_then = 0.0
        self._may_join = 0

    def acquire(self, working: int) -> float:
        """Return 0 if this worker should join the ``working`` ones, else the seconds until it
        should ask again."""
        worked, now = self._cooperative_lock.worked, self._monotonic()
        if not working:
            self._measured_at, self._worked_until_then, self._may_join = now, worked, 0
            return 0.0
        if not worked:
            return 0.0
        if self._may_join:
            self._may_join -= 1
            return 0.0
        elapsed = now - self._measured_at
        if elapsed < MEASURING_TIME:
            return MEASURING_TIME - elapsed
        share = (worked - self._worked_until_then) / elapsed
        self._measured_at, self._worked_until_then = now, worked
        if share >= BUSY_SHARE:
            return MEASURING_TIME
        self._may_join = working - 1
        return 0.0
