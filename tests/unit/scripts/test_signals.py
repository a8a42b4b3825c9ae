"""Signals of ``psendmail-qp`` that come from a supervisor; for the others see ``test_qp``."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pyramid_sendmail.scripts.signals import Signals, blocked_signals, unblock_signals


def requested(signals: Signals, number: int) -> None:
    """Request a signal, in another thread as a child does."""
    thread = threading.Thread(target=signals.request, args=(number,))
    thread.start()
    thread.join()


def test_requested() -> None:
    """A requested signal sets ``stop`` and calls ``wake``. The real one still counts as the first:
    only one after it would end the process at once."""
    woken = threading.Event()
    with Signals(wake=woken.set) as signals:
        requested(signals, signal.SIGTERM)
        assert signals.stop.wait(10)
        assert woken.is_set()
        assert signals.status == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_requested_after_the_real_one() -> None:
    """It is not the second one, which would end the process."""
    with Signals(wake=lambda: None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        requested(signals, signal.SIGTERM)
        assert signals.number == signal.SIGTERM


def test_requested_while_loading() -> None:
    """Without ``wake`` it raises KeyboardInterrupt in the main thread."""

    def load(signals: Signals) -> None:
        requested(signals, signal.SIGTERM)
        threading.Event().wait(10)

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        load(signals)
    assert signals.number == signal.SIGTERM


def _to_this_thread(number: signal.Signals) -> None:
    """Send a signal to this thread: another one, of the test runner, may not block it."""
    signal.pthread_kill(threading.get_ident(), number)


def test_blocked() -> None:
    """A blocked signal comes when it is unblocked, or at the end."""
    with Signals(wake=lambda: None) as signals:
        with blocked_signals():
            _to_this_thread(signal.SIGINT)
            assert not signals.number
            unblock_signals()
            assert signals.number == signal.SIGINT
        with blocked_signals():
            _to_this_thread(signal.SIGTERM)
            assert signals.number == signal.SIGINT
        assert signals.number == signal.SIGTERM
