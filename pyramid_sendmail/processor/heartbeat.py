"""The heartbeat of a queue processor: its queue shows that it runs."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import cast

from ..interfaces import IMonitoredQueue, IScannableQueue

__all__ = ['HEARTBEAT_INTERVAL', 'Heartbeat']

HEARTBEAT_INTERVAL = 30.0
"""Seconds after which a running processor renews its heartbeat."""


class Heartbeat:
    """The heartbeat of one run, for a queue that has one: see IMonitoredQueue.

    ``clock``: epoch seconds. ``monotonic``: that of the interval, so that a clock that is set
    back or forward does not change it.
    """

    def __init__(
        self,
        queue: IScannableQueue,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._queue: IMonitoredQueue | None = None
        if IMonitoredQueue.providedBy(queue):
            self._queue = cast(IMonitoredQueue, queue)
        self._monotonic = monotonic
        self._since = clock()
        self.due_at = inf if self._queue is None else -inf
        """When ``beat`` has to be called again, by the monotonic clock."""

    def beat(self, *, last: bool = False) -> None:
        """Renew it if that is due; at the ``last`` call whether or not it is."""
        now = self._monotonic()
        if self._queue is not None and (last or now >= self.due_at):
            self.due_at = now + HEARTBEAT_INTERVAL
            self._queue.renew_heartbeat(self._since)
