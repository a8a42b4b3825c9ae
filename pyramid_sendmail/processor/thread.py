"""``mail.processor = thread``: the queue processor inside the web process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ..exceptions import QueueError
from ..interfaces import IMailQueueProcessor
from ..threads import BackgroundThread, BackgroundThreads

__all__ = ['ProcessorThread']

log = logging.getLogger(__name__)

UNUSABLE, FAILED = 60.0, 10.0
"""Seconds until the processor runs again: the queue cannot be used; anything else."""


class ProcessorThread:
    """One queue processor a process, started by the first request or, after a fork, by the first
    request or ``send``: scripts and pshell, which serve no request, never start it."""

    def __init__(self, make: Callable[[], IMailQueueProcessor]) -> None:
        self._make = make
        self._threads = BackgroundThreads(self._reset, self.finish)
        self._serving = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._processor: IMailQueueProcessor | None = None
        self._thread: BackgroundThread | None = None

    def serve(self) -> None:
        """A request has come."""
        self._serving = True
        if self._thread is None:
            self._start()

    def sent(self) -> None:
        """``send`` has taken a message."""
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
                log.critical('mail.processor = thread delivers nothing: %s', error)
                self._stop.wait(UNUSABLE)
            except Exception:
                log.exception('mail.processor = thread failed; it starts again')
                self._stop.wait(FAILED)

    def finish(self, timeout: float) -> None:
        """Finish what is in flight, within ``timeout`` seconds."""
        self._stop.set()
        if self._thread is not None and self._processor is not None:
            self._processor.wake()
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning(
                    'mail.processor = thread has not ended within %g s, and is left to itself: '
                    'the next processor finishes what it has begun',
                    timeout,
                )
