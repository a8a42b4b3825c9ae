"""The options of a queue processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import random
from typing import NamedTuple

from ..sending.circuit_breaker import FIRST_PAUSE
from .active_queue import IDLE_TIMEOUT

__all__ = [
    'ACTIVE_QUEUE_LIMIT',
    'EVENT_PAGE',
    'POLL_INTERVAL',
    'SHUTDOWN_GRACE',
    'ProcessorOptions',
]

POLL_INTERVAL = 30.0
"""Seconds after which the queue is scanned although nothing woke the processor."""

SHUTDOWN_GRACE = 60.0
"""Seconds that mail in flight has to finish when the processor stops."""

ACTIVE_QUEUE_LIMIT = 20_000
"""Tickets kept in memory."""

EVENT_PAGE = 200
"""Finished mails whose events are dispatched after one scan, so that the next scan is not
delayed."""


class ProcessorOptions(NamedTuple):
    """How a queue processor works; times are in seconds.

    ``workers``: connections at once. ``batch``: mails on one connection. ``rate``: ``(mails,
    seconds)``, how many mails leave in a period over all connections at most, or None.
    ``keep_failed``: age at which a dead letter is removed, or None to keep them. ``poll``,
    ``limit``, ``grace``, ``event_page``: see POLL_INTERVAL, ACTIVE_QUEUE_LIMIT, SHUTDOWN_GRACE,
    EVENT_PAGE. ``pause``, ``chance``: see CircuitBreaker. ``idle``: see IDLE_TIMEOUT.
    ``monotonic``: the clock for all of these, and for the time-outs of connections.
    """

    workers: int = 4
    batch: int = 100
    rate: tuple[int, int] | None = None
    keep_failed: float | None = None
    poll: float = POLL_INTERVAL
    limit: int = ACTIVE_QUEUE_LIMIT
    grace: float = SHUTDOWN_GRACE
    event_page: int = EVENT_PAGE
    pause: float = FIRST_PAUSE
    chance: Callable[[], float] = random
    idle: float = IDLE_TIMEOUT
    monotonic: Callable[[], float] = time.monotonic
