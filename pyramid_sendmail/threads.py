"""Threads of our own: daemons that are waited for at exit, and started anew after a fork."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable

__all__ = ['EXIT_GRACE', 'OwnThread', 'OwnThreads', 'in_own_thread']

EXIT_GRACE = 10.0
"""Seconds that a process waits at exit for what is pending."""


class OwnThread(threading.Thread):
    """A thread that this package started."""


def in_own_thread() -> bool:
    """Whether this code, a subscriber's perhaps, runs in one of our threads."""
    return isinstance(threading.current_thread(), OwnThread)


class OwnThreads:
    """The threads of one component, by name, one of each in a process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._threads: dict[str, OwnThread] = {}
        self._lock = threading.Lock()

    def forked(self) -> bool:
        """Whether this process is a new child, in which none of the threads exist; once."""
        if self._pid == os.getpid():
            return False
        self._pid = os.getpid()
        self._threads = {}
        self._lock = threading.Lock()
        return True

    def start(
        self, name: str, run: Callable[[], None], finish: Callable[[float], object]
    ) -> OwnThread:
        """Start the thread unless it is alive. At exit ``finish`` is called with the seconds that
        it has to bring what is pending to its end."""
        self.forked()
        with self._lock:
            thread = self._threads.get(name)
            if thread is None or not thread.is_alive():
                thread = OwnThread(target=run, name=name, daemon=True)
                thread.start()
                self._threads[name] = thread
                _at_exit(finish)
            return thread


def _at_exit(finish: Callable[[float], object]) -> None:
    """Called before the interpreter stops its daemons; only where the thread was started."""
    method = weakref.WeakMethod(finish)  # type: ignore[arg-type]
    pid = os.getpid()

    def call() -> None:
        bound = method()
        if bound is not None and pid == os.getpid():
            bound(EXIT_GRACE)

    atexit.register(call)
