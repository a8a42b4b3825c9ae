"""Background threads: one of each name, started anew after a fork, waited for at exit."""

from __future__ import annotations

import atexit
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.threads import (
    EXIT_GRACE,
    BackgroundThreads,
    after_fork,
    in_background_thread,
)
from tests.support.queues import forked, reap


class Component:
    """A component with a thread."""

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
    """Keeps what is registered for exit and fork, instead of the interpreter."""

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


def test_several_callers_start_one_thread(system: System) -> None:
    """Several callers at the same moment start one thread."""
    component = Component()
    together = threading.Barrier(8)
    started = set()

    def start() -> None:
        together.wait()
        started.add(component.start())

    callers = [threading.Thread(target=start) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(started) == 1
    component.going_on.set()
    started.pop().join(10)


def test_nothing_is_registered_before_the_first_start(system: System) -> None:
    """Making a component registers nothing; the first start does, once."""
    component = Component()
    assert (system.exits, system.forks) == ([], [])
    component.going_on.set()
    for _ in range(3):
        component.start().join(10)
    assert (len(system.exits), len(system.forks)) == (1, 1)


def test_at_exit_what_is_pending_is_finished(system: System) -> None:
    """``finish`` is called at exit with the number of seconds that it has."""
    component = Component()
    thread = component.start()
    system.exits[0]()
    thread.join(10)
    assert component.calls == [True, ('finish', EXIT_GRACE)]


def test_a_child_does_not_finish_for_its_parent(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child does not call the ``finish`` that it inherits; it finishes what it has started
    itself."""
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
    """What is registered for exit and fork does not keep a component alive."""
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


def test_after_fork_calls_the_method_in_each_child(system: System) -> None:
    """``after_fork`` calls a bound method in each forked child, as long as its object lives."""
    component = Component()
    after_fork(component.reset)
    system.forks[0]()
    system.forks[0]()
    assert component.calls == ['reset', 'reset']
    del component
    gc.collect()
    system.forks[0]()


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_fork_while_a_lock_is_held() -> None:
    """A child has locks and threads of its own, even if a thread of the parent held a lock."""
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
