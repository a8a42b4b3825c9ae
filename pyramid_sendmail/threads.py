"""Background threads of this package: daemons, waited for at exit and started anew after a fork."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable

__all__ = [
    'EXIT_GRACE',
    'BackgroundThread',
    'BackgroundThreads',
    'after_fork',
    'in_background_thread',
]

EXIT_GRACE = 10.0
"""Seconds for which a process that exits waits for pending work."""


class BackgroundThread(threading.Thread):
    """A thread that this package started."""


def in_background_thread() -> bool:
    """Return whether the caller, a subscriber for example, runs in a thread of this package."""
    return isinstance(threading.current_thread(), BackgroundThread)


def after_fork(method: Callable[[], object]) -> None:
    """Call a bound method in each forked child, before anything else runs there.

    Its object is not kept alive. No other thread exists in the child, and a lock that another
    thread of the parent held stays locked for ever: the method replaces locks and threads.
    """
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=call)


class BackgroundThreads:
    """The threads of one component: at most one for each name in a process.

    ``reset``: a method of the component, called in a forked child; see ``after_fork``. ``finish``:
    another, called at exit with the number of seconds in which to complete pending work. Neither
    keeps the component alive.
    """

    def __init__(self, reset: Callable[[], object], finish: Callable[[float], object]) -> None:
        self._reset = weakref.WeakMethod(reset)
        self._finish = weakref.WeakMethod(finish)
        self._threads: dict[str, BackgroundThread] = {}
        self._lock = threading.Lock()
        self._pid = 0

    def start(self, name: str, run: Callable[[], None]) -> BackgroundThread:
        """Start the thread unless it is alive.

        Raises RuntimeError if the system cannot start another thread.
        """
        with self._lock:
            thread = self._threads.get(name)
            if thread is None or not thread.is_alive():
                if not self._pid:
                    after_fork(self._forked)
                if self._pid != os.getpid():
                    self._watch_exit()
                thread = BackgroundThread(target=run, name=name, daemon=True)
                thread.start()
                self._threads[name] = thread
            return thread

    def forget(self, name: str) -> None:
        """The thread with this name is about to end: the next ``start`` starts another one."""
        with self._lock:
            self._threads.pop(name, None)

    def _forked(self) -> None:
        self._threads = {}
        self._lock = threading.Lock()
        reset = self._reset()
        if reset is not None:
            reset()

    def _watch_exit(self) -> None:
        """Call ``finish`` at exit of this process. Not in a forked child: the pending work is its
        parent's."""
        self._pid = pid = os.getpid()
        method = self._finish

        def leaving() -> None:
            finish = method()
            if finish is not None and pid == os.getpid():
                finish(EXIT_GRACE)

        atexit.register(leaving)
