"""``mail.processor = thread``: the queue processor inside the web process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from .exceptions import QueueError
from .processor import QueueProcessor
from .threads import OwnThread, OwnThreads

__all__ = ['ProcessorThread']

log = logging.getLogger(__name__)


class ProcessorThread:
    """One queue processor a process, started by the first request or, after a fork, by the first
    request or ``send``: scripts and pshell, which serve no request, never start it."""

    def __init__(self, make: Callable[[], QueueProcessor]) -> None:
        self._make = make
        self._threads = OwnThreads()
        self._thread: OwnThread | None = None
        self._pid = 0
        self._stop = threading.Event()
        self._processor: QueueProcessor | None = None
        self._serving = False

    def serve(self) -> None:
        """A request has come."""
        self._serving = True
        if self._pid != os.getpid() or self._thread is None or not self._thread.is_alive():
            self._start()

    def sent(self) -> None:
        """``send`` has taken a message."""
        if self._serving:
            self.serve()

    def _start(self) -> None:
        if self._threads.forked() or self._processor is None:
            self._stop = threading.Event()
            self._processor = self._make()
        if not self._stop.is_set():
            self._thread = self._threads.start('pyramid_sendmail queue', self._run, self.finish)
            self._pid = os.getpid()

    def _run(self) -> None:
        assert self._processor is not None
        try:
            self._processor.run(self._stop)
        except QueueError as error:
            log.critical('mail.processor = thread delivers nothing: %s', error)
            self._stop.wait(60.0)
        except Exception:
            log.exception('mail.processor = thread failed; it starts again')
            self._stop.wait(10.0)

    def finish(self, timeout: float) -> None:
        """Finish what is in flight, within ``timeout`` seconds."""
        self._stop.set()
        if self._processor is not None:
            self._processor.wake()
        if self._thread is not None:
            self._thread.join(timeout)
