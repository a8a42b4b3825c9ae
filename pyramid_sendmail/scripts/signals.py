"""Signals to ``psendmail-qp``: those that stop it, and the one that has it scan the queue."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..threads import BackgroundThread

__all__ = ['EXIT_SIGNAL', 'SCAN_SIGNAL', 'Signals', 'blocked_signals', 'unblock_signals']

EXIT_SIGNAL = 128
"""The exit status of a run that a signal ended early is this plus the number of the signal."""

SCAN_SIGNAL = signal.SIGUSR1
"""Has a processor scan its queue, and try an unavailable relay, now."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

HANDLED = (*STOPPING, SCAN_SIGNAL)


class Signals:
    """Handles SIGTERM, SIGINT (Ctrl-C), SIGHUP (the terminal was closed) and SCAN_SIGNAL.

    The first of each sets ``stop`` and calls ``wake``; before there is a ``wake``, it raises
    KeyboardInterrupt. A second one of the same kind ends the process at once. Under nohup SIGHUP
    stays ignored. Only a repeated signal of the same kind is a second one: a process manager that
    gets Ctrl-C sends SIGTERM to its children, which had the SIGINT of the terminal already.

    SCAN_SIGNAL calls ``scan_now``, once there is one: whatever starts later scans anyway.

    Python calls a handler in the main thread alone, when that has something to do. The system may
    give a signal to another thread, while the main thread has one already: so a thread waits for
    all of them, and calls ``wake``.
    """

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self.stop = threading.Event()
        self.number = 0
        """The number of the last signal, or 0."""
        self.wake = wake
        self.scan_now: Callable[[], None] | None = None
        self.scans = 0
        """How often a scan was requested."""
        self._requested = 0

    @property
    def status(self) -> int:
        """The exit status of a run that a signal may have ended early."""
        return EXIT_SIGNAL + self.number if self.number else 0

    def request(self, number: int) -> None:
        """Stop as if this signal had come. Any thread may call it.

        It never counts as the first of two: the real signal may come as well, before or after.
        """
        self._requested = number
        # This does nothing if the real signal has come: its handler is the system's by then.
        _thread.interrupt_main(signal.Signals(number))
        if self.wake is not None:
            self.wake()

    def request_scan(self) -> None:
        """Do as if SCAN_SIGNAL had come. Any thread may call it."""
        self.scans += 1
        if self.scan_now is not None:
            self.scan_now()

    def __enter__(self) -> Signals:
        self._write_end = None if _has_wakeup_fd() else self._start_listening()
        self._before = {
            number: signal.signal(number, self._handle)
            for number in STOPPING
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        self._before[SCAN_SIGNAL] = signal.signal(
            SCAN_SIGNAL, lambda number, frame: self.request_scan()
        )
        return self

    def _start_listening(self) -> int:
        """Start the thread; return the descriptor whose end ends it."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        BackgroundThread(
            target=self._listen, args=(read_end,), name='pyramid_sendmail signals', daemon=True
        ).start()
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        return write_end

    def _listen(self, read_end: int) -> None:
        with open(read_end, 'rb', 0) as signals:
            while signals.read(64):
                if self.wake is not None:
                    self.wake()

    def _handle(self, number: int, frame: object) -> None:
        if number == self._requested:
            self._requested = 0
        else:
            signal.signal(number, signal.SIG_DFL)
        self.number = number
        self.stop.set()
        if self.wake is None:
            raise KeyboardInterrupt
        self.wake()

    def __exit__(self, *exc_info: object) -> None:
        if self._write_end is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._write_end)
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _has_wakeup_fd() -> bool:
    """Whether a signal is written to a descriptor already: the supervisor has its own."""
    before = signal.set_wakeup_fd(-1)
    if before != -1:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
    return before != -1


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals. A program that starts meanwhile inherits that, and unblocks them: a Ctrl-C
    while it imports its modules would end it with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Undo ``blocked_signals`` in a program that has started meanwhile: pending signals come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
