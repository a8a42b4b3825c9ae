"""Whether a queue processor serves the queue into which ``send`` puts mail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..durations import span_text
from ..interfaces import IMonitoredQueue

__all__ = ['ProcessorWatch']

log = logging.getLogger(__name__)

CHECK_INTERVAL = 60.0
"""Seconds between two checks. The first is so long after the start: the processor may be starting
as well, and most tests have ended by then."""

STALE_AFTER = 600.0
"""Age in seconds from which on a heartbeat counts for nothing. A processor renews it every half
minute, a cron job with ``--once`` every few minutes."""

WARNING_INTERVAL = 3600.0
"""Seconds between two warnings of a process."""

CLOCK_STEP = 30.0
"""Seconds by which the two clocks may drift apart from one check to the next. After a larger step
the age of a heartbeat means nothing until a processor has renewed it."""


class ProcessorWatch:
    """Warns where mail is put into a queue that no queue processor serves.

    ``name``: of the queue, for the log. ``remedy``: what to do. ``clock``: epoch seconds.
    """

    def __init__(
        self,
        queue: IMonitoredQueue,
        name: str,
        remedy: str,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._name = name
        self._remedy = remedy
        self._clock = clock
        self._monotonic = monotonic
        now = monotonic()
        self._step = clock() - now
        self._check_at = now + CHECK_INTERVAL
        self._warn_at = now

    def check(self) -> None:
        """Look at the heartbeat, at most every CHECK_INTERVAL seconds: called for each ``send``."""
        now = self._monotonic()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_INTERVAL
        if now < self._warn_at:
            return
        wall = self._clock()
        step, self._step = self._step, wall - now
        if abs(self._step - step) > CLOCK_STEP:
            return
        seen = self._queue.last_heartbeat()
        # A time to come was written before the clock was set back.
        if seen is not None and abs(wall - seen) < STALE_AFTER:
            return
        self._warn_at = now + WARNING_INTERVAL
        log.warning(
            'queue %s: no queue processor runs (%s), and mail waits there until one does; %s',
            self._name,
            'none has run yet' if seen is None else f'the last sign of one is {_age(wall - seen)}',
            self._remedy,
        )


def _age(seconds: float) -> str:
    return f'{span_text(seconds)} old' if seconds >= 0 else 'dated in the future'
