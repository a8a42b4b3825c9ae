"""``mail.processor = thread``: a queue processor in a thread of the web process."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from ..exceptions import QueueError
from ..interfaces import IBrowsableQueue, IMailQueue, IMailQueueProcessor, IMonitoredQueue
from ..threads import BackgroundThread, BackgroundThreads

__all__ = ['ProcessorThread']

log = logging.getLogger(__name__)

QUEUE_RETRY_DELAY = 60.0
"""Seconds until the processor starts again after the queue could not be used."""

RESTART_DELAY = 10.0
"""Seconds until the processor starts again after any other error."""

DRAIN_TIME = 5.0
"""Seconds, of those that a process has at its exit, in which mail that is still queued may leave.
The rest is for the mail in flight."""

SERVERS = ('gunicorn.workers', 'pyramid.scripts.pserve', 'waitress.runner')
"""Modules and packages that load an application to serve it in the same process. What else loads
one may be a script, or a server that forks its workers later."""


class ProcessorThread:
    """One queue processor in each process.

    The first request starts it; after a fork, the first request or ``send`` in the child starts
    another. A server's process, such as a worker in place of one that was recycled, starts it at
    once if mail waits. When the process ends, what is due leaves first, within DRAIN_TIME. Scripts
    and pshell serve no request, so they never start it. ``make`` returns the processor.
    ``queue_retry_delay``, ``restart_delay``: see QUEUE_RETRY_DELAY and RESTART_DELAY.
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
        self._failing = False
        self._processor: IMailQueueProcessor | None = None
        self._thread: BackgroundThread | None = None

    def serve(self) -> None:
        """Start the processor unless it runs: called for each request."""
        self._serving = True
        if self._thread is None:
            self._start()

    def application_created(self, queue: IMailQueue) -> None:
        """Start the processor if this process serves requests and mail waits in the queue. Called
        by the code that loads the application, so that its server is on the stack."""
        if _is_loaded_by_server() and _has_mail(queue):
            self.serve()

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
            self._failing = False
            try:
                self._processor.run(self._stop)
            except QueueError as error:
                self._failing = True
                delay = self._queue_retry_delay
                log.critical(
                    'queue processor thread cannot use the queue, no mail is sent; '
                    'next try in %g s: %s',
                    delay,
                    error,
                )
                self._stop.wait(delay)
            except Exception:
                self._failing = True
                log.exception(
                    'queue processor thread failed; it starts again in %g s', self._restart_delay
                )
                self._stop.wait(self._restart_delay)

    def finish(self, timeout: float) -> None:
        """Let queued mail leave, for DRAIN_TIME at most; stop the processor, and wait for mail in
        flight until ``timeout`` seconds are over."""
        end = time.monotonic() + timeout
        if self._thread is not None and self._processor is not None:
            drain = getattr(self._processor, 'drain', None)
            if drain is not None:
                drain(min(timeout, DRAIN_TIME), give_up=self._is_idle)
            self._stop.set()
            self._processor.wake()
            self._thread.join(max(end - time.monotonic(), 0.0))
            if self._thread.is_alive():
                log.warning(
                    'queue processor thread did not stop within %g s; '
                    'unfinished mail is retried by the next processor',
                    timeout,
                )
        self._stop.set()

    def _is_idle(self) -> bool:
        """Whether the processor does not run now."""
        alive = self._thread is not None and self._thread.is_alive()
        return self._failing or self._stop.is_set() or not alive


def _is_loaded_by_server() -> bool:
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get('__name__', '')
        if any(name == each or name.startswith(f'{each}.') for each in SERVERS):
            return True
        frame = frame.f_back
    return False


def _has_mail(queue: IMailQueue) -> bool:
    """Return whether mail waits in a queue, as far as that can be seen."""
    with suppress(QueueError):
        if IMonitoredQueue.providedBy(queue):
            # Without reading the listing of a long queue.
            return cast(IMonitoredQueue, queue).count_waiting(0) != (0, None)
        if not IBrowsableQueue.providedBy(queue):
            return False
        return any(
            True for state in ('new', 'deferred') for _ in cast(IBrowsableQueue, queue).mails(state)
        )
    return False
