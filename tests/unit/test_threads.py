"""Threads of our own: one of each, anew after a fork, waited for at exit."""

from __future__ import annotations

import atexit
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.threads import (
    EXIT_GRACE,
    BackgroundThreads,
    CooperativeLock,
    after_fork,
    blocking,
    in_background_thread,
)
from tests.support.queues import forked, reap, until


class Component:
    """Something with threads."""

    def __init__(self) -> None:
        self.going_on = threading.Event()
        self.calls: list[Any] = []
        self.threads = BackgroundThreads(self.reset, self.finish)

    def run(self) -> None:
        self.calls.append(in_background_thread())
        self.going_on.wait(10)

    def reset(self) -> None:
        self.calls.append('reset')

    def finish(self, timeout: float) -> None:
        self.calls.append(('finish', timeout))
        self.going_on.set()

    def start(self) -> threading.Thread:
        return self.threads.start('a thread', self.run)


class System:
    """What the interpreter would call, later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exits: list[Callable[[], object]] = []
        self.forks: list[Callable[[], object]] = []
        monkeypatch.setattr(atexit, 'register', self.exits.append)
        monkeypatch.setattr(os, 'register_at_fork', self._at_fork)

    def _at_fork(self, *, after_in_child: Callable[[], object]) -> None:
        self.forks.append(after_in_child)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    return System(monkeypatch)


def test_one_thread_of_a_name(system: System) -> None:
    """A thread that is alive is not started a second time; one that has ended is."""
    component = Component()
    first = component.start()
    assert component.start() is first
    component.going_on.set()
    first.join(10)
    second = component.start()
    second.join(10)
    assert second is not first
    assert component.calls == [True, True]
    assert first.daemon
    assert not in_background_thread()


def test_several_threads_that_start_it_at_once(system: System) -> None:
    """However many ask for it at the same moment, there is one."""
    component = Component()
    together = threading.Barrier(8)
    started = set()

    def ask() -> None:
        together.wait()
        started.add(component.start())

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(started) == 1
    component.going_on.set()
    started.pop().join(10)


def test_nothing_is_registered_before_the_first_start(system: System) -> None:
    """Making a component costs the interpreter nothing; its threads are registered once."""
    component = Component()
    assert (system.exits, system.forks) == ([], [])
    component.going_on.set()
    for _ in range(3):
        component.start().join(10)
    assert (len(system.exits), len(system.forks)) == (1, 1)


def test_at_exit_what_is_pending_is_finished(system: System) -> None:
    """``finish`` is called with the seconds that it has."""
    component = Component()
    thread = component.start()
    system.exits[0]()
    thread.join(10)
    assert component.calls == [True, ('finish', EXIT_GRACE)]


def test_a_child_does_not_finish_for_its_parent(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child inherits what is registered for the exit, and leaves it to its parent; what
    it has started itself it finishes."""
    component = Component()
    thread = component.start()
    monkeypatch.setattr(os, 'getpid', lambda: 4711)
    system.exits[0]()
    assert component.calls == [True]
    system.forks[0]()
    assert component.calls == [True, 'reset']
    component.start()
    assert (len(system.exits), len(system.forks)) == (2, 1)
    system.exits[1]()
    assert component.calls == [True, 'reset', True, ('finish', EXIT_GRACE)]
    thread.join(10)


def test_a_component_is_not_kept_alive(system: System) -> None:
    """What is registered for exit and fork holds nothing that nobody else holds."""
    component = Component()
    component.going_on.set()
    component.start().join(10)
    gone = weakref.ref(component)
    threads = component.threads
    del component
    gc.collect()
    assert gone() is None
    system.exits[0]()
    system.forks[0]()
    del threads
    gc.collect()
    system.forks[0]()


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_fork_while_a_lock_is_held() -> None:
    """The child has locks and threads of its own, whatever another thread of the parent held."""
    component = Component()
    component.start()

    def work() -> None:
        assert component.calls[-1] == 'reset'
        component.going_on = threading.Event()
        assert component.start().is_alive()

    with component.threads._lock:
        pid = forked(work)
    assert reap(pid) == 0
    component.going_on.set()


def test_one_thread_works_at_a_time() -> None:
    """Whoever wants the turn waits until it is given up, even for a moment."""
    turn, told = CooperativeLock(), []
    lock = turn._lock
    started = threading.Event()

    def other() -> None:
        started.set()
        with turn.held():
            told.append('other')

    def first() -> None:
        with turn.held():
            threading.Thread(target=other, daemon=True).start()
            started.wait(10)
            told.append('first')
            with blocking():
                until(lambda: 'other' in told)
            told.append('first again')

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    thread.join(10)
    assert told == ['first', 'other', 'first again']
    assert turn._lock is lock, 'nobody had to be passed over'


def test_the_turn_is_had_again_after_waiting() -> None:
    """What follows a wait is done in turn, whatever the wait came to."""
    turn = CooperativeLock()

    def wait() -> None:
        with blocking():
            assert not taken()
            with blocking():
                assert not taken()
            raise ZeroDivisionError

    def taken() -> bool:
        free = turn._lock.acquire(blocking=False)
        if free:
            turn._lock.release()
        return not free

    with turn.held():
        assert taken()
        with pytest.raises(ZeroDivisionError):
            wait()
        assert taken()
    assert not taken()


def test_who_holds_no_turn_gives_none_up() -> None:
    """Waiting is the same for all threads, and means nothing to most."""
    turn = CooperativeLock()
    with turn.held():
        thread = threading.Thread(target=lambda: blocking().__enter__())
        thread.start()
        thread.join(10)
        assert not turn._lock.acquire(blocking=False)
    with blocking():
        assert turn._lock.acquire(blocking=False)


def test_a_turn_tells_how_long_it_was_held() -> None:
    """Also while somebody holds it; and not the time that he waits."""
    turn = CooperativeLock()
    assert turn.worked == 0
    with turn.held():
        until(lambda: turn.worked > 0.01)
        with blocking():
            worked = turn.worked
            threading.Event().wait(0.02)
            assert turn.worked == worked
    assert turn.worked >= worked


def test_the_turn_is_held_once() -> None:
    """What works in turn may call what does so, too: it goes on, and gives the turn up once."""
    turn, other = CooperativeLock(), CooperativeLock()
    lock = turn._lock
    with turn.held():
        with turn.held():
            assert turn._lock is lock, 'it waited for itself, until it was passed over'
            with blocking():
                assert not lock.locked()
        assert lock.locked()
        with other.held(), blocking():
            assert not other._lock.locked()
            assert lock.locked()
        assert lock.locked()
    assert not lock.locked()


def test_who_takes_long_is_passed_over() -> None:
    """The others do not wait for it, once they have; afterwards there is one turn again."""
    turn = CooperativeLock()
    started, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with turn.held():
            started.set()
            go_on.wait(10)

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()
    started.wait(10)
    late = turn._lock
    with turn.held():
        assert turn._lock is not late
        assert turn._lock.locked()
        go_on.set()
        thread.join(10)
        assert not late.locked()
        assert turn._lock.locked(), 'the one who was late has not given back what is not his'
    assert not turn._lock.locked()
    assert turn.worked > 0


def test_who_waited_for_one_that_was_late_waits_for_the_turn() -> None:
    """What he gets from the one who was late is nothing to work with."""
    turn, told = CooperativeLock(), []
    late = turn._lock
    late.acquire()
    wanted = threading.Event()

    class Watched:
        """The lock of one who is late, which tells when somebody else waits for it."""

        def acquire(self, timeout: float) -> bool:
            wanted.set()
            return late.acquire()

        def release(self) -> None:
            late.release()

    def other() -> None:
        with turn.held():
            told.append('other')

    watched: Any = Watched()
    turn._lock = watched
    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    wanted.wait(10)
    turn._lock = threading.Lock()
    with turn.held():
        late.release()
        thread.join(0.02)
        told.append('first')
    thread.join(10)
    assert told == ['first', 'other']
    assert not late.locked()


def test_who_computes_has_the_turn() -> None:
    """Whoever uses the processor may have it again at once."""
    turn = CooperativeLock()
    for _ in range(3):
        with turn.borrowed() as in_turn:
            assert in_turn
            assert turn._lock.locked()
            end = time.thread_time() + 0.005
            while time.thread_time() < end:
                pass
        if turn._lends_at:  # this machine had no time for us
            turn._lends_at = 0.0
        assert not turn._lock.locked()


def test_who_mostly_waits_works_beside_the_others() -> None:
    """For a while, whatever he waited for, and though it has failed."""
    turn = CooperativeLock()

    def wait() -> None:
        with turn.borrowed() as in_turn:
            assert in_turn
            time.sleep(0.05)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wait()
    assert not turn._lock.locked()
    with turn.borrowed() as in_turn:
        assert not in_turn
        assert not turn._lock.locked()
    turn._lends_at = 0.0
    with turn.borrowed() as in_turn:
        assert in_turn


def test_a_turn_that_was_held_at_a_fork() -> None:
    """In the child nobody will give it back: it is passed over."""
    turn = CooperativeLock()
    turn._lock.acquire()

    def work() -> None:
        with turn.held():
            pass

    assert reap(forked(work)) == 0


def test_after_fork_calls_a_method_in_the_child_alone() -> None:
    """A method given to ``after_fork`` runs in each forked child, and only there; an object that is
    gone is not kept alive for it."""

    class Component:
        def __init__(self) -> None:
            self.calls = 0
            after_fork(self.forked)

        def forked(self) -> None:
            self.calls += 1

    component, gone = Component(), Component()
    reference = weakref.ref(gone)
    del gone
    assert reference() is None

    def in_the_child() -> None:
        assert component.calls == 1

    assert reap(forked(in_the_child)) == 0
    assert component.calls == 0
