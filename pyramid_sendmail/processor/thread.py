"""``mail.processor = thread``: a queue processor in a thread of the web process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..exceptions import QueueError
from ..interfaces import IMailQueueProcessor
from ..threads import BackgroundThread, BackgroundThreads

__all__ = ['ProcessorThread']

log = logging.getLogger(__name__)

QUEUE_RETRY_DELAY = 60.0
"""Seconds until the processor starts again after the queue could not be used."""

RESTART_DELAY = 10.0
"""Seconds until the processor starts again after any other error."""


class ProcessorThread:
    """One queue processor in each process.

    The first request starts it; after a fork, the first request or ``send`` in the child starts
    another. Scripts and pshell serve no request, so they never start it. ``make`` returns the
    processor. ``queue_retry_delay``, ``restart_delay``: see QUEUE_RETRY_DELAY and RESTART_DELAY.
    """

    def __init__(
        self,
        make: Callable[[], IMailQueueProcessor],
        *,
        queue_retry_delay: float = QUEUE_RETRY_DELAY,
        restart_delay: float = RESTART_DELAY,
    ) -> None:
        self._make = make
        self._queue_retry_delay = queue_retry_delay
        self._restart_delay = restart_delay
        self._threads = BackgroundThreads(self._reset, self.finish)
        self._serving = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._processor: IMailQueueProcessor | None = None
        self._thread: BackgroundThread | None = None

    def serve(self) -> None:
        """Start the processor unless it runs: called for each request."""
        self._serving = True
        if self._thread is None:
            self._start()

    def sent(self) -> None:
        """Start the processor after a fork: called for each ``send``."""
        if self._serving:
            self.serve()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._processor = self._processor or self._make()
                self._thread = self._threads.start('pyramid_sendmail queue', self._run)

    def _run(self) -> None:
        assert self._processor is not None
        while not self._stop.is_set():
            try:
                self._processor.run(self._stop)
            except QueueError as error:
                delay = self._queue_retry_delay
                log.critical(
                    'queue processor thread cannot use the queue, no mail is sent; '
                    'next try in %g s: %s',
                    delay,
                    error,
                )
                self._stop.wait(delay)
            except Exception:
                log.exception(
                    'queue processor thread failed; it starts again in %g s', self._restart_delay
                )
                self._stop.wait(self._restart_delay)

    def finish(self, timeout: float) -> None:
        """Stop the processor, and wait up to ``timeout`` seconds for mail in flight."""
        self._stop.set()
        if self._thread is not None and self._processor is not None:
            self._processor.wake()
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning(
                    'queue processor thread did not stop within %g s; '
                    'unfinished mail is retried by the next processor',
                    timeout,
                )
