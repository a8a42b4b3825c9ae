"""Background threads of this package, and the lock by which they take turns at the CPU.

``BackgroundThreads`` starts daemon threads, waits for them at exit and starts them anew after a
fork. ``CooperativeLock`` and ``blocking`` have one of several threads compute at a time.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = [
    'EXIT_GRACE',
    'BackgroundThread',
    'BackgroundThreads',
    'CooperativeLock',
    'after_fork',
    'blocking',
    'in_background_thread',
]

EXIT_GRACE = 10.0
"""Seconds for which a process that exits waits for pending work."""

LOCK_PATIENCE = 0.05
"""Seconds for which a thread waits for a CooperativeLock before it works without it."""

BUSY_SHARE = 0.5
"""The least share of its time that a borrower of a CooperativeLock must compute."""

PENALTY_FACTOR = 10.0
"""A borrower below BUSY_SHARE may not borrow again for this many times as long as it held the
lock."""


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


class CooperativeLock:
    """Let one of several threads compute at a time, until it has to wait for something.

    Python runs one thread at a time anyway, but hands the interpreter over at each system call, a
    dozen times a mail: that costs more than the mail. A thread that holds the lock gives it up in
    ``blocking`` alone. The lock protects no data: a thread that has waited for LOCK_PATIENCE works
    beside the holder.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worked = 0.0
        self._since = 0.0
        self._lends_at = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Put everything that may take long into ``blocking``."""
        before = _holding.hold
        if before is not None and before.owner is self:
            yield
            return
        hold = _Hold(self)
        hold.acquire()
        _holding.hold = hold
        try:
            yield
        finally:
            _holding.hold = before
            hold.release()

    @contextmanager
    def borrowed(self) -> Iterator[bool]:
        """Hold the lock if the caller mostly computes; yield whether it is held.

        A caller that blocks outside ``blocking`` keeps the lock. So one that computed for less than
        BUSY_SHARE of its time works without the lock for PENALTY_FACTOR times as long.
        """
        if time.perf_counter() < self._lends_at:
            yield False
            return
        with self.held():
            began, computed = time.perf_counter(), time.thread_time()
            try:
                yield True
            finally:
                now = time.perf_counter()
                if time.thread_time() - computed < BUSY_SHARE * (now - began):
                    self._lends_at = now + PENALTY_FACTOR * (now - began)

    @property
    def worked(self) -> float:
        """Seconds for which the lock was held so far, by all threads together."""
        since = self._since
        return self._worked + (time.perf_counter() - since if since else 0.0)


class _Hold:
    """One thread's hold of a CooperativeLock, which it may release and acquire again."""

    __slots__ = ('_lock', '_since', 'owner')

    def __init__(self, owner: CooperativeLock) -> None:
        self.owner = owner

    def acquire(self) -> None:
        owner = self.owner
        while True:
            lock = owner._lock
            if not lock.acquire(timeout=LOCK_PATIENCE):
                if owner._lock is lock:
                    # The holder may be a thread that does not exist after a fork, so replace the
                    # lock. Two threads may then run at once, which is harmless.
                    owner._lock = threading.Lock()
            elif owner._lock is lock:
                break
            else:
                lock.release()
        self._lock = lock
        owner._since = self._since = time.perf_counter()

    def release(self) -> None:
        owner = self.owner
        owner._worked += time.perf_counter() - self._since
        owner._since = 0.0
        self._lock.release()


class _Holding(threading.local):
    hold: _Hold | None = None
    """What this thread holds, and releases in ``blocking``."""


_holding = _Holding()


class blocking:
    """``with blocking():`` release the CooperativeLock of this thread, if it holds one, during a
    call that may wait."""

    __slots__ = ('_hold',)

    def __enter__(self) -> None:
        self._hold, _holding.hold = _holding.hold, None
        if self._hold is not None:
            self._hold.release()

    def __exit__(self, *exc_info: object) -> None:
        if self._hold is not None:
            self._hold.acquire()
            _holding.hold = self._hold
