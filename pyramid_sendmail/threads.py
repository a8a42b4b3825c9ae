"""Threads of our own: daemons that are waited for at exit, and started anew after a fork; and the
turn that those take which do the same work."""

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
"""Seconds that a process waits at exit for what is pending."""

PATIENCE = 0.05
"""Seconds for which a thread waits for its turn."""

PENANCE, BUSY = 10.0, 0.5
"""How many times as long as it took nothing is lent to one that has mostly waited; and the part of
the time from which on it has not."""


class BackgroundThread(threading.Thread):
    """A thread that this package started."""


def in_background_thread() -> bool:
    """Whether this code, a subscriber's perhaps, runs in one of our threads."""
    return isinstance(threading.current_thread(), BackgroundThread)


def after_fork(method: Callable[[], object]) -> None:
    """Call a bound method in each forked child, before anything else runs there.

    This does not keep the object of the method alive.
    """
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    os.register_at_fork(after_in_child=call)


class BackgroundThreads:
    """The threads of one component, by name, one of each in a process.

    ``reset``: a method of the component, called in a forked child before anything else runs there:
    none of the threads exists in it, and every lock may be held for ever. ``finish``: another,
    called at exit with the seconds that it has to bring what is pending to its end. The component
    itself is not kept alive by them.
    """

    def __init__(self, reset: Callable[[], object], finish: Callable[[float], object]) -> None:
        self._reset = weakref.WeakMethod(reset)
        self._finish = weakref.WeakMethod(finish)
        self._threads: dict[str, BackgroundThread] = {}
        self._lock = threading.Lock()
        self._pid = 0

    def start(self, name: str, run: Callable[[], None]) -> BackgroundThread:
        """Start the thread unless it is alive. Raises RuntimeError where the system has none."""
        with self._lock:
            thread = self._threads.get(name)
            if thread is None or not thread.is_alive():
                if not self._pid:
                    self._watch_forks()
                if self._pid != os.getpid():
                    self._watch_exit()
                thread = BackgroundThread(target=run, name=name, daemon=True)
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


class CooperativeLock:
    """Has one of several threads work at a time, until it waits for something.

    Python runs one thread at a time anyway, but hands the interpreter over at each system call, a
    dozen times a mail: that costs more than the mail. A thread that holds the turn gives it up in
    ``blocking`` alone. It is a courtesy, not a lock: who has waited for it for PATIENCE passes the
    holder over, and both work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worked = 0.0
        self._since = 0.0
        self._lends_at = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work in turn. Whatever may take long has to stand in ``blocking``."""
        before = _holding.hold
        if before is not None and before.turn is self:
            yield
            return
        hold = _Hold(self)
        hold.take()
        _holding.hold = hold
        try:
            yield
        finally:
            _holding.hold = before
            hold.give()

    @contextmanager
    def borrowed(self) -> Iterator[bool]:
        """Work in turn, where that is of use: whether it is.

        Whoever mostly waits, for what he does not tell, would have the others wait for it too. For
        PENANCE times as long he works without it then.
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
                if time.thread_time() - computed < BUSY * (now - began):
                    self._lends_at = now + PENANCE * (now - began)

    @property
    def worked(self) -> float:
        """Seconds that it was held, by all; 0 if nobody ever did."""
        since = self._since
        return self._worked + (time.perf_counter() - since if since else 0.0)


class _Hold:
    """What one thread has of a turn, and may give up and take again."""

    __slots__ = ('_lock', '_since', 'turn')

    def __init__(self, turn: CooperativeLock) -> None:
        self.turn = turn

    def take(self) -> None:
        turn = self.turn
        while True:
            lock = turn._lock
            if not lock.acquire(timeout=PATIENCE):
                if turn._lock is lock:
                    # The holder, who may be a thread that no fork has taken along, keeps the old
                    # one. Two who are that late at once may both go on: that harms nobody.
                    turn._lock = threading.Lock()
            elif turn._lock is lock:
                break
            else:
                lock.release()
        self._lock = lock
        turn._since = self._since = time.perf_counter()

    def give(self) -> None:
        turn = self.turn
        turn._worked += time.perf_counter() - self._since
        turn._since = 0.0
        self._lock.release()


class _Holding(threading.local):
    hold: _Hold | None = None
    """What this thread has to give up while it waits."""


_holding = _Holding()


class blocking:
    """``with blocking():`` others may work; nothing happens in a thread that holds no turn."""

    __slots__ = ('_hold',)

    def __enter__(self) -> None:
        self._hold, _holding.hold = _holding.hold, None
        if self._hold is not None:
            self._hold.give()

    def __exit__(self, *exc_info: object) -> None:
        if self._hold is not None:
            self._hold.take()
            _holding.hold = self._hold
