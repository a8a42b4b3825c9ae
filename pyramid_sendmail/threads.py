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
    """The threads of one component, by name, one of each in a process.

    ``reset``: a method of the component, called in a forked child before anything else runs there:
    none of the threads exists in it, and every lock may be held for ever. ``finish``: another,
    called at exit with the seconds that it has to bring what is pending to its end. The component
    itself is not kept alive by them.
    """

    def __init__(self, reset: Callable[[], object], finish: Callable[[float], object]) -> None:
        self._reset = weakref.WeakMethod(reset)
        self._finish = weakref.WeakMethod(finish)
        self._threads: dict[str, OwnThread] = {}
        self._lock = threading.Lock()
        self._pid = 0

    def start(self, name: str, run: Callable[[], None]) -> OwnThread:
        """Start the thread unless it is alive. Raises RuntimeError where the system has none."""
        with self._lock:
            thread = self._threads.get(name)
            if thread is None or not thread.is_alive():
                if not self._pid:
                    self._watch_forks()
                if self._pid != os.getpid():
                    self._watch_exit()
                thread = OwnThread(target=run, name=name, daemon=True)
                thread.start()
                self._threads[name] = thread
            return thread

    def _watch_forks(self) -> None:
        threads = weakref.ref(self)

        def forked() -> None:
            own = threads()
            if own is not None:
                own._forked()

        os.register_at_fork(after_in_child=forked)

    def _forked(self) -> None:
        self._threads = {}
        self._lock = threading.Lock()
        reset = self._reset()
        if reset is not None:
            reset()

    def _watch_exit(self) -> None:
        """A forked child inherits the call, and has nothing of its parent's to finish."""
        self._pid = pid = os.getpid()
        method = self._finish

        def leaving() -> None:
            finish = method()
            if finish is not None and pid == os.getpid():
                finish(EXIT_GRACE)

        atexit.register(leaving)
